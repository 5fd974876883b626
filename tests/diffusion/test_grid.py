"""Grids against the published time steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mixture import f64
from sfumato.diffusion.grid import (
    SPACINGS,
    Grid,
    align_your_steps,
    exponential,
    iddpm,
    karras,
    leading,
    leading_quad,
    linspace,
    logsnr,
    pndm,
    quadratic,
    trailing,
    uniform,
    uniform_quad,
)
from sfumato.diffusion.level import Level
from sfumato.diffusion.move import forward_std, posterior_std
from sfumato.diffusion.schedule import Schedule, Table, cosine, flow, geometric, linear, scaled_linear

SD = scaled_linear()
AS_STORED = Table(SD.abar.float())  # CompVis keeps its table in float32, and its published numbers show it


def clocks(grid: Grid) -> list[float]:
    return [float(at.t) for at in grid.levels]


def lams(grid: Grid) -> torch.Tensor:
    return torch.stack([at.lam for at in grid.levels])


def is_clean(at: Level) -> bool:
    return (float(at.alpha), float(at.sigma)) == (1.0, 0.0)


def test_leading_is_the_grid_of_compvis() -> None:
    grid = leading(SD, 50)
    assert clocks(grid) == [*range(981, 0, -20), 0]
    assert clocks(leading(SD, 20)) == [*range(951, 0, -50), 0]
    ends = [float(leading(AS_STORED, 50).levels[i].alpha) ** 2 for i in (49, 48, 0, 50)]
    assert ends == pytest.approx([0.9982960, 0.9803808, 0.0057755, 0.99915], abs=6e-8)


def test_posterior_deviations_on_the_leading_grid_are_those_of_compvis() -> None:
    steps = list(leading(AS_STORED, 50).steps())[::-1]  # CompVis counts from the clean end
    got = [float(posterior_std(*steps[i])) for i in (0, 1, 25, 49)]
    assert got == pytest.approx([0.0206483544, 0.0394796008, 0.29478458, 0.45446329], rel=3e-8)


@pytest.mark.parametrize("steps", [3, 7, 9, 27, 30, 49, 333, 501, 999])
def test_leading_has_as_many_steps_as_asked_even_where_compvis_has_others_or_fails(steps: int) -> None:
    grid = leading(SD, steps)
    assert len(grid) == steps
    assert clocks(grid)[-2:] == [1, 0]
    assert set(torch.tensor(clocks(grid)[:-1]).diff().tolist()) <= {-float(1000 // steps)}


def test_leading_refuses_as_many_steps_as_the_table_has_entries() -> None:
    with pytest.raises(ValueError, match="1000 steps are out of range; this schedule takes 1 to 999"):
        leading(SD, 1000)


def test_uniform_is_the_grid_of_the_ddim_paper() -> None:
    grid = uniform(SD, 10)
    assert clocks(grid)[:-1] == list(range(900, -1, -100))
    assert is_clean(grid.levels[-1])


def test_trailing_begins_at_the_last_entry_and_ends_clean() -> None:
    grid = trailing(SD, 10)
    assert clocks(grid)[:-1] == list(range(999, 0, -100))
    assert is_clean(grid.levels[-1])
    assert clocks(trailing(flow(), 4)) == [1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize(
    ("steps", "counted"),
    [
        (7, [1000, 857, 714, 571, 429, 286, 143]),
        (16, [1000, 938, 875, 812, 750, 688, 625, 562, 500, 438, 375, 312, 250, 188, 125, 62]),
    ],
)
def test_trailing_rounds_as_numpy_does_in_diffusers(steps: int, counted: list[int]) -> None:
    """round(arange(1000, 0, -1000 / steps)) - 1, with halves to even."""
    assert [t + 1 for t in clocks(trailing(SD, steps))[:-1]] == counted


def test_linspace_is_the_time_uniform_grid_of_dpm_solver() -> None:
    grid = linspace(SD, 10)
    assert clocks(grid) == pytest.approx([999 - 99.9 * i for i in range(11)], abs=1e-9)
    published = f64(-2.682024, -2.117119, -1.627751, -1.201491, -0.824058, -0.479695, -0.150887, 0.184061)
    published = torch.cat([published, f64(0.560033, 1.067969, 3.534712)])
    torch.testing.assert_close(lams(grid), published, rtol=0, atol=6e-7)


def test_logsnr_is_the_grid_of_dpm_solver() -> None:
    published = [1, 0.889218, 0.757511, 0.59843, 0.414162, 0.234208, 0.103973, 0.037144, 0.011621, 0.00344, 0.001]
    grid = logsnr(SD, 10)
    assert [(t + 1) / 1000 for t in clocks(grid)] == pytest.approx(published, abs=6e-7)  # its clock is (n + 1) / N
    torch.testing.assert_close(lams(grid).diff(), ((lams(grid)[-1] - lams(grid)[0]) / 10).expand(10))


@pytest.mark.parametrize("rho", [7.0, 3.0])
def test_karras_is_even_in_a_root_of_the_noise_to_signal_ratio(rho: float) -> None:
    grid = karras(SD, 12, rho=rho)
    root = torch.stack([(at.sigma / at.alpha) ** (1 / rho) for at in grid.levels[:-1]])
    torch.testing.assert_close(root.diff(), ((root[-1] - root[0]) / 11).expand(11), rtol=1e-8, atol=1e-10)
    assert clocks(grid)[0] == pytest.approx(999, abs=1e-8)
    assert clocks(grid)[-2] == pytest.approx(0, abs=1e-6)
    assert is_clean(grid.levels[-1])


def test_half_log_snr_begins_where_a_picture_begins_to_be_seen_and_ends_at_eight_at_most() -> None:
    assert lams(logsnr(flow(), 4)).tolist() == pytest.approx([-5.1, -1.825, 1.45, 4.725, 8], abs=1e-9)
    for path in (scaled_linear(terminal_zero=True), cosine()):
        assert float(lams(logsnr(path, 4))[0]) == pytest.approx(-5.1, abs=1e-9)
    assert float(lams(logsnr(SD, 4))[0]) == pytest.approx(float(SD.level(999).lam), abs=1e-12)  # SD never goes below


def test_middle_is_half_way_in_half_log_snr() -> None:
    grid = linspace(SD, 10)
    a, b = grid.levels[3:5]
    assert float(grid.middle(a, b).lam) == pytest.approx(float(a.lam + b.lam) / 2, rel=1e-12)
    assert float(grid.middle(a, b, 0.25).lam) == pytest.approx(float(0.75 * a.lam + 0.25 * b.lam), rel=1e-12)


def test_part_keeps_the_last_steps() -> None:
    grid = trailing(SD, 10)
    assert clocks(grid.part(0.3)) == clocks(grid)[-4:]
    assert grid.part(1.0).levels == grid.levels
    assert len(grid.part(0.001)) == 1  # never none of them, unless that is what is asked for
    assert grid.part(0.0).levels == grid.levels[-1:]


def test_part_rounds_down_as_the_published_programs_do_and_not_by_the_error_of_a_float() -> None:
    """int(strength * steps) (Stable Diffusion's img2img)."""
    for steps in (7, 10, 50, 100):
        grid = trailing(SD, steps)
        for k in range(1, steps + 1):
            assert len(grid.part(k / steps)) == k
            assert len(grid.part((k + 0.9) / steps if k < steps else 1.0)) == k
    assert len(trailing(SD, 100).part(0.29)) == 29  # 0.29 * 100 < 29


@pytest.mark.parametrize("strength", [-1e-9, -0.5, 1.01, math.inf, math.nan])
def test_part_refuses_a_strength_out_of_range(strength: float) -> None:
    with pytest.raises(ValueError, match="out of range"):
        trailing(SD, 10).part(strength)


@pytest.mark.parametrize("name", ["leading", "uniform", "leading_quad", "uniform_quad", "iddpm", "pndm"])
def test_spacings_that_count_entries_say_so_to_a_schedule_without_a_table(name: str) -> None:
    with pytest.raises(ValueError, match="counts table entries"):
        SPACINGS[name](flow(), 4)


def ratios(grid: Grid) -> list[float]:
    """sigma / alpha of the noisy levels."""
    return [float(at.sigma / at.alpha) for at in grid.levels if at.sigma > 0]


def test_quadratic_is_the_time_quadratic_grid_of_dpm_solver() -> None:
    published = [1, 0.815702, 0.650159, 0.503372, 0.375339, 0.266061, 0.175539, 0.103772, 0.050759, 0.016502, 0.001]
    grid = quadratic(SD, 10)
    assert [(t + 1) / 1000 for t in clocks(grid)] == pytest.approx(published, abs=6e-7)
    assert clocks(grid)[-1] == 0
    assert clocks(quadratic(flow(), 4)) == pytest.approx([1, 0.5625, 0.25, 0.0625, 0])


def test_leading_quad_is_the_quad_grid_of_compvis() -> None:
    assert clocks(leading_quad(SD, 10)) == [801, 633, 484, 356, 247, 159, 89, 40, 10, 1, 0]
    for steps in (2, 5, 17, 50, 200):
        plain = ((np.linspace(0, np.sqrt(1000 * 0.8), steps)) ** 2).astype(int) + 1
        assert clocks(leading_quad(SD, steps)) == [*sorted(set(plain.tolist()), reverse=True), 0]
    assert clocks(leading_quad(SD, 50))[-6:] == [9, 6, 3, 2, 1, 0]  # 1 is there twice
    assert len(leading_quad(SD, 50)) == 49


def test_uniform_quad_is_the_quad_grid_of_the_ddim_paper() -> None:
    for steps in (2, 5, 10, 17, 50, 200):
        plain = [int(s) for s in list(np.linspace(0, np.sqrt(1000 * 0.8), steps) ** 2)]
        grid = uniform_quad(SD, steps)
        assert clocks(grid)[:-1] == sorted(set(plain), reverse=True)
        assert is_clean(grid.levels[-1])


def space_timesteps(entries: int, sections: list[int]) -> list[int]:
    """The list of Nichol & Dhariwal 2021, cleanest first, from the description of their program."""
    chosen: list[int] = []
    start = 0
    for i, count in enumerate(sections):
        size = entries // len(sections) + (1 if i < entries % len(sections) else 0)
        stride = 1 if count <= 1 else (size - 1) / (count - 1)
        at = 0.0
        for _ in range(count):
            chosen.append(start + round(at))
            at += stride
        start += size
    return chosen


def test_iddpm_is_the_respaced_chain_of_improved_ddpm() -> None:
    assert clocks(iddpm(SD, 10))[:-1] == list(range(999, -1, -111))
    assert clocks(iddpm(SD, 5, sections=[3, 2]))[:-1] == [999, 500, 499, 250, 0]
    for sections in ([7], [27], [50], [1], [90, 60, 60, 20, 20], [10, 15, 20], [1, 1, 1], [333, 7, 1]):
        grid = iddpm(SD, sum(sections), sections=sections)
        assert clocks(grid)[:-1] == space_timesteps(1000, sections)[::-1]
        assert is_clean(grid.levels[-1])
        if len(sections) == 1:
            assert clocks(iddpm(SD, sections[0])) == clocks(grid)


def test_the_betas_of_a_respaced_chain_are_the_published_ones() -> None:
    """`respaced_betas_10` of the golden values: the variances that the chain adds from level to level."""
    published = [9.999999999998899e-05, 0.12630763785293664, 0.316843617791814, 0.4661190638395779]
    published += [0.5830054944265768, 0.674480639045262, 0.7460297669786917, 0.8019625916556974]
    published += [0.845663378408531, 0.8797882303918187]
    betas = [float(forward_std(a, b)) ** 2 for a, b in iddpm(linear(), 10).steps()]
    assert betas[::-1] == pytest.approx(published, rel=1e-9)


@pytest.mark.parametrize("sections", [[3, 3], [0, 5], [5, 0], [-1, 6]])
def test_iddpm_refuses_sections_that_are_not_its_steps(sections: list[int]) -> None:
    with pytest.raises(ValueError, match="positive and add up to 5 steps"):
        iddpm(SD, 5, sections=sections)


def test_iddpm_refuses_more_steps_in_a_section_than_it_has_entries() -> None:
    with pytest.raises(ValueError, match="501 steps do not fit into a section of 500 entries"):
        iddpm(SD, 502, sections=[501, 1])


@pytest.mark.parametrize("steps", [10, 20, 50, 7])
def test_pndm_tells_the_network_one_entry_less_than_the_level_has(steps: int) -> None:
    """t of range(0, N, N // S), with abar read at t + 1, down to t = -1 with abar[0] (Liu et al. 2022's program)."""
    grid = pndm(SD, steps)
    told = [*range(0, 1000, 1000 // steps)][:steps][::-1]
    assert clocks(grid) == [*told, -1]
    powers = torch.stack([at.alpha.square() for at in grid.levels])
    torch.testing.assert_close(powers, SD.abar[[t + 1 for t in told] + [0]], rtol=1e-12, atol=0)
    a, b = grid.levels[1:3]
    mid = grid.halfway(a, b)  # where its Runge-Kutta steps ask
    assert float(mid.t) == (told[1] + told[2]) / 2
    assert float(mid.lam) == pytest.approx(float(SD.level(float(mid.t) + 1).lam), rel=1e-12)
    assert float(grid.middle(a, b).lam) == pytest.approx(float(a.lam + b.lam) / 2, rel=1e-12)


@pytest.mark.parametrize("path", [SD, geometric(), cosine(), flow()], ids=["SD", "geometric", "cosine", "flow"])
@pytest.mark.parametrize("steps", [1, 2, 12])
def test_exponential_and_karras_are_the_sigmas_of_k_diffusion(path: Schedule, steps: int) -> None:
    """Between the same ends, which are those of the schedule where it does not reach nothing but noise, or none."""
    first, last = (path.level(t) for t in reversed(path.span))
    high = min(float(first.sigma / first.alpha) if first.alpha > 0 else math.inf, math.exp(5.1))
    low = max(float(last.sigma / last.alpha), math.exp(-8) if last.sigma == 0 else 0.0)
    plain = np.exp(np.linspace(math.log(high), math.log(low), steps))
    assert ratios(exponential(path, steps)) == pytest.approx(plain.tolist(), rel=1e-8)
    ramp = np.linspace(0, 1, steps)
    for rho in (7.0, 3.0):
        plain = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        assert ratios(karras(path, steps, rho=rho)) == pytest.approx(plain.tolist(), rel=1e-8)
    assert is_clean(exponential(path, steps).levels[-1])


PUBLISHED_STEPS = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]
PUBLISHED_NOISE = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]


def test_align_your_steps_has_the_published_clock_values_and_noise_levels() -> None:
    """For Stable Diffusion 1.5 (Sabour et al. 2024); the noise is rounded, its ends are those of the table."""
    grid = align_your_steps(SD, 10)
    assert clocks(grid)[:-1] == pytest.approx(PUBLISHED_STEPS, abs=1.5)
    assert ratios(grid) == pytest.approx(PUBLISHED_NOISE[:-1], rel=6e-3)
    assert is_clean(grid.levels[-1])


@pytest.mark.parametrize("steps", [1, 3, 7, 20, 45])
def test_align_your_steps_is_interpolated_in_log_snr_for_other_numbers_of_steps(steps: int) -> None:
    """Its authors' loglinear_interp of all eleven levels, of which the last is then made clean."""
    places = np.linspace(0, 1, steps + 1)
    plain = np.exp(np.interp(places, np.linspace(0, 1, 11), np.log(PUBLISHED_NOISE)))
    assert ratios(align_your_steps(SD, steps)) == pytest.approx(plain[:-1].tolist(), rel=6e-3)


def test_align_your_steps_meets_the_ends_of_another_schedule() -> None:
    path = geometric()
    grid = align_your_steps(path, 10)
    stretched = (np.log(PUBLISHED_NOISE) - math.log(0.029)) / math.log(14.615 / 0.029)
    plain = np.exp(math.log(0.01) + stretched * math.log(50 / 0.01))
    assert ratios(grid) == pytest.approx(plain[:-1].tolist(), rel=1e-9)


@pytest.mark.parametrize("groups", [[3, 3, 2, 1], [3, 2, 1], [2] * 5, [1] * 4, [3] * 6 + [2]])
def test_logsnr_in_groups_is_even_outside_and_within_each(groups: list[int]) -> None:
    """The outer grid of single-step DPM-Solver, and its inner one between two levels (LuChengTHU's program)."""
    grid = logsnr(SD, sum(groups), groups=groups)
    low, high = float(SD.level(999).lam), float(SD.level(0).lam)
    outer = np.linspace(low, high, len(groups) + 1)
    plain = [lam for a, b, p in zip(outer, outer[1:], groups, strict=False) for lam in np.linspace(a, b, p + 1)[:-1]]
    assert lams(grid).tolist() == pytest.approx([*plain, high], abs=1e-9)


def test_logsnr_refuses_groups_that_are_not_its_steps() -> None:
    for groups in ([3, 3], [0, 5], [6, -1]):
        with pytest.raises(ValueError, match="positive and add up to 5 steps"):
            logsnr(SD, 5, groups=groups)


def test_upward_begins_at_the_cleanest_level_that_has_noise() -> None:
    assert clocks(trailing(SD, 4).upward()) == [0, 249, 499, 749, 999]
    assert clocks(uniform(SD, 4).upward()) == [0, 250, 500, 750]  # which ends at the first entry, and then clean
    assert clocks(leading(SD, 4).upward()) == [0, 1, 251, 501, 751]
    assert clocks(pndm(SD, 4).upward()) == [-1, 0, 250, 500, 750]
    for spacing in (trailing, linspace):
        up = spacing(flow(), 4).upward()
        assert clocks(up)[1:4] == [0.25, 0.5, 0.75]
        assert float(up.levels[4].lam) == pytest.approx(-5.1, abs=1e-6)  # at 1.0 there is nothing but noise
        assert float(up.levels[0].lam) == pytest.approx(8, abs=1e-12)
    assert clocks(trailing(SD, 10).part(0.3).upward()) == [0, 99, 199, 299]


def test_halfway_is_half_way_on_the_clock() -> None:
    grid = trailing(SD, 10)
    a, b = grid.levels[2:4]
    assert float(grid.halfway(a, b).t) == 749
    assert grid.halfway(a, b) == SD.level(749.0)
