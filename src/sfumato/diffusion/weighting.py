"""How much the error at each level counts, and what that is in each prediction.

A weight belongs to the squared error of one prediction. The answers of all predictions to the same x are affine in each
other, so that a weight for one is a weight for any other: see `converted`.
"""

from typing import Literal

import torch
from torch import Tensor

from sfumato.diffusion.chain import step_down
from sfumato.diffusion.level import Level
from sfumato.diffusion.move import forward_std
from sfumato.diffusion.prediction import Prediction
from sfumato.diffusion.reverse import log_variances
from sfumato.diffusion.schedule import Schedule

Weighting = Literal["simple", "min_snr", "p2", "bound", "sigmoid"]
"""The same at every level (Ho et al. 2020, eq. 14), or one of `level_weight`."""

GAMMA = {"min_snr": 5.0, "p2": 1.0}
"""Of those that have a gamma, their authors' choice."""


def level_weight(
    kind: Weighting,
    at: Level,
    schedule: Schedule,
    prediction: Prediction,
    *,
    gamma: float | None = None,
    bias: float = 0.0,
) -> Tensor:
    """What multiplies squared errors of `prediction` at levels `at` of the schedule, of the shape of `at.t`, float64.

    With SNR = alpha^2 / sigma^2:

    "simple": 1, in the prediction itself.
    "min_snr": min(SNR, gamma) in x0, so min(SNR, gamma) / SNR in eps and min(SNR, gamma) / (SNR + 1) in v (Hang et al.
    2023, sec. 3).
    "p2": 1 / (1 + SNR)^gamma in eps (Choi et al. 2022, sec. 3, with k = 1).
    "bound": that of the variational bound; see `bound_weight`.
    "sigmoid": the bound's times sigmoid(bias - log SNR) (Kingma & Gao 2023; Hoogeboom et al. 2024).
    """
    snr = (at.alpha / at.sigma) ** 2
    gamma = GAMMA.get(kind, 0.0) if gamma is None else gamma
    match kind:
        case "simple":
            return torch.ones_like(snr)
        case "min_snr":
            weight, of = (gamma / snr).clamp(max=1), Prediction.EPS
        case "p2":
            weight, of = (1 + snr) ** -gamma, Prediction.EPS
        case "bound":
            weight, of = bound_weight(schedule, at.t), Prediction.X0
        case "sigmoid":
            weight, of = bound_weight(schedule, at.t) * torch.sigmoid(bias - snr.log()), Prediction.X0
    return converted(weight, at, of=of, to=prediction)


def converted(weight: Tensor, at: Level, *, of: Prediction, to: Prediction) -> Tensor:
    """The weight for squared errors of `to` that counts the same error as `weight` does for those of `of`.

    Where alpha = 0 an answer in eps says nothing of the others: a weight of eps is none there, and one of the others is
    infinite in eps.
    """
    if of == to:
        return weight
    return weight * (magnified(of, at) / magnified(to, at)) ** 2


def magnified(prediction: Prediction, at: Level) -> Tensor:
    """How far the answer is off where the clean picture that it means is off by one."""
    match prediction:
        case Prediction.EPS:
            return at.alpha / at.sigma
        case Prediction.X0:
            return torch.ones_like(at.sigma)
        case Prediction.V:
            return (at.alpha**2 + at.sigma**2) / at.sigma
        case Prediction.FLOW:
            return (at.alpha + at.sigma) / at.sigma


def bound_weight(schedule: Schedule, t: Tensor) -> Tensor:
    """The weight of the squared error in x0 with which the mean loss over the clock is the variational bound, in nats.

    Of a table of N entries N times Ho et al. 2020, eq. 12, which is N / 2 (SNR(t - 1) - SNR(t)) (Kingma et al. 2021,
    eq. 14); the step to clean has the variance of the step before it, as in sampling, and the density in the place of
    the mass of a bin. Of a continuous schedule its limit, -SNR'(t) / 2 times the length of the clock (sec. 5).
    """
    if schedule.entries is not None:
        a, b, above = step_down(schedule, t)
        mean = b.alpha * (forward_std(a, b) / a.sigma) ** 2  # of the posterior, for each unit of x0
        return schedule.entries / 2 * mean**2 * (-log_variances(a, b, above)[0]).exp()
    with torch.enable_grad():
        clock = t.detach().double().requires_grad_()
        at = schedule.level(clock)
        (slope,) = torch.autograd.grad(at.lam.sum(), clock)
    low, high = schedule.span
    return -slope * ((at.alpha / at.sigma) ** 2).detach() * (high - low)
