"""Crops as in the paper (Rombach et al. 2022, app. E.2.2): each picture several times, cut at a place that is drawn."""

from __future__ import annotations

from typing import Literal

from sfumato.boxes import Window
from sfumato.data.listed import Listed
from sfumato.data.part import Part
from sfumato.data.sample import Dataset, Sample
from sfumato.diffusion.noise import Address, Stream

Kind = Literal["random-1d", "random-2d"]
"""A square as large as the shorter side, somewhere along the longer one (COCO); or any square (Open Images)."""


class Cropped:
    """`n` crops, `size` x `size`, of each picture of a folder or of a part of it: the first of all, the second of all.

    A sample has "boxes" as they are cut, "uncut" as they were, and the "window". The k-th crop of a picture depends on
    the seed, on k, and on the place of the picture in the folder. ValueError if `whole` is no folder.
    """

    def __init__(self, whole: Dataset, *, size: int, kind: Kind, n: int = 1, seed: int = 0) -> None:
        if size < 1 or n < 1:
            raise ValueError(f"{n} crops of {size} pixels cannot be made; both are 1 or more")
        self.whole, self.size, self.n, self.seed = whole, size, n, seed
        self.kind: Kind = kind
        self.fields = whole.fields | {"window"} | ({"uncut"} if "boxes" in whole.fields else set())
        _place(whole, 0)

    def __len__(self) -> int:
        return self.n * len(self.whole)

    def __getitem__(self, i: int, /) -> Sample:
        """The crop; IndexError past the last."""
        if not 0 <= i < len(self):
            raise IndexError(f"there are {len(self)} crops, and no {i}")
        k, own = divmod(i, len(self.whole))
        listed, place = _place(self.whole, own)
        sample = listed.through(place, self.window(i), size=self.size)
        sample["key"] = f"{sample['key']}@{k}"
        return sample

    def window(self, i: int) -> Window:
        """What the crop at an index shows."""
        k, own = divmod(i, len(self.whole))
        listed, place = _place(self.whole, own)
        u = Address.of(self.seed, [place], k).uniform(Stream.WINDOW, 3)[0].tolist()
        return window(listed.sides[place], size=self.size, kind=self.kind, u=(u[0], u[1], u[2]))


def window(sides: tuple[int, int], *, size: int, kind: Kind, u: tuple[float, float, float]) -> Window:
    """A square of whole pixels in a picture of these sides, by three numbers in (0, 1): its side, and its place across
    and along.

    With "random-1d" the side is the shorter one of the picture; with "random-2d" it is between `size`, or the shorter
    one if that is less, and the shorter one, each as likely as the other.
    """
    shorter = min(sides)
    least = min(size, shorter) if kind == "random-2d" else shorter
    side = least + int(u[0] * (shorter - least + 1))
    left, top = (int(v * (extent - side + 1)) for v, extent in zip(u[1:], sides, strict=True))
    return Window(left / sides[0], top / sides[1], (left + side) / sides[0], (top + side) / sides[1])


def _place(whole: Dataset, i: int) -> tuple[Listed, int]:
    """The folder that a sample is of, and which of its pictures."""
    match whole:
        case Listed():
            return whole, i
        case Part(whole=inner, index=index):
            return _place(inner, index[i])
        case _:
            raise ValueError("crops are cut out of a folder of pictures; other data sets have one size")
