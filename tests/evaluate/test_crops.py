"""Crops are the pixels that they should be."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from sfumato.boxes import Box
from sfumato.evaluate.crops import crop, crops

ROWS = torch.arange(8.0)[:, None].expand(8, 12)
COLUMNS = torch.arange(12.0).expand(8, 12)
PLACES = torch.stack([ROWS, COLUMNS, torch.zeros(8, 12)])  # a picture that says where each pixel was


def box(x0: float, y0: float, x1: float, y1: float) -> Box:
    """In pixels of a picture 12 wide and 8 high."""
    return Box("thing", x0 / 12, y0 / 8, x1 / 12, y1 / 8)


def test_a_square_box_is_its_pixels() -> None:
    assert torch.equal(crop(PLACES, box(3, 2, 7, 6), 4), PLACES[:, 2:6, 3:7])


def test_an_oblong_box_has_what_is_beside_it() -> None:
    assert torch.equal(crop(PLACES, box(3, 3, 9, 5), 6), PLACES[:, 1:7, 3:9])
    assert torch.equal(crop(PLACES, box(5, 1, 7, 7), 6), PLACES[:, 1:7, 3:9])


def test_the_outermost_pixels_go_on_beyond_the_picture() -> None:
    found = crop(PLACES, box(0, 0, 2, 4), 4)  # columns -1 to 3
    assert found[1, 0].tolist() == [0, 0, 1, 2]
    assert found[0, :, 0].tolist() == [0, 1, 2, 3]
    found = crop(PLACES, box(0, 6, 12, 8), 12)  # rows 1 to 13, of which the last is 7
    assert found[0, :, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 7, 7, 7, 7, 7]


def test_it_is_scaled() -> None:
    flat = torch.full((3, 8, 12), 0.25)
    torch.testing.assert_close(crop(flat, box(0, 0, 11, 8), 5), torch.full((3, 5, 5), 0.25))
    small = crop(PLACES, box(2, 0, 10, 8), 2)  # each of the four is the weighed mean about its quarter
    assert small[1].mean() == (2 + 9) / 2
    assert small[0].mean() == 7 / 2


@given(x=st.floats(0, 0.99), y=st.floats(0, 0.99), wide=st.floats(0, 1), high=st.floats(0, 1), side=st.integers(1, 9))
def test_any_box_has_a_crop(x: float, y: float, wide: float, high: float, side: int) -> None:
    found = crop(PLACES, Box("thing", x, y, min(1.0, x + wide), min(1.0, y + high)), side)
    assert found.shape == (3, side, side)
    assert 0 <= float(found[0].min()) <= float(found[0].max()) <= 7.001
    assert 0 <= float(found[1].min()) <= float(found[1].max()) <= 11.001


def test_those_of_several_pictures_come_one_after_the_other() -> None:
    a, b, c = box(0, 0, 2, 2), box(4, 4, 6, 6), box(1, 1, 3, 3)
    images = torch.stack([PLACES, PLACES + 100, PLACES + 200])
    found = crops(images, [(a, b), (), (c,)], 2)
    assert torch.equal(found, torch.stack([crop(PLACES, a, 2), crop(PLACES, b, 2), crop(PLACES + 200, c, 2)]))
    assert crops(images, [(), (), ()], 2).shape == (0, 3, 2, 2)
