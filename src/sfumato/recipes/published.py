"""The trainings of published models, a row each: sizes, schedule, loss, rate, batch and average of their authors.

LDM and Stable Diffusion (Rombach et al. 2022, app. E and the released configurations), DDPM (Ho et al. 2020, app. B),
ADM and its classifiers (Dhariwal & Nichol 2021, app. H and I). They are for GPUs. Batches are those of all devices
together. What is ours is said in docs/recipes.md.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sfumato.diffusion.objective import SIMPLE, Loss
from sfumato.io.model_folder import Defaults
from sfumato.models.config import (
    BertConfig,
    ClipConfig,
    Conditioning,
    LabelsConfig,
    LayoutConfig,
    ModelConfig,
    SegmentationConfig,
    TableConfig,
    sized,
)
from sfumato.models.published import CLASSIFIERS, ENCODERS, FIRST_STAGES, TRAININGS, UNETS
from sfumato.recipes import classes, emoji, first_stages, layout, small, translated
from sfumato.recipes.classifier import ClassifierTraining
from sfumato.recipes.material import Material
from sfumato.recipes.settings import DiffusionRun, DiffusionTraining, Layouts, Showing
from sfumato.train.plan import Plan

UNBOUNDED = 1e6  # norm of a gradient: LDM and ADM clip none
LDM: dict[str, Any] = {"precision": "fp32", "betas": (0.9, 0.999), "ema": 0.9999, "clip": UNBOUNDED, "warmup": 0}
DDPM: dict[str, Any] = {**LDM, "clip": 1.0, "weight_decay": 0.0, "ema_warmup": False, "warmup": 5000}
ADM: dict[str, Any] = {**LDM, "precision": "bf16", "weight_decay": 0.0, "ema_warmup": False}
HYBRID = Loss(hybrid=0.001)
ABSOLUTE = Loss(distance="l1")
IMAGENET = TableConfig(classes=1000)
DDIM = Defaults(sampler="ddim", steps=200, guidance=1.0)
MIDDLE = Layouts()


@dataclass(frozen=True, kw_only=True)
class Published:
    """A model's training. `unet` is its name in models/published.py, where its schedule and resolution are too."""

    about: str
    unet: str
    first_stage: str | None = None  # by its name there
    steps: int
    batch: int  # on all devices together
    rate: float  # as it was used, whatever it was multiplied by
    plan: Mapping[str, Any] = field(default_factory=lambda: LDM)
    loss: Loss = SIMPLE
    conditioner: Conditioning | Callable[[Path | None], Conditioning] | None = None  # or as the data have it
    drop: float = 0.0  # of conditions
    dropout: float | None = None  # in the network, where it is another than the size says
    flips: bool = False
    resolution: int | None = None  # where it is another than is said there
    layouts: Layouts = MIDDLE
    sampling: Defaults = DDIM
    material: Callable[[Path | None, DiffusionTraining], Material] = small.pictures

    def settings(self, name: str, data: Path | None = None) -> DiffusionTraining:
        """The settings of the run; `data` is a folder that the conditioner may have to know."""
        trained, unet = TRAININGS[self.unet], UNETS[self.unet]
        plan = Plan(
            **{**dict(self.plan), "steps": self.steps, "batch": self.batch, "rate": self.rate},
            floor=1.0,
            save=5000,
            preview=5000,
        )
        showing = Showing(degradation="area" if self.unet.startswith("adm") else "light")
        return DiffusionTraining(
            name=name,
            defaults=self.sampling,
            model=ModelConfig(
                first_stage=None if self.first_stage is None else FIRST_STAGES[self.first_stage],
                conditioner=self.conditioner(data) if callable(self.conditioner) else self.conditioner,
                unet=unet if self.dropout is None else replace(unet, dropout=self.dropout),
                schedule=trained.schedule,
                prediction=trained.prediction,
                resolution=self.resolution or trained.resolution,
                maps=trained.maps,
            ),
            first_stage=None if self.first_stage is None else first_stages.published(self.first_stage).run,
            diffusion=DiffusionRun(
                plan=plan, drop=self.drop, loss=self.loss, flips=self.flips, showing=showing, layouts=self.layouts
            ),
        )


def _captioned(data: Path | None, settings: DiffusionTraining) -> Material:
    return emoji.material(data, settings.model.resolution)


