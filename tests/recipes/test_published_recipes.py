"""The published trainings: as many weights as their authors say, settings that hold together, and their numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fill import inp
from held import Held
from models.test_published import COUNTS, count
from sfumato.data.fingerprint import Fingerprint
from sfumato.data.scenes import LABELS
from sfumato.models.config import LayoutConfig
from sfumato.models.latent_diffusion import hollow, hollowed
from sfumato.nets.classifier import Classifier, ClassifierSize
from sfumato.recipes import RECIPES, diffusion, published
from sfumato.recipes.classifier import ClassifierTraining
from sfumato.recipes.material import Material
from sfumato.recipes.settings import DiffusionTraining
from sfumato.train.ema import Ema

CONDITIONERS = {  # systems.md 7.2: weights of what is trained beside the U-Net
    "ldm-cin-vq-f8": 512_000,
    "ldm-cin": 512_512,
    "ldm-txt2img": 581_994_042,
    "ldm-text2img256": 186_154_682,
    "ldm-layout2img": 58_858_496,
    "ldm-semantic": 546,
    "sd-v1": 123_060_480,
}
TRAINED = {  # systems.md 14, 17, 19: steps, batch, rate, steps of warm-up, distance, decay of weights
    "ldm-celebahq": (410_000, 48, 9.6e-5, 0, "l2", 0.01),
    "ldm-ffhq": (635_000, 42, 8.4e-5, 0, "l2", 0.01),
    "ldm-lsun-bedrooms": (1_900_000, 48, 9.6e-5, 0, "l2", 0.01),
    "ldm-lsun-churches": (500_000, 96, 5e-5, 10_000, "l1", 0.01),
    "ldm-cin": (178_000, 1200, 1e-4, 0, "l2", 0.01),
    "ldm-txt2img": (390_000, 680, 1e-4, 0, "l2", 0.01),
    "ldm-layout2img": (4_400_000, 24, 4.8e-5, 0, "l1", 0.01),
    "ldm-sr": (860_000, 64, 6.4e-5, 0, "l2", 0.01),
    "ldm-inpainting": (360_000, 128, 1e-6, 1000, "l1", 0.01),
    "ldm-semantic": (360_000, 48, 4.8e-5, 0, "l1", 0.01),
    "sd-v1": (431_000, 2048, 1e-4, 10_000, "l2", 0.01),
    "ddpm-cifar10": (800_000, 128, 2e-4, 5000, "l2", 0),
    "ddpm-celebahq": (500_000, 64, 2e-5, 5000, "l2", 0),
    "ddpm-bedroom": (2_400_000, 64, 2e-5, 5000, "l2", 0),
    "ddpm-cat": (1_800_000, 64, 2e-5, 5000, "l2", 0),
    "ddpm-church": (1_200_000, 64, 2e-5, 5000, "l2", 0),
    "adm-64": (540_000, 2048, 3e-4, 0, "l2", 0),
    "adm-128": (4_360_000, 256, 1e-4, 0, "l2", 0),
    "adm-256": (1_980_000, 256, 1e-4, 0, "l2", 0),
    "adm-512": (1_940_000, 256, 1e-4, 0, "l2", 0),
    "adm-64-to-256": (500_000, 256, 1e-4, 0, "l2", 0),
    "adm-128-to-512": (1_050_000, 256, 1e-4, 0, "l2", 0),
}
ABAR = {  # systems.md 2.2: alpha-bar at t = 499, or 249 where that is not said
    "ldm-celebahq": (499, 0.1158444908),
    "ldm-lsun-churches": (499, 0.1510774233),
    "ldm-inpainting": (499, 0.1085759962),
    "sd-v1": (499, 0.2776696505),
    "ddpm-cifar10": (499, 0.07858724288),
    "adm-64": (499, 0.4938435904),
}


def training(name: str) -> DiffusionTraining:
    found = RECIPES[name].settings(None)
    assert isinstance(found, DiffusionTraining)
    return found


def everything() -> Material:
    """Pictures of which all is said, but in words."""
    pictures = Held([inp("x", 3, 8, 8).clamp(-1, 1)])
    pictures.fields = frozenset({"image", "caption", "label", "map", "boxes"})
    return Material(pictures, pictures, None, lambda _: ({},), "all", Fingerprint.of(range(1)), ("one",))


@pytest.mark.parametrize("name", published.MODELS)
def test_the_weights_are_as_many_as_are_said(name: str) -> None:
    config = training(name).model
    model = hollow(config)
    assert count(model.net) == COUNTS[published.MODELS[name].unet]
    assert (0 if model.conditioner is None else count(model.conditioner)) == CONDITIONERS.get(name, 0)
    first = published.MODELS[name].first_stage
    assert count(model.first_stage) == (COUNTS[first] if first else 0)


@pytest.mark.parametrize("name", published.MODELS)
def test_the_settings_hold_together(name: str, tmp_path: Path) -> None:
    settings = training(name)
    if name == "sd-v1":
        with pytest.raises(ValueError, match="CLIP's text tower is used as it is; say with told_by which model"):
            diffusion._check(settings, everything())
        settings = settings.model_copy(update={"told_by": "sd1.safetensors"})
    diffusion._check(settings, everything())
    assert settings.name == name
    factor = hollow(settings.model).factor
    assert settings.model.resolution % factor == 0
    if settings.first_stage is not None and settings.model.first_stage is not None:
        settings.first_stage.check(settings.model.resolution, settings.model.first_stage.factor)


@pytest.mark.parametrize("name", TRAINED)
def test_they_are_trained_as_their_authors_say(name: str) -> None:
    steps, batch, rate, warmup, distance, decay = TRAINED[name]
    run = training(name).diffusion
    assert (run.plan.steps, run.plan.batch, run.plan.warmup, run.plan.weight_decay) == (steps, batch, warmup, decay)
    assert run.plan.rate == pytest.approx(rate)
    assert [run.plan.rate_at(s) for s in (warmup, steps // 2, steps)] == pytest.approx([rate] * 3)
    assert run.plan.rate_at(0) == pytest.approx(rate / max(1, warmup))
    assert (run.plan.betas, run.plan.ema) == ((0.9, 0.999), 0.9999)
    assert run.plan.ema_warmup == name.startswith(("ldm", "sd"))
    assert run.plan.clip == (1 if name.startswith("ddpm") else 1e6)
    assert (run.loss.distance, run.loss.hybrid) == (distance, 0.001 if name.startswith("adm") else 0)
    assert (run.times, run.loss.weighting, run.loss.offset) == ("uniform", "simple", 0)


@pytest.mark.parametrize("name", ABAR)
def test_the_schedules_are_theirs(name: str) -> None:
    t, wanted = ABAR[name]
    model = training(name).model
    level = model.schedule.build().level(torch.tensor(float(t), dtype=torch.float64))
    assert level.alpha.square().item() == pytest.approx(wanted, rel=1e-6)
    assert model.prediction.value == "eps"


def test_layouts_are_told_as_theirs_were() -> None:
    kind = training("ldm-layout2img").model.conditioner
    assert isinstance(kind, LayoutConfig)
    assert (kind.vocabulary, kind.encoder.length, kind.window) == (8192, 92, True)
    assert kind.names == LABELS  # of the scenes, where no folder is given
    run = training("ldm-layout2img").diffusion
    assert (run.flips, run.drop) == (True, 0)
    sampled = training("ldm-layout2img").defaults
    assert (sampled.sampler, sampled.steps, sampled.guidance) == ("ddim", 200, 1.0)


def test_the_drop_out_is_theirs() -> None:
    found = {name: training(name).model.unet.dropout for name in published.MODELS}
    assert {name for name, part in found.items() if part} == {"ddpm-cifar10", "adm-64", "adm-lsun"}
    assert {found[name] for name in ("ddpm-cifar10", "adm-64", "adm-lsun")} == {0.1}


@pytest.mark.parametrize(
    ("name", "side", "plan"),
    [
        ("adm-classifier-64", 64, (300_000, 1024, 6e-4, 0.2)),
        ("adm-classifier-128", 128, (300_000, 256, 3e-4, 0.05)),
        ("adm-classifier-256", 256, (500_000, 256, 3e-4, 0.05)),
        ("adm-classifier-512", 512, (500_000, 256, 3e-4, 0.05)),
    ],
)
def test_classifiers(name: str, side: int, plan: tuple[float, ...]) -> None:
    settings = RECIPES[name].settings(None)
    assert isinstance(settings, ClassifierTraining)
    with hollowed():
        assert count(Classifier(ClassifierSize(body=settings.body, classes=1000, side=side))) == COUNTS[name]
    p = settings.plan
    assert (p.steps, p.batch, p.rate, p.weight_decay) == plan


def test_an_average_without_warm_up_keeps_its_decay() -> None:
    net = torch.nn.Linear(1, 1)
    assert [Ema(net, 0.9, warmup=False).decay_at(n) for n in (1, 2, 1000)] == [0.9] * 3
    assert [Ema(net, 0.9999).decay_at(n) for n in (1, 2, 10)] == pytest.approx([2 / 11, 0.25, 0.55])
