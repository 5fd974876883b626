"""How much of a box is hidden, counted by hand and by pixels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfumato.boxes import Box
from sfumato.evaluate.hidden import hidden


def box(x0: float, y0: float, x1: float, y1: float) -> Box:
    return Box("thing", x0, y0, x1, y1)


def test_by_hand() -> None:
    whole = box(0.2, 0.2, 0.6, 0.6)
    assert hidden(whole, []) == 0
    assert hidden(whole, [box(0.6, 0.2, 1, 1)]) == 0  # it touches
    assert hidden(whole, [box(0, 0, 1, 1)]) == 1
    assert hidden(whole, [box(0.2, 0.2, 0.4, 0.6)]) == pytest.approx(1 / 2)
    assert hidden(whole, [box(0.2, 0.2, 0.4, 0.6), box(0, 0, 0.4, 1)]) == pytest.approx(1 / 2)  # nothing twice
    assert hidden(whole, [box(0.2, 0.2, 0.4, 0.6), box(0.3, 0.4, 0.9, 0.9)]) == pytest.approx(3 / 4)


corner = st.integers(0, 12)
boxes = st.tuples(corner, corner, corner, corner).filter(lambda b: b[0] < b[2] and b[1] < b[3])


@given(boxes, st.lists(boxes, max_size=5))
def test_by_pixels(whole: tuple[int, ...], front: list[tuple[int, ...]]) -> None:
    seen = torch.zeros(12, 12, dtype=torch.bool)
    for x0, y0, x1, y1 in front:
        seen[y0:y1, x0:x1] = True
    x0, y0, x1, y1 = whole
    expected = seen[y0:y1, x0:x1].double().mean()
    found = hidden(box(*(n / 12 for n in whole)), [box(*(n / 12 for n in b)) for b in front])
    assert found == pytest.approx(float(expected), abs=1e-9)
