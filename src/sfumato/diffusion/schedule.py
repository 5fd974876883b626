"""How signal and noise are mixed along the clock: level(t), and its inverse time(lam). Nothing else knows betas.

"linear" means three things in this field. Here `scaled_linear` is LDM's and Stable Diffusion's (the square root of
beta is linear), `linear` is DDPM's (beta itself is).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sfumato.diffusion.level import Level
from sfumato.registry import Registry


class Schedule(Protocol):
    """A monotone path from almost clean to noise."""

    @property
    def span(self) -> tuple[float, float]:
        """The cleanest and the noisiest value of the clock."""
        ...

    @property
    def entries(self) -> int | None:
        """How many clock values a discrete schedule was trained with; None if it is continuous."""
        ...

    def level(self, t: Tensor | float) -> Level:
        """The level at clock `t`, of the shape of `t`, in float64."""
        ...

    def time(self, lam: Tensor) -> Tensor:
        """The clock at half log-SNR `lam`: time(level(t).lam) == t."""
        ...


class Table:
    """A table of cumulative signal powers, abar[0..N-1], with the clock 0..N-1.

    Between entries log(alpha) is linear in t, and beyond them it is continued (DPM-Solver, Lu et al. 2022a, app. D). If
    the last entry is zero (zero terminal SNR), alpha itself is linear in the last interval.
    """

    def __init__(self, abar: Tensor) -> None:
        abar = abar.double()
        if abar.ndim != 1 or not len(abar) > 1 or not (abar.diff() < 0).all() or not 0 <= abar[-1] < abar[0] < 1:
            raise ValueError("cumulative signal powers must fall strictly, within [0, 1)")
        self.abar = abar
        self.entries: int | None = len(abar)
        self.span = (0.0, float(len(abar) - 1))
        self._zero = bool(abar[-1] == 0)
        self._log_alpha = 0.5 * (abar[:-1] if self._zero else abar).log()

    def level(self, t: Tensor | float) -> Level:
        """See Schedule."""
        t = torch.as_tensor(t, dtype=torch.float64)
        table = self._log_alpha.to(t.device)
        i = t.detach().floor().long().clamp(0, len(table) - 2)
        log_alpha = table[i] + (t - i) * (table[i + 1] - table[i])
        alpha = log_alpha.exp()
        sigma = (-torch.expm1(2 * log_alpha)).clamp_min(0).sqrt()
        if self._zero:
            last = len(table) - 1
            falling = table[-1].exp() * (last + 1 - t).clamp(0, 1)  # clamped: no nan in sigma's gradient
            alpha = torch.where(t > last, falling, alpha)
            sigma = torch.where(t > last, (1 - falling.square()).sqrt(), sigma)
        return Level(t, alpha, sigma)

    def time(self, lam: Tensor) -> Tensor:
        """See Schedule."""
        log_alpha = 0.5 * torch.nn.functional.logsigmoid(2 * lam.double())
        table = self._log_alpha.to(lam.device)
        i = (torch.searchsorted(-table, -log_alpha.detach()) - 1).clamp(0, len(table) - 2)
        t = i + (log_alpha - table[i]) / (table[i + 1] - table[i])
        if self._zero:
            last = len(table) - 1
            t = torch.where(log_alpha < table[-1], last + 1 - (log_alpha - table[-1]).exp(), t)
        return t


class Flow:
    """The straight path of rectified flow: alpha = 1 - t, sigma = t, with the clock from 0 to 1 (Liu et al. 2022b)."""

    span = (0.0, 1.0)
    entries: int | None = None

    def level(self, t: Tensor | float) -> Level:
        """See Schedule."""
        t = torch.as_tensor(t, dtype=torch.float64)
        return Level(t, 1 - t, t)

    def time(self, lam: Tensor) -> Tensor:
        """See Schedule."""
        return torch.nn.functional.logsigmoid(
            -lam.double()
        ).exp()  # the same to the bit in any batch, as sigmoid is not


class Geometric:
    """A variance-exploding path: alpha = 1, and log(sigma) is linear in the clock 0..N-1 (Song & Ermon 2019)."""

    def __init__(self, start: float, end: float, steps: int) -> None:
        if not 0 < start < end or steps < 2:  # noqa: PLR2004
            raise ValueError(f"sigma must grow from a positive start in two steps or more, not from {start} to {end}")
        self.entries: int | None = steps
        self.span = (0.0, float(steps - 1))
        self._start, self._slope = math.log(start), math.log(end / start) / (steps - 1)

    def level(self, t: Tensor | float) -> Level:
        """See Schedule."""
        t = torch.as_tensor(t, dtype=torch.float64)
        return Level(t, torch.ones_like(t), (self._start + self._slope * t).exp())

    def time(self, lam: Tensor) -> Tensor:
        """See Schedule."""
        return (-lam.double() - self._start) / self._slope


@dataclass(frozen=True)
class Late:
    """A schedule whose clock says too little by `by`: its levels with another t (see the spacing "pndm")."""

    schedule: Schedule
    by: float

    @property
    def span(self) -> tuple[float, float]:
        """See Schedule."""
        low, high = self.schedule.span
        return low - self.by, high - self.by

    @property
    def entries(self) -> int | None:
        """See Schedule."""
        return self.schedule.entries

    def level(self, t: Tensor | float) -> Level:
        """See Schedule."""
        at = self.schedule.level(t + self.by)
        return Level(at.t - self.by, at.alpha, at.sigma)

    def time(self, lam: Tensor) -> Tensor:
        """See Schedule."""
        return self.schedule.time(lam) - self.by


def abar_of(betas: Tensor) -> Tensor:
    """Cumulative signal powers prod(1 - beta)."""
    return (1 - betas.double()).cumprod(0)


def zero_terminal(abar: Tensor) -> Tensor:
    """The powers shifted and scaled so that the last is 0 and the first stays (Lin et al. 2023, alg. 1)."""
    root = abar.double().sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()


SCHEDULES: Registry[Callable[..., Schedule]] = Registry("schedule")


@SCHEDULES.register("scaled_linear")
def scaled_linear(
    *, start: float = 0.00085, end: float = 0.012, steps: int = 1000, terminal_zero: bool = False
) -> Table:
    """LDM's "linear": sqrt(beta) is linear. The defaults are Stable Diffusion's."""
    betas = torch.linspace(math.sqrt(start), math.sqrt(end), steps, dtype=torch.float64).square()
    return _table(betas, terminal_zero)


@SCHEDULES.register("linear")
def linear(*, start: float = 1e-4, end: float = 0.02, steps: int = 1000, terminal_zero: bool = False) -> Table:
    """DDPM's (Ho et al. 2020): beta is linear."""
    return _table(torch.linspace(start, end, steps, dtype=torch.float64), terminal_zero)


@SCHEDULES.register("cosine")
def cosine(*, s: float = 0.008, cap: float = 0.999, steps: int = 1000, terminal_zero: bool = False) -> Table:
    """Improved DDPM's (Nichol & Dhariwal 2021, eq. 17): abar = cos^2, with beta capped."""
    angle = (torch.arange(steps + 1, dtype=torch.float64) / steps + s) / (1 + s) * math.pi / 2
    power = angle.cos().square()
    return _table((1 - power[1:] / power[:-1]).clamp(max=cap), terminal_zero)


@SCHEDULES.register("geometric")
def geometric(*, start: float = 0.01, end: float = 50.0, steps: int = 232) -> Geometric:
    """Score matching's, variance exploding; the defaults are those for CIFAR-10 (Song & Ermon 2020)."""
    return Geometric(start, end, steps)


@SCHEDULES.register("flow")
def flow() -> Flow:
    """Rectified flow."""
    return Flow()


def _table(betas: Tensor, terminal_zero: bool) -> Table:
    return Table(zero_terminal(abar_of(betas)) if terminal_zero else abar_of(betas))
