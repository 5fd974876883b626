"""Pictures for training: decoded once, damaged ones passed over and counted, cut and turned by their address."""

import torch
from torch import Tensor

from sfumato.data.part import spaced
from sfumato.data.sample import Dataset
from sfumato.diffusion.noise import Address, Stream

ROOM = 2**30  # bytes of decoded pictures that are kept
MOST_DAMAGED = 0.01
TRIED = 20_000  # pictures, at most, that are decoded before a training begins, to know whether they can be


class TrainingPictures:
    """The pictures of a data set, in [-1, 1]. In the place of one that cannot be decoded stands the next that can.

    Pictures are kept as the 8 bits that they were made of, as long as there is room.
    """

    def __init__(self, whole: Dataset, *, room: int = ROOM) -> None:
        self.whole, self.room = whole, room
        self.damaged: dict[int, str] = {}  # index -> why
        self._kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, i: int) -> Tensor:
        """(3, H, W) float32."""
        for step in range(len(self)):
            found = self._decoded((i + step) % len(self))
            if found is not None:
                return found
        raise ValueError(f"no picture can be read, first {next(iter(self.damaged.values()))}")

    def stack(self, index: range | list[int]) -> Tensor:
        """(N, 3, H, W)."""
        return torch.stack([self[i] for i in index])

    def sound(self, most: int | None = None) -> list[int]:
        """The indices of those that can be decoded, of all or of `most` that are tried, evenly spaced."""
        return [i for i in spaced(len(self), most or len(self)) if self._decoded(i) is not None]

    def check(self, most: int | None = None) -> list[int]:
        """The same; ValueError, naming one, if more than one in a hundred cannot."""
        good, tried = self.sound(most), min(len(self), most or len(self))
        if tried - len(good) > MOST_DAMAGED * tried:
            raise ValueError(
                f"{tried - len(good)} of {tried} pictures are damaged, more than one in a hundred; one of them is "
                f"{next(iter(self.damaged.values()))}"
            )
        return good

    def _decoded(self, i: int) -> Tensor | None:
        if i in self.damaged:
            return None
        if i in self._kept:
            return self._kept[i].float() / 127.5 - 1
        try:
            image = self.whole[i]["image"]
        except ValueError as error:
            self.damaged[i] = str(error)
            return None
        if image.numel() <= self.room:
            self.room -= image.numel()
            self._kept[i] = ((image + 1) * 127.5).round().to(torch.uint8)
        return image


def cut(images: Tensor, at: Address, *, side: int | None, flips: bool) -> Tensor:
    """Squares of `side` pixels out of (B, 3, H, W), at a place that the address draws, turned to a mirror in half of
    the cases with `flips`. ValueError if a picture is smaller."""
    u = at.uniform(Stream.AUGMENT, 3)
    if side is not None and images.shape[2:] != (side, side):
        height, width = images.shape[2:]
        if side > min(height, width):
            raise ValueError(f"a square of {side} pixels cannot be cut out of pictures of {width}x{height}")
        top, left = ((u[:, k] * (n - side + 1)).long().tolist() for k, n in ((0, height), (1, width)))
        images = torch.stack([x[:, t : t + side, p : p + side] for x, t, p in zip(images, top, left, strict=True)])
    return torch.where(u[:, 2, None, None, None] < 0.5, images.flip(3), images) if flips else images  # noqa: PLR2004
