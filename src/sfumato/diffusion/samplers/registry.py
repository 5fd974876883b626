"""The samplers by name, with what each one promises. The promises are measured in the tests."""

from collections.abc import Callable, Generator
from dataclasses import dataclass

from torch import Tensor

from sfumato.diffusion.grid import Grid
from sfumato.diffusion.level import Level
from sfumato.diffusion.noise import Noise
from sfumato.registry import Registry

Ask = tuple[Tensor, Level]
Sampler = Generator[Ask, Tensor, Tensor]
"""Yields what it asks, is sent the clean guess, returns the sample."""


@dataclass(frozen=True)
class Entry:
    """A sampler and its promises."""

    name: str
    run: Callable[..., Sampler]
    order: int  # of convergence to the exact flow; of the deterministic form if the sampler is stochastic
    calls: int  # network evaluations a step
    extra: int  # evaluations in all that the steps' calls do not count
    stochastic: bool

    def evaluations(self, grid: Grid) -> int:
        """Network evaluations of a run: one for a step from a blind level or to a clean end, else `calls`."""
        plain = sum(bool(a.blind or b.sigma == 0) for a, b in grid.steps())
        full = len(grid) - plain
        return plain + full * self.calls + (self.extra if full else 0)


SAMPLERS: Registry[Entry] = Registry("sampler")


def sampler(
    name: str, *, order: int, calls: int = 1, extra: int = 0, stochastic: bool = False
) -> Callable[[Callable[..., Sampler]], Callable[..., Sampler]]:
    """Register a sampler `run(x, grid)`, or `run(x, grid, noise=...)` if it is stochastic."""

    def add(run: Callable[..., Sampler]) -> Callable[..., Sampler]:
        SAMPLERS.add(name, Entry(name, run, order, calls, extra, stochastic))
        return run

    return add


def start(entry: Entry, x: Tensor, grid: Grid, noise: Noise | None) -> Sampler:
    """The running sampler, with noise if it takes any."""
    return entry.run(x, grid, noise=noise) if entry.stochastic else entry.run(x, grid)
