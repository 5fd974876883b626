"""From picture to picture: larger ones of small ones, what was in a hole, a picture of a map of classes."""

from pathlib import Path

from sfumato.data.mapped import Mapped
from sfumato.data.part import split
from sfumato.models.config import UPSCALE, SegmentationConfig
from sfumato.recipes import small
from sfumato.recipes.material import Material
from sfumato.recipes.settings import DiffusionTraining

STAGES = 2  # of halving, for a first stage of factor 4
MOST = 255  # classes of a map of 8 bits


def super_resolution(_data: Path | None) -> DiffusionTraining:
    """LDM's super-resolution in small: the picture of a quarter of the sides beside the latent (sec. 4.4).

    Its 2,000 steps were not run here. 300 short ones (docs/recipes.md) took 144 s of processor time and reach 20.4 dB
    where bicubic scaling has 20.7: sharper edges, noisy flats (`python benchmarks/tasks.py super-resolution RUN`).
    """
    return small.training("super-resolution", steps=2000, maps="low_resolution", upscale=UPSCALE)


def inpainting(_data: Path | None) -> DiffusionTraining:
    """LDM's inpainting in small: the latent of the picture with a black hole, and the hole (sec. 4.5).

    `model.maps=inpainting` is Stable Diffusion's: the hole, and the latent with a grey one. 300 short steps
    (docs/recipes.md) took 137 s of processor time and reach 19.7 dB where the mean of what is around the hole has 18.4
    (`python benchmarks/tasks.py inpainting RUN`); its 2,000 were not run here.
    """
    return small.training("inpainting", steps=2000, maps="inpainting_black")


def semantic(data: Path | None) -> DiffusionTraining:
    """LDM's semantic synthesis in small: a map of classes through its rescaler, which learns too (sec. 4.3.2).

    300 short steps (docs/recipes.md) took 113 s of processor time: 70 % of the pixels are of the colour class that was
    asked for, 43 % of that of another map (`python benchmarks/tasks.py semantic RUN`); its 2,000 were not run here.
    """
    classes = 2 if data is None else min(MOST, Mapped(data, size=small.SIDE).classes)
    conditioner = SegmentationConfig(classes=classes, stages=STAGES)
    return small.training("semantic", steps=2000, maps="segmentation", conditioner=conditioner)


def mapped(data: Path | None, settings: DiffusionTraining) -> Material:
    """A folder of pictures with a map for each; ValueError if there is none."""
    if data is None:
        raise ValueError("the bundled pictures have no maps of classes; give a folder that has, with --data DIR")
    whole = Mapped(data, size=settings.model.resolution)
    about = f"{len(whole)} pictures with maps of the folder {data.name}"
    return small.plain(*split(whole, every=small.EVERY), about, whole.fingerprint)
