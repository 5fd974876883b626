"""The mean of each channel of the latents and the deviation of them all, over a whole data set, in one pass."""

import torch
from torch import Tensor

from sfumato.latents.kl import KLFirstStage
from sfumato.latents.vq import VQFirstStage


class LatentStatistics:
    """Sums over latents as the networks give them, in float64; those of two parts of a data set can be merged."""

    def __init__(self, channels: int) -> None:
        self.n = 0  # positions
        self.sum, self.squares = (torch.zeros(channels, dtype=torch.float64) for _ in range(2))

    def update(self, mean: Tensor, logvar: Tensor | None = None) -> None:
        """Count latents (N, C, h, w), or posteriors with these means and log-variances."""
        wide = mean.detach().double().cpu()
        second = wide.square() if logvar is None else wide.square() + logvar.detach().double().cpu().exp()
        self.n += wide.numel() // wide.shape[1]
        self.sum += wide.sum((0, 2, 3))
        self.squares += second.sum((0, 2, 3))

    def merge(self, other: "LatentStatistics") -> None:
        """Count what another has counted."""
        self.n, self.sum, self.squares = self.n + other.n, self.sum + other.sum, self.squares + other.squares

    @property
    def mean(self) -> Tensor:
        """(C,)"""
        return self.sum / self.n

    @property
    def std(self) -> Tensor:
        """(C,): of each channel about its mean."""
        return (self.squares / self.n - self.mean.square()).clamp_min(0).sqrt()

    def put(self, stage: KLFirstStage | VQFirstStage) -> None:
        """Let a first stage give latents whose channels have no mean, and whose variance over all channels is 1."""
        stage.mean.copy_(self.mean.view(1, -1, 1, 1))
        stage.std.copy_(self.std.square().mean().sqrt())
