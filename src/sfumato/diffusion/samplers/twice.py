"""Samplers that remember nothing and ask twice a step: Heun, the midpoint rule, and their stochastic forms."""

import torch
from torch import Tensor

from sfumato.diffusion.grid import Grid
from sfumato.diffusion.level import Level
from sfumato.diffusion.move import move, noise_in, posterior_std, remaining
from sfumato.diffusion.noise import Noise
from sfumato.diffusion.samplers.churn import churned
from sfumato.diffusion.samplers.exponential import Form, guess_of, moved
from sfumato.diffusion.samplers.registry import Sampler, sampler


@sampler("heun", order=2, calls=2, label="Heun", also=("k_heun", "HeunDiscreteScheduler"))
def heun(x: Tensor, grid: Grid, *, churn: float = 0.0, noise: Noise | None = None) -> Sampler:
    """Heun's second-order method (Karras et al. 2022, alg. 2): the mean of the noise here and at the trial point."""
    for a, b in grid.steps():
        x, up = churned(x, a, grid, churn, noise)
        x0 = yield x, up
        if b.sigma == 0 or a.blind:
            x = move(x, up, b, x0=x0)
            continue
        eps = noise_in(x, x0, up)
        y = move(x, up, b, eps=eps)
        x = move(x, up, b, eps=(eps + noise_in(y, (yield y, b), b)) / 2)
    return x


@sampler("dpm2", order=2, calls=2, label="DPM2", also=("k_dpm_2", "dpm_2", "KDPM2DiscreteScheduler"))
def dpm2(x: Tensor, grid: Grid, *, churn: float = 0.0, noise: Noise | None = None) -> Sampler:
    """The midpoint rule: the noise half-way in log-SNR (DPM-Solver-2 after Karras et al. 2022)."""
    return (yield from _midpoint(x, grid, form="eps", churn=churn, noise=noise))


@sampler(
    "dpm2_a",
    order=2,
    calls=2,
    stochastic=True,
    label="DPM2 a",
    also=("k_dpm_2_a", "dpm_2_a", "dpm_2_ancestral", "KDPM2AncestralDiscreteScheduler"),
)
def dpm2_a(x: Tensor, grid: Grid, *, noise: Noise, eta: float = 1.0) -> Sampler:
    """The midpoint rule down to where the noise of the ancestral chain leaves room for the fresh."""
    return (yield from _midpoint(x, grid, form="eps", eta=eta, noise=noise))


@sampler(
    "dpmpp_2s_a",
    order=2,
    calls=2,
    stochastic=True,
    label="DPM++ 2S a",
    also=("k_dpmpp_2s_a", "dpmpp_2s_ancestral", "dpm++2s_a"),
)
def dpmpp_2s_a(x: Tensor, grid: Grid, *, noise: Noise, eta: float = 1.0) -> Sampler:
    """DPM-Solver++(2S) with the noise of the ancestral chain (Lu et al. 2022b, alg. 1): the clean guess half-way."""
    return (yield from _midpoint(x, grid, form="x0", eta=eta, noise=noise))


@sampler(
    "dpmpp_sde", order=2, calls=2, stochastic=True, label="DPM++ SDE", also=("k_dpmpp_sde", "DPMSolverSDEScheduler")
)
def dpmpp_sde(x: Tensor, grid: Grid, *, noise: Noise, eta: float = 1.0) -> Sampler:
    """SDE-DPM-Solver++ with a stage half-way (k-diffusion, after Lu et al. 2022b): both see one Brownian path.

    The path runs in half log-SNR, for which it is exact at eta = 1; k-diffusion's own runs in sigma.
    """
    for a, b in grid.steps():
        x0 = yield x, a
        fresh = eta * posterior_std(a, b)
        if b.sigma == 0 or a.blind:
            x = move(x, a, b, x0=x0, fresh=fresh, noise=noise)
            continue
        m = grid.middle(a, b)
        z = noise(x) if eta > 0 else torch.zeros_like(x)
        y = move(x, a, m, x0=x0, fresh=eta * posterior_std(a, m), noise=z)
        guess = yield y, m
        if eta > 0:
            carried = _carried(a, m, b)
            z = carried * z + (1 - carried**2).clamp_min(0).sqrt() * noise(x)
        x = move(x, a, b, x0=guess, fresh=fresh, noise=z)
    return x


def _midpoint(
    x: Tensor, grid: Grid, *, form: Form, eta: float = 0.0, churn: float = 0.0, noise: Noise | None = None
) -> Sampler:
    """The guess half-way in log-SNR to where fresh noise, if there is any, brings the step to its end."""
    for a, b in grid.steps():
        x, up = churned(x, a, grid, churn, noise)
        x0 = yield x, up
        fresh = eta * posterior_std(up, b)
        if b.sigma == 0 or a.blind:
            x = move(x, up, b, x0=x0, fresh=fresh, noise=noise)
            continue
        m = grid.middle(up, _lower(b, fresh))
        y = move(x, up, m, x0=x0)
        guess = guess_of(form, y, (yield y, m), m)
        x = moved(form, x, up, b, guess, fresh=fresh, noise=noise)
    return x


def _lower(b: Level, fresh: Tensor) -> Level:
    """Where a step must go so that fresh noise brings it to `b`; only its log-SNR means anything."""
    return Level(b.t, b.alpha, remaining(b, fresh))


def _carried(a: Level, m: Level, b: Level) -> Tensor:
    """How much of the noise of the whole step is that of its first half, in the exact solution of the SDE."""
    h, k = b.lam - a.lam, b.lam - m.lam
    return (torch.expm1(-2 * (h - k)) / torch.expm1(-2 * h)).sqrt() * torch.exp(-k)
