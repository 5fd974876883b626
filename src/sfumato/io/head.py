"""Where tensors lie in a file, and how much may be spent on finding that out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import torch

HEAD_LIMIT = 100_000_000
"""Bytes of a description (a header, an index) that are read at most; the safetensors library has the same limit."""

FREE = 48 << 20
_MOST = 1 << 63


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor in a file: its shape and type, its first byte, and its strides in items."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int
    stride: tuple[int, ...]

    @property
    def extent(self) -> int:
        """Bytes from the first item to the last, both included."""
        return reach(self.shape, self.stride) * self.dtype.itemsize


class Head(NamedTuple):
    """What a file says of itself before its numbers."""

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str | int | float | bool]


class Budget:
    """Bytes that objects made from a file may take: `FREE` and once its size. Each is paid for before it is made."""

    def __init__(self, size: int) -> None:
        self.left = FREE + size

    def spend(self, cost: int) -> None:
        """ValueError when there is no more."""
        self.left -= cost
        if self.left < 0:
            raise ValueError("describes far more than a file of its size can hold; get it from a place that you trust")


class Source:
    """An open file whose reads never go past its end."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def read(self, start: int, count: int) -> bytes:
        """Exactly `count` bytes; ValueError if the file does not have them, or if they are too many for a head."""
        if count > HEAD_LIMIT:
            raise ValueError(f"has a description of {count:,} bytes; at most {HEAD_LIMIT:,} are read, it is damaged")
        if not 0 <= start <= start + count <= self.size:
            raise ValueError(
                f"is cut short or damaged (it points past its end, which is at {self.size:,}); get it again"
            )
        self.file.seek(start)
        data = self.file.read(count)
        if len(data) != count:
            raise ValueError("became shorter while it was read; try again")
        return data


def damaged(what: str) -> ValueError:
    """The error for a file that contradicts itself; what is raised here goes after the name of the file."""
    return ValueError(f"is damaged ({what}); get it again")


def quoted(name: str | bytes) -> str:
    """A name from a file, fit for one line."""
    text = name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name
    return repr(text if len(text) <= 80 else text[:77] + "...")  # noqa: PLR2004


def reach(shape: Sequence[int], stride: Sequence[int]) -> int:
    """How many items of a storage a tensor needs from its first on; 0 where it has none."""
    return 0 if 0 in shape else 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))


def numel(shape: Sequence[int], itemsize: int) -> int:
    """The number of items; ValueError where their bytes, or those of an empty tensor's other sides, exceed 63 bits."""
    total = 1
    for side in shape:
        total *= max(side, 1)
        if total * itemsize >= _MOST:
            raise damaged("a tensor in it is larger than any memory")
    return 0 if 0 in shape else total
