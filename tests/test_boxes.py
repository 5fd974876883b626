"""Boxes through mirrors and windows: the geometry is that of the pictures."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from sfumato.boxes import WHOLE, Box, Window, iou, largest, middle

PART = st.floats(0, 1, width=32)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    x0, x1 = sorted((draw(PART), draw(PART)))
    y0, y1 = sorted((draw(PART), draw(PART)))
    assume(x1 - x0 > 1e-3)
    assume(y1 - y0 > 1e-3)
    return Box("a", x0, y0, x1, y1)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    return Window(*draw(boxes())[1:5])


def near(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(math.isclose(x, y, abs_tol=1e-6) for x, y in zip(a, b, strict=True))


@given(boxes())
def test_a_mirror_twice_is_none(box: Box) -> None:
    assert near(box.mirrored().mirrored()[1:5], box[1:5])
    assert math.isclose(box.mirrored().area, box.area, abs_tol=1e-9)
    assert box.within(WHOLE) == box


@given(boxes(), windows())
def test_what_is_cut_out_is_the_intersection(box: Box, window: Window) -> None:
    seen = box.within(window)
    x0, y0, x1, y1 = (f(a, b) for f, a, b in zip((max, max, min, min), box[1:5], window, strict=True))
    if seen is None:
        assert x1 - x0 <= 1e-9 or y1 - y0 <= 1e-9
        return
    wide, high = window.x1 - window.x0, window.y1 - window.y0
    back = (
        window.x0 + seen.x0 * wide,
        window.y0 + seen.y0 * high,
        window.x0 + seen.x1 * wide,
        window.y0 + seen.y1 * high,
    )
    assert near(back, (x0, y0, x1, y1))


@given(boxes(), windows())
def test_mirror_and_window_change_places(box: Box, window: Window) -> None:
    one, other = box.mirrored().within(window.mirrored()), box.within(window)
    if one is None or other is None:
        assert one is None or one.x1 - one.x0 < 1e-6
        assert other is None or other.x1 - other.x0 < 1e-6
    else:
        assert near(one[1:5], other.mirrored()[1:5])


def test_a_box_that_begins_left_of_the_window_is_cut_and_not_shifted() -> None:
    seen = Box("a", 0.1, 0.1, 0.6, 0.9).within(Window(0.5, 0, 1, 1))
    assert seen is not None
    assert near(seen[1:5], (0, 0.1, 0.2, 0.9))  # not as wide as it was


@pytest.mark.parametrize(
    ("sides", "shape", "window"),
    [
        ((400, 200), (64, 64), (0.25, 0, 0.75, 1)),
        ((200, 400), (64, 64), (0, 0.25, 1, 0.75)),
        ((300, 300), (64, 32), (0, 0.25, 1, 0.75)),
        ((300, 150), (64, 32), (0, 0, 1, 1)),
    ],
)
def test_the_middle(sides: tuple[int, int], shape: tuple[int, int], window: tuple[float, ...]) -> None:
    assert near(middle(sides, shape), window)


@given(boxes(), boxes())
def test_iou_is_that_of_pixels(a: Box, b: Box) -> None:
    assert iou(a, a) == pytest.approx(1)
    assert iou(a, b) == pytest.approx(iou(b, a))
    n = 200
    at = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    y, x = torch.meshgrid(at, at, indexing="ij")
    mine, theirs = ((x >= o.x0) & (x < o.x1) & (y >= o.y0) & (y < o.y1) for o in (a, b))
    either = int((mine | theirs).sum())
    if either > 400:
        assert iou(a, b) == pytest.approx(int((mine & theirs).sum()) / either, abs=0.15)


def test_boxes_without_area_have_nothing_in_common() -> None:
    assert iou(Box("a", 0, 0, 0, 0), Box("a", 0, 0, 0, 0)) == 0


@given(st.lists(boxes(), max_size=12), st.integers(0, 12))
def test_the_largest_stay_in_their_order(some: list[Box], most: int) -> None:
    kept = largest(some, most)
    assert len(kept) == min(most, len(some))
    places = iter(some)
    assert all(any(box is other for other in places) for box in kept)  # a subsequence
    left = [box for box in some if not any(box is other for other in kept)]
    if kept and left:
        assert min(box.area for box in kept) >= max(box.area for box in left)
