"""The loss of a diffusion model: how far the network's answer is from its target (Ho et al. 2020, eq. 14)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.cond import Cond
from sfumato.diffusion.chain import step_down
from sfumato.diffusion.denoiser import Denoiser, Estimate
from sfumato.diffusion.level import Level
from sfumato.diffusion.likelihood import step_bound
from sfumato.diffusion.noise import Address, Stream
from sfumato.diffusion.prediction import Prediction
from sfumato.diffusion.schedule import Schedule
from sfumato.diffusion.weighting import GAMMA, Weighting, level_weight

Classify = Callable[[Tensor, Tensor], Tensor]
"""(x_t, t) -> logits (B, classes)."""
Times = Literal["uniform", "stratified", "logit_normal"]
Weight = Callable[[Level], Tensor]
Distance = Literal["l2", "l1", "huber"]

HUBER = 0.1
"""Where "huber" goes over from squares to absolute values, if nothing else is said."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What a denoising loss measures, and what it adds. As it is by default: Ho et al. 2020, eq. 14, and nothing else.

    The weights of "min_snr" and the others are those of squares; another distance is multiplied by the same number.
    Sampling takes an answer for the mean of what is possible, which is the best one for squares alone: for "l1" it is
    the median, and "huber" lies between.
    """

    distance: Distance = "l2"
    huber: float | None = None  # the constant of "huber": 0.1 if not said
    weighting: Weighting = "simple"
    gamma: float | None = None  # "min_snr": the largest SNR that counts, 5 if not said; "p2": the exponent, 1
    bias: float | None = None  # "sigmoid": the log SNR at which it is one half, 0 if not said
    offset: float = 0.0  # of the noise that all pixels of a channel share (Guttenberg 2023), in deviations
    hybrid: float = 0.0  # the bound's part in training a learned variance; 0.001 in Nichol & Dhariwal 2021, eq. 16

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    def __post_init__(self) -> None:
        for name, used, by in (
            ("huber", self.distance == "huber", "distance 'huber'"),
            ("gamma", self.weighting in GAMMA, "weightings 'min_snr' and 'p2'"),
            ("bias", self.weighting == "sigmoid", "weighting 'sigmoid'"),
        ):
            if getattr(self, name) is not None and not used:
                raise ValueError(f"{name} is of {by} alone; leave it out")
        for name, good, need in (
            ("huber", self.huber is None or 0 < self.huber < math.inf, "positive"),
            ("gamma", self.gamma is None or 0 < self.gamma < math.inf, "positive"),
            ("bias", self.bias is None or math.isfinite(self.bias), "finite"),
            ("offset", 0 <= self.offset < math.inf, "at least 0"),
            ("hybrid", 0 <= self.hybrid < math.inf, "at least 0"),
        ):
            if not good:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {need}")

    def check(self, schedule: Schedule, prediction: Prediction, times: Times, *, learned: bool) -> None:
        """ValueError of one line if a network of this kind cannot be trained so. `learned`: it learns its variance."""
        bound, ends = self.weighting == "bound", schedule.level(schedule.span[1])
        through_x0 = self.hybrid > 0 or self.weighting in ("bound", "sigmoid")
        for wrong, message in (
            (
                learned and not self.hybrid,
                "the network learns its variance, which the bound alone trains; set hybrid=0.001",
            ),
            (self.hybrid and not learned, "hybrid is for a network that learns its variance, and this one does not"),
            (
                (self.hybrid or bound) and schedule.entries is None,
                "the bound is of a table's steps, and this schedule has none; take no hybrid, and no weighting 'bound'",
            ),
            ((self.hybrid or bound) and self.offset, "the bound is for plain noise; take either it or an offset"),
            (bound and self.distance != "l2", f"the bound is of squares; take distance 'l2', not '{self.distance}'"),
            (bound and times == "logit_normal", "the bound counts all times alike; take 'uniform' or 'stratified'"),
            (
                through_x0 and prediction == Prediction.EPS and bool(ends.alpha == 0),
                "this schedule ends in nothing but noise, where eps means no picture; take prediction 'v'",
            ),
        ):
            if wrong:
                raise ValueError(message)

    def measure(self, off: Tensor) -> Tensor:
        """The distance of each number from its target, given the difference.

        "huber" is 2 c (sqrt(off^2 + c^2) - c): off^2 where it is small against c, 2 c |off| where it is large. The
        function is Charbonnier et al.'s (1994); in this field it is Song & Dhariwal's (2024, sec. 3.3, of a whole
        picture) and Khrapov et al.'s (2024, of each number, as here).
        """
        match self.distance:
            case "l2":
                return off.square()
            case "l1":
                return off.abs()
            case "huber":
                c = HUBER if self.huber is None else self.huber
                return 2 * c * off.square() / ((off.square() + c**2).sqrt() + c)  # the same, without cancellation


SIMPLE = Loss()


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
            part = ((torch.arange(len(u)) if at.place is None else at.place) + u[:, 0]) / (at.batch or len(u))
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
    loss: Loss = SIMPLE,
) -> Tensor:
    """weight(level) * mean distance of (answer - target), one number a sample (B,); and the bound of learned variance.

    `weight` multiplies what the weighting of `loss` gives. With "eps" on the `geometric` schedule it is 2 / D times the
    denoising score matching of Song & Ermon 2019 (eq. 6, with lambda = sigma^2) for the score -answer / sigma.
    ValueError if this network cannot be trained by this loss: see `Loss.check`.
    """
    schedule, prediction = denoiser.schedule, denoiser.prediction
    loss.check(schedule, prediction, kind, learned=denoiser.learned)
    x, eps, level = noised(schedule, x0, at, kind=kind, offset=loss.offset)
    out = denoiser.raw(x, level, cond)
    out, spread = out.chunk(2, dim=1) if denoiser.learned else (out, None)
    total = loss.measure(out.float() - prediction.target(x0, eps, level)).flatten(1).mean(1)
    if loss.weighting != "simple":
        exact = schedule.level(level.t)  # `level` is of the type of the pictures
        own = level_weight(loss.weighting, exact, schedule, prediction, gamma=loss.gamma, bias=loss.bias or 0.0)
        total = own.flatten().to(total.dtype) * total
    if weight is not None:
        total = weight(level).flatten() * total
    if spread is None:
        return total
    return total + loss.hybrid * variance_bound(denoiser, x0, x, level.t, out, spread).to(total.dtype)


def variance_bound(denoiser: Denoiser, x0: Tensor, x: Tensor, t: Tensor, out: Tensor, spread: Tensor) -> Tensor:
    """The bound (B,) in bits a dimension, of which each sample is one step out of all, for the variance to learn by.

    `x` (B, C, ...) is noisy at entries `t` (B, 1, ...), `out` and `spread` are both halves of the network's answer. The
    mean is not moved by it: `out` is detached (Nichol & Dhariwal 2021, sec. 3.1). So 0.001 of it is their eq. 16. The
    last step is that of 8-bit numbers in [-1, 1] for latents too, as in DiT (Peebles & Xie 2023).
    """
    a, b, above = step_down(denoiser.schedule, t)
    guess = denoiser.prediction.x0(out.detach().float(), x, a)
    estimate = Estimate(guess, (spread.float() + 1) / 2)
    steps = denoiser.schedule.entries
    assert steps is not None
    return steps * step_bound(x0, x, a, b, estimate, variance="learned", clip=False, above=above)


def classifier_loss(
    classify: Classify, schedule: Schedule, x0: Tensor, labels: Tensor, at: Address, *, kind: Times = "uniform"
) -> Tensor:
    """Cross-entropy (B,) of the labels (B,) int64 that a classifier reads from noisy pictures (Dhariwal & Nichol 2021,
    sec. 4): what `guidance.classifier_guided` needs is its log p(y | x_t)."""
    x, _, level = noised(schedule, x0, at, kind=kind)
    logits = classify(x, level.t.to(x0.device, torch.float32).reshape(-1))
    return F.cross_entropy(logits.float(), labels, reduction="none")


def noised(
    schedule: Schedule, x0: Tensor, at: Address, *, kind: Times = "uniform", offset: float = 0.0
) -> tuple[Tensor, Tensor, Level]:
    """Noisy pictures at random times, the noise in them, and their levels (B, 1, ...).

    `offset` times a normal number for each sample and channel, which all its pixels share, is added to the noise
    (Guttenberg 2023, "Diffusion with offset noise").
    """
    t = times(kind, at, schedule).to(x0.device)
    level = schedule.level(t.view(-1, *[1] * (x0.ndim - 1)))
    level = Level(level.t, level.alpha.to(x0.dtype), level.sigma.to(x0.dtype))
    eps = at.normal(x0, Stream.NOISE)
    if offset:
        channels = x0.reshape(*x0.shape[:2], -1)[..., 0]
        eps = eps + offset * at.normal(channels, Stream.OFFSET).reshape(*channels.shape, *[1] * (x0.ndim - 2))
    return level.alpha * x0 + level.sigma * eps, eps, level
