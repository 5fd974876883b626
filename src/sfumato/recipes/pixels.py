"""Tiny pictures without a first stage: the network paints pixels, of a class where the folder has classes."""

from pathlib import Path
from statistics import median

from sfumato.data import Emoji, opened
from sfumato.data.sample import Sample
from sfumato.io.model_folder import Defaults
from sfumato.models.config import LabelsConfig, ModelConfig, ScheduleConfig
from sfumato.nets.unet import UNetSize
from sfumato.recipes.diffusion import DiffusionRun, DiffusionTraining, Material, Way
from sfumato.train.plan import Plan

SMALLEST, LARGEST, STEP = 8, 32, 4  # pixels a side
DIM = 64  # of a class's token


def settings(data: Path | None) -> DiffusionTraining:
    """A network of 1.05 M weights and 1,500 steps, of a side and of as many classes as the folder has.

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
        diffusion=DiffusionRun(plan=Plan(steps=1500, batch=64, rate=2e-3, warmup=50, ema=0.995, save=250, preview=500)),
    )


def material(data: Path | None, settings: DiffusionTraining) -> Material:
    """A folder, or the emoji world, whose pictures have no classes."""
    size = settings.model.resolution
    if data is None:
        world = Emoji(size=size)
        return Material(world, world, None, lambda _: ({},), "emoji world, all styles", Emoji(split="all").fingerprint)
    whole = opened(data, size=size)
    about = f"{len(whole)} pictures of the folder {data.name}" + _classes(whole.classes)
    return Material(whole, whole, None, _label if whole.classes else lambda _: ({},), about, whole.fingerprint)


def _label(sample: Sample) -> tuple[Way, ...]:
    return ({"label": sample["label"]},)


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
