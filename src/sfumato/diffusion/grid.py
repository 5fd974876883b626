"""The levels that a sampler visits, noisiest first, and the spacings that choose them."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfumato.diffusion.level import BLIND, Level
from sfumato.diffusion.schedule import Schedule
from sfumato.registry import Registry


@dataclass(frozen=True)
class Grid:
    """`levels` fall from noise to the end, which is clean or where the reference ends. Steps = levels - 1."""

    schedule: Schedule
    levels: tuple[Level, ...]

    def __len__(self) -> int:
        return len(self.levels) - 1

    def steps(self) -> Iterator[tuple[Level, Level]]:
        """The pairs (from, to)."""
        yield from zip(self.levels, self.levels[1:], strict=False)

    def middle(self, a: Level, b: Level, part: float = 0.5) -> Level:
        """The level at `part` of the way from a to b, in half log-SNR."""
        return self.schedule.level(self.schedule.time(a.lam + part * (b.lam - a.lam)))

    def part(self, strength: float) -> "Grid":
        """The last `strength` of the steps, at least one: where image-to-image begins (Meng et al. 2021)."""
        if not 0 < strength <= 1:
            raise ValueError(f"strength {strength} is out of range; it must be above 0 and at most 1")
        keep = max(1, round(strength * len(self)))
        return replace(self, levels=self.levels[-keep - 1 :])


SPACINGS: Registry[Callable[..., Grid]] = Registry("spacing")


@SPACINGS.register("trailing")
def trailing(schedule: Schedule, steps: int) -> Grid:
    """Even in time from the noisiest clock value down, then clean (Lin et al. 2023, sec. 3.3)."""
    low, high = schedule.span
    n = _checked(schedule, steps)
    if schedule.entries is None:
        return _down(schedule, [low + (high - low) * (n - i) / n for i in range(n)], clean=True)
    return _down(schedule, [round(schedule.entries * (n - i) / n) - 1 for i in range(n)], clean=True)


@SPACINGS.register("leading")
def leading(schedule: Schedule, steps: int) -> Grid:
    """LDM's: every (N // steps)-th entry plus one, ending at the first entry and not at clean.

    LDM itself returns another number of steps, or fails, where `steps` does not divide N; here it is always `steps`.
    """
    n, stride = _checked(schedule, steps, shorter=1), _stride(schedule, steps)
    return _down(schedule, [i * stride + 1 for i in reversed(range(n))] + [0.0])


@SPACINGS.register("uniform")
def uniform(schedule: Schedule, steps: int) -> Grid:
    """Every (N // steps)-th entry from the first on, then clean (Song et al. 2021, DDIM)."""
    n, stride = _checked(schedule, steps), _stride(schedule, steps)
    return _down(schedule, [i * stride for i in reversed(range(n))], clean=True)


@SPACINGS.register("linspace")
def linspace(schedule: Schedule, steps: int) -> Grid:
    """Even in time from the noisiest to the cleanest clock value (DPM-Solver's "time_uniform")."""
    low, high = schedule.span
    n = _checked(schedule, steps)
    return _down(schedule, [high + (low - high) * i / n for i in range(n)] + [low])


@SPACINGS.register("logsnr")
def logsnr(schedule: Schedule, steps: int) -> Grid:
    """Even in half log-SNR between the ends of the schedule (DPM-Solver's "logSNR")."""
    low, high = _ends(schedule)
    n = _checked(schedule, steps)
    lams = low + (high - low) * torch.arange(n + 1, dtype=torch.float64) / n
    return Grid(schedule, tuple(schedule.level(schedule.time(lam)) for lam in lams))


@SPACINGS.register("karras")
def karras(schedule: Schedule, steps: int, *, rho: float = 7.0) -> Grid:
    """Even in (sigma / alpha)^(1 / rho), then clean (Karras et al. 2022, eq. 5)."""
    low, high = _ends(schedule)
    n = _checked(schedule, steps)
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    root = (-low / rho).exp() + ramp * ((-high / rho).exp() - (-low / rho).exp())
    levels = tuple(schedule.level(schedule.time(-rho * r.log())) for r in root)
    return Grid(schedule, (*levels, Level.clean(schedule.span[0])))


def _checked(schedule: Schedule, steps: int, *, shorter: int = 0) -> int:
    most = (schedule.entries or 1000) - shorter
    if not 1 <= steps <= most:
        raise ValueError(f"{steps} steps are out of range; this schedule takes 1 to {most}")
    return steps


def _stride(schedule: Schedule, steps: int) -> float:
    if schedule.entries is None:
        raise ValueError("this spacing counts table entries and the schedule has none; try 'trailing' or 'linspace'")
    return schedule.entries // steps


def _ends(schedule: Schedule) -> tuple[Tensor, Tensor]:
    """The half log-SNR where a picture begins to be seen, as DPM-Solver cuts it, and at the cleanest end, 8 at most."""
    low, high = (schedule.level(t).lam for t in reversed(schedule.span))
    return low.clamp_min(BLIND), high.clamp_max(8.0) if math.isinf(high) else high


def _down(schedule: Schedule, times: list[float], *, clean: bool = False) -> Grid:
    levels = [schedule.level(t) for t in times]
    return Grid(schedule, (*levels, *([Level.clean(schedule.span[0])] if clean else [])))
