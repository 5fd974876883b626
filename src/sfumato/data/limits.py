"""Limits on the boxes that are learnt from: how small, how few and how many (Rombach et al. 2022, app. E.2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sfumato.boxes import WHOLE, Layout, Window, largest


class Limits(NamedTuple):
    """Boxes smaller than `least_area`, in parts of their whole picture, are dropped; of what is then seen of a cut
    picture the `most` largest stay, and a picture with fewer than `least` is left out.

    The paper has 2 to 30, and 1e-4 for Open Images.
    """

    least_area: float = 1e-5
    least: int = 1
    most: int = 30

    def large(self, layout: Layout) -> Layout:
        """The boxes of a whole picture that are not too small."""
        return tuple(box for box in layout if box.area >= self.least_area)


class Counted(NamedTuple):
    """What limits took away."""

    small: int = 0  # boxes
    over: int = 0  # boxes of pictures with too many
    few: int = 0  # pictures


def applied(
    layouts: Sequence[Layout], limits: Limits, windows: Sequence[Window] | None = None
) -> tuple[dict[int, Layout], Counted]:
    """The boxes that stay, by the index of their picture, in parts of what is seen of it, and what was taken away.

    What is seen is all of a picture, or what its window shows.
    """
    found: dict[int, Layout] = {}
    small = over = 0
    for i, layout in enumerate(layouts):
        large = limits.large(layout)
        seen = cut(large, WHOLE if windows is None else windows[i])
        small += len(layout) - len(large)
        if len(seen) >= limits.least:
            found[i] = largest(seen, limits.most)
            over += len(seen) - len(found[i])
    return found, Counted(small, over, len(layouts) - len(found))


def cut(layout: Layout, window: Window) -> Layout:
    """The boxes of what a window shows, in parts of that."""
    if window == WHOLE:
        return layout
    return tuple(box for whole in layout if (box := whole.within(window)) is not None)
