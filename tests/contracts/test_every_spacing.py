"""What every spacing promises, whoever registered it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mixture import PATHS
from sfumato.diffusion.grid import SPACINGS, Grid
from sfumato.diffusion.schedule import Schedule

every_spacing = pytest.mark.parametrize("name", list(SPACINGS))
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())


def built(name: str, path: Schedule, steps: int) -> Grid | None:
    """The grid; None if it takes no such number of steps, or if this spacing cannot serve this schedule."""
    try:
        return SPACINGS[name](path, steps)
    except ValueError:
        return None


@every_spacing
def test_serves_stable_diffusions_schedule(name: str) -> None:
    for steps in (1, 20, 50, 999):
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
    assert len(grid) == steps
    assert len(grid.levels) == steps + 1
    ratio = torch.stack([at.sigma / at.alpha for at in grid.levels])  # infinite at most once, at the noisy end
    assert ratio[1:].isfinite().all()
    assert (ratio.diff() < 0).all()


@every_spacing
@every_path
@settings(max_examples=4)
@given(steps=st.integers(1, 60))
def test_levels_are_scalars_on_the_schedule_and_the_end_may_be_clean(name: str, path: Schedule, steps: int) -> None:
    grid = built(name, path, steps)
    if grid is None:
        return
    *inner, end = grid.levels
    low, high = path.span
    for at in inner:
        assert low - 1e-6 <= at.t <= high + 1e-6
        torch.testing.assert_close(torch.stack(at), torch.stack(path.level(at.t)), rtol=0, atol=0)
    for v in end:
        assert v.shape == ()
        assert v.dtype == torch.float64
    assert end.sigma == 0 or torch.equal(torch.stack(end), torch.stack(path.level(end.t)))


@every_spacing
@every_path
@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_a_number_of_steps_out_of_range_is_refused(name: str, path: Schedule, steps: int) -> None:
    with pytest.raises(ValueError, match=r"out of range|counts table entries"):
        SPACINGS[name](path, steps)
