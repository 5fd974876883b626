"""What to ask the network, and how to make one guess of its answers. Samplers never hear of it.

A guide is a generator: it yields questions and returns the guess. So guides wrap guides, and a driver can put the
questions of many unrelated runs into one call of the network. A guess is a clean picture x0, or an Estimate; a guide
that wraps another changes its x0 and keeps the rest.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from sfumato.cond import Cond
from sfumato.diffusion.denoiser import Denoise, Estimate, Guess, Guide, Query
from sfumato.diffusion.level import Level


def conditional(cond: Cond) -> Guide:
    """The plain conditional guess."""

    def guide(x: Tensor, at: Level) -> Guess:
        (guess,) = yield [Query(x, at, cond)]
        return guess

    return guide


def guided(
    cond: Cond,
    null: Cond,
    *,
    scale: float | Tensor,
    rescale: float = 0.0,
    interval: tuple[float, float] = (-math.inf, math.inf),
) -> Guide:
    """Classifier-free guidance: null + scale * (cond - null) (Ho & Salimans 2022, in the clean guess).

    `null` is the unconditional condition, or a negative prompt's. `scale` is a number or (B, 1, 1, 1). `rescale`
    moves the guess back to the deviation of the conditional one (Lin et al. 2023, sec. 3.4). A sample outside
    `interval`, in half log-SNR, gets the conditional guess (Kynkaanniemi et al. 2024), as at scale 1; if it is so for
    all, nothing else is asked for. What the network learnt of the variance is the conditional answer's.
    """
    plain = conditional(cond)
    idle = not isinstance(scale, Tensor) and scale == 1

    def guide(x: Tensor, at: Level) -> Guess:
        inside = (at.lam >= interval[0]) & (at.lam <= interval[1])
        if idle or not inside.any():
            return (yield from plain(x, at))
        without, answer = yield [Query(x, at, null), Query(x, at, cond)]
        uncond = Estimate.of(without).x0

        def further(x0: Tensor) -> Tensor:
            guess = (uncond + scale * (x0 - uncond)).to(x0.dtype)
            if rescale > 0:
                guess = guess * (1 - rescale + rescale * _deviation(x0) / _deviation(guess))
            return torch.where(_beside(inside, x0) & (scale != 1), guess, x0)

        return _changed(answer, further)

    return guide


def autoguided(guide: Guide, worse: Denoise, *, scale: float | Tensor) -> Guide:
    """Away from what a worse model guesses: bad + scale * (good - bad) (Karras et al. 2024, "Guiding a diffusion model
    with a bad version of itself", in the clean guess).

    `worse` is another network's `bind(...)`, smaller or less trained, that hears the same condition. It is not asked at
    scale 1. `scale` is a number or (B, 1, 1, 1).
    """
    idle = not isinstance(scale, Tensor) and scale == 1

    def inner(x: Tensor, at: Level) -> Guess:
        guess = yield from guide(x, at)
        if idle:
            return guess
        bad = Estimate.of(worse(x, at)).x0
        return _changed(guess, lambda good: (bad + scale * (good - bad)).to(good.dtype))

    return inner


def classifier_guided(
    guide: Guide,
    log_prob: Callable[[Tensor, Level], Tensor],
    *,
    scale: float | Tensor,
    form: Literal["score", "mean"] = "score",
) -> Guide:
    """Along scale * grad log p(y | x_t) (Dhariwal & Nichol 2021), where `log_prob`, (x, level) -> (B,), is a classifier
    of noisy pictures, differentiable in x. `scale` is a number or (B, 1, 1, 1).

    With `form` "score", for any sampler (alg. 2), the noise changes by -scale * sigma * grad, so x0 by
    scale * sigma^2 / alpha * grad; a sample whose level is blind is left as it is. With "mean" (alg. 1) x0 stays, and
    the guess is an Estimate with push = scale * grad, for the samplers that move the mean by variance * push.

    It works under `torch.no_grad`, not under `torch.inference_mode`, which forbids gradients: ValueError when the
    guess is asked for. ValueError for an unknown form.
    """
    if form not in ("score", "mean"):
        raise ValueError(f"classifier guidance has no form {form!r}; it is 'score' or 'mean'")

    def inner(x: Tensor, at: Level) -> Guess:
        guess = yield from guide(x, at)
        seen = ~at.unseen
        if form == "score" and not seen.any():
            return guess
        push = scale * _gradient(log_prob, x, at)
        if form == "mean":
            x0, spread, other = Estimate.of(guess)
            return Estimate(x0, spread, (push if other is None else other + push).to(x0.dtype))
        here = at.beside(push)
        push = here.sigma**2 / here.alpha * push
        return _changed(guess, lambda x0: torch.where(_beside(seen, x0), x0 + push, x0).to(x0.dtype))

    return inner


def inpainted(guide: Guide, known: Tensor, mask: Tensor) -> Guide:
    """The guess with what is known put in: `known` (B, C, H, W) where `mask` is 1, the guide's guess where it is 0."""

    def filled(x0: Tensor) -> Tensor:
        kept = mask.to(x0.dtype)
        return kept * known.to(x0.dtype) + (1 - kept) * x0

    def inner(x: Tensor, at: Level) -> Guess:
        return _changed((yield from guide(x, at)), filled)

    return inner


def thresholded(guide: Guide, *, quantile: float = 0.995, limit: float = 1.0) -> Guide:
    """Dynamic thresholding for pixel space: clamp to the quantile of |x0|, divide by it (Saharia et al. 2022)."""

    def clamped(x0: Tensor) -> Tensor:
        s = torch.quantile(x0.flatten(1).abs().float(), quantile, dim=1).clamp_min(limit)
        s = s.to(x0.dtype).view(-1, *[1] * (x0.ndim - 1))
        return x0.clamp(-s, s) / s * limit

    def inner(x: Tensor, at: Level) -> Guess:
        return _changed((yield from guide(x, at)), clamped)

    return inner


def _changed(guess: Tensor | Estimate, f: Callable[[Tensor], Tensor]) -> Tensor | Estimate:
    """The guess with `f` of its x0; what an Estimate says beside it is kept."""
    return f(guess) if isinstance(guess, Tensor) else guess._replace(x0=f(guess.x0))


def _gradient(log_prob: Callable[[Tensor, Level], Tensor], x: Tensor, at: Level) -> Tensor:
    """grad log p(y | x) of each sample, as `x` and in float32 at least."""
    if torch.is_inference_mode_enabled():
        raise ValueError("a classifier's gradient cannot be had under torch.inference_mode; use torch.no_grad")
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(log_prob(x, at).sum(), x)
    return grad.to(torch.promote_types(x.dtype, torch.float32))


def _beside(which: Tensor, x: Tensor) -> Tensor:
    """What holds for a level, or for each one of a batch, as (1 or B, 1, ..., 1) beside `x` (B, ...)."""
    return which.to(x.device).reshape(-1, *[1] * (x.ndim - 1))


def _deviation(x: Tensor) -> Tensor:
    return x.std(dim=tuple(range(1, x.ndim)), keepdim=True)
