"""Averages of the weights whose length is chosen after the training (Karras et al. 2024b, sec. 3 and app. C).

An average of profile p(tau) proportional to tau^gamma on [0, t], of the weights after update tau, is as long as the run
is: its deviation is a fraction sigma_rel of t. Snapshots of one or two such averages span a space, in which any other
profile has a nearest point.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sfumato.train.ema import Average

WIDEST = 1 / math.sqrt(12)
"""sigma_rel of gamma = 0, the plain mean of all weights so far."""


class Profile(NamedTuple):
    """A power-function profile: where it ends, in updates, and its deviation as a fraction of that."""

    step: int
    sigma_rel: float


class Snapshot(NamedTuple):
    """An average as it was: the profile, and its tensors by the names of the module's parameters."""

    step: int
    sigma_rel: float
    tensors: Mapping[str, Tensor]

    @property
    def profile(self) -> Profile:
        """Without the tensors."""
        return Profile(self.step, self.sigma_rel)


def sigma_rel_of(gamma: float) -> float:
    """The relative deviation of the profile tau^gamma (eq. 123)."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def gamma_of(sigma_rel: float) -> float:
    """The exponent at least 0 whose profile has this relative deviation: the inverse of `sigma_rel_of` (eq. 126).

    ValueError unless sigma_rel is above 0 and at most 0.2886, where all weights so far count alike.
    """
    if not 0 < sigma_rel <= WIDEST * (1 + 1e-12):
        raise ValueError(f"sigma_rel is {sigma_rel}; it must be above 0 and at most 0.2886, which is the plain mean")
    low, high = 0.0, 1 / sigma_rel  # sigma_rel_of falls, and is below 1 / gamma
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if sigma_rel_of(middle) > sigma_rel else (low, middle)
    return low


class PowerEma(Average):
    """The average with a power-function profile: decay (1 - 1 / n)^(gamma + 1) at update n (eq. 127).

    The first update takes the weights as they are, so that those before training do not count.
    """

    def __init__(self, module: nn.Module, sigma_rel: float) -> None:
        self.gamma = gamma_of(sigma_rel)
        self.sigma_rel = sigma_rel
        super().__init__(module)

    def decay_at(self, update: int) -> float:
        """See Average."""
        return (1 - 1 / update) ** (self.gamma + 1)

    def snapshot(self) -> Snapshot:
        """A copy of it as it is now; there must have been an update."""
        assert self.updates > 0
        return Snapshot(self.updates, self.sigma_rel, {name: v.clone() for name, v in self.shadow.items()})


def reconstructed(snapshots: Sequence[Snapshot], *, sigma_rel: float, at: int) -> dict[str, Tensor]:
    """The average of relative deviation `sigma_rel` after update `at`, as near as the snapshots come to it.

    A weighted sum of them (see `coefficients`), in float64, and of their types. ValueError as there.
    """
    weights = coefficients([s.profile for s in snapshots], sigma_rel=sigma_rel, at=at).tolist()
    out: dict[str, Tensor] = {}
    for name, like in snapshots[0].tensors.items():
        parts = (w * s.tensors[name].double() for w, s in zip(weights, snapshots, strict=True))
        out[name] = sum(parts, torch.zeros_like(like, dtype=torch.float64)).to(like.dtype)
    return out


def coefficients(profiles: Sequence[Profile], *, sigma_rel: float, at: int) -> Tensor:
    """The weights (N,) float64 with which the profiles come nearest to another one, in the mean square over updates.

    The normal equations of alg. 3. The weights sum to one, by a multiplier; the authors divide by their sum, which
    comes a little less near. A profile that is among them is found exactly. ValueError if there are none, if two are
    the same, or if `at` is behind the last.
    """
    if not profiles:
        raise ValueError("nothing can be reconstructed from no snapshots")
    if len(set(profiles)) < len(profiles):
        raise ValueError("two snapshots have the same step and sigma_rel; leave one out")
    if not 1 <= at <= max(p.step for p in profiles):
        raise ValueError(
            f"step {at} is not within the snapshots, the last of which is of {max(p.step for p in profiles)}"
        )
    n, scale = len(profiles), inner(profiles, profiles).diagonal().rsqrt()
    matrix = torch.zeros(n + 1, n + 1, dtype=torch.float64)
    matrix[:n, :n] = scale[:, None] * inner(profiles, profiles) * scale
    matrix[:n, n] = matrix[n, :n] = scale / scale.max()
    right = torch.cat([scale * inner(profiles, [Profile(at, sigma_rel)])[:, 0], (1 / scale.max())[None]])
    return torch.linalg.solve(matrix, right)[:n] * scale


def misfit(profiles: Sequence[Profile], *, sigma_rel: float, at: int) -> float:
    """How far the nearest profile is from the one asked for, as a fraction of its size; 1e-7 and less are rounding.

    No reconstructed number is further off than misfit * size times the root of the sum over all updates of the squared
    difference of that weight from any constant, where size^2 is the profile's product with itself (`inner`).
    """
    weights, goal = coefficients(profiles, sigma_rel=sigma_rel, at=at), [Profile(at, sigma_rel)]
    size2 = inner(goal, goal)[0, 0]
    left = size2 - 2 * weights @ inner(profiles, goal)[:, 0] + weights @ inner(profiles, profiles) @ weights
    return float((left / size2).clamp_min(0).sqrt())


def inner(a: Sequence[Profile], b: Sequence[Profile]) -> Tensor:
    """The integral over tau of the product of each of `a` and each of `b`, (len(a), len(b)) float64 (eq. 151)."""
    (t, g), (u, h) = _numbers(a), _numbers(b)
    t, g = t[:, None], g[:, None]
    ratio = torch.where(t < u, (t / u) ** h, (u / t) ** g)
    return (g + 1) * (h + 1) * ratio / ((g + h + 1) * torch.maximum(t, u))


def _numbers(profiles: Sequence[Profile]) -> tuple[Tensor, Tensor]:
    """The ends and the exponents (N,)."""
    ends = torch.tensor([p.step for p in profiles], dtype=torch.float64)
    return ends, torch.tensor([gamma_of(p.sigma_rel) for p in profiles], dtype=torch.float64)
