"""What every sampler promises, whoever registered it: its order, its price, its types, and its manners."""

from __future__ import annotations

import inspect
import itertools
import math
from functools import cache

import pytest
import torch
from torch import Tensor

from mixture import BLIND, PATHS, THREE, between, exact, for_learned, for_sampler, row_by_row
from sfumato.diffusion.drive import Asked, answer, steps
from sfumato.diffusion.grid import SPACINGS, Grid, trailing
from sfumato.diffusion.level import Level
from sfumato.diffusion.noise import seeded
from sfumato.diffusion.samplers import SAMPLERS, Entry, Sampler
from sfumato.diffusion.samplers import start as started
from sfumato.diffusion.schedule import SCHEDULES, Schedule

PLAIN = {name: SCHEDULES[name]() for name in SCHEDULES}
every_sampler = pytest.mark.parametrize("entry", SAMPLERS.values(), ids=SAMPLERS.keys())
SOON = ("cosine", "flow", "scaled_linear to zero")  # the others are for `make slow`
every_path = pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=name, marks=() if name in SOON else pytest.mark.slow) for name, path in PATHS.items()],
)
deterministic = pytest.mark.parametrize(
    "entry", [e for e in SAMPLERS.values() if not e.stochastic and not e.adaptive], ids=lambda e: e.name
)
adaptive = pytest.mark.parametrize("entry", [e for e in SAMPLERS.values() if e.adaptive], ids=lambda e: e.name)
stochastic = pytest.mark.parametrize("entry", [e for e in SAMPLERS.values() if e.stochastic], ids=lambda e: e.name)

LAM = (-2.5, 2.0)
"""The stretch of half log-SNR on which orders are measured; all schedules have it inside."""


