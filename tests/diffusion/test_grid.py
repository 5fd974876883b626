"""Grids against the published time steps."""

from __future__ import annotations

import math

import pytest
import torch

from mixture import f64
from sfumato.diffusion.grid import SPACINGS, Grid, karras, leading, linspace, logsnr, trailing, uniform
from sfumato.diffusion.level import Level
from sfumato.diffusion.move import posterior_std
from sfumato.diffusion.schedule import Table, cosine, flow, scaled_linear

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
    assert len(grid.part(0.001)) == 1


@pytest.mark.parametrize("strength", [0.0, -0.5, 1.01, math.nan])
def test_part_refuses_a_strength_out_of_range(strength: float) -> None:
    with pytest.raises(ValueError, match="out of range"):
        trailing(SD, 10).part(strength)


@pytest.mark.parametrize("name", ["leading", "uniform"])
def test_spacings_that_count_entries_say_so_to_a_schedule_without_a_table(name: str) -> None:
    with pytest.raises(ValueError, match="counts table entries"):
        SPACINGS[name](flow(), 4)
