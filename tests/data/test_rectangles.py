"""A rectangle becomes the part of it that lies in its picture, or nothing, or a line."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.boxes import Box, Window
from sfumato.data.rectangles import Written, box, from_corner, from_middle, label, numbers

ANY = st.floats(allow_nan=True) | st.integers() | st.none() | st.text(max_size=3) | st.booleans() | st.just(10**400)
SIDE = st.integers(1, 5000)
INSIDE = st.floats(0, 1)


@given(st.lists(ANY, max_size=5) | ANY, SIDE, SIDE)
def test_anything_is_a_box_inside_or_nothing_or_a_line(values: object, width: int, height: int) -> None:
    try:
        corners = from_corner(*numbers(values))
        found = box("x", corners, (width, height))
    except ValueError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
        return
    if found is not None:
        assert 0 <= found.x0 < found.x1 <= 1
        assert 0 <= found.y0 < found.y1 <= 1


@given(
    st.tuples(INSIDE, INSIDE, INSIDE, INSIDE).filter(lambda c: c[2] - c[0] > 1e-6 and c[3] - c[1] > 1e-6), SIDE, SIDE
)
def test_pixels_are_parts_again(corners: tuple[float, float, float, float], width: int, height: int) -> None:
    x0, y0, x1, y1 = corners
    coco = (x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height)
    assert box("x", from_corner(*coco), (width, height)) == pytest.approx(Box("x", *corners), abs=1e-12)
    yolo = ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)
    assert box("x", from_middle(*yolo)) == pytest.approx(Box("x", *corners), abs=1e-12)


def test_what_is_beyond_the_edges_is_cut() -> None:
    assert box("x", (-5, 10, 30, 25), (20, 20), 3) == Box("x", 0, 0.5, 1, 1, 3)
    assert box("x", (-0.5, 0.25, 0.5, 1.5)) == Box("x", 0, 0.25, 0.5, 1)


@pytest.mark.parametrize("corners", [(3, 3, 3, 9), (3, 3, 9, 3), (3, 3, 3, 3), (40, 3, 40, 9)])
def test_without_area_it_is_none(corners: tuple[float, float, float, float]) -> None:
    assert box("x", corners, (20, 20)) is None
    written = Written()
    written.add("a", None)
    assert (written.flat, written.layout("a"), written.layout("b")) == (1, (), None)


@pytest.mark.parametrize(
    ("corners", "sides", "match"),
    [
        ((5, 5, 4, 9), (20, 20), r"the box from \(5, 5\) to \(4, 9\) ends before it begins"),
        ((5, 5, 9, 4), (20, 20), "ends before it begins"),
        ((20, 0, 25, 5), (20, 20), "lies outside of the picture, which is 20 x 20"),
        ((0, -5, 5, 0), (20, 20), "lies outside"),
        ((1.2, 0, 1.4, 0.5), None, "lies outside of the picture, which is 1 wide and 1 high"),
        ((0, 0, 200, 300), None, "lies far outside; it is in parts of the picture, from 0 to 1"),
        ((-2, 0, 0.5, 1), None, "lies far outside"),
    ],
)
def test_what_is_no_box_is_a_line(
    corners: tuple[float, float, float, float], sides: tuple[int, int] | None, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        box("x", corners, sides) if sides else box("x", corners)


@pytest.mark.parametrize(
    "values",
    [None, 3, "1234", [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, None], [1, 2, 3, True], [1, 2, 3, "4"]]
    + [[1, 2, 3, x] for x in (math.nan, math.inf, -math.inf, 10**400)],
)
def test_four_finite_numbers(values: object) -> None:
    with pytest.raises(ValueError, match=r"'bbox' is .*; it must be a list of four finite numbers"):
        numbers(values, "'bbox'")


@given(st.text() | st.integers() | st.floats() | st.none() | st.booleans() | st.lists(st.text()))
def test_labels_are_a_line(said: object) -> None:
    try:
        found = label(said)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
    else:
        assert found.encode().decode().splitlines() == [found]
        assert found == str(said) or isinstance(said, str)


# Cuts and mirrors -----------------------------------------------------------------------------------------
EDGES = st.tuples(INSIDE, INSIDE).filter(lambda e: e[1] - e[0] > 0.01)


@given(EDGES, EDGES, EDGES, EDGES)
def test_cuts_and_mirrors_are_exact(
    x: tuple[float, float], y: tuple[float, float], across: tuple[float, float], down: tuple[float, float]
) -> None:
    """What is seen of a box in a window is what both share; and a mirror may come before the cut or after it."""
    whole, window = Box("x", x[0], y[0], x[1], y[1]), Window(across[0], down[0], across[1], down[1])
    found = whole.within(window)
    shared = max(x[0], across[0]), max(y[0], down[0]), min(x[1], across[1]), min(y[1], down[1])
    if found is None:
        assert shared[2] - shared[0] < 1e-12 or shared[3] - shared[1] < 1e-12
        return
    wide, high = across[1] - across[0], down[1] - down[0]
    back = [
        across[0] + found.x0 * wide,
        down[0] + found.y0 * high,
        across[0] + found.x1 * wide,
        down[0] + found.y1 * high,
    ]
    assert back == pytest.approx(shared, abs=1e-12)
    other = whole.mirrored().within(window.mirrored())
    assert other is None or other == pytest.approx(found.mirrored(), abs=1e-9)
