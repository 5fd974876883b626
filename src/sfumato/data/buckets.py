"""Aspect-ratio buckets: pictures of a few shapes, all of about as many pixels, instead of squares that cut them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

LONGEST = 2.0  # ratio of the sides

Shape = tuple[int, int]
"""Width and height."""


def shapes(side: int, *, step: int, longest: float = LONGEST) -> list[Shape]:
    """The shapes of at most side^2 pixels whose sides divide by `step`: for each width the tallest, and turned; no
    side is more than `longest` times the other. From the widest to the tallest; the square of `side` is among them.
    """
    wide = [(width, side**2 // width // step * step) for width in range(side, int(side * longest) + 1, step)]
    found = {shape for shape in wide if shape[1] > 0 and max(shape) <= longest * min(shape)} | {(side, side)}
    turned = {(height, width) for width, height in found}
    return sorted(found | turned, key=lambda shape: (-ratio(shape), shape))


def nearest(sides: Shape, among: Sequence[Shape]) -> Shape:
    """The shape that cuts least off a picture of these sides: the nearest ratio, in its logarithm."""
    return min(among, key=lambda shape: (abs(math.log(ratio(shape) / ratio(sides))), shape))


def filled(sides: Sequence[Shape], among: Sequence[Shape], *, least: int) -> list[Shape]:
    """A shape for each picture. Those that fewer than `least` pictures would have are given up, the emptiest first, for
    a batch of one would see the same few again and again; the most common one stays.
    """
    among = list(among)
    while True:
        chosen = [nearest(each, among) for each in sides]
        counts = Counter(chosen)
        few = min(counts, key=lambda shape: (counts[shape], shape))
        if counts[few] >= least or len(counts) == 1:
            return chosen
        among = [shape for shape in counts if shape != few]


def ratio(shape: Shape) -> float:
    """Width by height."""
    return shape[0] / shape[1]
