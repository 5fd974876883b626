"""The losses as settings: by default a step is what it was, and what cannot be trained is refused at once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
from fill import inp
from sfumato.cli.main import main
from sfumato.data import opened
from sfumato.diffusion.noise import Address
from sfumato.diffusion.objective import Loss, noised
from sfumato.io import pictures, tensors
from sfumato.io.model_folder import Defaults
from sfumato.models.config import ModelConfig, ScheduleConfig
from sfumato.models.latent_diffusion import LatentDiffusion
from sfumato.nets.unet import UNetSize
from sfumato.recipes import told
from sfumato.recipes.diffusion import run
from sfumato.recipes.events import Wrote
from sfumato.recipes.material import Material
from sfumato.recipes.settings import DiffusionRun, DiffusionTraining
from sfumato.recipes.told import Told
from sfumato.train.plan import Plan

UNET = UNetSize(channels=3, width=16, mult=(1, 2), blocks=1, attention=(2,), head_dim=8)
PLAIN = ModelConfig(unet=UNET, schedule=ScheduleConfig(kind="cosine"), resolution=8)
LEARNED = PLAIN.model_copy(update={"unet": replace(UNET, out_channels=6)})
PLAN = Plan(steps=2, batch=2, rate=1e-2, warmup=0, precision="fp32")


def settings(model: ModelConfig, **fields: object) -> DiffusionTraining:
    run = DiffusionRun.model_validate({"plan": PLAN, **fields})
    return DiffusionTraining(name="run", model=model, diffusion=run, defaults=Defaults(steps=1, guidance=1.0))


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    root = tmp_path_factory.mktemp("data") / "things"
    for i in range(4):
        pictures.save_png((inp(f"picture {i}", 3, 8, 8) / 2).clamp(-1, 1), root / f"{i}.png", {})
    whole = opened(root, size=8)
    return Material(whole, whole, None, lambda _: ({},), "four pictures", whole.fingerprint)


def awake(config: ModelConfig) -> LatentDiffusion:
    model = LatentDiffusion(config)
    tiny.awake(model)
    return model


def test_by_default_a_step_is_the_old_formula() -> None:
    """Loss and gradient, bit for bit."""
    model, at = awake(PLAIN), Address.of(0, torch.arange(4), 3)
    batch = {"mean": inp("pictures", 4, 3, 8, 8)}
    chosen = settings(PLAIN).diffusion
    assert chosen.loss == Loss()
    got = Told(model, chosen.drop, chosen.times, chosen.loss)(batch, at).loss
    x, eps, level = noised(model.denoiser.schedule, batch["mean"], at)
    off = model.denoiser.net(x, level.t.float().reshape(-1)) - model.denoiser.prediction.target(
        batch["mean"], eps, level
    )
    expected = off.square().flatten(1).mean(1).mean()
    assert torch.equal(got, expected)
    weights = list(model.denoiser.parameters())
    both = (torch.autograd.grad(loss, weights) for loss in (got, expected))
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


def test_the_settings_reach_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def loss(_: object, z: Tensor, *rest: object, **more: object) -> Tensor:
        seen.append(more["loss"])
        return z.flatten(1).mean(1)

    monkeypatch.setattr(told, "denoising_loss", loss)
    chosen = settings(PLAIN, loss={"weighting": "min_snr", "gamma": 3, "offset": 0.05}).diffusion
    objective = Told(awake(PLAIN), chosen.drop, chosen.times, chosen.loss)
    objective({"mean": inp("pictures", 2, 3, 8, 8)}, Address.of(0, torch.arange(2)))
    assert seen == [Loss(weighting="min_snr", gamma=3.0, offset=0.05)]


def test_the_settings_survive_json() -> None:
    chosen = settings(LEARNED, loss={"hybrid": 0.001, "distance": "huber", "weighting": "sigmoid", "bias": -2})
    again = DiffusionTraining.model_validate(json.loads(json.dumps(chosen.model_dump(mode="json"))))
    assert again == chosen
    assert again.diffusion.loss == Loss(hybrid=0.001, distance="huber", weighting="sigmoid", bias=-2)


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        (LEARNED, {}, "set hybrid=0.001"),
        (PLAIN, {"loss": {"hybrid": 0.001}}, "this one does not"),
        (PLAIN, {"loss": {"weighting": "bound"}, "times": "logit_normal"}, "take 'uniform' or 'stratified'"),
        (
            PLAIN.model_copy(update={"schedule": ScheduleConfig(kind="flow")}),
            {"loss": {"weighting": "bound"}},
            "no weighting 'bound'",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_done(
    model: ModelConfig, fields: dict[str, object], message: str, material: Material, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(settings(model, **fields), material, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_network_learns_its_variance_in_a_run(material: Material, tmp_path: Path) -> None:
    """Two steps, after which the half of the last layer that says the variance has moved too."""
    events = list(run(settings(LEARNED, loss={"hybrid": 0.001, "weighting": "p2"}), material, tmp_path / "run"))
    last = events[-1]
    assert isinstance(last, Wrote)
    assert last.path == tmp_path / "run" / "model"
    assert len((tmp_path / "run" / "diffusion" / "metrics.jsonl").read_text().splitlines()) == 2
    trained = tensors.load(tmp_path / "run" / "diffusion" / "step-2" / "state.safetensors")
    bias = trained["module.denoiser.net.conv_out.bias"]
    assert bias.shape == (6,)
    assert float(bias[3:].abs().min()) > 0


def test_a_wrong_setting_at_the_command_line_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["train", "pixels", "--out", str(tmp_path / "run"), "--set"]
    for change, said in (
        ("diffusion.loss.distance=l3", "diffusion.loss.distance"),
        ("diffusion.loss.gamma=5", "gamma is of weightings 'min_snr' and 'p2' alone"),
        ("diffusion.loss.hybrid=0.001", "hybrid is for a network that learns its variance, and this one does not"),
    ):
        assert main([*arguments, change]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert len(error.strip().splitlines()) == 1
