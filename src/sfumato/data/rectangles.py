"""A rectangle that somebody wrote down becomes a box, cut at the edges of its picture, or a line that says why not."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from sfumato.boxes import Box, Layout
from sfumato.data.listing import caption

FAR = 1.0  # how far beyond its picture, in parts of it, a box may reach that is given in parts
PARTS = (1.0, 1.0)
"""The sides of a picture whose boxes are given in parts of them."""


def numbers(values: object, what: str = "its box") -> list[float]:
    """Four numbers; ValueError if these are not four, or not finite."""
    if isinstance(values, list | tuple) and len(values) == 4:  # noqa: PLR2004
        try:
            found = [float(value) for value in values if type(value) in (int, float)]
        except OverflowError:  # a whole number that no float can hold
            found = []
        if len(found) == 4 and all(map(math.isfinite, found)):  # noqa: PLR2004
            return found
    raise ValueError(f"{what} is {reprlib.repr(values)}; it must be a list of four finite numbers")


def from_corner(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a box as COCO has it."""
    return x, y, x + width, y + height


def from_middle(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a box as YOLO has it."""
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def box(label: str, corners: Sequence[float], sides: tuple[float, float] = PARTS, modifiers: int = 0) -> Box | None:
    """The part of a rectangle (left, top, right, bottom) that lies in a picture of these sides; None if it has no area.

    ValueError if it lies wholly outside or is inverted, or, in parts, so far outside that these must be pixels.
    """
    x0, y0, x1, y1 = corners
    if x1 < x0 or y1 < y0:
        raise ValueError(f"the box {_shown(corners)} ends before it begins; its width and height are 0 or more")
    if sides is PARTS and (min(x0, y0) < -FAR or max(x1, y1) > 1 + FAR):
        raise ValueError(f"the box {_shown(corners)} lies far outside; it is in parts of the picture, from 0 to 1")
    left, top, right, bottom = x0 / sides[0], y0 / sides[1], x1 / sides[0], y1 / sides[1]
    if right <= left or bottom <= top:
        return None
    found = (max(left, 0.0), max(top, 0.0), min(right, 1.0), min(bottom, 1.0))
    if found[2] <= found[0] or found[3] <= found[1]:
        raise ValueError(f"the box {_shown(corners)} lies outside of the picture, which is {_sides(sides)}")
    return Box(label, *found, modifiers)


def label(said: object) -> str:
    """What an object is called: a string, or a number as one; ValueError if it is neither."""
    if isinstance(said, int) and not isinstance(said, bool):
        said = str(said)
    if not isinstance(said, str) or not (name := caption(said)):
        raise ValueError(f"a label is {reprlib.repr(said)}; it must be a name or a number")
    return name


@dataclass(slots=True)
class Written:
    """The boxes of pictures as they are read, how many of them had no area, and what cannot be used."""

    boxes: dict[str, list[Box]] = field(default_factory=dict)  # by picture
    flat: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, name: str, found: Box | None) -> None:
        """One box of a picture."""
        mine = self.boxes.setdefault(name, [])
        if found is None:
            self.flat += 1
        else:
            mine.append(found)

    def layout(self, name: str) -> Layout | None:
        """The boxes of a picture; None if nothing was said of any."""
        return tuple(self.boxes[name]) if name in self.boxes else None


def _shown(corners: Sequence[float]) -> str:
    return f"from ({corners[0]:g}, {corners[1]:g}) to ({corners[2]:g}, {corners[3]:g})"


def _sides(sides: tuple[float, float]) -> str:
    return "1 wide and 1 high" if sides is PARTS else f"{sides[0]:g} x {sides[1]:g}"
