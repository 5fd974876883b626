"""The Inception network of the FID against torch-fidelity, and its scaling against what TensorFlow 1 did."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fill import inp, parameter, unit
from sfumato.evaluate import features
from sfumato.io import tensors
from sfumato.io.feature_networks import ALEXNET_FILE, inception
from sfumato.nets.inception import Inception, resized

FIDELITY = {  # torch-fidelity 0.4.0, FeatureExtractorInceptionV3(["2048"]) with the rule's weights and pictures
    "first": [0.149012, 0.0, 0.027528, 0.104097, 0.0, 0.0, 0.0, 0.0],
    "last": [0.0, 0.0, 0.14795, 0.015067],
    "mean": 0.04275238513946533,
    "std": 0.06179855391383171,
}


@cache
def filled() -> dict[str, Tensor]:
    """All tensors of a file, by the rule; running statistics too, variances near 1."""
    found = {}
    for name, t in Inception().state_dict().items():
        if name.endswith("running_var"):
            found[name] = 1 + 0.1 * unit(name, len(t)).float()
        elif not name.endswith("num_batches_tracked"):
            found[name] = parameter(name, t.shape)
    return found | {"fc.weight": torch.zeros(1008, 2), "fc.bias": torch.zeros(1008)}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    tensors.write(path, filled())
    return path


@torch.no_grad()
def test_it_computes_what_torch_fidelity_computes(file: Path) -> None:
    net = features.opened(file)
    assert (net.name, net.dim) == ("Inception of the FID, inception.safetensors", 2048)
    out = net(inp("img", 2, 3, 64, 48).clamp(-1, 1))
    assert out.shape == (2, 2048)
    assert out[0, :8].tolist() == pytest.approx(FIDELITY["first"], abs=2e-6)
    assert out[1, -4:].tolist() == pytest.approx(FIDELITY["last"], abs=2e-6)
    assert out.mean().item() == pytest.approx(FIDELITY["mean"], rel=1e-5)
    assert out.std(correction=0).item() == pytest.approx(FIDELITY["std"], rel=1e-5)


def test_it_has_the_published_size() -> None:
    """That of torchvision's Inception without its two classifiers."""
    assert sum(p.numel() for p in Inception().parameters()) == 21_785_568


def test_scaling_is_between_the_corners_of_pixels() -> None:
    """Place i of `side` lies at i * length / side; beyond the last pixel there is only itself."""
    x = torch.tensor([[0.0, 8.0], [4.0, 12.0]])[None, None]
    rows = [[0, 4, 8, 8], [2, 6, 10, 10], [4, 8, 12, 12], [4, 8, 12, 12]]
    assert resized(x, 4)[0, 0].tolist() == rows
    assert torch.equal(resized(x, 2), x)
    assert torch.equal(resized(inp("x", 1, 3, 9, 12), 3), inp("x", 1, 3, 9, 12)[:, :, ::3, ::4])  # no averaging


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"Mixed_5b.branch1x1.bn.bias": None}, "lacks tensor 'Mixed_5b.branch1x1.bn.bias'"),
        ({"Mixed_8a.x": torch.zeros(1)}, "has an unknown tensor 'Mixed_8a.x'"),
        ({"Mixed_7c.branch_pool.conv.weight": None}, "holds no Inception of the FID"),
        ({"Mixed_6b.branch7x7_1.conv.weight": torch.zeros(160, 768, 1, 1)}, "another shape for tensor 'Mixed_6b."),
    ],
    ids=["less", "more", "another", "a shape"],
)  # fmt: skip
def test_other_files_are_refused(change: dict[str, Tensor | None], said: str, tmp_path: Path) -> None:
    given = {name: t for name, t in (filled() | change).items() if t is not None}
    tensors.write(tmp_path / "x.safetensors", {name: t.half() for name, t in given.items()})
    with pytest.raises(ValueError, match=re.escape(said)):
        inception(tmp_path / "x.safetensors")


def test_lpips_is_no_inception() -> None:
    with pytest.raises(ValueError, match="holds no Inception of the FID"):
        inception(ALEXNET_FILE)
