"""Numbers that every platform computes alike: the rule by which the weights of the golden values were filled."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.io.layouts.rules import Layout, Rule

CHECKS = {
    "unit": [0.5673344108852421, 0.8745396770765348, -0.7222004554472614],  # unit("abc", 3)
    "inp": [-1.110189437866211, 0.007929469458758831, -1.2747353315353394],  # inp("x", 3)
}


def unit(name: str, n: int) -> Tensor:
    """(n,) float64 in [-1, 1): SplitMix64's finaliser over the CRC of the name and a counter."""
    z = np.arange(n, dtype=np.uint64) + (np.uint64(zlib.crc32(name.encode())) << np.uint64(32))
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return torch.from_numpy(2 * ((z >> np.uint64(11)).astype(np.float64) * 2.0**-53) - 1)


def inp(name: str, *shape: int) -> Tensor:
    """An input of unit variance, float32."""
    return (math.sqrt(3) * unit(f"input:{name}", math.prod(shape))).float().reshape(shape)


def parameter(name: str, shape: Sequence[int]) -> Tensor:
    """A parameter by its original name: matrices keep the variance, scales are near 1, offsets near 0."""
    r = unit(name, math.prod(shape)).reshape(tuple(shape))
    if len(shape) > 1:
        return (r * math.sqrt(3 / math.prod(shape[1:]))).float()
    return (1 + 0.1 * r if name.endswith(".weight") else 0.1 * r).float()


class Held:
    """Tensors in memory, as a file of them."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def tensor(self, name: str) -> Tensor:
        return self.tensors[name]

    def release(self, name: str) -> None:
        del self.tensors[name]


@torch.no_grad()
def fill(module: nn.Module, rules: Sequence[Rule]) -> nn.Module:
    """Fill `module` as the loader of files does: from tensors under their original names, by the rule."""
    own, layout = dict(module.named_parameters()), Layout(tuple(rules))
    stored = {name: parameter(name, t.shape) for name, t in layout.write(own).items()}
    assert not layout.account(stored, source="the rule")
    read = layout.read(Held(stored), {n: t.shape for n, t in own.items()}, source="the rule")
    assert read.keys() == own.keys()
    for name, p in own.items():
        p.copy_(read[name])
    return module.eval()


def places(net: nn.Module, names: dict[str, str]) -> list[Rule]:
    """Rules for a network of few parameters, by their whole names here and there."""
    assert {n for n, _ in net.named_parameters()} == names.keys()
    return [Rule((here,), (there,)) for here, there in names.items()]


TOLERANCE = 2e-4  # absolute, as stated with the values; outputs are of order 1


@torch.no_grad()
def agrees(out: Tensor, known: Mapping[str, Any], name: str) -> None:
    """All that is known of the output of an original program holds of ours."""
    flat = out.detach().double().flatten()
    middle = len(flat) // 2
    assert list(out.shape) == known["shape"]
    parts = {"first8": flat[:8], "mid4": flat[middle : middle + 4], "last4": flat[-4:]}
    parts |= {"mean": flat.mean(), "std": flat.std(correction=0), "l1": flat.abs().mean()}
    for part, value in parts.items():
        expected = torch.tensor(known[part], dtype=torch.float64)
        torch.testing.assert_close(value, expected, rtol=0, atol=TOLERANCE, msg=lambda m, p=part: f"{name} {p}: {m}")
