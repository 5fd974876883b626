"""The one step that all samplers take.

    x' = alpha' * x0 + sqrt(sigma'^2 - fresh^2) * eps + fresh * z,      eps = (x - alpha * x0) / sigma

They differ in the guess of x0 or eps that they put in, and in how much of the noise is fresh.
"""

from torch import Tensor

from sfumato.diffusion.level import Level
from sfumato.diffusion.noise import Noise


def noise_in(x: Tensor, x0: Tensor, at: Level) -> Tensor:
    """The noise that `x` holds if `x0` is what is clean in it."""
    return (x - at.alpha * x0) / at.sigma


def move(
    x: Tensor,
    a: Level,
    b: Level,
    *,
    x0: Tensor | None = None,
    eps: Tensor | None = None,
    fresh: Tensor | float = 0.0,
    kept: Tensor | float | None = None,
    noise: Noise | Tensor | None = None,
) -> Tensor:
    """From level `a` to level `b` with a guess of either x0 or eps; `fresh` is the deviation of the new noise, which is
    drawn unless it is given.

    The deviation of the old noise that is kept is what is left of sigma', unless it is given. With eps alone, alpha at
    `a` must not be zero.
    """
    if x0 is None:
        assert eps is not None
        x0 = (x - a.sigma * eps) / a.alpha
    if eps is None:
        eps = noise_in(x, x0, a)
    if noise is None or float(fresh) == 0:
        return b.alpha * x0 + (b.sigma if kept is None else kept) * eps
    kept = remaining(b, fresh) if kept is None else kept
    z = noise if isinstance(noise, Tensor) else noise(x)
    return b.alpha * x0 + kept * eps + fresh * z


def remaining(b: Level, fresh: Tensor | float) -> Tensor:
    """Deviation of the noise at `b` that is not fresh."""
    return (b.sigma**2 - fresh**2).clamp_min(0).sqrt()


def posterior_std(a: Level, b: Level) -> Tensor:
    """Deviation of q(x_b | x_a, x0) of the Markov chain through both levels (Ho et al. 2020, eq. 7)."""
    return b.sigma / a.sigma * forward_std(a, b)


def forward_std(a: Level, b: Level) -> Tensor:
    """Deviation of q(x_a | x_b), the noise that the chain adds from `b` up to `a`: sqrt(beta)."""
    return (a.sigma**2 - (a.alpha / b.alpha) ** 2 * b.sigma**2).clamp_min(0).sqrt()
