"""How different two pictures look: distances between features of a classifier (Zhang et al. 2018, LPIPS 0.1)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN = (-0.030, -0.088, -0.188)
STD = (0.458, 0.448, 0.450)
STAGES = (2, 2, 3, 3, 3)  # convolutions between two poolings of VGG16
WIDTHS = (64, 128, 256, 512, 512)


class Stage(NamedTuple):
    """Convolutions, each with a ReLU, of which the output of the last is compared."""

    widths: tuple[int, ...]
    pool: int = 0  # side of the windows, of stride 2, of the maximum before them; 0 where there is none
    kernel: int = 3
    stride: int = 1
    padding: int = 1


VGG16 = tuple(Stage((w,) * n, pool=2 if i else 0) for i, (w, n) in enumerate(zip(WIDTHS, STAGES, strict=True)))
"""Simonyan & Zisserman 2015: relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3 are compared."""
ALEXNET = (
    Stage((64,), kernel=11, stride=4, padding=2),
    Stage((192,), pool=3, kernel=5, padding=2),
    Stage((384,), pool=3),
    Stage((256,)),
    Stage((256,)),
)
"""Krizhevsky 2014, the form of one column: relu1 to relu5 are compared."""


class Lpips(nn.Module):
    """The first `stages` stages of a classifier, and one weight for each feature of each stage.

    With all five stages this is LPIPS; the VGG16 weights that ship with the project have three (up to relu3_3).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, stages: int = 3, classifier: Sequence[Stage] = VGG16) -> None:
        super().__init__()
        self.stages = tuple(classifier[:stages])
        layers, width = [], 3
        for stage in self.stages:
            for out in stage.widths:
                layers.append(nn.Conv2d(width, out, stage.kernel, stage.stride, stage.padding))
                width = out
        self.features = nn.ModuleList(layers)
        self.lin = nn.ModuleList(nn.Conv2d(stage.widths[-1], 1, 1, bias=False) for stage in self.stages)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    @property
    def smallest(self) -> int:
        """The least side, in pixels, of a picture of which something is left in the last stage."""
        side = 1
        for stage in reversed(self.stages):
            for _ in stage.widths:
                side = max(1, (side - 1) * stage.stride + stage.kernel - 2 * stage.padding)
            side = (side - 1) * 2 + stage.pool if stage.pool else side
        return side

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance (B,) of pictures in [-1, 1], (B, 3, H, W). ValueError if they are too small for the network."""
        height, width = a.shape[2:]
        if min(height, width) < self.smallest:
            raise ValueError(f"pictures of {width}x{height} are too small for LPIPS; it needs {self.smallest} pixels")
        total = a.new_zeros(len(a), dtype=torch.float32)
        for f, g, lin in zip(self._maps(a), self._maps(b), self.lin, strict=True):
            total = total + lin((_unit(f) - _unit(g)).square()).float().mean((1, 2, 3))
        return total

    def _maps(self, x: Tensor) -> list[Tensor]:
        maps, h, convolutions = [], (x - self.mean) / self.std, iter(self.features)
        for stage in self.stages:
            h = F.max_pool2d(h, stage.pool, 2) if stage.pool else h
            for _ in stage.widths:
                h = F.relu(next(convolutions)(h))
            maps.append(h)
        return maps


def _unit(f: Tensor) -> Tensor:
    length = f.square().sum(1, keepdim=True).clamp_min(1e-20).sqrt()  # the slope of a root at zero is infinite
    return f / (length + 1e-10)
