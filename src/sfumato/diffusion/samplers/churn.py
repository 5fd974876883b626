"""Back up before a step: the churn of Karras et al. 2022."""

import math

from torch import Tensor

from sfumato.diffusion.grid import Grid
from sfumato.diffusion.level import Level
from sfumato.diffusion.noise import Noise

MOST = math.sqrt(2) - 1


def churned(x: Tensor, a: Level, grid: Grid, churn: float, noise: Noise | None) -> tuple[Tensor, Level]:
    """`x` with fresh noise, and the noisier level where it then is (Karras et al. 2022, alg. 2, lines 4 to 6).

    `churn` is their S_churn: sigma / alpha grows by the factor 1 + min(churn / steps, sqrt(2) - 1), though not beyond
    the noisiest level of the schedule.
    """
    if churn <= 0 or a.blind:
        return x, a
    if noise is None:
        raise ValueError(f"churn {churn} asks for fresh noise; give a noise, or churn 0")
    gain = math.log1p(min(churn / len(grid), MOST))
    noisiest = grid.schedule.span[1]  # where the network has seen nothing beyond
    up = grid.schedule.level(grid.schedule.time(a.lam - gain).clamp(max=noisiest))
    if up.lam >= a.lam:
        return x, a
    added = (up.sigma**2 - (up.alpha / a.alpha * a.sigma) ** 2).clamp_min(0).sqrt()
    return up.alpha / a.alpha * x + added * noise(x), up
