"""Whole sampling runs against numbers that the published programs print, with their counts of network calls.

The data is N(0.5, 0.25^2), the schedule Stable Diffusion's, the network is the exact answer, x starts at (1, -0.5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from mixture import f64
from sfumato.cond import Cond
from sfumato.diffusion.denoiser import Denoiser
from sfumato.diffusion.drive import answer
from sfumato.diffusion.grid import SPACINGS, Grid
from sfumato.diffusion.guidance import conditional
from sfumato.diffusion.level import Level
from sfumato.diffusion.prediction import Prediction
from sfumato.diffusion.samplers import SAMPLERS, heun
from sfumato.diffusion.schedule import Schedule, scaled_linear

SD = scaled_linear()
START = f64(1.0, -0.5)[:, None]


@dataclass
class Network:
    """The exact answer to a clock value, by the formula of the paper; it counts how often it is called."""

    schedule: Schedule
    kind: Prediction = Prediction.EPS
    calls: int = 0

    def __call__(self, x: Tensor, t: Tensor, *told: Tensor | None) -> Tensor:
        self.calls += 1
        at = self.schedule.level(t[:, None])
        eps = at.sigma * (x - 0.5 * at.alpha) / (0.0625 * at.alpha**2 + at.sigma**2)
        return eps if self.kind is Prediction.EPS else (eps - at.sigma * x) / at.alpha  # v = (eps - sigma x) / alpha


def run(sampler: str, grid: Grid, kind: Prediction = Prediction.EPS) -> tuple[Tensor, int]:
    """The sample and how often the network was called."""
    network = Network(grid.schedule, kind)
    denoiser = Denoiser(network, grid.schedule, kind)
    sample = answer(SAMPLERS[sampler].run(START, grid), denoiser.bind(conditional(Cond())))
    return sample[:, 0], network.calls


@dataclass(frozen=True)
class Row:
    """A line of the published table."""

    program: str
    sampler: str
    spacing: str
    steps: int
    sample: tuple[float, float]
    calls: int


ROWS = [
    Row("CompVis DDIM", "ddim", "leading", 5, (0.622104, 0.419238), 5),
    Row("CompVis DDIM", "ddim", "leading", 10, (0.662520, 0.403069), 10),
    Row("CompVis DDIM", "ddim", "leading", 20, (0.693814, 0.389011), 20),
    Row("CompVis DDIM", "ddim", "leading", 50, (0.719897, 0.376691), 50),
    Row("CompVis PLMS", "plms", "leading", 5, (0.664795, 0.391125), 6),
    Row("CompVis PLMS", "plms", "leading", 10, (0.705305, 0.377641), 11),
    Row("CompVis PLMS", "plms", "leading", 20, (0.727633, 0.369704), 21),
    Row("CompVis PLMS", "plms", "leading", 50, (0.740038, 0.365427), 51),
    Row("CompVis DPM-Solver++(2M)", "dpmpp_2m", "linspace", 5, (0.620980, 0.432767), 5),
    Row("CompVis DPM-Solver++(2M)", "dpmpp_2m", "linspace", 8, (0.650324, 0.416539), 8),
    Row("CompVis DPM-Solver++(2M)", "dpmpp_2m", "linspace", 10, (0.663361, 0.409330), 10),
    Row("CompVis DPM-Solver++(2M)", "dpmpp_2m", "linspace", 20, (0.775842, 0.347127), 20),
    Row("CompVis DPM-Solver++(2M)", "dpmpp_2m", "linspace", 50, (0.764125, 0.353607), 50),
    Row("ermongroup DDIM", "ddim", "uniform", 10, (0.653425, 0.408733), 10),
    Row("ermongroup DDIM", "ddim", "uniform", 20, (0.686138, 0.393650), 20),
    Row("ermongroup DDIM", "ddim", "uniform", 50, (0.714114, 0.380179), 50),
    Row("LuCheng order 1", "ddim", "linspace", 20, (0.690319, 0.394422), 20),
    Row("LuCheng ++2M logSNR", "dpmpp_2m", "logsnr", 20, (0.744543, 0.364436), 20),
]


@pytest.mark.parametrize("row", ROWS, ids=[f"{r.program} {r.steps}" for r in ROWS])
def test_sample_and_network_calls_are_the_published_ones(row: Row) -> None:
    sample, calls = run(row.sampler, SPACINGS[row.spacing](SD, row.steps))
    torch.testing.assert_close(sample, f64(*row.sample), rtol=0, atol=2e-6)
    assert calls == row.calls


@pytest.mark.parametrize("row", [r for r in ROWS if r.steps == 20], ids=lambda r: r.program)
def test_a_v_model_gives_the_sample_of_the_eps_model(row: Row) -> None:
    grid = SPACINGS[row.spacing](SD, row.steps)
    torch.testing.assert_close(run(row.sampler, grid, Prediction.V)[0], f64(*row.sample), rtol=0, atol=2e-6)


def test_a_clean_level_behind_the_grid_is_denoise_to_zero() -> None:
    grid = SPACINGS["linspace"](SD, 20)
    sample, calls = run("dpmpp_2m", replace(grid, levels=(*grid.levels, Level.clean(0.0))))
    torch.testing.assert_close(sample, f64(0.772464, 0.349325), rtol=0, atol=2e-6)
    assert calls == 21


@pytest.mark.parametrize(
    ("start", "published"), [(981, (0.742474, 0.364065)), (999, (0.743321, 0.365111)), (951, (0.740940, 0.362106))]
)
def test_many_steps_come_to_the_published_exact_flow(start: int, published: tuple[float, float]) -> None:
    lams = torch.linspace(float(SD.level(start).lam), float(SD.level(0).lam), 601, dtype=torch.float64)
    grid = Grid(SD, tuple(SD.level(SD.time(lam)) for lam in lams))

    def denoise(x: Tensor, at: Level) -> Tensor:
        return Prediction.EPS.x0(Network(SD)(x, at.t[None]), x, at)

    torch.testing.assert_close(answer(heun(START, grid), denoise)[:, 0], f64(*published), rtol=0, atol=5e-6)


@pytest.mark.parametrize(
    ("sampler", "spacing"),
    [("ddim", "leading"), ("plms", "leading"), ("dpmpp_2m", "linspace"), ("heun", "linspace")],
)
def test_the_network_is_told_the_clock_of_every_level_even_a_fractional_one(sampler: str, spacing: str) -> None:
    grid = SPACINGS[spacing](SD, 10)
    told: list[float] = []

    def network(x: Tensor, t: Tensor, *rest: Tensor | None) -> Tensor:
        told.append(float(t[0]))
        return Network(SD)(x, t)

    denoise: Callable[[Tensor, Level], Tensor] = Denoiser(network, SD, Prediction.EPS).bind(conditional(Cond()))
    answer(SAMPLERS[sampler].run(START, grid), denoise)
    clocks = [float(at.t.float()) for at in grid.levels]
    asked = {"plms": [clocks[0], clocks[1], *clocks[1:-1]]}.get(sampler, clocks[:-1])
    if sampler == "heun":
        asked = [t for pair in zip(clocks, clocks[1:], strict=False) for t in pair]
    assert told == asked
