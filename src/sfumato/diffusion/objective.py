"""The loss of a diffusion model: how far the network's answer is from its target (Ho et al. 2020, eq. 14)."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.cond import Cond
from sfumato.diffusion.denoiser import Denoiser
from sfumato.diffusion.level import Level
from sfumato.diffusion.noise import Address, Stream
from sfumato.diffusion.schedule import Schedule

Classify = Callable[[Tensor, Tensor], Tensor]
"""(x_t, t) -> logits (B, classes)."""
Times = Literal["uniform", "stratified", "logit_normal"]
Weight = Callable[[Level], Tensor]


def times(kind: Times, at: Address, schedule: Schedule) -> Tensor:
    """Clock values (B,) to train at, between the ends of the schedule; whole numbers where it is a table.

    "stratified" spreads a batch evenly over the clock, each sample with its own offset in its stratum (Kingma et al.
    2021, app. I.1); it makes a sample's time depend on its place in the batch. "logit_normal" favours the middle
    (Esser et al. 2024, eq. 19).
    """
    u = at.uniform(Stream.TIME, 2)
    match kind:
        case "uniform":
            part = u[:, 0]
        case "stratified":
            part = (torch.arange(len(u)) + u[:, 0]) / len(u)
        case "logit_normal":
            part = torch.sigmoid(torch.special.ndtri(u[:, 0]))
    low, high = schedule.span
    entries = schedule.entries
    return (part * entries).floor().clamp(max=entries - 1) if entries else low + part * (high - low)


def denoising_loss(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Cond,
    at: Address,
    *,
    kind: Times = "uniform",
    weight: Weight | None = None,
) -> Tensor:
    """weight(level) * mean square of (answer - target), one number a sample (B,)."""
    x, eps, level = noised(denoiser.schedule, x0, at, kind=kind)
    out = denoiser.raw(x, level, cond)
    loss = (out.float() - denoiser.prediction.target(x0, eps, level)).square().flatten(1).mean(1)
    return loss if weight is None else weight(level).flatten() * loss


def classifier_loss(
    classify: Classify, schedule: Schedule, x0: Tensor, labels: Tensor, at: Address, *, kind: Times = "uniform"
) -> Tensor:
    """Cross-entropy (B,) of the labels (B,) int64 that a classifier reads from noisy pictures (Dhariwal & Nichol 2021,
    sec. 4): what `guidance.classifier_guided` needs is its log p(y | x_t)."""
    x, _, level = noised(schedule, x0, at, kind=kind)
    logits = classify(x, level.t.to(x0.device, torch.float32).reshape(-1))
    return F.cross_entropy(logits.float(), labels, reduction="none")


def noised(schedule: Schedule, x0: Tensor, at: Address, *, kind: Times = "uniform") -> tuple[Tensor, Tensor, Level]:
    """Noisy pictures at random times, the noise in them, and their levels (B, 1, ...)."""
    t = times(kind, at, schedule).to(x0.device)
    level = schedule.level(t.view(-1, *[1] * (x0.ndim - 1)))
    level = Level(level.t, level.alpha.to(x0.dtype), level.sigma.to(x0.dtype))
    eps = at.normal(x0, Stream.NOISE)
    return level.alpha * x0 + level.sigma * eps, eps, level
