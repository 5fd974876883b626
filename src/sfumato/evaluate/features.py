"""Networks whose features are compared. Scores are named after the network that made the features."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from sfumato.io import feature_networks, tensors
from sfumato.nets.inception import Inception
from sfumato.nets.mobilenet import MobileNetV2

HOME = Path(__file__).resolve().parent.parent / "bundled" / "mobilenet"
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
class MobileNetFeatures:
    """The pooled features of MobileNetV2 as they are, of which distances are made."""

    net: MobileNetV2
    name: str = "MobileNetV2"
    dim: int = 1280

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] to (N, 1280)."""
        return torch.cat([self.net.pooled(part) for part in images.split(BATCH)])


@dataclass(frozen=True)
class InceptionFeatures:
    """The last pooling of the Inception network of a file: with the published weights the features of the FID."""

    net: Inception
    name: str
    dim: int = 2048

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] to (N, 2048)."""
        return torch.cat([self.net.pooled(part) for part in images.split(BATCH)])


def opened(path: Path | None = None) -> Features:
    """MobileNetV2, or the Inception network of the FID in a file; ValueError of one line for another file."""
    if path is None:
        return MobileNetFeatures(mobilenet())
    return InceptionFeatures(feature_networks.inception(path), f"Inception of the FID, {path.name}")


def mobilenet() -> MobileNetV2:
    """MobileNetV2 trained on ImageNet."""
    path = HOME / "mobilenet_v2_in1k_fp16.safetensors"
    net = MobileNetV2()
    weights = tensors.load(path)
    counters = {k: v for k, v in net.state_dict().items() if k.endswith("num_batches_tracked")}
    tensors.fill(net, counters | weights, source=path)
    return net.eval().requires_grad_(False)


def pooled(net: MobileNetV2, images: Tensor) -> Tensor:
    """Unit-length features (N, 1280) of pictures (N, 3, H, W) in [-1, 1], of which angles are made."""
    return torch.nn.functional.normalize(MobileNetFeatures(net)(images), dim=1)
