"""Pictures for training: decoded once, damaged ones passed over and counted, cut and turned by their address."""

from threading import Lock

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

    Pictures are kept as the 8 bits that they were made of, as long as there is room. A picture is the same whether it
    is kept or not, so several threads may ask, in any order.
    """

    def __init__(self, whole: Dataset, *, room: int = ROOM) -> None:
        self.whole, self.room = whole, room
        self.damaged: dict[int, str] = {}  # index -> why
        self._kept: dict[int, Tensor] = {}
        self._lock = Lock()  # of these three; pictures are decoded outside of it

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, i: int) -> Tensor:
        """(3, H, W) float32."""
        for step in range(len(self)):
            found = self._decoded((i + step) % len(self))
            if found is not None:
                return found
        raise ValueError(f"no picture can be read, first {self._first_damage()}")

    def stack(self, index: range | list[int]) -> Tensor:
        """(N, 3, H, W)."""
        return torch.stack([self[i] for i in index])

    def sound(self, most: int | None = None) -> list[int]:
        """The indices of those that can be decoded, of all or of `most` that are tried, evenly spaced."""
        return [i for i in spaced(len(self), most or len(self)) if self._decoded(i) is not None]

    def check(self, most: int | None = None) -> list[int]:
        """The same; ValueError, naming one, if more than one in a hundred cannot."""
        good, tried = self.sound(most), min(len(self), most or len(self))
        if why := complaint(tried - len(good), tried, self._first_damage()):
            raise ValueError(why)
        return good

    def _decoded(self, i: int) -> Tensor | None:
        if i in self.damaged:
            return None
        if i not in self._kept:
            try:
                image = self.whole[i]["image"]
            except ValueError as error:
                with self._lock:
                    self.damaged[i] = str(error)
                return None
            levels = ((image + 1) * 127.5).round().to(torch.uint8)
            self._keep(i, levels)
        else:
            levels = self._kept[i]
        return levels.float() / 127.5 - 1

    def _keep(self, i: int, levels: Tensor) -> None:
        with self._lock:
            if i not in self._kept and levels.numel() <= self.room:
                self.room -= levels.numel()
                self._kept[i] = levels

    def _first_damage(self) -> str:
        """Why the first one in order cannot be decoded, whichever was found first; "" if there is none."""
        with self._lock:
            return self.damaged[min(self.damaged)] if self.damaged else ""


def complaint(damaged: int, tried: int, one: str) -> str:
    """The line that says that too many pictures are damaged, and which is `one` of them; "" if they are few."""
    if damaged <= MOST_DAMAGED * tried:
        return ""
    return f"{damaged} of {tried} pictures are damaged, more than one in a hundred; one of them is {one}"


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
