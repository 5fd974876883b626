"""Whole sampling runs against numbers that the published programs print, with their counts of network calls.

The data is N(0.5, 0.25^2), the schedule Stable Diffusion's, the network is the exact answer, x starts at (1, -0.5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

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
from sfumato.diffusion.samplers import SAMPLERS, Sampler, adaptive, consistent_annealed, denoised, dpm_solver, heun
from sfumato.diffusion.samplers.exponential import Form
from sfumato.diffusion.schedule import Schedule, geometric, scaled_linear

SD = scaled_linear()
START = f64(1.0, -0.5)[:, None]
Make = Callable[[Tensor, Grid], Sampler]


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


def sampled(make: Make, grid: Grid, kind: Prediction = Prediction.EPS, *, x: Tensor = START) -> tuple[Tensor, int]:
    """The sample and how often the network was called."""
    network = Network(SD, kind)  # it is told a clock and knows no other
    denoiser = Denoiser(network, grid.schedule, kind)
    sample = answer(make(x, grid), denoiser.bind(conditional(Cond())))
    return sample.flatten(), network.calls


def run(sampler: str, grid: Grid, kind: Prediction = Prediction.EPS) -> tuple[Tensor, int]:
    return sampled(SAMPLERS[sampler].run, grid, kind)


def to_zero(x: Tensor, grid: Grid) -> Sampler:
    return denoised(SAMPLERS["dpmpp_2m"].run(x, grid), grid.levels[-1])


@dataclass(frozen=True)
class Row:
    """A line of the published table. A sampler is a registered name, or built."""

    program: str
    sampler: str | Make
    spacing: str
    steps: int
    sample: tuple[float, float]
    calls: int

    @property
    def make(self) -> Make:
        return SAMPLERS[self.sampler].run if isinstance(self.sampler, str) else self.sampler

    @property
    def grid(self) -> Grid:
        return SPACINGS[self.spacing](SD, self.steps)


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
    Row("PNDM DDIM", "ddim", "pndm", 50, (0.721138, 0.376950), 50),
    Row("PNDM S-PNDM", "s_pndm", "pndm", 50, (0.735726, 0.368796), 51),
    Row("PNDM F-PNDM", "pndm", "pndm", 10, (0.706377, 0.377871), 19),
    Row("PNDM F-PNDM", "pndm", "pndm", 20, (0.729313, 0.369678), 29),
    Row("PNDM F-PNDM", "pndm", "pndm", 50, (0.742300, 0.365137), 59),
    Row("LuCheng order 1", "ddim", "linspace", 20, (0.690319, 0.394422), 20),
    Row("LuCheng 2M", "dpm_solver_2m", "linspace", 20, (0.761750, 0.354920), 20),
    Row("LuCheng 3M", "dpm_solver_3m", "linspace", 20, (0.757698, 0.357161), 20),
    Row("LuCheng 2S", "dpm_solver_2s", "linspace", 20, (0.802618, 0.332320), 20),
    Row("LuCheng 3S", "dpm_solver_3s", "linspace", 20, (0.801217, 0.333094), 20),
    Row("LuCheng 3S fixed", "dpm_solver_3f", "linspace", 18, (0.736436, 0.368919), 18),
    Row("LuCheng ++3M", "dpmpp_3m", "linspace", 20, (0.797917, 0.334919), 20),
    Row("LuCheng ++2S", "dpmpp_2s", "linspace", 20, (0.753474, 0.359497), 20),
    Row("LuCheng ++3S", "dpmpp_3s", "linspace", 20, (0.754322, 0.359028), 20),
    Row("LuCheng ++2M logSNR", "dpmpp_2m", "logsnr", 20, (0.744543, 0.364436), 20),
    Row("LuCheng ++3M logSNR", "dpmpp_3m", "logsnr", 20, (0.744013, 0.364729), 20),
    Row("LuCheng 2M logSNR", "dpm_solver_2m", "logsnr", 20, (0.741797, 0.365954), 20),
    Row("LuCheng 3M logSNR", "dpm_solver_3m", "logsnr", 20, (0.742794, 0.365403), 20),
    Row("LuCheng ++2M taylor", partial(dpm_solver, taylor=True), "linspace", 20, (0.802035, 0.332642), 20),
    Row("LuCheng ++2M to zero", to_zero, "linspace", 20, (0.772464, 0.349325), 21),
    Row("LuCheng ++2M few = 10", partial(dpm_solver, few=10), "linspace", 12, (0.768804, 0.351019), 12),
]


@pytest.mark.parametrize("row", ROWS, ids=[f"{r.program} {r.steps}" for r in ROWS])
def test_sample_and_network_calls_are_the_published_ones(row: Row) -> None:
    sample, calls = sampled(row.make, row.grid)
    torch.testing.assert_close(sample, f64(*row.sample), rtol=0, atol=2e-6)
    assert calls == row.calls


SAME_CLOCK = [r for r in ROWS if r.steps == 20 and r.spacing != "pndm"]
"""Where the network is told the level that its input has; PNDM tells it another, at which v means something else."""


@pytest.mark.parametrize("row", SAME_CLOCK, ids=lambda r: r.program)
def test_a_v_model_gives_the_sample_of_the_eps_model(row: Row) -> None:
    torch.testing.assert_close(sampled(row.make, row.grid, Prediction.V)[0], f64(*row.sample), rtol=0, atol=2e-6)


ADAPTIVE: list[tuple[Form, int, tuple[float, float], int]] = [
    ("eps", 2, (0.756174, 0.358003), 24),
    ("eps", 3, (0.747730, 0.362673), 18),
    ("x0", 2, (0.665367, 0.408221), 8),
    ("x0", 3, (0.724416, 0.375566), 12),
]


@pytest.mark.parametrize(("form", "order", "published", "calls"), ADAPTIVE)
def test_adaptive_steps_are_the_published_ones(
    form: Form, order: int, published: tuple[float, float], calls: int
) -> None:
    """The two numbers are one sample here: the published program has one step for the whole batch."""
    make = partial(adaptive, form=form, order=order)
    sample, asked = sampled(make, SPACINGS["linspace"](SD, 10), x=START.view(1, 2))
    torch.testing.assert_close(sample, f64(*published), rtol=0, atol=2e-6)
    assert asked == calls


@pytest.mark.parametrize(("name", "row"), [("dpm_adaptive", ADAPTIVE[1]), ("dpmpp_adaptive", ADAPTIVE[3])])
def test_the_registered_adaptive_samplers_are_of_third_order_and_use_only_the_ends_of_the_grid(
    name: str, row: tuple[Form, int, tuple[float, float], int]
) -> None:
    grid = Grid(SD, tuple(SD.level(t) for t in (999.0, 417.0, 0.0)))
    sample, asked = sampled(SAMPLERS[name].run, grid, x=START.view(1, 2))
    torch.testing.assert_close(sample, f64(*row[2]), rtol=0, atol=2e-6)
    assert asked == row[3]


CAS = [  # sigma at both ends, levels, epsilon; gamma, the bounds of epsilon, beta (Jolicoeur-Martineau et al. 2021)
    (0.01, 50.0, 232, 5.6e-6, 0.96380049, (3.62e-6, 1.9638e-4), 0.20165886),
    (0.01, 50.0, 1156, 1.1e-6, 0.99265293, None, 0.08571109),
    (0.01, 140.0, 788, 4.85e-6, 0.98794264, None, 0.26909874),
]


def fresh_share(schedule: Schedule, step: float) -> float:
    """The beta with which consistent annealed sampling takes its first step: its noise over the next sigma."""
    a, b = SPACINGS["linspace"](schedule, (schedule.entries or 0) - 1).levels[:2]
    asks = consistent_annealed(f64(0.0), Grid(schedule, (a, b)), noise=torch.ones_like, step=step)
    next(asks)
    with pytest.raises(StopIteration) as done:
        asks.send(f64(0.0))
    return float(done.value.value / b.sigma)


@pytest.mark.parametrize(("low", "high", "levels", "epsilon", "gamma", "bounds", "beta"), CAS)
def test_consistent_annealed_sampling_has_the_published_constants(
    low: float,
    high: float,
    levels: int,
    epsilon: float,
    gamma: float,
    bounds: tuple[float, float] | None,
    beta: float,
) -> None:
    path = geometric(start=low, end=high, steps=levels)
    sigmas = path.level(torch.arange(levels, dtype=torch.float64)).sigma
    assert (float(sigmas[0]), float(sigmas[-1])) == pytest.approx((low, high), rel=1e-12)
    torch.testing.assert_close(sigmas[:-1] / sigmas[1:], f64(gamma).expand(levels - 1), rtol=0, atol=5e-9)
    assert fresh_share(path, epsilon / low**2) == pytest.approx(beta, abs=1e-8)
    if bounds is not None:
        assert (low**2 * (1 - gamma), low**2 * (1 + gamma)) == pytest.approx(bounds, rel=1e-4)
    outside = (1 - gamma - 1e-6, 1 + gamma + 1e-6, 0.0, -0.1)
    for inside in (1 - gamma + 1e-6, 1 + gamma - 1e-6):
        assert 0 < fresh_share(path, inside) < 0.01
    for step in outside:
        with pytest.raises(ValueError, match="is out of range; on this grid it goes from"):
            fresh_share(path, step)


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
