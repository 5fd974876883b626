"""A sample is what a data set gives for one index: a picture and what is known about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypedDict, runtime_checkable

from torch import Tensor

from sfumato.boxes import Layout, Window

Meta = Mapping[str, str | list[str]]


class Sample(TypedDict, total=False):
    """One picture and its facts; which of them are there is said by `Dataset.fields`."""

    image: Tensor  # (3, H, W) float32 in [-1, 1], RGB
    label: int
    map: Tensor  # (H, W) uint8, a class for each pixel, 255 where nothing is said
    boxes: Layout  # in parts of the picture as it is given here; of a data set that has some it may be empty
    uncut: Layout  # of a picture that was cut by a window: the same boxes, in parts of the whole picture
    window: Window  # and what is seen of it
    caption: str
    captions: tuple[str, ...]  # all of them, where a data set knows several; the first is `caption`
    key: str  # the address of the sample: stable between runs and machines
    meta: Meta  # facts by name: name, style, tags, group ...


@runtime_checkable
class Dataset(Protocol):
    """Samples by index. The same index gives the same sample, always."""

    @property
    def fields(self) -> frozenset[str]:
        """Those of image, label, map, boxes, uncut, window and caption that every sample has."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Sample: ...
