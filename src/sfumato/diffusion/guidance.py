"""What to ask the network, and how to make one guess of its answers. Samplers never hear of it.

A guide is a generator: it yields questions and returns the guess. So guides wrap guides, and a driver can put the
questions of many unrelated runs into one call of the network.
"""

import math

import torch
from torch import Tensor

from sfumato.cond import Cond
from sfumato.diffusion.denoiser import Guess, Guide, Query
from sfumato.diffusion.level import Level


def conditional(cond: Cond) -> Guide:
    """The plain conditional guess."""

    def guide(x: Tensor, at: Level) -> Guess:
        (x0,) = yield [Query(x, at, cond)]
        return x0

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
    moves the guess back to the spread of the conditional one (Lin et al. 2023, sec. 3.4). Outside `interval`, in half
    log-SNR, the conditional guess alone is asked for (Kynkaanniemi et al. 2024); so it is at scale 1.
    """
    plain = conditional(cond)
    idle = not isinstance(scale, Tensor) and scale == 1

    def guide(x: Tensor, at: Level) -> Guess:
        if idle or not interval[0] <= float(at.lam.max()) <= interval[1]:
            return (yield from plain(x, at))
        uncond, x0 = yield [Query(x, at, null), Query(x, at, cond)]
        guess = (uncond + scale * (x0 - uncond)).to(x0.dtype)
        if rescale > 0:
            guess = guess * (1 - rescale + rescale * _spread(x0) / _spread(guess))
        return guess

    return guide


def inpainted(guide: Guide, known: Tensor, mask: Tensor) -> Guide:
    """The guess with what is known put in: `known` (B, C, H, W) where `mask` is 1, the guide's guess where it is 0."""

    def inner(x: Tensor, at: Level) -> Guess:
        x0 = yield from guide(x, at)
        kept = mask.to(x0.dtype)
        return kept * known.to(x0.dtype) + (1 - kept) * x0

    return inner


def thresholded(guide: Guide, *, quantile: float = 0.995, limit: float = 1.0) -> Guide:
    """Dynamic thresholding for pixel space: clamp to the quantile of |x0|, divide by it (Saharia et al. 2022)."""

    def inner(x: Tensor, at: Level) -> Guess:
        x0 = yield from guide(x, at)
        s = torch.quantile(x0.flatten(1).abs().float(), quantile, dim=1).clamp_min(limit)
        s = s.to(x0.dtype).view(-1, *[1] * (x0.ndim - 1))
        return x0.clamp(-s, s) / s * limit

    return inner


def _spread(x: Tensor) -> Tensor:
    return x.std(dim=tuple(range(1, x.ndim)), keepdim=True)
