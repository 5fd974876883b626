"""The samplers by name, with what each one promises. The promises are measured in the tests."""

import functools
import inspect
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sfumato.diffusion.denoiser import Estimate
from sfumato.diffusion.grid import Grid
from sfumato.diffusion.level import Level
from sfumato.diffusion.noise import Noise
from sfumato.registry import Registry

Ask = tuple[Tensor, Level]
Sampler = Generator[Ask, Any, Tensor]
"""Yields what it asks, is sent the clean guess (or an Estimate, if it reads one), returns the sample."""


@dataclass(frozen=True)
class Entry:
    """A sampler and its promises."""

    name: str
    run: Callable[..., Sampler]
    order: int | None  # of convergence to the exact flow, without fresh noise if it adds any; None if it follows none
    calls: int = 1  # network evaluations a step
    extra: tuple[int, ...] = ()  # evaluations more in the first steps
    closing: int = 0  # evaluations more at the last noisy level, before a clean end
    least: int = 1  # steps below which it is another method
    stochastic: bool = False
    adaptive: bool = False  # it takes its own steps between the ends of the grid
    invertible: bool = False  # it also walks up, from a picture to the noise that paints it, without losing the picture
    consistent: bool = False  # its guess is where the flow ends (a consistency model), not the mean
    learned: bool = False  # it reads the spread and the push of an Estimate
    needs_spread: bool = False  # it cannot do without the spread
    label: str = ""  # in the infotext of A1111's web UI
    also: tuple[str, ...] = ()  # what other tools call it

    @property
    def others(self) -> list[str]:
        """All names that other tools use."""
        return [name for name in (self.label, *self.also) if name]

    def evaluations(self, grid: Grid) -> int | None:
        """Network evaluations of a run; None if it depends on what the network answers.

        One for a step from a blind level or to a clean end, else `calls`, and those of `extra` and `closing`.
        """
        if self.adaptive:
            return None
        plain = sum(bool(a.blind or b.sigma == 0) for a, b in grid.steps())
        full = len(grid) - plain
        ends = len(grid) > 0 and bool(grid.levels[-1].sigma == 0) and not grid.levels[-2].blind
        return plain + full * self.calls + sum(self.extra[:full]) + (self.closing if ends else 0)

    def takes(self, option: str) -> bool:
        """Whether its run has this option, for instance "eta"."""
        return option in inspect.signature(self.run).parameters


SAMPLERS: Registry[Entry] = Registry("sampler")


def sampler(
    name: str, *, order: int | None, **promises: Any
) -> Callable[[Callable[..., Sampler]], Callable[..., Sampler]]:
    """Register a sampler `run(x, grid)`, or `run(x, grid, noise=...)` if it is stochastic; see Entry for promises.

    Unless it is `learned`, it is sent the x0 of an Estimate; ValueError if that has a push, which it could not heed.
    """

    def add(run: Callable[..., Sampler]) -> Callable[..., Sampler]:
        run = run if promises.get("learned") else _reads_x0(run)
        entry = Entry(name, run, order, **promises)
        SAMPLERS.add(name, entry, also=entry.others)
        return run

    return add


def start(entry: Entry, x: Tensor, grid: Grid, noise: Noise | None, **options: Any) -> Sampler:
    """The running sampler, with noise if it takes any."""
    noisy = {"noise": noise} if entry.takes("noise") else {}
    return entry.run(x, grid, **noisy, **options)


def _reads_x0(run: Callable[..., Sampler]) -> Callable[..., Sampler]:
    @functools.wraps(run)
    def reading(*args: Any, **options: Any) -> Sampler:
        inner = run(*args, **options)
        try:
            ask = next(inner)
            while True:
                x0, _, push = Estimate.of((yield ask))
                if push is not None:
                    raise ValueError("only the ddpm samplers heed a push of the mean; guide with the form 'score'")
                ask = inner.send(x0)
        except StopIteration as done:
            return done.value
        finally:
            inner.close()

    return reading