def _bert(name: str) -> BertConfig:
    words, size = ENCODERS[name]
    return BertConfig(encoder=size, vocabulary=words)


def _layout(data: Path | None) -> LayoutConfig:
    numbers, size = ENCODERS["ldm-layout"]
    return sized(LayoutConfig, data, encoder=size, vocabulary=numbers, names=layout.labels(data))


def _clip() -> ClipConfig:
    words, size = ENCODERS["clip-vit-l-14"]
    return ClipConfig(encoder=size, vocabulary=words)


def _sampled(steps: int, guidance: float = 1.0, sampler: str = "ddim") -> Defaults:
    return Defaults(sampler=sampler, steps=steps, guidance=guidance)


_FACES: dict[str, Any] = {"unet": "ldm-celebahq", "first_stage": "vq-f4"}
_TOLD: dict[str, Any] = {"drop": 0.1, "material": _captioned}
_CLASSED: dict[str, Any] = {"material": classes.classed}
_ADM: dict[str, Any] = {"plan": ADM, "loss": HYBRID, "flips": True, "sampling": _sampled(250, sampler="ddpm_learned")}
_IMAGENET: dict[str, Any] = {**_ADM, **_CLASSED, "conditioner": IMAGENET}
_DDPM: dict[str, Any] = {
    "unet": "ddpm-256",
    "plan": DDPM,
    "batch": 64,
    "rate": 2e-5,
    "sampling": _sampled(1000, sampler="ddpm"),
}

