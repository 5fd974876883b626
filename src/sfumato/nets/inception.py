"""The Inception network of the FID, as TensorFlow published it in 2015 and torch-fidelity computes it.

Its averages do not count the zeros around a map, its last block pools by the maximum, and its pictures are scaled as
TensorFlow 1 did: none of it as in torchvision's Inception (Szegedy et al. 2015b; Heusel et al. 2017).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 299  # pixels
EPS = 1e-3  # of all batch normalisations


Sides = tuple[int, int]


class Layer(NamedTuple):
    """A convolution. One of stride 1 keeps the sides, one of stride 2 has no padding."""

    name: str
    width: int
    kernel: Sides = (1, 1)
    stride: int = 1


Branch = Sequence[Layer | tuple[Layer, Layer]]
"""Layers one after the other; a pair are both applied to the same, and joined."""
Pool = Literal["mean", "max", "shrink"]


class Conv(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, channels: int, out: int, kernel: Sides, stride: int = 1, *, padded: bool = True) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if padded else 0
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, H', W')."""
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches beside each other and a pooling, behind which there may be one more convolution, joined."""

    def __init__(self, channels: int, branches: Sequence[Branch], pool: Pool, pooled: int = 0) -> None:
        super().__init__()
        self.branches = branches
        self.pool: Pool = pool
        self.out = (pooled or channels) + sum(_width(branch) for branch in branches)
        for branch in branches:
            width = channels
            for step in branch:
                for layer in _both(step):
                    conv = Conv(width, layer.width, layer.kernel, layer.stride, padded=layer.stride == 1)
                    self.add_module(layer.name, conv)
                width = sum(layer.width for layer in _both(step))
        self.branch_pool = Conv(channels, pooled, (1, 1)) if pooled else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, H', W')."""
        parts = []
        for branch in self.branches:
            h = x
            for step in branch:
                h = torch.cat([self.get_submodule(layer.name)(h) for layer in _both(step)], dim=1)
            parts.append(h)
        pooled = _pooled(x, self.pool)
        return torch.cat([*parts, pooled if self.branch_pool is None else self.branch_pool(pooled)], dim=1)


class Inception(nn.Module):
    """The network up to its last pooling, with the parameter names of pytorch-fid and torch-fidelity."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, (3, 3), 2, padded=False)
        self.Conv2d_2a_3x3 = Conv(32, 32, (3, 3), padded=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = Conv(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = Conv(80, 192, (3, 3), padded=False)
        width = 192
        for name, branches, pool, pooled in _BLOCKS:
            block = Mixed(width, branches, pool, pooled)
            self.add_module(f"Mixed_{name}", block)
            width = block.out

    def pooled(self, image: Tensor) -> Tensor:
        """Features (B, 2048) of pictures (B, 3, H, W) in [-1, 1], rounded to 8 bits and brought to 299 pixels."""
        levels = ((image.clamp(-1, 1) + 1) * 127.5).round()
        return self((resized(levels, SIDE) - 128) / 128)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 299, 299), level 128 as 0, level 0 as -1 -> (B, 2048)."""
        h = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        h = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(h, 3, 2)))
        h = F.max_pool2d(h, 3, 2)
        for name, *_ in _BLOCKS:
            h = self.get_submodule(f"Mixed_{name}")(h)
        return h.mean((2, 3))


def resized(image: Tensor, side: int) -> Tensor:
    """(B, C, H, W) -> (B, C, side, side) as TensorFlow 1 did: bilinear between corners of pixels, not middles."""
    for dim in (3, 2):
        length = image.shape[dim]
        at = torch.arange(side, dtype=torch.float32, device=image.device) * (length / side)
        low = at.long().clamp_max(length - 1)
        high = (low + 1).clamp_max(length - 1)
        share = (at - low).to(image.dtype).view(-1, *(1,) * (3 - dim))
        a, b = image.index_select(dim, low), image.index_select(dim, high)
        image = a + (b - a) * share
    return image


def _both(step: Layer | tuple[Layer, Layer]) -> tuple[Layer, ...]:
    return (step,) if isinstance(step, Layer) else step


def _width(branch: Branch) -> int:
    return sum(layer.width for layer in _both(branch[-1]))


def _pooled(x: Tensor, kind: Pool) -> Tensor:
    if kind == "mean":
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    return F.max_pool2d(x, 3, 1, 1) if kind == "max" else F.max_pool2d(x, 3, 2)


# The blocks -----------------------------------------------------------------------------------------------
_ROW, _COLUMN = (1, 7), (7, 1)
_TWICE = (Layer("branch3x3dbl_1", 64), Layer("branch3x3dbl_2", 96, (3, 3)))
_FIVES = (
    (Layer("branch1x1", 64),),
    (Layer("branch5x5_1", 48), Layer("branch5x5_2", 64, (5, 5))),
    (*_TWICE, Layer("branch3x3dbl_3", 96, (3, 3))),
)
_TO_17 = ((Layer("branch3x3", 384, (3, 3), 2),), (*_TWICE, Layer("branch3x3dbl_3", 96, (3, 3), 2)))
_TO_8 = (
    (Layer("branch3x3_1", 192), Layer("branch3x3_2", 320, (3, 3), 2)),
    (
        Layer("branch7x7x3_1", 192),
        Layer("branch7x7x3_2", 192, _ROW),
        Layer("branch7x7x3_3", 192, _COLUMN),
        Layer("branch7x7x3_4", 192, (3, 3), 2),
    ),
)
_CROSSES = (
    (Layer("branch1x1", 320),),
    (Layer("branch3x3_1", 384), (Layer("branch3x3_2a", 384, (1, 3)), Layer("branch3x3_2b", 384, (3, 1)))),
    (
        Layer("branch3x3dbl_1", 448),
        Layer("branch3x3dbl_2", 384, (3, 3)),
        (Layer("branch3x3dbl_3a", 384, (1, 3)), Layer("branch3x3dbl_3b", 384, (3, 1))),
    ),
)


def _sevens(width: int) -> tuple[Branch, ...]:
    return (
        (Layer("branch1x1", 192),),
        (Layer("branch7x7_1", width), Layer("branch7x7_2", width, _ROW), Layer("branch7x7_3", 192, _COLUMN)),
        (
            Layer("branch7x7dbl_1", width),
            Layer("branch7x7dbl_2", width, _COLUMN),
            Layer("branch7x7dbl_3", width, _ROW),
            Layer("branch7x7dbl_4", width, _COLUMN),
            Layer("branch7x7dbl_5", 192, _ROW),
        ),
    )


_BLOCKS: tuple[tuple[str, Sequence[Branch], Pool, int], ...] = (  # name, branches, pooling, width behind it
    ("5b", _FIVES, "mean", 32),
    ("5c", _FIVES, "mean", 64),
    ("5d", _FIVES, "mean", 64),
    ("6a", _TO_17, "shrink", 0),
    ("6b", _sevens(128), "mean", 192),
    ("6c", _sevens(160), "mean", 192),
    ("6d", _sevens(160), "mean", 192),
    ("6e", _sevens(192), "mean", 192),
    ("7a", _TO_8, "shrink", 0),
    ("7b", _CROSSES, "mean", 192),
    ("7c", _CROSSES, "max", 192),
)
