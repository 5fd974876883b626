"""What files say of themselves: schedules, predictions, factors, heads; and the .yaml beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from files import original, single
from sfumato.diffusion.prediction import Prediction
from sfumato.diffusion.schedule import SCHEDULES, abar_of, zero_terminal
from sfumato.io import opening, tensors
from sfumato.io.conversion import convert


def bare(path: Path, kind: str = "sd1", **more: torch.Tensor) -> Path:
    """A file that says nothing of itself but this."""
    tensors.write(path, {**original(kind), **more})
    return path


def table(kind: str, *, zero: bool = False, **numbers: float) -> torch.Tensor:
    """Betas as LDM's program leaves them in a file."""
    abar = SCHEDULES[kind](**numbers).level(torch.arange(1000)).alpha.square()
    abar = zero_terminal(abar) if zero else abar
    return (1 - abar / torch.cat([torch.ones(1).double(), abar[:-1]])).float()


@pytest.mark.parametrize(
    ("betas", "kind", "start", "end", "zero"),
    [
        (table("scaled_linear"), "scaled_linear", 0.00085, 0.012, None),
        (table("scaled_linear", start=0.0015, end=0.0195), "scaled_linear", 0.0015, 0.0195, None),
        (table("scaled_linear", start=0.0015, end=0.0195).half(), "scaled_linear", 0.0015, 0.0195, None),
        (table("linear"), "linear", 1e-4, 0.02, None),
        (table("cosine"), "cosine", None, None, None),
        (table("scaled_linear", zero=True), "scaled_linear", None, None, True),
    ],
)
def test_betas_in_a_file_are_its_schedule(
    betas: torch.Tensor, kind: str, start: float | None, end: float | None, zero: bool | None, tmp_path: Path
) -> None:
    found = opening.describe(bare(tmp_path / "a.safetensors", betas=betas)).config.schedule
    assert (found.kind, found.terminal_zero) == (kind, zero)
    if start is not None and found.start is not None and found.end is not None:
        assert (found.start, found.end) == (pytest.approx(start, rel=1e-3), pytest.approx(end, rel=1e-3))
    known = found.build().level(torch.arange(1000)).alpha.square()
    torch.testing.assert_close(known, abar_of(betas), rtol=0, atol=1e-3 if betas.dtype == torch.float16 else 1e-6)


@pytest.mark.parametrize("betas", [torch.full((1000,), 0.01), torch.rand(1000), torch.zeros(1000), -torch.ones(3)])
def test_betas_of_no_known_schedule_are_not_passed_over(betas: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.safetensors: its betas are of no schedule that is known here"):
        opening.describe(bare(tmp_path / "a.safetensors", betas=betas))


def yaml(path: Path, text: str) -> Path:
    path.with_suffix(".yaml").write_text("model:\n  target: os.system\n  params:\n" + text)
    return path


def test_the_configuration_beside_a_file_is_heard(tmp_path: Path) -> None:
    text = "    linear_start: 1e-4\n    linear_end: 0.02\n    beta_schedule: sqrt_linear\n    timesteps: 500\n"
    text += "    parameterization: v\n    scale_factor: 1\n    unet_config:\n      params:\n        num_heads: 4\n"
    found = opening.opened(yaml(bare(tmp_path / "a.safetensors"), text))
    config = found.file.config
    assert config.schedule.model_dump(exclude_none=True) == {"kind": "linear", "start": 1e-4, "end": 0.02, "steps": 500}
    assert config.prediction is Prediction.V
    assert config.unet.heads == 4
    assert found.scale == pytest.approx(0.18215)  # the file's own factor is asked first


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("    linear_start: 5.0\n", "linear_start"),
        ("    beta_schedule: warped\n", "beta_schedule"),
        ("    parameterization: [1]\n", "parameterization"),
        ("    unet_config:\n      params:\n        num_heads: 7\n", "names heads that"),
        ("    unet_config:\n      params:\n        num_heads: 1000000000\n", "num_heads"),
        ("    unet_config: !!python/object/apply:os.system ['true']\n", "is not the configuration"),
        ("    - x\n", "should be"),
        ("    a: &a [1, 1]\n    b: &b [*a, *a]\n    c: [*b, *b]\n", "is not the configuration"),
    ],
)
def test_a_configuration_that_is_none_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    path = yaml(bare(tmp_path / "a.safetensors"), text)
    with pytest.raises(ValueError, match=said) as error:
        opening.describe(path)
    assert "\n" not in str(error.value)
    assert "a.yaml" in str(error.value) or "schedule" in str(error.value)


@pytest.mark.parametrize(
    "factor", [torch.tensor(0.0), torch.tensor(float("nan")), torch.tensor([1.0, 2.0]), torch.tensor(-1.0)]
)
def test_a_factor_that_is_none_is_one_line(factor: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the factor of the latents is"):
        opening.describe(bare(tmp_path / "a.safetensors", scale_factor=factor))


# The configurations of diffusers ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("pipe")
    convert(single("sd1", home / "a.safetensors"), home / "pipe", "diffusers")
    return home / "pipe"


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("unet", {"downsample_padding": 0}),
        ("unet", {"norm_num_groups": 8}),
        ("unet", {"center_input_sample": True}),
        ("unet", {"mid_block_scale_factor": 2}),
        ("unet", {"act_fn": "gelu"}),
        ("unet", {"freq_shift": 1}),
        ("unet", {"norm_eps": 1e-3}),
        ("unet", {"dual_cross_attention": True}),
        ("unet", {"conv_in_kernel": 5}),
        ("unet", {"class_embed_type": "simple_projection"}),
        ("unet", {"attention_head_dim": [8, 8, 8]}),
        ("unet", {"layers_per_block": "two"}),
        ("unet", {"layers_per_block": 10**9}),
        ("unet", {"block_out_channels": []}),
        ("unet", {"sample_size": {}}),
        ("vae", {"norm_num_groups": 8}),
        ("vae", {"shift_factor": 0.1}),
        ("vae", {"latents_mean": [0.1]}),
        ("vae", {"scaling_factor": float("nan")}),
        ("vae", {"scaling_factor": -1}),
        ("text_encoder", {"layer_norm_eps": 1e-3}),
        ("text_encoder", {"hidden_act": "relu"}),
        ("scheduler", {"beta_schedule": "sigmoid"}),
        ("scheduler", {"beta_schedule": [1]}),
        ("scheduler", {"beta_end": 2}),
        ("scheduler", {"num_train_timesteps": "x"}),
        ("scheduler", {"prediction_type": "flow"}),
        ("scheduler", {"trained_betas": [0.1]}),
    ],
)
def test_what_our_networks_do_not_do_is_refused(part: str, change: dict[str, Any], pipe: Path) -> None:
    path = pipe / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    before, wanted = path.read_text(), opening.describe(pipe).config
    path.write_text(json.dumps({**json.loads(before), **change}))
    try:
        with pytest.raises(ValueError, match="pipe") as error:
            opening.describe(pipe)
        assert "\n" not in str(error.value)
    finally:
        path.write_text(before)
    assert opening.describe(pipe).config == wanted