MODELS: dict[str, Published] = {
    "ldm-celebahq": Published(about="LDM's faces of CelebA-HQ", **_FACES, steps=410_000, batch=48, rate=9.6e-5),
    "ldm-ffhq": Published(about="LDM's faces of FFHQ", **_FACES, steps=635_000, batch=42, rate=8.4e-5),
    "ldm-lsun-bedrooms": Published(
        about="LDM's bedrooms", **_FACES, steps=1_900_000, batch=48, rate=9.6e-5, flips=True
    ),
    "ldm-lsun-churches": Published(
        about="LDM's churches",
        unet="ldm-churches",
        first_stage="kl-f8",
        steps=500_000,
        batch=96,
        rate=5e-5,
        plan={**LDM, "warmup": 10_000},
        loss=ABSOLUTE,
        flips=True,
        sampling=_sampled(400),
    ),
    "ldm-cin-vq-f8": Published(
        about="LDM's ImageNet of factor 8, guided by a classifier",
        unet="ldm-cin-vq-f8",
        first_stage="vq-f8",
        steps=2_000_000,
        batch=64,
        rate=6.4e-5,
        conditioner=LabelsConfig(classes=1000, dim=512),
        **_CLASSED,
    ),
    "ldm-cin": Published(
        about="LDM's ImageNet of factor 4, guided by itself (cin256-v2)",
        unet="ldm-cin256",
        first_stage="vq-f4",
        steps=178_000,
        batch=1200,
        rate=1e-4,
        conditioner=LabelsConfig(classes=1001, dim=512, null=1000),
        drop=0.1,
        sampling=_sampled(250, 1.5),
        **_CLASSED,
    ),
    "ldm-txt2img": Published(
        about="LDM's text to image of 1.45 billion weights",
        unet="ldm-txt2img-1p4b",
        first_stage="kl-f8",
        steps=390_000,
        batch=680,
        rate=1e-4,
        conditioner=_bert("ldm-bert-1280"),
        sampling=_sampled(50, 5.0),
        **_TOLD,
    ),
    "ldm-text2img256": Published(
        about="LDM's text to image of Conceptual Captions",
        unet="ldm-text2img256",
        first_stage="vq-f4",
        steps=390_000,
        batch=28,
        rate=5.6e-5,
        conditioner=_bert("ldm-bert-640"),
        sampling=_sampled(100),
        **_TOLD,
    ),
    "ldm-layout2img": Published(
        about="LDM's layouts of Open Images",
        unet="ldm-layout2img",
        first_stage="vq-f4",
        steps=4_400_000,
        batch=24,
        rate=4.8e-5,
        loss=ABSOLUTE,
        conditioner=_layout,
        flips=True,
        layouts=Layouts(least_area=1e-4, least=2, crops=8, windows="random-2d"),
        material=layout.material,
    ),
    "ldm-sr": Published(
        about="LDM's super-resolution, four times",
        unet="ldm-super-resolution",
        first_stage="vq-f4",
        steps=860_000,
        batch=64,
        rate=6.4e-5,
        sampling=_sampled(100),
    ),
    "ldm-inpainting": Published(
        about="LDM's inpainting, the big one",
        unet="ldm-inpainting-big",
        first_stage="vq-f4-noattn",
        steps=360_000,
        batch=128,
        rate=1e-6,
        plan={**LDM, "warmup": 1000},
        loss=ABSOLUTE,
        sampling=_sampled(50),
    ),
    "ldm-semantic": Published(
        about="LDM's landscapes of maps of 182 classes",
        unet="ldm-semantic",
        first_stage="vq-f4",
        steps=360_000,
        batch=48,
        rate=4.8e-5,
        loss=ABSOLUTE,
        conditioner=SegmentationConfig(classes=182, stages=2),
        material=translated.mapped,
    ),
    "sd-v1": Published(
        about="Stable Diffusion 1, told by CLIP as it is (told_by=FILE)",
        unet="sd1",
        first_stage="kl-f8",
        steps=431_000,
        batch=2048,
        rate=1e-4,
        plan={**LDM, "warmup": 10_000, "precision": "bf16"},
        conditioner=_clip(),
        sampling=_sampled(50, 7.5),
        **_TOLD,
    ),
    "ddpm-cifar10": Published(
        about="DDPM's CIFAR-10",
        **{**_DDPM, "unet": "ddpm-cifar10", "batch": 128, "rate": 2e-4},
        steps=800_000,
        flips=True,
    ),
    "ddpm-celebahq": Published(about="DDPM's faces of CelebA-HQ", **_DDPM, steps=500_000, flips=True),
    "ddpm-bedroom": Published(about="DDPM's bedrooms", **_DDPM, steps=2_400_000),
    "ddpm-cat": Published(about="DDPM's cats", **_DDPM, steps=1_800_000, flips=True),
    "ddpm-church": Published(about="DDPM's churches", **_DDPM, steps=1_200_000, flips=True),
    "adm-64": Published(about="ADM's ImageNet", unet="adm-64", steps=540_000, batch=2048, rate=3e-4, **_IMAGENET),
    "adm-128": Published(about="ADM's ImageNet", unet="adm-128", steps=4_360_000, batch=256, rate=1e-4, **_IMAGENET),
    "adm-256": Published(about="ADM's ImageNet", unet="adm-256", steps=1_980_000, batch=256, rate=1e-4, **_IMAGENET),
    "adm-512": Published(about="ADM's ImageNet", unet="adm-512", steps=1_940_000, batch=256, rate=1e-4, **_IMAGENET),
    "adm-lsun": Published(
        about="ADM's LSUN of 256 pixels",
        unet="adm-256-unconditional",
        dropout=0.1,
        steps=500_000,
        batch=256,
        rate=1e-4,
        **_ADM,
    ),
    "adm-64-to-256": Published(
        about="ADM's upsampler", unet="adm-64-to-256", steps=500_000, batch=256, rate=1e-4, **_IMAGENET
    ),
    "adm-128-to-512": Published(
        about="ADM's upsampler", unet="adm-128-to-512", steps=1_050_000, batch=256, rate=1e-4, **_IMAGENET
    ),
}

# ADM's classifiers: steps, batch, rate, weight decay --------------------------------------------------------
_READERS = {
    64: (300_000, 1024, 6e-4, 0.2),
    128: (300_000, 256, 3e-4, 0.05),
    256: (500_000, 256, 3e-4, 0.05),
    512: (500_000, 256, 3e-4, 0.05),
}
READERS = {f"adm-classifier-{side}": side for side in _READERS}


def reader(name: str) -> ClassifierTraining:
    """The settings of one of ADM's classifiers; the model that it is for is still to be said."""
    steps, batch, rate, decay = _READERS[READERS[name]]
    plan = Plan(
        **{**ADM, "ema": 0.0, "weight_decay": decay},
        steps=steps,
        batch=batch,
        rate=rate,
        floor=1.0,
        save=5000,
        preview=5000,
    )
    return ClassifierTraining(name=name, body=CLASSIFIERS[name].body, plan=plan, flips=True)
