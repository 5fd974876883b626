"""Feature networks that ship with the project. Scores are named after the network that made the features."""

from pathlib import Path

import torch
from torch import Tensor

from sfumato.io import tensors
from sfumato.nets.mobilenet import MobileNetV2

HOME = Path(__file__).resolve().parent.parent / "bundled" / "mobilenet"
BATCH = 4  # of 224 x 224 pixels: larger ones take three times as long, for fresh memory


def mobilenet() -> MobileNetV2:
    """MobileNetV2 trained on ImageNet."""
    path = HOME / "mobilenet_v2_in1k_fp16.safetensors"
    net = MobileNetV2()
    weights = tensors.load(path)
    counters = {k: v for k, v in net.state_dict().items() if k.endswith("num_batches_tracked")}
    tensors.fill(net, counters | weights, source=path)
    return net.eval().requires_grad_(False)


@torch.no_grad()
def pooled(net: MobileNetV2, images: Tensor) -> Tensor:
    """Unit-length features (N, 1280) of pictures (N, 3, H, W) in [-1, 1]."""
    parts = [net.pooled(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
    return torch.nn.functional.normalize(torch.cat(parts), dim=1)
