"""Tiny pictures without a first stage: the network paints pixels, of a class where the folder has classes."""

from pathlib import Path
from statistics import median

from sfumato.data import Emoji, Split, opened
from sfumato.io.model_folder import Defaults
from sfumato.models.config import LabelsConfig, ModelConfig, ScheduleConfig
from sfumato.nets.unet import UNetSize
from sfumato.recipes.classes import told
from sfumato.recipes.material import Material, held_out
from sfumato.recipes.settings import DiffusionRun, DiffusionTraining
from sfumato.train.plan import Plan

SMALLEST, LARGEST, STEP = 8, 32, 4  # pixels a side
DIM = 64  # of a class's token


def settings(data: Path | None) -> DiffusionTraining:
    """A network of 1.05 M weights and 1,000 steps, of a side and of as many classes as the folder has.

    8 x 8 digits in ten classes take four minutes of one CPU core (`python benchmarks/digits.py`).
    """
    side, classes = _found(data)
    conditioner = LabelsConfig(classes=classes + 1, dim=DIM, null=classes) if classes else None
    return DiffusionTraining(
        name="pixels",
        defaults=Defaults(sampler="dpmpp_2m", steps=20, guidance=1.5 if classes else 1.0),
        model=ModelConfig(
            conditioner=conditioner,
            unet=UNetSize(
                channels=3,
                width=32,
                mult=(1, 2),
                blocks=1,
                attention=(2,),
                attends="transformer" if classes else "plain",
                head_dim=16,
                context_dim=DIM if classes else None,
                modulation="scale_shift",
            ),
            schedule=ScheduleConfig(kind="cosine"),
            resolution=side,
        ),
        diffusion=DiffusionRun(plan=Plan(steps=1000, batch=64, rate=2e-3, warmup=50, ema=0.995, save=250, preview=500)),
    )


def material(data: Path | None, settings: DiffusionTraining) -> Material:
    """A folder, or the emoji world, whose pictures have no classes."""
    size, hold = settings.model.resolution, settings.diffusion.validation != 0
    if data is None:
        world, about, printed = Emoji(size=size), "emoji world, all styles", Emoji(split="all").fingerprint
        unseen = Emoji(size=size, split=Split.CONCEPT) if hold else None
        return Material(world, world, None, lambda _: ({},), about, printed, validation=unseen)
    whole = opened(data, size=size)
    rest, unseen = held_out(whole) if hold else (whole, None)
    about = f"{len(whole)} pictures of the folder {data.name}" + _classes(whole.classes)
    return Material(rest, rest, None, told, about, whole.fingerprint, whole.classes, unseen)


def _classes(names: tuple[str, ...]) -> str:
    """The labels of classes, for the card of the model."""
    return f", classes {', '.join(f'{k} {name}' for k, name in enumerate(names))}" if names else ""


def _found(data: Path | None) -> tuple[int, int]:
    """The side for the pictures of a folder, and how many classes it has."""
    if data is None:
        return LARGEST, 0
    whole = opened(data, size=SMALLEST)
    side = int(median(min(sides) for sides in whole.sides)) // STEP * STEP
    return max(SMALLEST, min(LARGEST, side)), len(whole.classes)
