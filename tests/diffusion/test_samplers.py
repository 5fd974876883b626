"""Each sampler against an independent, plain form of the published algorithm, and against the others."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mixture import BLIND, PATHS, THREE, between, f64, for_learned
from sfumato.diffusion.denoiser import Estimate
from sfumato.diffusion.drive import answer
from sfumato.diffusion.grid import SPACINGS, Grid, leading, trailing, uniform
from sfumato.diffusion.level import Level
from sfumato.diffusion.move import move, noise_in, posterior_std
from sfumato.diffusion.noise import seeded
from sfumato.diffusion.samplers import SAMPLERS, Sampler, ddim, ddpm, dpmpp_2m, heun, plms, sampler
from sfumato.diffusion.samplers.adams import ADAMS_BASHFORTH
from sfumato.diffusion.schedule import Schedule, Table, flow, linear, scaled_linear

SD = scaled_linear()
STEPS = 9
Run = Callable[..., Sampler]
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())


def start(n: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def visible(path: Schedule, steps: int = STEPS, *, clean: bool) -> Grid:
    """A grid that begins where there is some signal, and ends clean or not."""
    levels = [at for at in trailing(path, steps + 2).levels if not at.blind][-steps - 1 :]
    return Grid(path, tuple(levels if clean else levels[:-1]))


def in_ve(x: Tensor, grid: Grid) -> tuple[Tensor, list[Tensor]]:
    """The start and the noise levels in the coordinates y = x / alpha, s = sigma / alpha of Karras et al. 2022."""
    return x / grid.levels[0].alpha, [at.sigma / at.alpha for at in grid.levels]


def clean_guess(y: Tensor, s: Tensor) -> Tensor:
    """D(y; s) of Karras et al. 2022: the exact guess in their coordinates."""
    return THREE.x0(y, Level(s, torch.ones_like(s), s))


def euler_edm(x: Tensor, grid: Grid) -> Tensor:
    y, s = in_ve(x, grid)
    for a, b in zip(s, s[1:], strict=False):
        y = y + (b - a) * (y - clean_guess(y, a)) / a
    return y * grid.levels[-1].alpha


def heun_edm(x: Tensor, grid: Grid) -> Tensor:
    """Algorithm 1 of Karras et al. 2022 without churn."""
    y, s = in_ve(x, grid)
    for a, b in zip(s, s[1:], strict=False):
        d = (y - clean_guess(y, a)) / a
        y_next = y + (b - a) * d
        if b > 0:
            d_next = (y_next - clean_guess(y_next, b)) / b
            y_next = y + (b - a) * (d + d_next) / 2
        y = y_next
    return y * grid.levels[-1].alpha


def dpmpp_2m_plain(x: Tensor, grid: Grid, *, first_order_end: bool) -> Tensor:
    """Algorithm 2 of Lu et al. 2022 in lam and h, with D as they write it."""
    old: Tensor | None = None
    levels = grid.levels
    for i in range(1, len(levels)):
        s, t = levels[i - 1], levels[i]
        m = THREE.x0(x, s)
        d = m
        if old is not None and t.sigma > 0 and not (first_order_end and i == len(levels) - 1):
            r = (s.lam - levels[i - 2].lam) / (t.lam - s.lam)
            d = (1 + 1 / (2 * r)) * m - 1 / (2 * r) * old
        shrink = t.sigma / s.sigma
        x = shrink * x - t.alpha * (shrink * s.alpha / t.alpha - 1) * d if t.sigma > 0 else t.alpha * d
        old = m
    return x


@every_path
@pytest.mark.parametrize("clean", [True, False])
def test_ddim_is_eulers_method_in_the_coordinates_of_karras(path: Schedule, clean: bool) -> None:
    grid, x = visible(path, clean=clean), start()
    torch.testing.assert_close(answer(ddim(x, grid), THREE.x0), euler_edm(x, grid), rtol=1e-10, atol=1e-10)


@every_path
@pytest.mark.parametrize("clean", [True, False])
def test_heun_is_algorithm_one_of_karras(path: Schedule, clean: bool) -> None:
    grid, x = visible(path, clean=clean), start()
    torch.testing.assert_close(answer(heun(x, grid), THREE.x0), heun_edm(x, grid), rtol=1e-10, atol=1e-10)


@every_path
@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("steps", [STEPS, 15])
def test_dpmpp_2m_is_algorithm_two_of_lu(path: Schedule, clean: bool, steps: int) -> None:
    grid, x = visible(path, steps if clean else steps + 1, clean=clean), start()
    assert len(grid) == steps
    plain = dpmpp_2m_plain(x, grid, first_order_end=steps < 15)
    torch.testing.assert_close(answer(dpmpp_2m(x, grid), THREE.x0), plain, rtol=1e-10, atol=1e-10)


def test_dpmpp_2m_ends_in_a_first_order_step_below_fifteen_steps_only() -> None:
    for steps, same in ((14, True), (15, False)):
        grid, x = visible(SD, steps + 1, clean=False), start()
        assert len(grid) == steps
        plain = dpmpp_2m_plain(x, grid, first_order_end=True)
        assert torch.allclose(answer(dpmpp_2m(x, grid), THREE.x0), plain, rtol=1e-10, atol=1e-10) is same


@every_path
def test_ddim_is_dpm_solver_of_order_one_in_both_its_forms(path: Schedule) -> None:
    x = start()
    for a, b in visible(path, clean=False).steps():
        x0, h = THREE.x0(x, a), b.lam - a.lam
        eps = noise_in(x, x0, a)
        by_x0 = b.sigma / a.sigma * x - b.alpha * torch.expm1(-h) * x0
        by_eps = b.alpha / a.alpha * x - b.sigma * torch.expm1(h) * eps
        moved = move(x, a, b, x0=x0)
        torch.testing.assert_close(by_x0, moved, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(by_eps, moved, rtol=1e-10, atol=1e-10)
        x = moved


@pytest.mark.parametrize("path", [p for p in PATHS.values() if isinstance(p, Table)])  # where alpha^2 + sigma^2 = 1
def test_move_is_the_transfer_of_pndm(path: Schedule) -> None:
    """x' = x + (a' - a) [x / (sqrt(a)(sqrt(a) + sqrt(a'))) - eps / (...)], a = abar (Liu et al. 2022, eq. 11)."""
    x, eps = start(), start(seed=1)
    for p, q in visible(path, clean=True).steps():
        a, b = p.alpha**2, q.alpha**2
        by = a.sqrt() * (((1 - b) * a).sqrt() + ((1 - a) * b).sqrt())
        x_next = x + (b - a) * (x / (a.sqrt() * (a.sqrt() + b.sqrt())) - eps / by)
        torch.testing.assert_close(move(x, p, q, eps=eps), x_next, rtol=1e-9, atol=1e-9)


@every_path
@given(part=st.floats(0.02, 0.98), to=st.floats(0.01, 0.99), eps=st.floats(-3, 3), x=st.floats(-3, 3))
def test_move_with_x0_equals_move_with_the_matching_noise(
    path: Schedule, part: float, to: float, eps: float, x: float
) -> None:
    high = path.span[1]
    a, b = path.level(part * high), path.level(part * to * high)
    x0 = (f64(x) - a.sigma * eps) / a.alpha
    scale = max(1.0, float(x0.abs()))
    expected = move(f64(x), a, b, x0=x0)
    torch.testing.assert_close(move(f64(x), a, b, eps=f64(eps)), expected, rtol=1e-9, atol=1e-12 * scale)
    both = move(f64(x), a, b, x0=x0, eps=noise_in(f64(x), x0, a))
    torch.testing.assert_close(both, expected, rtol=0, atol=0)


@every_path
def test_moving_along_the_true_noise_keeps_it(path: Schedule) -> None:
    x0, eps = start(), start(seed=1)
    for a, b in visible(path, clean=False).steps():
        x = a.alpha * x0 + a.sigma * eps
        torch.testing.assert_close(move(x, a, b, eps=eps), b.alpha * x0 + b.sigma * eps, rtol=1e-9, atol=1e-9)


def respaced(a: Level, b: Level) -> tuple[Tensor, Tensor, Tensor]:
    """On x0, on x, and variance of q(x_b | x_a, x0), by the betas of the respaced chain (Ho et al. 2020, eq. 7)."""
    abar, before = a.alpha**2, b.alpha**2
    beta = 1 - abar / before
    on_x0 = before.sqrt() * beta / (1 - abar)
    on_x = (1 - beta).sqrt() * (1 - before) / (1 - abar)
    return on_x0, on_x, beta * (1 - before) / (1 - abar)


@pytest.mark.parametrize("spacing", [leading, uniform, trailing])
@pytest.mark.parametrize("path", [SD, linear(), PATHS["cosine"], PATHS["scaled_linear to zero"]])
@pytest.mark.parametrize("steps", [10, 50])
def test_a_ddpm_step_has_the_mean_and_the_variance_of_the_posterior(
    spacing: Callable[..., Grid], path: Schedule, steps: int
) -> None:
    x, x0, z = start(), start(seed=1), start(seed=2)
    for a, b in spacing(path, steps).steps():
        on_x0, on_x, variance = respaced(a, b)
        for run in (ddpm, lambda x, grid, noise: ddim(x, grid, eta=1.0, noise=noise)):
            one_step = run(x, Grid(path, (a, b)), noise=lambda like: z)
            next(one_step)
            with pytest.raises(StopIteration) as done:
                one_step.send(x0)
            expected = on_x0 * x0 + on_x * x + variance.clamp_min(0).sqrt() * z
            torch.testing.assert_close(done.value.value, expected, rtol=1e-9, atol=1e-9)
        assert float(posterior_std(a, b)) ** 2 == pytest.approx(float(variance), rel=1e-9, abs=1e-15)


@every_path
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_whatever_eta_is_the_noise_of_the_next_level_is_right(path: Schedule, eta: float) -> None:
    """If x0 is right, x' = alpha' x0 + noise of deviation sigma', made of the old and the fresh noise."""
    for a, b in trailing(path, STEPS).steps():
        eps, z, x0 = f64(1.0, 0.0), f64(0.0, 1.0), f64(0.4, 0.4)
        x = a.alpha * x0 + a.sigma * eps
        moved = move(x, a, b, x0=x0, fresh=eta * posterior_std(a, b), noise=lambda like, z=z: z)
        assert float((moved - b.alpha * x0).norm()) == pytest.approx(float(b.sigma), rel=1e-9, abs=1e-12)


@every_path
def test_the_posterior_explains_the_forward_noise(path: Schedule) -> None:
    """Noising from b on to a and guessing back: the variance of x_b given x_a and x0 is that of Bayes' rule."""
    for a, b in visible(path, clean=False).steps():
        step = a.alpha / b.alpha
        added = a.sigma**2 - step**2 * b.sigma**2
        bayes = 1 / (1 / b.sigma**2 + step**2 / added)
        assert float(posterior_std(a, b)) ** 2 == pytest.approx(float(bayes), rel=1e-9)


def test_ddim_draws_no_noise_at_eta_zero_nor_at_a_clean_end() -> None:
    drawn: list[int] = []

    def noise(like: Tensor) -> Tensor:
        drawn.append(1)
        return torch.zeros_like(like)

    answer(ddim(start(), trailing(SD, 5), eta=0.0, noise=noise), THREE.x0)
    assert len(drawn) == 0
    answer(ddpm(start(), trailing(SD, 5), noise=noise), THREE.x0)
    assert len(drawn) == 4


@pytest.mark.parametrize("run", [plms, heun])
@pytest.mark.parametrize("path", [SD, flow(), PATHS["cosine"]], ids=["SD", "flow", "cosine"])
def test_for_a_constant_noise_guess_plms_and_heun_are_ddim(run: Run, path: Schedule) -> None:
    grid, x, eps = visible(path, clean=False), start(), start(seed=1)

    def denoise(y: Tensor, at: Level) -> Tensor:
        return (y - at.sigma * eps) / at.alpha

    expected = answer(ddim(x, grid), denoise)
    torch.testing.assert_close(answer(run(x, grid), denoise), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", list(SAMPLERS))
@every_path
def test_for_a_constant_clean_guess_every_sampler_ends_at_it_with_the_noise_it_began_with(
    name: str, path: Schedule
) -> None:
    x0, x = start(seed=1), start()
    entry = SAMPLERS[name]
    for grid in (trailing(path, STEPS), visible(path, clean=False)):
        if entry.stochastic:
            if grid.levels[-1].sigma > 0:
                continue
            sampler_ = entry.run(x, grid, noise=seeded([1, 2, 3, 4]))
        else:
            sampler_ = entry.run(x, grid)
        first, last = grid.levels[0], grid.levels[-1]
        expected = last.alpha * x0 + last.sigma * noise_in(x, x0, first)
        torch.testing.assert_close(
            answer(sampler_, lambda y, at: for_learned(entry, x0)), expected, rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("name", BLIND)
def test_the_first_step_from_nothing_but_noise_is_the_plain_move(name: str) -> None:
    grid, x = trailing(PATHS[name], 6), start()
    a, b = grid.levels[:2]
    plain = b.alpha * THREE.mean + b.sigma * x / a.sigma
    for run in (ddim, heun, plms, dpmpp_2m):
        asks = run(x, grid)
        next(asks)
        y, at = asks.send(THREE.x0(x, a))
        torch.testing.assert_close(y, plain)
        assert at == b


def test_plms_mixes_its_memory_with_the_weights_of_adams_and_bashforth() -> None:
    """Weights that are exact for polynomials: constants for one value, and up to cubics for four."""
    for order, weights in enumerate(ADAMS_BASHFORTH, start=1):
        for power in range(order):
            guess = sum(w * (-k) ** power for k, w in enumerate(weights))  # values at 0, -1, -2, ...
            assert guess == pytest.approx(1 / (power + 1), rel=1e-12)  # the integral from 0 to 1


def test_plms_remembers_three_and_warms_up_with_heun() -> None:
    grid, x = leading(SD, 8), start()
    asks: Sampler = plms(x, grid)
    y, at = next(asks)
    sent = y
    past: list[Tensor] = []
    weights = {2: f64(3, -1) / 2, 3: f64(23, -16, 5) / 12, 4: f64(55, -59, 37, -9) / 24}
    for i, (a, b) in enumerate(grid.steps()):
        assert at == a
        torch.testing.assert_close(y, x, rtol=1e-10, atol=1e-10)
        past = [noise_in(x, THREE.x0(x, a), a), *past[:3]]
        if i == 0:
            trial, there = asks.send(THREE.x0(y, a))
            assert there == b
            torch.testing.assert_close(trial, move(x, a, b, eps=past[0]), rtol=1e-10, atol=1e-10)
            guess = (past[0] + noise_in(trial, THREE.x0(trial, b), b)) / 2
            sent = THREE.x0(trial, b)
        else:
            guess = torch.einsum("k,kbd->bd", weights[len(past)], torch.stack(past))
            sent = THREE.x0(y, a)
        x = move(x, a, b, eps=guess)
        if i < len(grid) - 1:
            y, at = asks.send(sent)
    with pytest.raises(StopIteration) as done:
        asks.send(sent)
    torch.testing.assert_close(done.value.value, x, rtol=1e-10, atol=1e-10)


def test_image_to_image_walks_only_the_last_part_of_the_grid() -> None:
    grid = SPACINGS["trailing"](SD, 10)
    rest = grid.part(0.4)
    x0 = THREE.draw(4, seed=3)
    x = rest.levels[0].alpha * x0 + rest.levels[0].sigma * start()
    asked: list[float] = []

    def denoise(y: Tensor, at: Level) -> Tensor:
        asked.append(float(at.t))
        return THREE.x0(y, at)

    answer(ddim(x, rest), denoise)
    assert asked == [float(at.t) for at in grid.levels[-5:-1]]


def test_reversed_levels_walk_up_and_back_to_the_same_picture() -> None:
    grid = between(SD, SD.level(600), SD.level(10), 400, even_in="lam")
    up = Grid(SD, grid.levels[::-1])
    x = THREE.draw(4, seed=3)
    noisy = answer(heun(x, up), THREE.x0)
    back = answer(heun(noisy, grid), THREE.x0)
    assert float((noisy - x).norm(dim=1).min()) > 0.1
    torch.testing.assert_close(back, x, rtol=0, atol=1e-3)


def test_an_unknown_sampler_is_answered_with_what_exists() -> None:
    with pytest.raises(
        ValueError, match=r"unknown sampler 'dmpp_2m'; did you mean 'dpmpp_2m'\? known: .*heun, ipndm, .*, unipc$"
    ):
        SAMPLERS["dmpp_2m"]


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="'heun' is registered twice"):
        sampler("heun", order=2)(heun)
    assert SAMPLERS["heun"].run is heun


def test_half_log_snr_is_half_the_logarithm_of_the_power_ratio() -> None:
    at = SD.level(400)
    assert float(at.lam) == pytest.approx(0.5 * math.log(float(at.alpha**2 / at.sigma**2)), rel=1e-12)
    assert float(Level.clean(0.0).lam) == math.inf


def test_ddim_with_fresh_noise_and_none_given_is_refused_before_the_first_ask() -> None:
    with pytest.raises(ValueError, match="fresh noise"):
        next(ddim(start(), trailing(SD, STEPS), eta=0.5))


def test_of_an_estimate_a_sampler_reads_x0_alone_and_refuses_a_push_that_it_would_not_heed() -> None:
    grid, x = trailing(SD, 5), start()
    for entry in SAMPLERS.values():
        if entry.stochastic:
            continue

        def estimate(y: Tensor, at: Level, push: Tensor | None = None) -> Estimate:
            return Estimate(THREE.x0(y, at), spread=torch.rand_like(y), push=push)

        assert torch.equal(answer(entry.run(x, grid), estimate), answer(entry.run(x, grid), THREE.x0))
        with pytest.raises(ValueError, match="only the ddpm samplers heed a push of the mean"):
            answer(entry.run(x, grid), lambda y, at: estimate(y, at, push=y))
