"""The levels that a sampler visits, noisiest first, and the spacings that choose them."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfumato.diffusion.level import BLIND, Level
from sfumato.diffusion.schedule import Late, Schedule
from sfumato.registry import Registry


@dataclass(frozen=True)
class Grid:
    """`levels` fall from noise to the end, which is clean or where the reference ends; or rise (see `upward`).

    Steps = levels - 1.
    """

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

    def halfway(self, a: Level, b: Level) -> Level:
        """The level half-way on the clock."""
        return self.schedule.level((a.t + b.t) / 2)

    def part(self, strength: float) -> "Grid":
        """The last `strength` of the steps, rounded down: where image-to-image begins (Meng et al. 2021).

        At least one step, but none at strength 0. ValueError if it is not from 0 to 1.
        """
        if not 0 <= strength <= 1:
            raise ValueError(f"strength {strength} is out of range; it goes from 0 to 1")
        keep = max(strength > 0, int(strength * len(self) + 1e-9))  # 0.29 * 100 is less than 29
        return replace(self, levels=self.levels[len(self) - keep :])

    def upward(self) -> "Grid":
        """From almost clean to noise: a deterministic sampler on it encodes a picture (DDIM inversion).

        A clean end becomes the cleanest level that the schedule was trained with, for at sigma = 0 there is no noise to
        find; and levels with next to no signal become one where the signal can just be seen.
        """
        *above, end = self.levels
        if end.sigma == 0:
            end = self.schedule.level(self.schedule.span[0])
            end = end if end.sigma > 0 else self._at(CLEAN)
        seen = [at for at in above if at.lam < end.lam - NEAR and not at.blind]
        if above[0].blind:
            seen = [self._at(BLIND + 1e-9), *seen]
        return replace(self, levels=(end, *reversed(seen)))

    def reversed(self) -> "Grid":
        """The same levels the other way."""
        return replace(self, levels=self.levels[::-1])

    def _at(self, lam: float) -> Level:
        return self.schedule.level(self.schedule.time(torch.tensor(lam, dtype=torch.float64)))


CLEAN = 8.0
"""The half log-SNR that stands for the clean end where a schedule reaches sigma = 0."""

NEAR = 1e-6
"""Levels nearer than this in half log-SNR are one."""

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
    """Every (N // steps)-th entry from the first on, then clean (Song et al. 2021a)."""
    n, stride = _checked(schedule, steps), _stride(schedule, steps)
    return _down(schedule, [i * stride for i in reversed(range(n))], clean=True)


@SPACINGS.register("leading_quad")
def leading_quad(schedule: Schedule, steps: int) -> Grid:
    """LDM's "quad": squares of evenly spaced roots, up to 0.8 N, plus one, ending at the first entry.

    Entries that coincide, which LDM visits twice without moving, are visited once: there may be fewer steps.
    """
    return _down(schedule, [t + 1 for t in _squares(schedule, _checked(schedule, steps, shorter=1))] + [0.0])


@SPACINGS.register("uniform_quad")
def uniform_quad(schedule: Schedule, steps: int) -> Grid:
    """DDIM's "quad": squares of evenly spaced roots, up to 0.8 N, then clean (Song et al. 2021a, app. D.2).

    Entries that coincide are visited once: there may be fewer steps.
    """
    return _down(schedule, _squares(schedule, _checked(schedule, steps)), clean=True)


@SPACINGS.register("iddpm")
def iddpm(schedule: Schedule, steps: int, *, sections: Sequence[int] | None = None) -> Grid:
    """The respaced chain of improved DDPM: both ends and even between, rounded, then clean (Nichol & Dhariwal 2021).

    `sections` are the steps in equal parts of the table, the cleanest first, instead; `steps` is their sum.
    """
    n = _checked(schedule, steps)
    entries, counts = _table(schedule), [n] if sections is None else list(sections)
    if min(counts) < 1 or sum(counts) != n:
        raise ValueError(f"sections {counts} must be positive and add up to {n} steps")
    times: list[float] = []
    for k, count in enumerate(counts):
        length = entries // len(counts) + (k < entries % len(counts))
        if count > length:
            raise ValueError(f"{count} steps do not fit into a section of {length} entries")
        first = k * (entries // len(counts)) + min(k, entries % len(counts))
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        times += _cumulative(first, stride, count)
    return _down(schedule, times[::-1], clean=True)


@SPACINGS.register("pndm")
def pndm(schedule: Schedule, steps: int) -> Grid:
    """As its authors' program counts: LDM's levels, but the network is told one entry less (Liu et al. 2022a)."""
    late = Late(schedule, by=1.0)
    n, stride = _checked(schedule, steps, shorter=1), _stride(schedule, steps)
    return _down(late, [i * stride for i in reversed(range(n))] + [-1.0])


@SPACINGS.register("linspace", also=("time_uniform",))
def linspace(schedule: Schedule, steps: int) -> Grid:
    """Even in time from the noisiest to the cleanest clock value (DPM-Solver's "time_uniform")."""
    low, high = schedule.span
    n = _checked(schedule, steps)
    return _down(schedule, [high + (low - high) * i / n for i in range(n)] + [low])


@SPACINGS.register("quadratic", also=("time_quadratic",))
def quadratic(schedule: Schedule, steps: int) -> Grid:
    """Even in the square root of time, time being (clock + 1) / N for a table (DPM-Solver's "time_quadratic")."""
    low, high = schedule.span
    n, before = _checked(schedule, steps), 1.0 if schedule.entries else 0.0
    first, last = math.sqrt(high + before), math.sqrt(low + before)
    roots = [first + (last - first) * i / n for i in range(n)]
    return _down(schedule, [root**2 - before for root in roots] + [low])


@SPACINGS.register("logsnr")
def logsnr(schedule: Schedule, steps: int, *, groups: Sequence[int] | None = None) -> Grid:
    """Even in half log-SNR between the ends of the schedule (DPM-Solver's "logSNR").

    With `groups`, the numbers of steps in intervals that are even, as its single-step solvers want it (see
    `samplers.singlestep.orders`); `steps` is their sum.
    """
    low, high = _ends(schedule)
    n = _checked(schedule, steps)
    counts = [1] * n if groups is None else list(groups)
    if min(counts) < 1 or sum(counts) != n:
        raise ValueError(f"groups {counts} must be positive and add up to {n} steps")
    parts = [(k + i / count) / len(counts) for k, count in enumerate(counts) for i in range(count)]
    lams = low + (high - low) * torch.tensor([*parts, 1.0], dtype=torch.float64)
    return Grid(schedule, tuple(schedule.level(schedule.time(lam)) for lam in lams))


@SPACINGS.register("karras")
def karras(schedule: Schedule, steps: int, *, rho: float = 7.0) -> Grid:
    """Even in (sigma / alpha)^(1 / rho), then clean (Karras et al. 2022, eq. 5)."""
    low, high = _ends(schedule)
    first, last = (-low / rho).exp(), (-high / rho).exp()
    roots = first + (last - first) * torch.linspace(0, 1, _checked(schedule, steps), dtype=torch.float64)
    return _at_lams(schedule, -rho * roots.log())


@SPACINGS.register("exponential")
def exponential(schedule: Schedule, steps: int) -> Grid:
    """Even in log(sigma / alpha), then clean: `logsnr` with a clean end behind its last level."""
    low, high = _ends(schedule)
    return _at_lams(schedule, low + (high - low) * torch.linspace(0, 1, _checked(schedule, steps), dtype=torch.float64))


ALIGNED = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
"""sigma / alpha of the ten steps that were optimised for Stable Diffusion 1.5 (Sabour et al. 2024)."""


@SPACINGS.register("align_your_steps", also=("ays",))
def align_your_steps(schedule: Schedule, steps: int) -> Grid:
    """The steps that were optimised for Stable Diffusion 1.5, ending clean (Sabour et al. 2024).

    Other numbers of steps are interpolated in log-SNR, as its authors advise, and another schedule's ends are met by
    stretching.
    """
    low, high = _ends(schedule)
    known = -torch.tensor(ALIGNED, dtype=torch.float64).log()
    place = torch.linspace(0, len(known) - 1, _checked(schedule, steps) + 1, dtype=torch.float64)[:-1]
    i = place.floor().long().clamp(max=len(known) - 2)
    lams = known[i] + (place - i) * (known[i + 1] - known[i])
    ours = low + (high - low) * (lams - known[0]) / (known[-1] - known[0])
    return _at_lams(schedule, ours)


def _checked(schedule: Schedule, steps: int, *, shorter: int = 0) -> int:
    most = (schedule.entries or 1000) - shorter
    if not 1 <= steps <= most:
        raise ValueError(f"{steps} steps are out of range; this schedule takes 1 to {most}")
    return steps


def _table(schedule: Schedule) -> int:
    if schedule.entries is None:
        raise ValueError("this spacing counts table entries and the schedule has none; try 'trailing' or 'linspace'")
    return schedule.entries


def _stride(schedule: Schedule, steps: int) -> float:
    return _table(schedule) // steps


def _squares(schedule: Schedule, steps: int) -> list[float]:
    """The entries of both "quad" spacings, the noisiest first."""
    last = math.sqrt(0.8 * _table(schedule))
    roots = torch.linspace(0, last, steps, dtype=torch.float64)
    return sorted({float(int(root**2)) for root in roots}, reverse=True)


def _cumulative(first: float, stride: float, count: int) -> list[float]:
    """Rounded as Python rounds, halves to even, of a running sum: so the published chains have it."""
    at, times = 0.0, []
    for _ in range(count):
        times.append(float(first + round(at)))
        at += stride
    return times


def _at_lams(schedule: Schedule, lams: Tensor) -> Grid:
    """Levels at these half log-SNRs, then clean."""
    levels = tuple(schedule.level(schedule.time(lam)) for lam in lams)
    return Grid(schedule, (*levels, Level.clean(schedule.span[0])))


def _ends(schedule: Schedule) -> tuple[Tensor, Tensor]:
    """The half log-SNR where a picture begins to be seen, as DPM-Solver cuts it, and at the cleanest end."""
    noisy, clean = (schedule.level(t) for t in reversed(schedule.span))
    low = noisy.lam.clamp_min(BLIND) if noisy.blind else noisy.lam
    return low, clean.lam.clamp_max(CLEAN) if math.isinf(clean.lam) else clean.lam


def _down(schedule: Schedule, times: list[float], *, clean: bool = False) -> Grid:
    levels = [schedule.level(t) for t in times]
    return Grid(schedule, (*levels, *([Level.clean(schedule.span[0])] if clean else [])))
