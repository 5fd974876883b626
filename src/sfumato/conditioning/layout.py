"""Boxes as LDM's sequence of numbers, through its transformer (Rombach et al. 2022, sec. 4.3.1 and app. E.2.2).

An object is three numbers: its class, its top left and its bottom right corner on a grid of s x s points, s the root of
the vocabulary. Objects that are not there are three times the last number of the vocabulary. Two numbers at the end are
the corners of the window that was cut out of the picture; boxes stay those of the whole picture, and are not cut by it.
All numbers share one table: what one means is known by its place.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.boxes import WHOLE, Box, Layout, Modifier, Window, largest
from sfumato.cond import Cond
from sfumato.conditioning.conditioner import Heard
from sfumato.nets.transformer import TransformerEncoder, TransformerSize
from sfumato.registry import unknown

OBJECT, WINDOW = 3, 2  # numbers of each
DIGITS = 7  # at most, of a class that is said by its number


class LayoutTokens(nn.Module):
    """tokens (B, length, dim). Labels are `names`, or without them the numbers of classes in decimals.

    Modifiers count on from the classes: 2^m times as many numbers as names. Where the vocabulary has no room for all
    four, GROUP alone is said, or none; and none without names. The null condition is a picture of which no object is
    said; LDM's model never saw it.
    """

    needs = frozenset({"boxes"})
    captions = False

    def __init__(
        self, vocabulary: int, size: TransformerSize, *, names: Sequence[str] = (), window: bool = True
    ) -> None:
        super().__init__()
        self.size, self.names, self.window = size, tuple(names), window
        self.grid = math.isqrt(vocabulary)
        self.none = vocabulary - 1
        self.most = (size.length - WINDOW * window) // OBJECT
        self.modifiers = modifiers(len(names), vocabulary)
        self.encoder = TransformerEncoder(vocabulary, size)
        self._number = {name: i for i, name in enumerate(self.names)}

    def heard(self, prompts: Sequence[str]) -> Heard:  # noqa: ARG002
        """No word of a prompt is read."""
        return Heard(0)

    def check(self, label: str) -> None:
        """ValueError if it is no label of this model's."""
        if self.names and label not in self._number:
            raise ValueError(unknown("label", label, self.names))
        number = label.isascii() and label.isdecimal() and len(label) <= DIGITS
        if not self.names and not (number and int(label) < self.none):
            raise ValueError(
                f"unknown label '{label}'; this model knows no names, but classes from 0 to {self.none - 1}"
            )

    def sayable(self, box: Box) -> Box:
        """The box with those of its modifiers alone that there are numbers for."""
        return box._replace(modifiers=box.modifiers & self.modifiers)

    def sequence(self, boxes: Sequence[Box], window: Window = WHOLE) -> list[int]:
        """The numbers of a layout: `boxes` of the whole picture, of which `window` is what is seen.

        What lies outside the whole picture is cut off. Halves of a cell go to the even line of the grid, as in Python.
        """
        found = [number for box in largest(boxes, self.most) for number in self._object(box)]
        found += [self.none] * (OBJECT * self.most - len(found))
        return found + (self._corners(window) if self.window else [])

    def layout(self, sequence: Sequence[int]) -> tuple[Layout, Window]:
        """The boxes and the window that a sequence says, each side within half a cell of the grid."""
        boxes = []
        for k in range(0, OBJECT * self.most, OBJECT):
            kind, *corners = sequence[k : k + OBJECT]
            if kind != self.none:
                modifiers, number = divmod(kind, len(self.names)) if self.names else (0, kind)
                label = self.names[number] if self.names else str(number)
                boxes.append(Box(label, *self._point(corners[0]), *self._point(corners[1]), modifiers))
        corners = sequence[OBJECT * self.most :]
        return tuple(boxes), Window(*self._point(corners[0]), *self._point(corners[1])) if self.window else WHOLE

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """ "layout" (B, length). Of a cut picture, "uncut" has the boxes of the whole and "window" what is seen."""
        rows = [self.sequence(s.get("uncut", s["boxes"]), s.get("window", WHOLE)) for s in samples]
        return {"layout": torch.tensor(rows, dtype=torch.int64)}

    def forward(self, batch: Mapping[str, Tensor]) -> Cond:
        """tokens (B, length, dim)."""
        return Cond(tokens=self.encoder(batch["layout"].to(self.encoder.norm.weight.device)))

    def laid(self, prompts: Sequence[str], layouts: Sequence[Layout], cells: tuple[int, int]) -> Cond:  # noqa: ARG002
        """The condition of some layouts of whole pictures."""
        return self(self.collate([{"boxes": boxes} for boxes in layouts]))

    def null(self, n: int) -> Cond:
        """No object, n times."""
        return self.laid([""], [()], (1, 1)).repeat(n)

    def _object(self, box: Box) -> list[int]:
        self.check(box.label)
        number = self._number[box.label] if self.names else int(box.label)
        return [number + len(self.names) * self.sayable(box).modifiers, *self._corners(box)]

    def _corners(self, box: Box | Window) -> list[int]:
        """The top left and the bottom right, on the grid."""
        lines = [round(min(max(side, 0.0), 1.0) * (self.grid - 1)) for side in (box.x0, box.y0, box.x1, box.y1)]
        return [y * self.grid + x for x, y in (lines[:2], lines[2:])]

    def _point(self, number: int) -> tuple[float, float]:
        y, x = divmod(number, self.grid)
        return x / (self.grid - 1), y / (self.grid - 1)


def modifiers(names: int, vocabulary: int) -> int:
    """Those that classes of so many names have numbers for, joined; the last number of the vocabulary is no class."""
    room = (vocabulary - 1) // names if names else 0
    every = sum(Modifier)
    return every if room > every else int(Modifier.GROUP) if room > Modifier.GROUP else 0
