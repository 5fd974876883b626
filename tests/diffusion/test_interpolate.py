"""On the arc between two noises."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sfumato.diffusion.interpolate import slerp


def noise(seed: int, n: int = 4, dims: int = 4096) -> Tensor:
    return torch.randn(n, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(part=st.floats(0, 1), angle=st.floats(0.01, 3.1))
def test_on_the_unit_circle_it_is_the_point_at_that_part_of_the_angle(part: float, angle: float) -> None:
    a = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    expected = torch.tensor([[math.cos(part * angle), math.sin(part * angle)]], dtype=torch.float64)
    torch.testing.assert_close(slerp(a, b, part), expected, rtol=0, atol=1e-9)


def test_it_joins_the_ends_and_there_and_back_is_the_same_way() -> None:
    a, b = noise(0), noise(1)
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    torch.testing.assert_close(slerp(a, b, 0.3), slerp(b, a, 0.7))
    torch.testing.assert_close(slerp(a, a, 0.4), a)


def test_what_is_between_two_noises_has_the_size_of_noise_where_a_straight_line_has_not() -> None:
    a, b = noise(0), noise(1)
    assert (slerp(a, b, 0.5).std(1) - 1).abs().max() < 0.06  # a standard error is 0.011
    assert ((a + b) / 2).std(1).max() < 0.75


def test_each_sample_goes_its_own_part() -> None:
    a, b, parts = noise(0), noise(1), torch.tensor([0.0, 0.2, 0.7, 1.0], dtype=torch.float64)
    mixed = slerp(a.view(4, 4, 32, 32), b.view(4, 4, 32, 32), parts)
    for i, part in enumerate(parts.tolist()):
        torch.testing.assert_close(mixed[i : i + 1].flatten(1), slerp(a[i : i + 1], b[i : i + 1], part))


def test_the_type_is_kept() -> None:
    assert slerp(noise(0).float(), noise(1).float(), 0.5).dtype == torch.float32
