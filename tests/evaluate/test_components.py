"""Components against a walk from pixel to pixel."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sfumato.evaluate.components import components, extent


def mask(*rows: str) -> Tensor:
    return torch.tensor([[c == "#" for c in row] for row in rows])


def walked(there: Tensor) -> list[set[tuple[int, int]]]:
    """The components in the order of their last pixels, each by going from neighbour to neighbour."""
    left = {(y, x) for y, x in there.nonzero().tolist()}
    parts = []
    while left:
        edge = [left.pop()]
        part = set(edge)
        while edge:
            y, x = edge.pop()
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            part |= near
            edge += near
        parts.append(part)
    return sorted(parts, key=max)


def as_sets(found: Tensor) -> list[set[tuple[int, int]]]:
    return [{(y, x) for y, x in (found == k).nonzero().tolist()} for k in range(1, int(found.max()) + 1)]


def test_corners_hold_together() -> None:
    found = components(mask("#..#", ".#..", "...#"))
    assert found.tolist() == [[2, 0, 0, 1], [0, 2, 0, 0], [0, 0, 0, 3]]


@pytest.mark.parametrize("full", [False, True])
def test_of_all_and_of_none(full: bool) -> None:
    found = components(torch.full((3, 5), full))
    assert found.tolist() == [[int(full)] * 5] * 3
    assert found.dtype == torch.int64


@given(st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=9))
def test_any_mask_is_walked_alike(rows: list[list[bool]]) -> None:
    there = torch.tensor(rows)
    found = components(there)
    assert torch.equal(found > 0, there)
    assert as_sets(found) == walked(there)


def test_a_snake_is_one() -> None:
    """The longest way that a mask can have: each turn of the loop goes twice as far along it."""
    there = torch.zeros(41, 41, dtype=torch.bool)
    there[::2] = True
    there[1::4, -1] = there[3::4, 0] = True
    assert components(there).tolist() == there.long().tolist()


def test_the_box_about_a_mask() -> None:
    assert extent(mask("....", "..#.", ".#..", "....")) == (1, 1, 3, 3)
    assert extent(mask("#...", "....", "...#")) == (0, 0, 4, 3)
