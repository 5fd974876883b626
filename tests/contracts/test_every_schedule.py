"""What every schedule promises, whoever registered it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixture import PATHS, f64
from sfumato.diffusion.schedule import Schedule

every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())


def along(path: Schedule, parts: torch.Tensor) -> torch.Tensor:
    low, high = path.span
    return low + parts * (high - low)


def explodes(path: Schedule) -> bool:
    """Whether the signal stays whole and the noise grows beyond it."""
    return float(path.level(path.span[1]).alpha) == 1


def slope_of(v: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """dv / dt; zeros where v does not hang on t."""
    return torch.autograd.grad(v.sum(), t, retain_graph=True)[0] if v.requires_grad else torch.zeros_like(t)


@every_path
@given(part=st.floats(0, 1))
def test_time_is_the_inverse_of_level_at_any_fraction_of_the_clock(path: Schedule, part: float) -> None:
    t = along(path, f64(part)[0])
    high = path.span[1]
    torch.testing.assert_close(path.time(path.level(t).lam), t, rtol=1e-9, atol=1e-9 * high)


@every_path
def test_level_is_the_inverse_of_time_in_half_log_snr(path: Schedule) -> None:
    lam = torch.linspace(-2.5, 3.5, 1001, dtype=torch.float64)
    torch.testing.assert_close(path.level(path.time(lam)).lam, lam, rtol=1e-9, atol=1e-9)


@every_path
def test_signal_to_noise_falls_strictly_along_the_clock(path: Schedule) -> None:
    at = path.level(along(path, torch.linspace(0, 1, 5003, dtype=torch.float64)))
    assert (at.alpha == 1).all() if explodes(path) else (at.alpha.diff() < 0).all()
    assert (at.sigma.diff() > 0).all() if explodes(path) else (at.sigma.diff() >= 0).all()
    assert (at.lam[:-1].diff() < 0).all()
    assert float(at.lam[-1]) < float(at.lam[-2])


@every_path
def test_signal_and_noise_lie_between_zero_and_one_unless_noise_is_added_to_the_whole_signal(path: Schedule) -> None:
    at = path.level(along(path, torch.linspace(0, 1, 997, dtype=torch.float64)))
    for v in (at.alpha, at.sigma):
        assert (v >= 0).all()
        assert v.isfinite().all()
    assert (at.alpha <= 1).all()
    assert (at.sigma <= 1).all() or explodes(path)


@every_path
def test_the_gradient_along_the_clock_is_finite_and_is_the_slope(path: Schedule) -> None:
    intervals = (path.entries or 1000) - 1  # a table has kinks at its entries; these points keep away from them
    t = along(path, (torch.arange(intervals, dtype=torch.float64) + 0.37) / intervals).requires_grad_()
    step = 1e-6 * path.span[1]
    for part in ("alpha", "sigma", "lam"):
        slope = slope_of(getattr(path.level(t), part), t)
        assert slope.isfinite().all(), part
        ahead, behind = (getattr(path.level(t.detach() + h), part) for h in (step, -step))
        torch.testing.assert_close(slope, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-8)


@every_path
def test_the_gradient_is_finite_at_both_ends_of_the_clock(path: Schedule) -> None:
    t = f64(*path.span).requires_grad_()
    at = path.level(t)
    for v in (at.alpha, at.sigma):
        slope = slope_of(v, t)
        assert slope.isfinite().all()


@every_path
@pytest.mark.parametrize("shape", [(), (5,), (5, 1, 1, 1)])
def test_a_batch_of_clock_values_keeps_its_shape_and_gets_the_values_of_each(
    path: Schedule, shape: tuple[int, ...]
) -> None:
    count = 5 if shape else 1
    t = along(path, torch.linspace(0.1, 0.9, count, dtype=torch.float64))
    batched = path.level(t.reshape(shape))
    for k, v in enumerate(batched):
        assert v.shape == shape
        assert v.dtype == torch.float64
        assert v.flatten().tolist() == [float(path.level(float(s))[k]) for s in t]
    assert path.time(batched.lam).shape == shape


@every_path
def test_a_clock_in_float32_is_computed_in_float64(path: Schedule) -> None:
    t = along(path, f64(0.5)[0]).float()
    assert path.level(t).alpha.dtype == torch.float64
    assert float(path.level(t).alpha) == float(path.level(float(t)).alpha)


@every_path
def test_a_table_says_how_many_entries_it_has(path: Schedule) -> None:
    assert path.entries is None or path.span == (0.0, path.entries - 1.0)
