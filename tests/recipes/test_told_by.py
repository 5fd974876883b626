"""A conditioner of another model, used as it is; one that is trained; and what cannot be either."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from files import KINDS, single
from fill import inp
from held import Held
from sfumato.cli.main import main
from sfumato.data import Sample
from sfumato.data.fingerprint import Fingerprint
from sfumato.diffusion.noise import Address
from sfumato.diffusion.objective import Loss
from sfumato.io import opening, tensors
from sfumato.io.model_folder import Defaults
from sfumato.models.config import ModelConfig
from sfumato.models.latent_diffusion import LatentDiffusion
from sfumato.recipes.diffusion import run
from sfumato.recipes.events import Ready
from sfumato.recipes.material import Material
from sfumato.recipes.settings import DiffusionRun, DiffusionTraining
from sfumato.recipes.told import Told
from sfumato.train.plan import Plan

SAID = ("a red apple", "two dogs", "rain")


class Captioned(Held):
    fields = frozenset({"image", "caption", "label"})

    def __getitem__(self, i: int, /) -> Sample:
        return {"image": self.images[i], "caption": SAID[i], "label": i}


def material(classes: tuple[str, ...] = ()) -> Material:
    pictures = Captioned([(0.4 * inp(f"{i}", 3, 16, 16)).clamp(-1, 1) for i in range(3)])
    ways = lambda sample: ({"caption": sample["caption"], "label": sample["label"]},)  # noqa: E731
    return Material(pictures, pictures, None, ways, "three", Fingerprint.of(range(3)), classes)


def settings(kind: str, **more: Any) -> DiffusionTraining:
    """A training of the U-Net of that kind of file, in pixels."""
    config, _ = KINDS[kind]
    unet = replace(config.unet, channels=3, map_channels=0)
    model = ModelConfig(**{**dict(config), "first_stage": None, "unet": unet, "maps": None, "resolution": 16})
    plan = Plan(steps=4, batch=3, rate=1e-3, warmup=0, save=4, precision="fp32")
    how = {"plan": plan, "drop": 0.0, "loss": Loss(hybrid=0.001 if model.learned else 0.0)}
    defaults = Defaults(steps=2, guidance=1.0)
    return DiffusionTraining(name="x", model=model, diffusion=DiffusionRun(**how), **{"defaults": defaults, **more})


def trained(of: DiffusionTraining, home: Path, classes: tuple[str, ...] = ()) -> opening.Loaded:
    list(run(of, material(classes), home))
    return opening.load(home)


def test_clip_is_used_as_it_is(tmp_path: Path) -> None:
    file = single("clip", tmp_path / "clip.safetensors")
    source = opening.load(file, precision="float32").model.conditioner
    asked = settings("clip", told_by=str(file))
    asked = asked.model_copy(update={"diffusion": asked.diffusion.model_copy(update={"drop": 0.5})})
    loaded = trained(asked, tmp_path / "run")
    assert source is not None
    assert loaded.model.conditioner is not None
    theirs = source.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in loaded.model.conditioner.state_dict().items())
    state = tensors.load(tmp_path / "run" / "diffusion" / "step-4" / "state.safetensors")
    assert not [name for name in state if "conditioner" in name]
    assert [name for name in state if name.startswith("optimizer.denoiser.net.conv_out")]
    ready = next(e for e in run(asked, material(), tmp_path / "run") if isinstance(e, Ready))
    assert ready.rests_on["weights of the conditioner"] == f"sha256 {tensors.digest(theirs)}"


def test_berts_transformer_is_trained(tmp_path: Path) -> None:
    torch.manual_seed(0)
    loaded = trained(settings("text2img"), tmp_path / "run")
    state = tensors.load(tmp_path / "run" / "diffusion" / "step-4" / "state.safetensors")
    name = "conditioner.encoder.tokens.weight"
    assert torch.equal(loaded.model.state_dict()[name], state[f"ema.{name}"])
    assert f"optimizer.{name}.exp_avg" in state


def test_rows_of_a_table_are_trained_with_a_learned_variance(tmp_path: Path) -> None:
    loaded = trained(settings("adm"), tmp_path / "run", ("a", "b", "c"))
    assert loaded.file.classes == ("a", "b", "c")
    assert loaded.file.config.learned
    state = tensors.load(tmp_path / "run" / "diffusion" / "step-4" / "state.safetensors")
    moments = state["optimizer.denoiser.net.label.weight.exp_avg"]
    assert moments[:3].abs().sum(1).min() > 0
    assert not moments[3:].any()


def test_no_condition_is_dropped_where_none_is_to_be() -> None:
    """`drop=0` never asks for the null condition, which a table of rows has not."""
    of = settings("adm")
    model = LatentDiffusion(of.model)
    batch = {"mean": torch.zeros(2, 3, 16, 16), "label": torch.tensor([0, 1])}
    outcome = Told(model, 0.0, "uniform", of.diffusion.loss)(batch, Address.of(0, [0, 1]))
    assert outcome.loss.isfinite()


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        ("clip", {}, "CLIP's text tower is used as it is; say with told_by which model it is taken from"),
        (
            "adm",
            {"defaults": Defaults(guidance=2.0)},
            "nothing stands for no condition, so defaults",
        ),
        ("churches", {"defaults": Defaults(guidance=2.0)}, "nothing stands for no condition"),
        ("labels", {"told_by": "x"}, "told_by is for conditioners of kind 'clip' and 'bert', and this is 'labels'"),
    ],
)
def test_what_cannot_be_is_a_line(kind: str, more: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        run(settings(kind, **more), material(), tmp_path / "run")


def test_a_conditioner_of_another_kind_is_refused(tmp_path: Path) -> None:
    file = single("sd1", tmp_path / "sd1.safetensors")
    with pytest.raises(ValueError, match=r"is not told as model\.conditioner describes"):
        list(run(settings("clip", told_by=str(file)), material(), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_rows_of_a_table_cannot_be_left_out(tmp_path: Path) -> None:
    of = settings("adm")
    of = of.model_copy(update={"diffusion": of.diffusion.model_copy(update={"drop": 0.1})})
    with pytest.raises(ValueError, match=r"no label stands for none, so none can be left out; set diffusion\.drop=0"):
        run(of, material(), tmp_path / "run")


def test_maps_that_nothing_makes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ("model.maps=depth", "model.unet.map_channels=1")
    assert main(["train", "inpainting", "--out", str(tmp_path / "x"), "--set", *changes]) == 2
    assert "a model that is shown maps of kind 'depth' cannot be trained" in capsys.readouterr().err
