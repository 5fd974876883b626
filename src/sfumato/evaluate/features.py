"""Networks whose features are compared. Scores are named after the network that made the features."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from sfumato.io import feature_networks
from sfumato.nets.inception import Inception
from sfumato.nets.mobilenet import MobileNetV2

SIDE = 224  # pixels that MobileNetV2 learnt from
BATCH = 4  # of 224 x 224 pixels: larger ones take three times as long, for fresh memory


class Features(Protocol):
    """Pictures to vectors whose statistics are compared."""

    @property
    def name(self) -> str:
        """What a score made of them is called after."""
        ...

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [-1, 1] to features (N, dim)."""
        ...


@dataclass(frozen=True)
class Pooled:
    """The last pooling of a network as it is, of which distances are made."""

    net: MobileNetV2 | Inception
    name: str
    dim: int

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] to (N, dim)."""
        return torch.cat([self.net.pooled(part) for part in images.split(BATCH)])


@dataclass(frozen=True)
class Smaller:
    """The last pooling of MobileNetV2 that is shown `side` pixels, not 224: a fifth of the work at 96."""

    net: MobileNetV2
    side: int
    dim: int = 1280

    @property
    def name(self) -> str:
        """With the pixels, for the features are others."""
        return f"MobileNetV2 at {self.side} pixels"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] to (N, 1280)."""
        batch = max(1, BATCH * SIDE**2 // self.side**2)
        return torch.cat([self.net.pooled(part, self.side) for part in images.split(batch)])


def opened(path: Path | None = None) -> Features:
    """MobileNetV2, or the Inception network of the FID in a file; ValueError of one line for another file.

    With the published weights in the file its features are those of the FID.
    """
    if path is None:
        return _mobilenet(feature_networks.mobilenet())
    return Pooled(feature_networks.inception(path), f"Inception of the FID, {path.name}", 2048)


def smaller(side: int) -> Features:
    """MobileNetV2 that is shown so many pixels."""
    return Smaller(feature_networks.mobilenet(), side)


def pooled(net: MobileNetV2, images: Tensor) -> Tensor:
    """Unit-length features (N, 1280) of pictures (N, 3, H, W) in [-1, 1], of which angles are made."""
    return torch.nn.functional.normalize(_mobilenet(net)(images), dim=1)


def _mobilenet(net: MobileNetV2) -> Pooled:
    return Pooled(net, "MobileNetV2", 1280)
