"""How well a first stage gives back pictures that it never saw."""

import torch
import torch.nn.functional as F
from torch import Tensor

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
