"""One point of the noise scale: x = alpha * x0 + sigma * eps."""

from typing import NamedTuple

import torch
from torch import Tensor

BLIND = -5.1


class Level(NamedTuple):
    """`t` is the clock that the network was trained with; fractions are allowed.

    Scalars (0-dim, float64, on the CPU, so that they mix with any tensor without promoting it), or (B, 1, 1, 1) in
    training and where strangers share a batch.
    """

    t: Tensor
    alpha: Tensor
    sigma: Tensor

    @property
    def lam(self) -> Tensor:
        """Half the logarithm of the signal-to-noise ratio: log(alpha / sigma)."""
        return self.alpha.log() - self.sigma.log()

    @property
    def blind(self) -> bool:
        """Whether there is so little signal that a guess of the noise, divided by alpha, says nothing of the picture.

        At alpha = 0 it is a division by zero; DPM-Solver cuts its schedules off at this half log-SNR too. Where alpha
        stays near 1, as in a variance-exploding schedule, nothing is divided by it and no level is blind.
        """
        return bool(self.unseen.any())

    @property
    def unseen(self) -> Tensor:
        """`blind`, level by level."""
        return (self.lam < BLIND) & (self.alpha < 0.5)  # noqa: PLR2004

    def beside(self, x: Tensor) -> "Level":
        """Itself if its numbers are scalars, else (B, 1, ..., 1) as `x` (B, ...) has dimensions, type and device."""
        if self.sigma.ndim == 0:
            return self
        shape = (-1, *[1] * (x.ndim - 1))
        return Level(*(v.to(x.device).reshape(shape).to(x.dtype) for v in self))

    def rows(self, x: Tensor) -> "Level":
        """A level for each sample of `x` (B, ...), as (B, 1, ..., 1) in float64."""
        shape = (len(x), *[1] * (x.ndim - 1))
        return Level(*(v.to(x.device).reshape(-1, *shape[1:]).expand(shape) for v in self))

    @staticmethod
    def clean(t: float) -> "Level":
        """No noise at all, with the clock at `t`."""
        return Level(*(torch.tensor(v, dtype=torch.float64) for v in (t, 1.0, 0.0)))
