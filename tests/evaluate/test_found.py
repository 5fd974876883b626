"""Objects are found where they were drawn, before backgrounds that allow it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sfumato.boxes import Box, iou
from sfumato.evaluate.found import APART, EVEN, NEAR, apart, found, ground

SIDE = 48
LEVEL = 1 / 127.5
RED, BLUE = torch.tensor([0.8, -0.7, -0.7]), torch.tensor([-0.8, -0.6, 0.9])


def box(x0: float, y0: float, x1: float, y1: float, label: str = "thing") -> Box:
    """In pixels."""
    return Box(label, x0 / SIDE, y0 / SIDE, x1 / SIDE, y1 / SIDE)


def plain(colour: tuple[float, float, float] = (0.2, 0.5, 0.1)) -> Tensor:
    return torch.tensor(colour)[:, None, None].expand(3, SIDE, SIDE).clone()


def fading() -> Tensor:
    """From one colour at the top to another, 90 levels away, at the bottom."""
    down = torch.linspace(0, 1, SIDE)[:, None].expand(SIDE, SIDE)
    return plain() + torch.tensor([90.0, 40.0, 0.0])[:, None, None] * LEVEL * down


def striped(levels: float) -> Tensor:
    at = torch.arange(SIDE)
    return plain() - levels * LEVEL * (((at[:, None] + at) // 8) % 2)


def paint(image: Tensor, where: Box, colour: Tensor = RED) -> None:
    x0, y0, x1, y1 = (round(side * SIDE) for side in where[1:5])
    image[:, y0:y1, x0:x1] = colour[:, None, None]


def at(image: Tensor, boxes: tuple[Box, ...], asked: tuple[Box, ...] | None = None) -> list[Box | None]:
    """Where the boxes are found that are painted in red and blue by turns."""
    for k, one in enumerate(boxes):
        paint(image, one, (RED, BLUE)[k % 2])
    asked = asked or boxes
    colour = ground(image, asked)
    assert colour is not None
    return found(image, asked, colour)


@pytest.mark.parametrize("picture", [plain(), plain((1.0, 1.0, 1.0)), fading(), fading().flip(1), fading().mT])
def test_what_is_drawn_is_found_exactly(picture: Tensor) -> None:
    boxes = (box(2, 5, 20, 17, "a"), box(25, 3, 44, 9, "b"), box(8, 22, 40, 45, "c"))
    places = at(picture.clone(), boxes)
    assert [iou(place, one) for place, one in zip(places, boxes, strict=True) if place] == [pytest.approx(1.0)] * 3
    assert [place.label for place in places if place] == ["a", "b", "c"]


def test_the_ground_is_the_picture_without_what_is_on_it() -> None:
    picture = fading()
    boxes = (box(0, 10, 20, 30), box(30, 30, 48, 48))  # both at the edge
    for one in boxes:
        paint(picture, one)
    colour = ground(picture, boxes, within=EVEN)
    assert colour is not None
    torch.testing.assert_close(colour, fading(), rtol=0, atol=1e-3)


def test_a_fifth_of_the_frame_may_be_anything() -> None:
    picture = fading()
    paint(picture, box(0, 0, 6, 30), BLUE)  # where nothing was asked for
    colour = ground(picture, (box(20, 20, 30, 30),), within=EVEN)
    assert colour is not None
    torch.testing.assert_close(colour, fading(), rtol=0, atol=LEVEL)


@pytest.mark.parametrize("levels", [28, 36, 60])
def test_stripes_are_not_plain(levels: float) -> None:
    assert ground(striped(levels), (box(10, 10, 30, 30),), within=EVEN) is None


def test_noise_is_not_plain() -> None:
    noise = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    assert ground(plain() + 3 * LEVEL * noise.clamp(-2, 2), (box(10, 10, 30, 30),)) is not None
    assert ground(plain() + 30 * LEVEL * noise, (box(10, 10, 30, 30),)) is None


def test_too_little_of_the_frame_says_nothing() -> None:
    three = (box(0, 0, 44, 8), box(0, 8, 8, 44), box(40, 8, 48, 48))
    assert ground(plain(), three[:2]) is not None
    assert ground(plain(), three) is None


def test_an_object_that_is_moved_agrees_as_much_as_it_overlaps() -> None:
    asked = box(10, 10, 30, 30)
    (place,) = at(plain(), (box(20, 10, 40, 30),), (asked,))
    assert place is not None
    assert iou(place, asked) == pytest.approx(1 / 3)


def test_what_is_not_there_is_not_found() -> None:
    asked = (box(4, 4, 14, 14), box(30, 30, 44, 44))
    assert at(plain(), asked[:1], asked) == [asked[0], None]
    assert at(plain(), (box(4, 4, 5, 6),), asked) == [None, None]  # a speck
    assert at(plain(), (box(20, 4, 28, 12),), asked) == [None, None]  # beside both


def test_parts_go_to_the_box_in_which_most_of_them_lies_and_are_joined() -> None:
    asked = (box(4, 4, 20, 20), box(24, 4, 44, 20))
    places = at(plain(), (box(4, 4, 8, 20), box(16, 4, 20, 20), box(18, 30, 40, 40)), asked)
    assert places == [asked[0], None]  # two parts are one object; the third lies in no box
    across = box(14, 8, 40, 16)  # 6 columns in the first, 16 in the second
    (first, second) = at(plain(), (across,), asked)
    assert first is None
    assert second is not None
    assert second[1:5] == pytest.approx(across[1:5])


def test_nearly_the_colour_of_the_background_is_background() -> None:
    asked = (box(10, 10, 30, 30),)
    for levels, there in ((23, False), (25, True)):
        picture = plain()
        paint(picture, asked[0], picture[:, 0, 0] + levels * LEVEL)
        colour = ground(picture, asked)
        assert colour is not None
        assert (found(picture, asked, colour)[0] is not None) == there
    assert 23 * LEVEL < NEAR < 25 * LEVEL


def test_which_boxes_are_apart() -> None:
    gap = APART * SIDE  # 1.5 pixels
    first, near, far = box(0, 0, 10, 10), box(10 + gap - 0.1, 0, 20, 10), box(30, 0, 40, 10)
    assert apart((first, near, far)) == [2]
    assert apart((first, far)) == [0, 1]
    assert apart((first, first)) == []
    assert apart((first, box(2, 2, 8, 8))) == []
    assert apart((first, box(10 + gap + 0.1, 10, 20, 20))) == [0, 1]  # past a corner, and far enough across
    assert apart(()) == []
