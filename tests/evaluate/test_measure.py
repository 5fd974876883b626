"""Measures of two halves, merged, are the measure of the whole; means and variances are what they are by definition."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sfumato.evaluate.codebook import CodebookUsage
from sfumato.evaluate.frechet import Gaussian
from sfumato.evaluate.measure import Measure, Moments

ROWS = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 5, 0])


def indices(rows: Tensor) -> Tensor:
    return (rows[:, 0] * 3).long().clamp(-4, 4) + 4


class Counted(CodebookUsage):
    """The use of a codebook by rows."""

    def update(self, rows: Tensor) -> None:
        super().update(indices(rows))


KINDS: dict[str, Callable[[], Measure[[Tensor], object]]] = {
    "moments": lambda: Moments(3),
    "gaussian": lambda: Gaussian(3),
    "codebook": lambda: Counted(9),
}


def numbers(result: object) -> dict[str, Tensor]:
    values = result._asdict() if hasattr(result, "_asdict") else vars(result)  # pyright: ignore
    return {name: torch.as_tensor(value, dtype=torch.float64) for name, value in values.items()}


@pytest.mark.parametrize("kind", KINDS)
@given(cuts=st.lists(st.integers(0, 40), max_size=4), shift=st.sampled_from([0.0, 1e6]))
def test_parts_merged_are_the_whole(kind: str, cuts: list[int], shift: float) -> None:
    """Far from zero too, where sums of squares would lose all digits of the variance."""
    rows, bounds = ROWS + shift, [0, *sorted(cuts), 40]
    whole, fed, merged = KINDS[kind](), KINDS[kind](), KINDS[kind]()
    whole.update(rows)
    for a, b in pairwise(bounds):
        fed.update(rows[a:b])
        part = KINDS[kind]()
        part.update(rows[a:b])
        merged.merge(part)
    expected = numbers(whole.compute())
    for other in (fed, merged):
        found = numbers(other.compute())
        assert found.keys() == expected.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-9 + 1e-15 * shift)


@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_moments_are_those_of_the_definition(shift: float) -> None:
    moments = Moments(3)
    for part in (ROWS + shift).split(7):
        moments.update(part)
    spread = moments.compute()
    assert spread.n == 40
    torch.testing.assert_close(spread.mean, ROWS.mean(0) + shift, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(spread.variance, ROWS.var(0, correction=0), rtol=1e-8, atol=1e-9 * bool(shift))
    torch.testing.assert_close(spread.std, spread.variance.sqrt())


def test_of_nothing_there_are_no_moments() -> None:
    moments = Moments(3)
    moments.update(torch.zeros(0, 3))
    moments.merge(Moments(3))
    with pytest.raises(ValueError, match="at least one picture is needed"):
        moments.compute()
