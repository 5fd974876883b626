"""A whole model over pixels that is trained in a moment, and captioned pictures for it."""

from __future__ import annotations

from dataclasses import replace

import tiny
from fill import inp
from sfumato.data import Dataset, Sample
from sfumato.data.fingerprint import Fingerprint
from sfumato.io.model_folder import Defaults
from sfumato.recipes.material import Material
from sfumato.recipes.settings import DiffusionRun, DiffusionTraining
from sfumato.train.plan import Plan

PIXELS = tiny.CONFIG.model_copy(update={"first_stage": None, "unet": replace(tiny.CONFIG.unet, channels=3)})
SETTINGS = DiffusionTraining(
    name="run",
    model=PIXELS,
    diffusion=DiffusionRun(plan=Plan(steps=5, batch=4, rate=1e-3, warmup=1, save=2, preview=50), validation=2),
    defaults=Defaults(steps=1, guidance=1.0),
)


class Captioned:
    """Pictures with a caption each."""

    fields = frozenset({"image", "caption"})

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int, /) -> Sample:
        return {"image": (inp(f"{i}", 3, 8, 8) / 2).clamp(-1, 1), "caption": tiny.CAPTIONS[i % 3]}


def of(told: Dataset, unseen: Dataset | None) -> Material:
    """What a run learns from, with what is held out."""
    about = Fingerprint.of(range(12))
    return Material(told, told, None, lambda s: ({"caption": s["caption"]},), "twelve", about, validation=unseen)
