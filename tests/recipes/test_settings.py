"""The settings of every recipe hold together, survive JSON, and the published ones are those of their authors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from sfumato.cli import train
from sfumato.cli.main import main
from sfumato.io import pictures
from sfumato.models.latent_diffusion import hollowed
from sfumato.nets.autoencoder import Autoencoder
from sfumato.nets.patchgan import PatchGan, PatchGanSize
from sfumato.recipes import RECIPES, seen
from sfumato.recipes.first_stage import FirstStageTraining
from sfumato.recipes.first_stages import CHANNELS
from sfumato.recipes.published import MODELS, READERS

NAMES = list(RECIPES)
PUBLISHED = {  # systems.md 8.3: parameters; where the adversary begins, its weight, layers of its critic; batch
    "ldm-kl-f4": (55_312_063, 50_001, 0.5, 3, 10),
    "ldm-kl-f8": (83_653_863, 50_001, 0.5, 3, 4),
    "ldm-kl-f16": (69_610_963, 50_001, 0.5, 3, 6),
    "ldm-kl-f32": (103_880_131, 50_001, 0.5, 3, 6),
    "ldm-vq-f4": (55_322_782, 0, 0.75, 3, 8),
    "ldm-vq-f4-noattn": (53_219_486, 11, 0.75, 3, 8),
    "ldm-vq-f8": (67_717_295, 1, 0.6, 2, 10),
    "ldm-vq-f8-n256": (67_652_783, 250_001, 0.75, 3, 10),
    "ldm-vq-f16": (69_593_371, 250_001, 0.75, 2, 14),
}
STEPS = {"ldm-kl-f4": 176_991, "ldm-kl-f8": 246_803, "ldm-kl-f16": 442_998, "ldm-kl-f32": 406_763}
STEPS |= {"ldm-vq-f4": 533_066, "ldm-vq-f4-noattn": 658_131, "ldm-vq-f8": 971_043}
STEPS |= {"ldm-vq-f8-n256": 1_608_649, "ldm-vq-f16": 1_101_166}
CRITICS = {3: 2_765_633, 2: 663_361}


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def training(name: str, data: Path | None = None) -> FirstStageTraining:
    found = RECIPES[name].settings(data)
    assert isinstance(found, FirstStageTraining)
    return found


@pytest.mark.parametrize("folder", [False, True], ids=["bundled", "folder"])
@pytest.mark.parametrize("name", NAMES)
def test_settings_survive_json(name: str, folder: bool, tmp_path: Path) -> None:
    pictures.save_png(torch.zeros(3, 16, 16), tmp_path / "grey" / "a.png", {})
    if name == "semantic" and folder:
        (tmp_path / "masks" / "grey").mkdir(parents=True)
        Image.new("L", (16, 16)).save(tmp_path / "masks" / "grey" / "a.png")
    settings = RECIPES[name].settings(tmp_path if folder else None)
    text = json.dumps(settings.model_dump(mode="json"))
    again = type(settings).model_validate(json.loads(text))
    assert again == settings
    assert json.dumps(again.model_dump(mode="json")) == text


def test_there_are_recipes_for_all() -> None:
    small = {f"{kind}-f{factor}" for kind in ("kl", "vq") for factor in (2, 4, 8, 16)}
    tasks = {"super-resolution", "inpainting", "semantic", "class-to-image", "unconditional", "classifier"}
    tasks |= {"finetune", "lora", "textual-inversion", "dreambooth", "layout", "layout-perceiver", "layout-tokens"}
    assert set(NAMES) == {"emoji", "pixels", "tiny-decoder", *tasks, *small, *PUBLISHED, *MODELS, *READERS}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name: str) -> None:
    params, start, weight, layers, batch = PUBLISHED[name]
    settings = training(name)
    adversary, plan, losses = settings.run.adversary, settings.run.plan, settings.run.losses
    with hollowed():
        assert count(Autoencoder(settings.size)) == params
    assert adversary is not None
    assert (adversary.start, adversary.weight, adversary.critic) == (start, weight, PatchGanSize(layers=layers))
    assert (adversary.warmup, adversary.loss, adversary.betas, adversary.rate) == (0, "hinge", (0.5, 0.9), None)
    with torch.device("meta"):
        assert count(PatchGan(adversary.critic)) == CRITICS[layers]
    assert (plan.steps, plan.batch) == (STEPS[name], batch)
    assert plan.rate == pytest.approx(4.5e-6 * batch)
    assert [plan.rate_at(s) for s in (0, plan.steps // 2, plan.steps)] == [plan.rate] * 3
    assert (plan.betas, plan.weight_decay) == ((0.5, 0.9), 0)
    assert (losses.absolute, losses.perceptual, losses.kl, losses.codebook, losses.commitment) == (1, 1, 1e-6, 1, 0.25)
    assert (losses.squares, losses.perceptual_from) == (0, 0)
    assert (settings.run.crop, settings.resolution) == (256, 256 if "vq-f4" in name else 384)


@pytest.mark.parametrize("data", [None, Path("pictures")], ids=["bundled", "folder"])
@pytest.mark.parametrize("factor", [2, 4, 8, 16])
@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_small_ones_are_what_their_names_say(kind: str, factor: int, data: Path | None) -> None:
    settings = training(f"{kind}-f{factor}", data)
    assert settings.size.factor == factor
    assert settings.size.latent_channels == CHANNELS[factor]
    assert bool(settings.size.codebook) == (kind == "vq")
    adversary = settings.run.adversary
    assert adversary is not None
    assert adversary.critic.least <= (settings.run.crop or settings.resolution)


TRAIN = ("train", "kl-f4", "--out", "new")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*TRAIN, "--set", "run.crop=66"), "sfumato: crop is 66; it is cut out of pictures of 64 pixels a side"),
        ((*TRAIN, "--set", "run.crop=30"), "crop is 30; it must divide by 4, the factor of the first stage"),
        ((*TRAIN, "--set", "resolution=62"), "resolution is 62; it must divide by 4, the factor of the first stage"),
        ((*TRAIN, "--set", "run.crop=0"), "run.crop: input should be greater than or equal to 1 (given: 0)"),
        (
            (*TRAIN, "--set", "run.adversary.critic.layers=5"),
            "a critic of 5 layers needs 96 pixels a side, and sees 64; take fewer layers or larger pictures",
        ),
        ((*TRAIN, "--set", "run.adversary.critic.width=0"), "adversary.critic.width is 0; it must be positive"),
        ((*TRAIN, "--set", "run.adversary.critic.layers=-1"), "adversary.critic.layers is -1; it must be positive"),
        ((*TRAIN, "--set", "run.adversary.critic.channels=4"), "adversary.critic.channels is 4; pictures have 3"),
        (
            (*TRAIN, "--set", "run.plan.steps=100"),
            "adversary.start is 1360, and the run ends at 100; begin earlier, or set the adversary to none",
        ),
        ((*TRAIN, "--set", "run.adversary.start=2000"), "adversary.start is 2000, and the run ends at 1600"),
        ((*TRAIN, "--set", "run.adversary.loss=wasserstein"), "run.adversary.loss: input should be 'hinge' or"),
        ((*TRAIN, "--set", "run.losses.beta=wrong"), "run.losses.beta: input should be 'fixed' or 'legacy'"),
        ((*TRAIN, "--set", "run.losses.patience=0"), "patience is 0; it must be at least 1"),
        ((*TRAIN, "--set", "size.mult=[]"), "size.mult is (); it must be positive"),
        ((*TRAIN, "--set", "run.features=nowhere.ckpt"), "nowhere.ckpt cannot be opened"),
        ((*TRAIN, "--set", "run.adversary=null", "run.adversary.start=3"), "there is no setting 'run.adversary.start'"),
        (("train", "tiny-decoder", "--out", "new", "--set", "teacher=emojo"), "unknown model 'emojo'"),
        (("train", "tiny-decoder", "--out", "new", "--set", "features=nowhere.ckpt"), "nowhere.ckpt cannot be opened"),
        (("train", "kl-f4", "--out", "new", "--data", "empty"), "empty: no pictures in here"),
    ],
    ids=lambda x: " ".join(x[4:]) if isinstance(x, tuple) else "",
)
def test_what_cannot_be_trained_is_a_line(
    arguments: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if "--data" not in arguments:  # the emoji world takes seconds to open
        monkeypatch.setattr(seen, "seen", lambda *_: None)
    monkeypatch.setattr(train, "_show", lambda _: pytest.fail("it began"))
    (tmp_path / "empty").mkdir()
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert out == ""
    assert err.startswith("sfumato: ")
    assert err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["empty"]


def test_an_unknown_recipe_hears_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "kl-f3"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("sfumato: unknown recipe 'kl-f3'; did you mean 'kl-f")
    assert err.endswith(f"known: {', '.join(NAMES)}\n")
    assert err.count("\n") == 1
