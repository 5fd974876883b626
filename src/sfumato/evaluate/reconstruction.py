"""How well a first stage gives back pictures that it never saw."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sfumato.data.sample import Dataset
from sfumato.latents.autoencoding import psnr
from sfumato.latents.first_stage import FirstStage
from sfumato.latents.tiled import spared

BATCH, PIXELS = 32, 2**19  # pictures at once, and pixels of them
CONTRAST = 4  # of a map of errors


def at_once(side: int) -> int:
    """How many pictures of so many pixels a side go through a network together where nothing is learnt."""
    return max(1, min(BATCH, PIXELS // side**2))


@torch.no_grad()
def reconstructed(stage: FirstStage, images: Tensor) -> Tensor:
    """Pictures (N, 3, H, W) through the first stage and back, by the posterior's mean; not clamped.

    By strips of rows where memory runs out.
    """
    return torch.cat([spared(stage, lambda s, x=part: s.decode(s.encode(x))) for part in images.split(BATCH)])


@dataclass(frozen=True)
class Operations:
    """Multiplications and additions of a picture there and back, in products of matrices but the search of a codebook.

    Those of layers are `linear` for `pixels`, and grow with them; those of attention `square`, and grow with their
    square.
    """

    linear: int
    square: int
    pixels: int

    def of(self, height: int, width: int) -> int:
        """Those of a picture of this size."""
        pixels = height * width
        return self.linear * pixels // self.pixels + self.square * pixels**2 // self.pixels**2


@torch.no_grad()
def operations(stage: FirstStage) -> Operations:
    """The operations of a first stage, counted on a small picture."""
    side = 2 * stage.factor
    with _Counted() as counted:
        stage.decode(stage.encode(torch.zeros(1, 3, side, side)))
    return Operations(counted.linear, counted.square, side**2)


class _Counted(TorchFunctionMode):
    """Counts the operations of layers, and of attention, that run meanwhile."""

    linear = square = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        match getattr(func, "__name__", ""):
            case "conv2d" | "linear":
                self.linear += 2 * out.numel() * args[1][0].numel()
            case "scaled_dot_product_attention":
                query, key, value = args[:3]
                self.square += 2 * key.shape[-2] * (query.numel() + query[..., 0].numel() * value.shape[-1])
        return out


def mean_psnr(stage: FirstStage, images: Dataset) -> float:
    """Mean over all pictures of the PSNR of their reconstructions, in dB, through the posterior's mean."""
    total = 0.0
    for begin in range(0, len(images), BATCH):
        x = torch.stack([images[i]["image"] for i in range(begin, min(begin + BATCH, len(images)))])
        total += float(psnr(reconstructed(stage, x), x).sum())
    return total / len(images)


def as_saved(images: Tensor) -> Tensor:
    """Pictures in [-1, 1] with the 256 levels that a file has."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def bicubic(images: Tensor, factor: int) -> Tensor:
    """Pictures (N, 3, H, W) made `factor` times smaller and as large again, both bicubic without aliasing.

    The floor for a first stage of this factor: what pixels without a network keep. Not clamped.
    """
    height, width = images.shape[2:]
    small = F.interpolate(images, (height // factor, width // factor), mode="bicubic", antialias=True)
    return F.interpolate(small, (height, width), mode="bicubic", antialias=True)


def error_map(a: Tensor, b: Tensor) -> Tensor:
    """|a - b| of pictures in [-1, 1], `CONTRAST` times as strong, as pictures: black where they agree."""
    return ((a - b).abs() * CONTRAST - 1).clamp(-1, 1)
