"""Wilson's interval: published values, and what makes it one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.evaluate.share import NORMAL, Share, share


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (5, 10, 0.2366, 0.7634),
    ],
)
def test_published_values(hits: int, n: int, low: float, high: float) -> None:
    found = share(hits, n)
    assert (found.share, found.low, found.high) == (
        hits / n,
        pytest.approx(low, abs=5e-5),
        pytest.approx(high, abs=5e-5),
    )


@given(n=st.integers(1, 500), hits=st.integers(0, 500))
def test_the_ends_are_shares_that_would_just_give_so_many(n: int, hits: int) -> None:
    """|p - q| is NORMAL deviations sqrt(q (1 - q) / n) at both ends q."""
    hits = min(n, hits)
    found = share(hits, n)
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= hits / n <= found.high <= 1
    for end in (found.low, found.high):
        if 0 < end < 1:
            assert abs(hits / n - end) == pytest.approx(NORMAL * math.sqrt(end * (1 - end) / n), rel=1e-9)
    other = share(n - hits, n)
    assert other.low == pytest.approx(1 - found.high, abs=1e-12)


def test_of_nothing_there_is_none() -> None:
    assert share(0, 0) == Share(0, 0, None, None, None)
