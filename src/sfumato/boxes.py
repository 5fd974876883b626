"""Boxes around objects, in parts of a picture: what a layout is made of."""

import math
import re
from collections.abc import Sequence
from enum import IntFlag
from numbers import Real
from typing import Any, NamedTuple, Self

LABEL = 200  # characters of a label
EDGE = 1e-6  # of a picture's side: so far beyond it a rounded number may lie, and a thinner box has no area
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class Modifier(IntFlag):
    """What else is known of an object; the numbers are those of LDM's class tokens."""

    GROUP = 1  # several objects in one box; COCO's "iscrowd"
    OCCLUDED = 2
    DEPICTION = 4  # a drawing of it
    INSIDE = 8  # seen from within


class Box(NamedTuple):
    """What is where: left, top, right and bottom, from 0 to 1 of the picture's width and height."""

    label: str
    x0: float
    y0: float
    x1: float
    y1: float
    modifiers: int = 0  # Modifier, joined

    @property
    def area(self) -> float:
        """Of the whole picture's."""
        return (self.x1 - self.x0) * (self.y1 - self.y0)

    def mirrored(self) -> Self:
        """The box in the mirrored picture."""
        return self._replace(x0=1 - self.x1, x1=1 - self.x0)

    def within(self, window: "Window") -> Self | None:
        """The box in what is cut out of the picture, cut too; None if nothing of it is there."""
        wide, high = window.x1 - window.x0, window.y1 - window.y0
        x0, x1 = (min(max((x - window.x0) / wide, 0.0), 1.0) for x in (self.x0, self.x1))
        y0, y1 = (min(max((y - window.y0) / high, 0.0), 1.0) for y in (self.y0, self.y1))
        return self._replace(x0=x0, y0=y0, x1=x1, y1=y1) if x1 - x0 >= EDGE and y1 - y0 >= EDGE else None


def boxed(
    label: object, sides: object, modifiers: int = 0, *, of: tuple[float, float] = (1, 1), beyond: float = EDGE
) -> Box:
    """A Box from what somebody gave: text, and left, top, right and bottom in a picture `of` this width and height.

    What lies up to `beyond` outside of the picture is at its edge. ValueError of one line if there is no such box.
    """
    if not isinstance(label, str) or not label.strip() or len(label) > LABEL or _CONTROL.search(label):
        raise ValueError(f"a box's label is text of 1 to {LABEL} characters in one line, and not blank")
    numbers = four(sides)
    if numbers is None:
        raise ValueError(f"the box of '{label}' is four finite numbers: left, top, right, bottom")
    shown = f"the box of '{label}' is {listed(numbers)}"
    x0, y0, x1, y1 = numbers
    if x1 < x0 or y1 < y0:
        raise ValueError(f"{shown}; left comes before right, and top before bottom")
    if min(x0, y0) < -beyond or x1 > of[0] + beyond or y1 > of[1] + beyond:
        extent = "which goes from 0 to 1" if of == (1, 1) else f"which has {of[0]:g}x{of[1]:g} pixels"
        raise ValueError(f"{shown}, outside the picture, {extent}")
    x0, y0, x1, y1 = (min(max(n / side, 0.0), 1.0) for n, side in zip(numbers, (*of, *of), strict=True))
    if x1 - x0 < EDGE or y1 - y0 < EDGE:
        raise ValueError(f"{shown}, which has no area")
    return Box(label, x0, y0, x1, y1, modifiers)


def four(given: object) -> tuple[float, float, float, float] | None:
    """Four finite numbers, if it is so many."""
    if not isinstance(given, list | tuple) or len(given) != 4:  # noqa: PLR2004
        return None
    try:
        good = [float(n) for n in given if isinstance(n, Real) and not isinstance(n, bool) and math.isfinite(n)]
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return (good[0], good[1], good[2], good[3]) if len(good) == 4 else None  # noqa: PLR2004


def listed(numbers: Sequence[float]) -> str:
    """Numbers as people read them."""
    return f"[{', '.join(f'{n:g}' for n in numbers)}]"


def modified(given: object) -> int:
    """The modifiers of a list of their names, in small letters; ValueError of one line if it is none."""
    known = {str(m.name).lower(): m for m in Modifier}
    if not isinstance(given, list | tuple) or not all(isinstance(name, str) and name in known for name in given):
        raise ValueError(f"a box's modifiers are a list of some of: {', '.join(known)}")
    return int(sum({known[name] for name in given}))


def described(box: Box) -> dict[str, Any]:
    """The box as JSON has it: its label, its sides and the names of its modifiers, if it has some."""
    names = [str(m.name).lower() for m in Modifier if m & box.modifiers]
    return {"label": box.label, "box": list(box[1:5]), **({"modifiers": names} if names else {})}


Layout = tuple[Box, ...]
"""The boxes of a picture."""


class Window(NamedTuple):
    """What is cut out of a picture, in parts of its width and height."""

    x0: float = 0.0
    y0: float = 0.0
    x1: float = 1.0
    y1: float = 1.0

    def mirrored(self) -> Self:
        """The window in the mirrored picture."""
        return self._replace(x0=1 - self.x1, x1=1 - self.x0)


WHOLE = Window()


def middle(sides: tuple[int, int], shape: tuple[int, int]) -> Window:
    """The middle of a picture of these sides (width, height) with the ratio of `shape`, as large as it can be."""
    (width, height), (w, h) = sides, shape
    across, down = (1.0, width * h / w / height) if width * h <= height * w else (height * w / h / width, 1.0)
    return Window((1 - across) / 2, (1 - down) / 2, (1 + across) / 2, (1 + down) / 2)


def largest(boxes: Sequence[Box], most: int) -> Layout:
    """The boxes in their order; of more than `most` the largest, and of two as large the first."""
    if len(boxes) <= most:
        return tuple(boxes)
    kept = sorted(range(len(boxes)), key=lambda i: (-boxes[i].area, i))[:most]
    return tuple(boxes[i] for i in sorted(kept))


def iou(a: Box, b: Box) -> float:
    """Intersection over union (Jaccard 1901) of two boxes, of whatever labels; 0 of boxes without area."""
    wide = max(0.0, min(a.x1, b.x1) - max(a.x0, b.x0))
    high = max(0.0, min(a.y1, b.y1) - max(a.y0, b.y0))
    both = a.area + b.area - wide * high
    return wide * high / both if both > 0 else 0.0
