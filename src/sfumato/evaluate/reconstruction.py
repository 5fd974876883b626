"""How well a first stage gives back pictures that it never saw."""

import torch
from torch import Tensor

from sfumato.data.sample import Dataset
from sfumato.latents.autoencoding import psnr
from sfumato.latents.first_stage import FirstStage

BATCH = 32  # pictures at once


@torch.no_grad()
def reconstructed(stage: FirstStage, images: Tensor) -> Tensor:
    """Pictures (N, 3, H, W) through the first stage and back, by the posterior's mean; not clamped."""
    return torch.cat([stage.decode(stage.encode(part)) for part in images.split(BATCH)])


def mean_psnr(stage: FirstStage, images: Dataset) -> float:
    """Mean over all pictures of the PSNR of their reconstructions, in dB, through the posterior's mean."""
    total = 0.0
    for begin in range(0, len(images), BATCH):
        x = torch.stack([images[i]["image"] for i in range(begin, min(begin + BATCH, len(images)))])
        total += float(psnr(reconstructed(stage, x), x).sum())
    return total / len(images)
