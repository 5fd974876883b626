"""The measuring bench: data whose clean guess is known exactly at any level, and every schedule there is."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.diffusion.denoiser import Denoise, Estimate
from sfumato.diffusion.grid import Grid
from sfumato.diffusion.level import Level
from sfumato.diffusion.samplers import Entry
from sfumato.diffusion.schedule import SCHEDULES, Schedule

PATHS: dict[str, Schedule] = {name: SCHEDULES[name]() for name in SCHEDULES} | {
    f"{name} to zero": SCHEDULES[name](terminal_zero=True)
    for name in SCHEDULES
    if "terminal_zero" in inspect.signature(SCHEDULES[name]).parameters
}
"""Every registered schedule, and its form with zero terminal SNR where it has one."""

BLIND = [name for name, path in PATHS.items() if path.level(path.span[1]).alpha == 0]
"""Those that begin with nothing but noise."""


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@dataclass(frozen=True)
class Mixture:
    """Components N(mean_k, spread_k^2 I) in R^D with the given weights. All answers are of the type of `x`."""

    weights: Tensor  # (K,)
    means: Tensor  # (K, D)
    spreads: Tensor  # (K,)

    @property
    def mean(self) -> Tensor:
        return self.weights @ self.means

    @property
    def cov(self) -> Tensor:
        off = self.means - self.mean
        within = (self.weights * self.spreads**2).sum() * torch.eye(len(self.mean), dtype=torch.float64)
        return within + (self.weights[:, None] * off).T @ off

    def x0(self, x: Tensor, at: Level) -> Tensor:
        """E[x0 | x] for x of shape (B, D, ...) with D numbers in a sample."""
        rows = x.double().flatten(1)[:, None, :]  # (B, 1, D)
        alpha, sigma = (v.double().reshape(-1, 1, 1) for v in (at.alpha, at.sigma))
        spread2 = self.spreads[:, None] ** 2  # (K, 1)
        var = alpha**2 * spread2 + sigma**2  # (B, K, 1)
        off = rows - alpha * self.means  # (B, K, D)
        dim = off.shape[-1]
        log_p = -0.5 * (off**2 / var).sum(-1) - 0.5 * dim * var[..., 0].log() + self.weights.log()
        part = torch.softmax(log_p, dim=1)[..., None]  # (B, K, 1)
        guess = (part * (self.means + alpha * spread2 / var * off)).sum(1)
        return guess.reshape(x.shape).to(x.dtype)

    def end(self, x: Tensor, at: Level) -> Tensor:
        """Where the probability flow through x ends: what a perfect consistency model answers."""
        almost = Level(at.t, *f64(1.0, 1e-4))
        path = exact(self.x0, x.double(), at, almost, steps=60)
        return self.x0(path, almost).to(x.dtype)

    def draw(self, n: int, *, seed: int) -> Tensor:
        """(n, D) samples."""
        generator = torch.Generator().manual_seed(seed)
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[k] + self.spreads[k, None] * z


THREE = Mixture(
    weights=f64(0.3, 0.25, 0.25, 0.2),
    means=torch.stack([f64(-1.0, 0.4, 0.2), f64(0.8, -0.6, 0.5), f64(0.3, 0.9, -0.8), f64(-0.2, -0.8, -0.7)]),
    spreads=f64(0.35, 0.25, 0.4, 0.3),
)
"""The data that samplers are measured on."""


def for_sampler(entry: Entry, data: Mixture = THREE) -> Denoise:
    """The exact answers that this sampler is made for: the mean, the end of the flow, or with a spread beside it."""

    exact = data.end if entry.consistent else data.x0
    return lambda x, at: for_learned(entry, exact(x, at))


def for_learned(entry: Entry, x0: Tensor) -> Tensor:
    """With a spread beside it if the sampler reads one."""
    return Estimate(x0, torch.full_like(x0, 0.25)) if entry.learned else x0  # pyright: ignore[reportReturnType]


def row_by_row(denoise: Denoise) -> Denoise:
    """The same answers, but each sample is computed alone, so that batch mates cannot touch the rounding."""

    def one_by_one(x: Tensor, at: Level) -> Tensor:
        levels = [v.expand(len(x), *[1] * (x.ndim - 1)) for v in at] if at.sigma.ndim else None
        parts = []
        for i in range(len(x)):
            parts.append(denoise(x[i : i + 1], at if levels is None else Level(*(v[i : i + 1] for v in levels))))
        if isinstance(parts[0], Estimate):
            return Estimate(*(None if v[0] is None else torch.cat(v) for v in zip(*parts, strict=True)))  # pyright: ignore
        return torch.cat(parts)

    return one_by_one


TOY = Mixture(weights=f64(1.0), means=f64(0.5)[:, None], spreads=f64(0.25))
"""N(0.5, 0.25^2), the scalar data of the published end-to-end vectors."""


def between(schedule: Schedule, a: Level, b: Level, steps: int, *, even_in: str) -> Grid:
    """A grid from a to b, even in "time" or in "lam"."""
    parts = [i / steps for i in range(steps + 1)]
    if even_in == "time":
        return Grid(schedule, tuple(schedule.level(a.t + p * (b.t - a.t)) for p in parts))
    return Grid(schedule, tuple(schedule.level(schedule.time(a.lam + p * (b.lam - a.lam))) for p in parts))


def exact(denoise: Denoise, x: Tensor, a: Level, b: Level, *, steps: int = 600) -> Tensor:
    """The probability flow from a to b, where alpha may be 0 at a, by Runge and Kutta's fourth-order method.

    In the angle phi = atan2(sigma, alpha) and z = x / |(alpha, sigma)| the flow is z' = (cos(phi) z - x0) / sin(phi),
    whatever the schedule.
    """

    def slope(phi: float, z: Tensor) -> Tensor:
        at = Level(f64(0.0)[0], f64(math.cos(phi))[0], f64(math.sin(phi))[0])
        return (at.alpha * z - denoise(z, at)) / at.sigma

    def phi_at(part: float) -> float:  # even in log(tan(phi / 2)): small steps where sigma is small
        return 2 * math.atan(math.exp(low + part * (high - low)))

    first, last = (math.atan2(float(v.sigma), float(v.alpha)) for v in (a, b))
    low, high = math.log(math.tan(first / 2)), math.log(math.tan(last / 2))
    z = x / math.hypot(float(a.alpha), float(a.sigma))
    for i in range(steps):
        p, q = phi_at(i / steps), phi_at((i + 1) / steps)
        h, mid = q - p, (p + q) / 2
        k1 = slope(p, z)
        k2 = slope(mid, z + h / 2 * k1)
        k3 = slope(mid, z + h / 2 * k2)
        k4 = slope(q, z + h * k3)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return z * math.hypot(float(b.alpha), float(b.sigma))
