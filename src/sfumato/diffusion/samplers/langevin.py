"""Samplers of score matching: annealed Langevin dynamics, and consistent annealed sampling.

They are written for variance-exploding schedules, where x / alpha is x; on others they walk in x / alpha.
"""

import math

import torch
from torch import Tensor

from sfumato.diffusion.grid import Grid
from sfumato.diffusion.move import move
from sfumato.diffusion.noise import Noise
from sfumato.diffusion.samplers.registry import Sampler, sampler

INNER = 5


def annealed_langevin(x: Tensor, grid: Grid, *, noise: Noise, step: float = 0.1, inner: int = INNER) -> Sampler:
    """Annealed Langevin dynamics (Song & Ermon 2020, alg. 1): `inner` steps of Langevin's at each level.

    `step` is alpha_i / sigma_i^2, their epsilon / sigma_L^2: x <- x + step sigma^2 score + sqrt(2 step) sigma z. From
    the last level on to a clean end is the final denoising step (Jolicoeur-Martineau et al. 2021). A grid that
    ends in noise ends before the steps at that level.
    """
    for a, b in grid.steps():
        if a.blind:
            x = move(x, a, b, x0=(yield x, a))
            continue
        for _ in range(inner):
            x0 = yield x, a
            x = move(x, a, a, x0=x0, kept=(1 - step) * a.sigma, fresh=math.sqrt(2 * step) * a.sigma, noise=noise)
        x = x * (b.alpha / a.alpha) if b.sigma > 0 else move(x, a, b, x0=(yield x, a))
    return x


@sampler("langevin", order=None, calls=INNER, closing=INNER, least=20, stochastic=True)
def langevin(x: Tensor, grid: Grid, *, noise: Noise) -> Sampler:
    """Annealed Langevin dynamics with five inner steps (Song & Ermon 2020, alg. 1) and the final denoising step."""
    return (yield from annealed_langevin(x, grid, noise=noise))


def consistent_annealed(
    x: Tensor, grid: Grid, *, noise: Noise, step: float | None = None, beta: float = 0.2
) -> Sampler:
    """Consistent annealed sampling (Jolicoeur-Martineau et al. 2021, alg. 2): the plain move with fresh = beta sigma'.

    `step` is their eta = epsilon / sigma_L^2, which fixes beta = sqrt(1 - ((1 - eta) / gamma)^2) for levels whose sigma
    falls by the factor gamma; ValueError if eta is not from 1 - gamma to 1 + gamma. Without it beta is the same at all
    steps, and 1 - eta = gamma sqrt(1 - beta^2). The last level also takes a step, without noise; then comes the
    denoising one.
    """
    kept = 1.0  # 1 - eta
    for a, b in grid.steps():
        x0 = yield x, a
        if a.blind:
            x = move(x, a, b, x0=x0)
            continue
        if b.sigma > 0:
            gamma = float(torch.exp(a.lam - b.lam))
            kept = gamma * math.sqrt(1 - beta**2) if step is None else 1 - step
            if not abs(kept) <= gamma * (1 + 1e-12):
                raise ValueError(
                    f"step {step} is out of range; on this grid it goes from {1 - gamma:.6g} to {1 + gamma:.6g}"
                )
            share = kept / gamma  # of the noise at b that is old
            fresh = b.sigma * math.sqrt(max(0.0, 1 - share**2))
            x = move(x, a, b, x0=x0, fresh=fresh, kept=share * b.sigma, noise=noise)
        else:
            x = move(x, a, a, x0=x0, kept=kept * a.sigma)
            x = move(x, a, b, x0=(yield x, a))
    return x


@sampler("cas", order=None, closing=1, least=2, stochastic=True)
def cas(x: Tensor, grid: Grid, *, noise: Noise) -> Sampler:
    """Consistent annealed sampling (Jolicoeur-Martineau et al. 2021, alg. 2), with a fifth of the noise fresh."""
    return (yield from consistent_annealed(x, grid, noise=noise))
