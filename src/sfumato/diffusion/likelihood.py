"""How likely data is under a model: the variational bound of a chain of steps, and the density along the flow."""

import math
from collections.abc import Callable, Generator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato.diffusion.denoiser import Denoise, Estimate
from sfumato.diffusion.grid import Grid
from sfumato.diffusion.level import Level
from sfumato.diffusion.noise import Noise
from sfumato.diffusion.reverse import Variance, log_variances, posterior_mean, reverse
from sfumato.diffusion.samplers.registry import Ask

OUTERMOST = 0.999
"""Beyond it, on either side, lie the centres of the first and the last bin alone."""


class Bound(NamedTuple):
    """The negative variational bound and its parts, in bits a dimension (Ho et al. 2020, eq. 5)."""

    prior: Tensor  # (B,): what the noisiest level still tells of x0
    terms: Tensor  # (B, steps - 1): the KL of each step between two noisy levels, noisiest first
    decoder: Tensor  # (B,): what the step to clean costs
    total: Tensor  # (B,): the sum of all


Bounding = Generator[Ask, Any, Bound]
"""Yields what it asks, is sent the clean guess (or an Estimate), as a sampler is; returns the bound."""


def discretised_gaussian(x: Tensor, mean: Tensor, log_std: Tensor, *, half: float = 1 / 255) -> Tensor:
    """Log-probability in nats, an element, of the bin x - half .. x + half of N(mean, std^2) (Ho et al. 2020, eq. 13).

    `x` is in [-1, 1] with a bin around each of its 8-bit values; the outermost have no outer edge, and none has
    less than 1e-12.
    """
    upper, lower = (_normal_cdf((x - mean + edge) * (-log_std).exp()) for edge in (half, -half))
    upper = torch.where(x > OUTERMOST, 1.0, upper)
    lower = torch.where(x < -OUTERMOST, 0.0, lower)
    return (upper - lower).clamp_min(1e-12).log()


def step_bound(
    x0: Tensor,
    x: Tensor,
    a: Level,
    b: Level,
    guess: Tensor | Estimate,
    *,
    variance: Variance = "small",
    clip: bool = True,
    above: Level | None = None,
) -> Tensor:
    """One term of the bound (B,) in bits a dimension, given a draw `x` of q(x_a | x0); see `reverse` for the options.

    KL(q(x_b | x_a, x0) || p(x_b | x_a)), or where `b` is clean -log p(x0 | x_a) by the discretised Gaussian. Levels may
    be scalars or (B, 1, ..., 1), and then some may be clean. It can be differentiated: it is the "vb" of Nichol &
    Dhariwal 2021 (eq. 16), who detach the guess and not its spread.
    """
    mean, log_var = reverse(x, a, b, guess, variance=variance, clip=clip, above=above)
    narrower = log_variances(a, b, above)[0] - log_var
    off = posterior_mean(x0, x, a, b) - mean
    kl = (torch.expm1(narrower) - narrower + off.square() * (-log_var).exp()) / 2
    clean = (b.sigma == 0).to(x.device)
    return _bits(torch.where(clean, -discretised_gaussian(x0, mean, log_var / 2), kl))


def prior_bound(x0: Tensor, at: Level) -> Tensor:
    """KL(q(x | x0) || N(0, alpha^2 + sigma^2)) (B,) in bits a dimension at the noisiest level.

    The variance is that of data of unit variance at this level: N(0, 1) where variance is preserved and at alpha = 0.
    """
    signal = at.alpha**2 / (at.alpha**2 + at.sigma**2)
    return _bits((signal * (x0.square() - 1) - torch.log1p(-signal)) / 2)


def variational_bound(
    x0: Tensor, grid: Grid, *, noise: Noise, variance: Variance = "small", clip: bool = True
) -> Bounding:
    """The bound on -log p(x0) of 8-bit data `x0` (B, ...) in [-1, 1] under the chain of the grid.

    Ho et al. 2020, eq. 5. Each step is asked once, at noise of its own, so the mean over many draws is the bound.
    ValueError if the grid does not end clean, or has no step to lend the last one its variance.
    """
    if grid.levels[-1].sigma != 0:
        raise ValueError("the bound is on clean data and this grid does not end clean; try spacing 'trailing'")
    if len(grid) < 2:  # noqa: PLR2004
        raise ValueError("the last step of the bound has the variance of the step before it; give it 2 steps at least")
    above, parts = None, []
    for a, b in grid.steps():
        x = a.alpha * x0 + a.sigma * noise(x0)
        guess = yield x, a
        parts.append(step_bound(x0, x, a, b, guess, variance=variance, clip=clip, above=above))
        above = a
    prior, terms, decoder = prior_bound(x0, grid.levels[0]), torch.stack(parts[:-1], dim=1), parts[-1]
    return Bound(prior, terms, decoder, prior + terms.sum(1) + decoder)


