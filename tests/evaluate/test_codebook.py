"""The use of a codebook, where it is known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfumato.evaluate.codebook import CodebookUsage, Usage


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60))
def test_perplexity_is_the_exponential_of_the_entropy(indices: list[int]) -> None:
    usage = CodebookUsage(7)
    usage.update(torch.tensor(indices))
    found = usage.compute()
    shares = [indices.count(i) / len(indices) for i in set(indices)]
    assert found.used == len(shares)
    assert found.share == len(shares) / 7
    assert found.positions == len(indices)
    assert found.perplexity == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-12)
    assert 1 - 1e-12 <= found.perplexity <= found.used + 1e-9


def test_equal_use_of_some_entries() -> None:
    usage = CodebookUsage(16)
    usage.update(torch.tensor([[[1, 3], [5, 7]], [[7, 5], [3, 1]]]))
    found = usage.compute()
    assert (found.entries, found.positions, found.used, found.share) == (16, 8, 4, 0.25)
    assert found.perplexity == pytest.approx(4, rel=1e-12)


def test_one_entry_and_none() -> None:
    usage = CodebookUsage(4)
    assert usage.compute() == Usage(4, 0, 0, 0.0, 0.0)
    usage.update(torch.full((2, 3, 3), 2))
    assert usage.compute() == Usage(4, 18, 1, 0.25, 1.0)