def pure(n: int, *, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def run(entry: Entry, x: Tensor, grid: Grid, *, seed: int = 0) -> Sampler:
    return started(entry, x, grid, seeded(range(seed, seed + len(x))))


def size(at: Level) -> Tensor:
    return (at.alpha**2 + at.sigma**2).sqrt()


def stretch(path: Schedule) -> tuple[Level, Level]:
    a, b = (path.level(path.time(torch.tensor(lam, dtype=torch.float64))) for lam in LAM)
    return a, b


@cache
def solved() -> tuple[Tensor, Tensor]:
    """A start and its exact end on the stretch, divided by the size of the level: the same for all schedules."""
    a, b = stretch(PLAIN["flow"])
    x = a.alpha * THREE.draw(4, seed=1) + a.sigma * pure(4)
    return x / size(a), exact(THREE.x0, x, a, b) / size(b)


def declared(entry: Entry) -> int:
    assert entry.order is not None
    return entry.order


def error(entry: Entry, path: Schedule, a: Level, b: Level, n: int, even_in: str, x: Tensor, end: Tensor) -> float:
    grid = between(path, a, b, n, even_in=even_in)
    return float((answer(entry.run(x, grid), THREE.x0) - end).norm(dim=1).mean())


@deterministic
@pytest.mark.parametrize("path", PLAIN.values(), ids=PLAIN.keys())
def test_converges_to_the_exact_flow_with_the_declared_order(entry: Entry, path: Schedule) -> None:
    """On steps even in log-SNR. Multiples of 12: where steps are taken in groups, the ends are alike."""
    (x, end), (a, b) = solved(), stretch(path)
    few, many = (error(entry, path, a, b, n, "lam", x * size(a), end * size(b)) for n in (84, 168))
    assert math.log2(few / many) >= declared(entry) - 0.2


@deterministic
@pytest.mark.parametrize("name", ["cosine", "flow", "scaled_linear"])
def test_converges_with_the_declared_order_on_steps_even_in_time(entry: Entry, name: str) -> None:
    """More steps, for on Stable Diffusion's table the last ones are long in log-SNR."""
    path = PLAIN[name]
    (x, end), (a, b) = solved(), stretch(path)
    few, many = (error(entry, path, a, b, n, "time", x * size(a), end * size(b)) for n in (384, 768))
    assert math.log2(few / many) >= declared(entry) - 0.2


@deterministic
def test_converges_with_the_declared_order_from_nothing_but_noise(entry: Entry) -> None:
    """From 12 to 96 steps; second order at the most, for the first step is a plain move."""
    path = PLAIN["flow"]
    a, (_, b) = path.level(1.0), stretch(path)
    assert a.alpha == 0
    x, end = pure(4), from_noise()
    few, many = (error(entry, path, a, b, n, "time", x, end) for n in (12, 96))
    assert math.log2(few / many) / 3 >= min(declared(entry), 2) - 0.2


@cache
def from_noise() -> Tensor:
    path = PLAIN["flow"]
    return exact(THREE.x0, pure(4), path.level(1.0), stretch(path)[1])


@pytest.mark.parametrize(
    "entry", [e for e in SAMPLERS.values() if e.stochastic and e.takes("eta")], ids=lambda e: e.name
)
@pytest.mark.parametrize("name", ["cosine", "flow", "scaled_linear"])
def test_without_fresh_noise_it_converges_with_the_declared_order(entry: Entry, name: str) -> None:
    few, many = (off_without_noise(entry, PLAIN[name], n) for n in (84, 168))
    assert math.log2(few / many) >= declared(entry) - 0.2


def off_without_noise(entry: Entry, path: Schedule, n: int) -> float:
    (x, end), (a, b) = solved(), stretch(path)
    grid = between(path, a, b, n, even_in="lam")
    sample = answer(started(entry, x * size(a), grid, None, eta=0.0), for_sampler(entry))
    return float((sample - end * size(b)).norm(dim=1).mean())


@adaptive
@pytest.mark.parametrize("path", PLAIN.values(), ids=PLAIN.keys())
def test_converges_with_the_declared_order_in_the_evaluations_that_a_tolerance_costs(
    entry: Entry, path: Schedule
) -> None:
    (x, end), (a, b) = solved(), stretch(path)
    x, end = x[:1] * size(a), end[:1] * size(b)  # one sample, for others would wait for the slowest

    def cost_and_error(tolerance: float) -> tuple[int, float]:
        grid = between(path, a, b, 2, even_in="lam")
        *asked, sample = steps(entry.run(x, grid, rtol=tolerance, atol=tolerance), THREE.x0)
        assert isinstance(sample, Tensor)
        return len(asked), float((sample - end).norm())

    (cheap, coarse), (dear, fine) = cost_and_error(1e-4), cost_and_error(1e-7)
    assert math.log(coarse / fine) / math.log(dear / cheap) >= declared(entry) - 0.2


@stochastic
@pytest.mark.parametrize("name", ["cosine", "flow", "scaled_linear"])
def test_samples_have_the_mean_and_the_covariance_of_the_data(entry: Entry, name: str) -> None:
    """Within four standard errors of 4000 samples at 250 steps, from the true state at the noisy end."""
    path, n = PLAIN[name], 4000
    a, b = stretch(path)
    x = a.alpha * THREE.draw(n, seed=2) + a.sigma * pure(n, seed=3)
    count = 5 if entry.consistent else 250  # a consistency model makes no error of discretisation
    sample = answer(run(entry, x, between(path, a, b, count, even_in="lam")), for_sampler(entry))
    off = sample - b.alpha * THREE.mean
    products = (off[:, :, None] * off[:, None, :]).flatten(1)  # (n, 9)
    true = b.alpha**2 * THREE.cov + b.sigma**2 * torch.eye(3, dtype=torch.float64)
    assert (off.mean(0).abs() <= 4 * off.std(0) / math.sqrt(n)).all()
    assert ((products.mean(0) - true.flatten()).abs() <= 4 * products.std(0) / math.sqrt(n)).all()


@stochastic
def test_another_seed_gives_another_picture_and_the_same_seed_the_same(entry: Entry) -> None:
    grid, x = trailing(PLAIN["scaled_linear"], 6), pure(1)
    first, again, other = (answer(run(entry, x, grid, seed=s), for_sampler(entry)) for s in (7, 7, 8))
    assert torch.equal(first, again)
    assert float((first - other).norm()) > 1e-3


@every_sampler
def test_is_a_function_of_start_and_grid_and_of_noise_if_it_says_so(entry: Entry) -> None:
    x, grid, *options = inspect.signature(entry.run).parameters.values()
    assert (x.name, grid.name) == ("x", "grid")
    assert all(p.kind is p.KEYWORD_ONLY for p in options)
    needed = [p.name for p in options if p.default is p.empty]
    assert needed == (["noise"] if entry.stochastic else [])


@every_sampler
@every_path
def test_asks_exactly_as_often_as_it_says(entry: Entry, path: Schedule) -> None:
    def denoise(x: Tensor, at: Level) -> Tensor:  # cheap, and not so simple that adaptive steps have no error
        return for_learned(entry, 0.3 * x.tanh())

    for spacing, n in itertools.product(SPACINGS, (1, 2, 3, 5, 20)):
        try:
            grid = SPACINGS[spacing](path, n)
        except ValueError:  # this spacing cannot serve this schedule
            continue
        told = entry.evaluations(grid)
        *asked, sample = steps(run(entry, torch.ones(1, 3, dtype=torch.float64), grid), denoise)
        assert isinstance(sample, Tensor)
        assert all(isinstance(one, Asked) for one in asked)
        assert len(asked) == told if told is not None else entry.adaptive, (spacing, n)


@pytest.mark.parametrize("entry", [e for e in SAMPLERS.values() if e.invertible], ids=lambda e: e.name)
@every_path
@pytest.mark.parametrize("spacing", ["trailing", "karras"])
def test_up_to_the_noise_and_down_again_comes_back_near_the_data(entry: Entry, path: Schedule, spacing: str) -> None:
    """With four steps not astray, with twenty within a quarter; the data's deviation is 0.8."""
    data = THREE.draw(64, seed=3)
    for n, near in ((4, 0.7), (20, 0.25)):
        up = SPACINGS[spacing](path, n).upward()
        scale = up.levels[0].alpha
        noise = answer(entry.run(scale * data, up), THREE.x0)
        back = answer(entry.run(noise, up.reversed()), THREE.x0) / scale
        assert float((back - data).square().mean().sqrt()) < near


@every_sampler
def test_no_step_is_no_question_and_no_change(entry: Entry) -> None:
    x = pure(2)
    assert torch.equal(answer(run(entry, x, trailing(PLAIN["scaled_linear"], 5).part(0.0)), THREE.x0), x)


@every_sampler
@every_path
@pytest.mark.parametrize("n", [1, 2, 5])
def test_asks_only_at_levels_of_the_schedule_where_there_is_noise(entry: Entry, path: Schedule, n: int) -> None:
    grid = trailing(path, n)
    for step in steps(run(entry, pure(2), grid), for_sampler(entry)):
        if isinstance(step, Asked):
            assert (step.at.sigma > 0).all()
            torch.testing.assert_close(torch.stack(grid.schedule.level(step.at.t)), torch.stack(step.at))


@every_sampler
@pytest.mark.parametrize("name", BLIND)
@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_a_start_at_nothing_but_noise_is_finite_and_brings_data(entry: Entry, name: str, n: int) -> None:
    n = max(n, entry.least)
    sample = answer(run(entry, pure(16), trailing(PATHS[name], n)), for_sampler(entry))
    assert sample.isfinite().all()
    nearest = (sample[:, None] - THREE.means).norm(dim=-1) / THREE.spreads
    assert (nearest.min(1).values < 6).all()  # no picture is far from all of the data


@pytest.mark.parametrize("entry", [e for e in SAMPLERS.values() if not e.consistent], ids=lambda e: e.name)
@pytest.mark.parametrize("name", BLIND)
def test_one_step_from_nothing_but_noise_brings_the_mean_of_the_data(entry: Entry, name: str) -> None:
    mean = THREE.mean.expand(2, 3)
    torch.testing.assert_close(answer(run(entry, pure(2), trailing(PATHS[name], 1)), for_sampler(entry)), mean)


@every_sampler
def test_what_follows_the_flow_says_with_what_order(entry: Entry) -> None:
    """All that is deterministic, or can be made so, is measured above; the rest declares nothing."""
    assert (entry.order is not None) == (not entry.stochastic or entry.takes("eta"))


@every_sampler
@every_path
def test_a_batch_of_eight_is_eight_pictures_made_alone(entry: Entry, path: Schedule) -> None:
    x, grid = pure(8), trailing(path, 7)
    batch = answer(run(entry, x, grid, seed=10), row_by_row(for_sampler(entry)))
    for i in range(8):
        alone = answer(run(entry, x[i : i + 1], grid, seed=10 + i), row_by_row(for_sampler(entry)))
        assert torch.equal(batch[i : i + 1], alone)


@every_sampler
@every_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_type_of_the_start_is_kept_in_every_ask_and_in_the_sample(
    entry: Entry, path: Schedule, dtype: torch.dtype
) -> None:
    asked: list[Tensor] = []

    def denoise(y: Tensor, at: Level) -> Tensor:
        asked.append(y)
        return for_sampler(entry)(y, at)

    sample = answer(run(entry, pure(3).to(dtype), trailing(path, 6)), denoise)
    assert {y.dtype for y in [*asked, sample]} == {dtype}
    assert sample.isfinite().all()


@every_sampler
@every_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_coarser_type_brings_the_same_picture_but_for_rounding(
    entry: Entry, path: Schedule, dtype: torch.dtype
) -> None:
    """On the stretch where orders are measured: within four roundings for each of six steps.

    An adaptive sampler takes slightly other steps: within a tenth of its tolerance.
    """
    grid = between(path, *stretch(path), 6, even_in="lam")
    x = (grid.levels[0].sigma * pure(3)).to(dtype)
    coarse, fine = (answer(run(entry, y, grid), for_sampler(entry)).double() for y in (x, x.double()))
    off = 6 * 4 * torch.finfo(dtype).eps
    assert float((coarse - fine).abs().max()) < (max(off, 0.1 * 0.0078) if entry.adaptive else off)


@every_sampler
def test_the_start_is_not_written_to(entry: Entry) -> None:
    x = pure(2)
    before = x.clone()
    answer(run(entry, x, trailing(PLAIN["flow"], 4)), for_sampler(entry))
    assert torch.equal(x, before)


@every_sampler
@pytest.mark.parametrize("asks", [0, 1, 3])
def test_closing_it_half_way_frees_it(entry: Entry, asks: int) -> None:
    sampler = run(entry, pure(2), trailing(PLAIN["scaled_linear"], 6))
    x, at = next(sampler)
    for _ in range(asks):
        x, at = sampler.send(for_sampler(entry)(x, at))
    assert sampler.gi_frame is not None
    sampler.close()
    assert sampler.gi_frame is None


@every_sampler
def test_closing_the_driver_half_way_frees_the_sampler(entry: Entry) -> None:
    sampler = run(entry, pure(2), trailing(PLAIN["scaled_linear"], 6))
    driver = steps(sampler, for_sampler(entry))
    next(driver)
    next(driver)
    assert sampler.gi_frame is not None
    driver.close()
    assert sampler.gi_frame is None


@every_sampler
def test_a_denoiser_that_fails_frees_the_sampler_and_its_error_comes_through(entry: Entry) -> None:
    sampler = run(entry, pure(2), trailing(PLAIN["scaled_linear"], 6))

    def denoise(x: Tensor, at: Level) -> Tensor:
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        answer(sampler, denoise)
    assert sampler.gi_frame is None