def bits(bound: Bounding, denoise: Callable[[Tensor, Level], Tensor | Estimate]) -> Bound:
    """Drive a bound to its end."""
    try:
        x, at = next(bound)
        while True:
            x, at = bound.send(denoise(x, at))
    except StopIteration as done:
        return done.value
    finally:
        bound.close()


def flow_log_density(
    x: Tensor,
    grid: Grid,
    denoise: Denoise,
    *,
    noise: Noise | None = None,
    signs: bool = True,
    prior: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """log p(x) (B,) in nats, float64, of `x` (B, ...) at the last noisy level of the grid, along the probability flow.

    A clean end of the grid is left out: nothing can be asked there. Let it end where the noise no longer matters.

    With r^2 = alpha^2 + sigma^2, z = x / r and phi = atan2(sigma, alpha) the flow is dz/dphi = (alpha z - r x0) / sigma
    on every schedule, finite at alpha = 0 too, and d log p(z) / dphi = -div (Song et al. 2021b, eq. 39). Runge and
    Kutta's fourth-order method walks the grid upwards; it asks four times a step, also halfway between two levels.

    The divergence is exact, with one backward pass a dimension; or, given a `noise`, it is the estimate v^T J v of
    Hutchinson, without bias, with one probe v a step: the `signs` of the noise, or itself (eq. 40; Grathwohl et al.
    2019). Samples must not touch each other in `denoise`. `prior` is the log-density (B,) of x (B, ...) at the noisiest
    level, by default that of N(0, r^2).
    """
    levels = [at for at in reversed(grid.levels) if at.sigma > 0]
    if len(levels) < 2:  # noqa: PLR2004
        raise ValueError("a flow goes between two levels with noise; give the grid more steps")
    schedule, first, last = grid.schedule, levels[0], levels[-1]
    z = x.detach() / _size(first)
    grown = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for a, b in pairwise(levels):
        low, h = _angle(a), _angle(b) - _angle(a)
        middle = schedule.level(schedule.time(-(low + h / 2).tan().log()))
        v = None if noise is None else noise(x)
        if v is not None and signs:
            v = torch.ones_like(v).copysign(v)
        k1, d1 = _slope(denoise, z, a, v)
        k2, d2 = _slope(denoise, z + h / 2 * k1, middle, v)
        k3, d3 = _slope(denoise, z + h / 2 * k2, middle, v)
        k4, d4 = _slope(denoise, z + h * k3, b, v)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        grown += h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
    r = _size(last)
    noisiest = _standard_normal(z) - z[0].numel() * r.log() if prior is None else prior(r * z)
    return noisiest + grown + z[0].numel() * (r / _size(first)).log()


def bits_per_dim(log_density: Tensor, dims: int, scale: float = 127.5) -> Tensor:
    """Bits a dimension of 8-bit data from the log-density, in nats, of `dims` numbers of 1 / scale a grey value.

    It bounds the discrete likelihood only if the data was dequantised, (value + u) / 127.5 - 1 with u uniform in
    [0, 1); at the bare 8-bit values a density may be as high as it likes (Theis et al. 2016).
    """
    return -log_density / (dims * math.log(2)) + math.log2(scale)


def _normal_cdf(u: Tensor) -> Tensor:
    """The approximation of OpenAI's programs, within 3e-4."""
    return (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3))) / 2


def _bits(nats: Tensor) -> Tensor:
    return nats.flatten(1).mean(1) / math.log(2)


def _size(at: Level) -> Tensor:
    return torch.hypot(at.alpha, at.sigma)


def _angle(at: Level) -> Tensor:
    return torch.atan2(at.sigma, at.alpha)


def _standard_normal(z: Tensor) -> Tensor:
    """log N(z; 0, 1), summed over a sample (B,)."""
    return -(z.square() + math.log(2 * math.pi)).flatten(1).sum(1, dtype=torch.float64) / 2


def _slope(denoise: Denoise, z: Tensor, at: Level, v: Tensor | None) -> tuple[Tensor, Tensor]:
    """dz/dphi (B, ...), and its divergence in z (B,), exact or v^T J v."""
    r = _size(at)
    with torch.enable_grad():
        x = (r * z).detach().requires_grad_()
        x0 = Estimate.of(denoise(x, at)).x0
    if not x0.requires_grad:
        raise ValueError("the divergence needs a guess with its gradient; take no_grad out of the denoiser")
    divergence = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    axes = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device).reshape(-1, *x[:1].shape) if v is None else v[None]
    for p in axes.expand(-1, *x.shape):
        (grad,) = torch.autograd.grad(x0, x, grad_outputs=p, retain_graph=True)
        divergence += (p * (at.alpha * p - r**2 * grad)).flatten(1).sum(1, dtype=torch.float64) / at.sigma
    return (at.alpha * z - r * x0.detach()) / at.sigma, divergence
