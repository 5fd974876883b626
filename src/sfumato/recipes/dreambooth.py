"""DreamBooth: a model learns one thing by a few pictures, and keeps what it paints of its kind (Ruiz et al. 2023)."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from sfumato.io.model_folder import Loaded
from sfumato.models.config import BertConfig, ClipConfig, WordsConfig
from sfumato.recipes import base
from sfumato.recipes.base import Tuning
from sfumato.recipes.events import Event
from sfumato.recipes.finetune import Whole
from sfumato.recipes.lora import SMALL, Low, LowRankChange
from sfumato.recipes.material import Material
from sfumato.recipes.preserved import Prior
from sfumato.recipes.settings import DiffusionRun
from sfumato.recipes.tuning import Change, tuned
from sfumato.train.plan import Plan
from sfumato.world import ALONE, World


class DreamboothTraining(Tuning):
    """All settings of a run. Every one can be set from the command line by its path: `diffusion.plan.steps=2000`."""

    prompt: str = ""  # what every picture shows, with a word of its own: "a zog mug"
    prior: Prior | None = Prior()  # the class, which is preserved; nothing is if none
    lora: Low | None = Low()  # low-rank changes; all weights if none
    conditioner: bool = False  # whether it learns too, where all weights do


def settings(model: str | None = None) -> DreamboothTraining:
    """For the bundled model, or for another one."""
    small = Plan(steps=200, batch=4, rate=2e-3, warmup=20, ema=0.98, save=100, preview=100)
    large = replace(small, steps=800, batch=1, rate=1e-4, preview=400)
    return base.on(model, _settings(small, SMALL), _settings(large, Low()))


def _settings(plan: Plan, low: Low) -> DreamboothTraining:
    return DreamboothTraining(name="dreambooth", lora=low, diffusion=DiffusionRun(plan=plan, drop=0.0))


def material(data: Path | None, settings: DreamboothTraining) -> Material:
    """The pictures of a folder, all told the same."""
    whole = base.folder(data, base.side_of(settings, base.described(settings.base)))
    return base.material_of(whole, data, lambda _: ({"caption": settings.prompt},))


def run(settings: DreamboothTraining, material: Material, out: Path, world: World = ALONE) -> Iterator[Event]:
    """Train in the folder `out`, going on from what is there. The last event names what was written.

    ValueError, before anything is done, if there is no such model, if it cannot learn so, or if nothing is said of the
    pictures or of their class.
    """
    if not settings.prompt.strip():
        raise ValueError('nothing is said of the pictures; say what they show, as prompt="a zog mug"')
    loaded = base.opened(settings)
    if not isinstance(loaded.file.config.conditioner, WordsConfig | ClipConfig | BertConfig):
        raise ValueError(f"{settings.base} is not asked with prompts, as DreamBooth needs; train a LoRA or finetune")
    if settings.prior is not None:
        settings.prior.check(loaded)
    return tuned(settings, loaded, material, _change(settings, loaded), out, world, settings.prior)


def _change(settings: DreamboothTraining, loaded: Loaded) -> Change:
    if settings.lora is not None:
        return LowRankChange(settings, loaded, settings.lora)
    return Whole(settings, loaded, conditioner=settings.conditioner)
