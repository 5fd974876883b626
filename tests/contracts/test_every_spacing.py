"""What every spacing promises, whoever registered it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mixture import PATHS
from sfumato.diffusion.grid import SPACINGS, Grid
from sfumato.diffusion.level import BLIND
from sfumato.diffusion.schedule import Schedule

every_spacing = pytest.mark.parametrize("name", list(SPACINGS))
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())


def built(name: str, path: Schedule, steps: int) -> Grid | None:
    """The grid; None if it takes no such number of steps, or if this spacing cannot serve this schedule."""
    try:
        return SPACINGS[name](path, steps)
    except ValueError:
        return None


MERGES = ("leading_quad", "uniform_quad")
"""Those that take entries which coincide once, and so may have fewer steps."""


def fits(name: str, grid: Grid, steps: int) -> bool:
    return len(grid) == steps or (name in MERGES and 1 <= len(grid) < steps)


@every_spacing
def test_serves_stable_diffusions_schedule(name: str) -> None:
    for steps in (1, 20, 50, 999):
        assert fits(name, SPACINGS[name](PATHS["scaled_linear"], steps), steps)


@pytest.mark.parametrize("name", MERGES)
def test_steps_are_as_many_as_asked_where_no_entries_coincide(name: str) -> None:
    for steps in range(1, 24):
        assert len(SPACINGS[name](PATHS["scaled_linear"], steps)) == steps


@every_spacing
@every_path
@settings(max_examples=4)
@given(steps=st.integers(1, 120))
@example(steps=1)
@example(steps=1000)
def test_levels_fall_strictly_and_there_are_as_many_steps_as_asked(name: str, path: Schedule, steps: int) -> None:
    grid = built(name, path, steps)
    if grid is None:
        return
    assert fits(name, grid, steps)
    assert len(grid.levels) == len(grid) + 1
    ratio = torch.stack([at.sigma / at.alpha for at in grid.levels])  # infinite at most once, at the noisy end
    assert ratio[1:].isfinite().all()
    assert (ratio.diff() < 0).all()


@every_spacing
@every_path
@settings(max_examples=4)
@given(steps=st.integers(1, 60))
def test_levels_are_scalars_on_its_schedule_and_the_end_may_be_clean(name: str, path: Schedule, steps: int) -> None:
    grid = built(name, path, steps)
    if grid is None:
        return
    *inner, end = grid.levels
    mine = grid.schedule
    low, high = mine.span
    for at in inner:
        assert low - 1e-6 <= at.t <= high + 1e-6
        torch.testing.assert_close(torch.stack(at), torch.stack(mine.level(at.t)), rtol=0, atol=0)
        torch.testing.assert_close(path.level(path.time(at.lam)).alpha, at.alpha)  # whatever its clock is called
    for v in end:
        assert v.shape == ()
        assert v.dtype == torch.float64
    assert end.sigma == 0 or torch.equal(torch.stack(end), torch.stack(mine.level(end.t)))


@every_spacing
def test_only_pndm_has_another_clock_than_the_schedule_it_was_given(name: str) -> None:
    path = PATHS["scaled_linear"]
    assert (SPACINGS[name](path, 10).schedule is path) is (name != "pndm")


@every_spacing
@every_path
def test_the_way_up_is_the_way_down_reversed_and_has_noise_everywhere(name: str, path: Schedule) -> None:
    grid = built(name, path, 10)
    if grid is None:
        return
    up = grid.upward()
    lams = torch.stack([at.lam for at in up.levels])
    assert (lams.diff() < -1e-7).all()  # no step is so short that a difference divided by it is rounding
    assert all(at.sigma > 0 and not at.blind for at in up.levels)
    assert up.reversed().levels == up.levels[::-1]
    seen = [at for at in grid.levels if at.sigma > 0 and not at.blind]
    end = up.levels[-1]
    if grid.levels[0].blind:  # then the way ends where the signal is just seen
        assert float(end.lam) == pytest.approx(BLIND, abs=1e-6)
        torch.testing.assert_close(torch.stack(end), torch.stack(grid.schedule.level(end.t)))
    else:
        assert end == grid.levels[0]
    ours = [at for at in up.levels if at is not end or not grid.levels[0].blind]
    assert ours[1:] == seen[::-1][-len(ours) + 1 :]  # all but the cleanest, which may be another
    assert len(ours) >= len(seen)


@every_spacing
@every_path
@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_a_number_of_steps_out_of_range_is_refused(name: str, path: Schedule, steps: int) -> None:
    with pytest.raises(ValueError, match=r"out of range|counts table entries"):
        SPACINGS[name](path, steps)
