"""A data set of pictures in memory."""

from __future__ import annotations

from torch import Tensor

from sfumato.data import Sample


class Held:
    """Pictures (3, H, W) by index, and nothing said of them."""

    fields = frozenset({"image"})

    def __init__(self, images: list[Tensor]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int, /) -> Sample:
        return {"image": self.images[i]}
