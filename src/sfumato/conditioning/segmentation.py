"""A map of classes, one for each pixel, as a few channels beside the latent (LDM's SpatialRescaler)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.cond import Cond

UNSAID = 255
"""In a map: nothing is said of this pixel."""


class Segmentation(nn.Module):
    """One channel a class, 1 where it is, halved `stages` times and mixed by a convolution of one pixel, which learns.

    Halving bilinearly is the mean of four pixels, and means and the convolution change places: so every pixel looks up
    its class's column, and blocks of 2^stages pixels a side are averaged. Pixels of which nothing is said (255) are 0
    in all channels.
    """

    needs = frozenset({"map"})

    def __init__(self, classes: int, channels: int, *, stages: int) -> None:
        super().__init__()
        self.classes, self.block = classes, 2**stages
        self.project = nn.Conv2d(classes, channels, 1, bias=False)

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """ "map" (B, H, W) uint8; ValueError for a class that the model does not know, or sides that do not divide."""
        maps = torch.stack([s["map"] for s in samples])
        height, width = maps.shape[1:]
        if height % self.block or width % self.block:
            raise ValueError(f"a map of {width}x{height} does not divide by {self.block}; both sides must")
        strange = maps[(maps >= self.classes) & (maps != UNSAID)]
        if len(strange):
            raise ValueError(
                f"a map has the class {int(strange[0])}; this model knows 0 to {self.classes - 1}, and 255 for nothing"
            )
        return {"map": maps}

    def forward(self, batch: Mapping[str, Tensor]) -> Cond:
        """maps (B, channels, H / 2^stages, W / 2^stages)."""
        weight = self.project.weight.flatten(1)  # (channels, classes)
        columns = torch.cat([weight, weight.new_zeros(len(weight), 1)], dim=1).t()
        index = batch["map"].to(weight.device).long().clamp(max=self.classes)
        return Cond(maps=F.avg_pool2d(F.embedding(index, columns).movedim(-1, 1), self.block))

    def null(self, n: int) -> Cond:
        """A map that says nothing, n times, of one pixel: it is the same at every size."""
        return Cond(maps=self.project.weight.new_zeros(n, self.project.out_channels, 1, 1))
