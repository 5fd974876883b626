"""Where the objects of a picture are, as far as its background lets them be seen without any network.

The background is plain if the picture's frame, outside all asked boxes, has for the most part one colour or one that
fades evenly. What differs from that is an object. Its connected parts go to the asked box in which most of their pixels
lie; the box about all parts that went to one is where its object was found.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sfumato.boxes import Box, Layout
from sfumato.evaluate.components import components, extent

FRAME = 1 / 32  # of a side, about the picture
OPEN = 0.5  # of the frame, at least, that lies in no box: two sides, so that a fading is seen both ways
PLAIN = 0.8  # of that, at least, that has the background's colour
EVEN = 12 / 127.5  # how far a channel of a real one may be from it: 12 levels of 255
NEAR = 24 / 127.5  # of any other, and of what is no object
FITS, FLAT = 20, 1e-3  # turns in which the colour is found, and the distance below which pixels weigh alike
SPECK = 1 / 512  # of a picture: smaller parts are none
APART = 1 / 32  # of a side, at least, between boxes whose objects cannot have grown together


def ground(image: Tensor, boxes: Sequence[Box], *, within: float = NEAR) -> Tensor | None:
    """The plain background (3, H, W) of a picture (3, H, W) with these boxes; None if it has none.

    A colour that is linear in place, by least absolute deviations from the open pixels of the frame; a fifth of them
    may be anything.
    """
    height, width = image.shape[1:]
    frame = _frame(height, width)
    whole = int(frame.sum())
    for box in boxes:
        frame[_pixels(box, height, width)] = False
    if frame.sum() < OPEN * whole:
        return None
    down, across = (torch.linspace(-1, 1, side, dtype=torch.float64) for side in (height, width))
    places = torch.stack([torch.ones(height, width, dtype=torch.float64), *torch.meshgrid(down, across, indexing="ij")])
    plane = _plane(places[:, frame].T, image[:, frame].T.double())
    colour = torch.einsum("phw,pc->chw", places, plane).to(image.dtype)
    plain = _near(image[:, frame], colour[:, frame], within).double().mean()
    return colour if plain >= PLAIN else None


def found(image: Tensor, boxes: Layout, colour: Tensor) -> list[Box | None]:
    """What was found for each box of a picture (3, H, W) with this background (3, H, W); None for nothing."""
    parts = components(~_near(image, colour, NEAR))
    owner = _owners(parts, boxes)
    numbers: list[list[int]] = [[] for _ in boxes]
    for number, box in owner.items():
        numbers[box].append(number)
    return [
        _about(torch.isin(parts, torch.tensor(own)), box) if own else None
        for own, box in zip(numbers, boxes, strict=True)
    ]


def apart(boxes: Layout) -> list[int]:
    """Which of the boxes have nothing of another near them."""
    return [i for i, a in enumerate(boxes) if all(_gap(a, b) >= APART for j, b in enumerate(boxes) if j != i)]


def _gap(a: Box, b: Box) -> float:
    """How far two boxes are apart, across or down; below 0 if they overlap."""
    return max(b.x0 - a.x1, a.x0 - b.x1, b.y0 - a.y1, a.y0 - b.y1)


def _owners(parts: Tensor, boxes: Layout) -> dict[int, int]:
    """Of each part that is no speck and lies in a box, the box in which most of it lies; of two, the first."""
    height, width = parts.shape
    sizes = torch.bincount(parts.flatten())
    inside = torch.stack(
        [torch.bincount(parts[_pixels(box, height, width)].flatten(), minlength=len(sizes)) for box in boxes]
    )
    most, box = inside.max(0)
    return {
        number: int(box[number])
        for number in range(1, len(sizes))
        if most[number] and sizes[number] >= SPECK * height * width
    }


def _near(pixels: Tensor, colour: Tensor, within: float) -> Tensor:
    """Whether pixels (3, ...) have about this colour."""
    return (pixels - colour).abs().amax(0) <= within


def _frame(height: int, width: int) -> Tensor:
    """Which pixels (H, W) are at the edge of a picture."""
    frame = torch.ones(height, width, dtype=torch.bool)
    high, wide = (max(1, round(FRAME * side)) for side in (height, width))
    frame[high : height - high, wide : width - wide] = False
    return frame


def _plane(places: Tensor, colours: Tensor) -> Tensor:
    """The (3, C) that takes places (P, 3) nearest to colours (P, C): least squares, the far weighed the less."""
    weight = places.new_ones(len(places), 1)
    plane = places.new_zeros(places.shape[1], colours.shape[1])
    for _ in range(FITS):
        plane = torch.linalg.lstsq(weight.sqrt() * places, weight.sqrt() * colours).solution
        weight = 1 / (places @ plane - colours).abs().amax(1, keepdim=True).clamp_min(FLAT)
    return plane


def _pixels(box: Box, height: int, width: int) -> tuple[slice, slice]:
    """Those that a box touches."""
    across, down = (
        slice(math.floor(low * side + 1e-6), math.ceil(high * side - 1e-6))
        for low, high, side in ((box.x0, box.x1, width), (box.y0, box.y1, height))
    )
    return down, across


def _about(mask: Tensor, box: Box) -> Box:
    """The box about a mask (H, W), with the label of another."""
    x0, y0, x1, y1 = extent(mask)
    height, width = mask.shape
    return box._replace(x0=x0 / width, y0=y0 / height, x1=x1 / width, y1=y1 / height)
