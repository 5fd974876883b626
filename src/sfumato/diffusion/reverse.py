"""The model's own step down, p(x_b | x_a): its mean and its variance, for sampling and for the likelihood alike."""

from typing import Literal

import torch
from torch import Tensor

from sfumato.diffusion.denoiser import Estimate
from sfumato.diffusion.level import Level
from sfumato.diffusion.move import forward_std, posterior_std

Variance = Literal["small", "large", "learned"]
"""Of a step down: the posterior's, beta, or between the two where the network says (Nichol & Dhariwal 2021, eq. 15)."""


def posterior_mean(x0: Tensor, x: Tensor, a: Level, b: Level) -> Tensor:
    """Mean of q(x_b | x_a, x0) of the chain through both levels, with `x` at `a` (Ho et al. 2020, eq. 7)."""
    kept = a.alpha / b.alpha * (b.sigma / a.sigma) ** 2
    return b.alpha * (forward_std(a, b) / a.sigma) ** 2 * x0 + kept * x


def reverse(
    x: Tensor,
    a: Level,
    b: Level,
    guess: Tensor | Estimate,
    *,
    variance: Variance = "small",
    clip: bool = True,
    above: Level | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of the model's step p(x_b | x_a), with `x` (B, ...) at `a`; each broadcasts against x.

    `clip` holds the guess in [-1, 1], as one does in sampling and evaluation and not in the loss. Where `b` is clean
    the posterior has no variance, and that of the step before, from `above` to `a`, stands for it; also in "large", but
    not for the upper end of "learned" (the programs of Ho et al. 2020 and Dhariwal & Nichol 2021).
    """
    x0, spread, push = Estimate.of(guess)
    low, high = log_variances(a, b, above)
    match variance:
        case "small":
            log_var = low
        case "large":
            log_var = torch.where(b.sigma == 0, low, high)
        case "learned":
            if spread is None:
                raise ValueError("this network did not learn its variance; take 'small' or 'large' (ddpm, ddpm_large)")
            log_var = spread * high + (1 - spread) * low
        case _:
            raise ValueError(f"variance {variance!r} is unknown; there are 'small', 'large' and 'learned'")
    mean = posterior_mean(x0.clamp(-1, 1) if clip else x0, x, a, b)
    return (mean if push is None else mean + log_var.exp() * push), log_var


def log_variances(a: Level, b: Level, above: Level | None) -> tuple[Tensor, Tensor]:
    """The posterior's, or where `b` is clean that of the step from `above` to `a`, and beta's.

    ValueError for a clean `b` without `above`.
    """
    std = posterior_std(a, b)
    if above is not None:
        std = torch.where(b.sigma == 0, posterior_std(above, a), std)
    elif (b.sigma == 0).any():
        raise ValueError("a step to clean has the variance of the step before it; say which level is above")
    return 2 * std.log(), 2 * forward_std(a, b).log()
