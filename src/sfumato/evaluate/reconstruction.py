"""How well a first stage gives back pictures that it never saw."""

import torch

from sfumato.data.sample import Dataset
from sfumato.latents.autoencoding import psnr
from sfumato.latents.kl import KLFirstStage

BATCH = 32


@torch.no_grad()
def mean_psnr(stage: KLFirstStage, images: Dataset) -> float:
    """Mean over all pictures of the PSNR of their reconstructions, in dB, through the posterior's mean."""
    total = 0.0
    for begin in range(0, len(images), BATCH):
        x = torch.stack([images[i]["image"] for i in range(begin, min(begin + BATCH, len(images)))])
        total += float(psnr(stage.decode(stage.encode(x)), x).sum())
    return total / len(images)
