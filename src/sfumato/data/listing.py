"""A listing says which pictures a data set has and where their bytes are, before any of them is decoded."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from sfumato.boxes import Layout
from sfumato.io.pictures import header

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"})
NOT_A_PICTURE = "not a picture"
MOST_LOST = 0.01  # the share of pictures that may be missing or unreadable
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Sides(NamedTuple):
    """What somebody says the sides of a picture are, and in which file."""

    width: int
    height: int
    file: str


class Entry(NamedTuple):
    """One picture, where its bytes are, and what is said about it."""

    path: Path  # the file that holds it
    name: str  # its address, below the root and with forward slashes: the same on every machine
    size: int  # in bytes
    captions: tuple[str, ...] = ()
    class_name: str = ""
    offset: int | None = None  # where it begins in the file; None if it is all of the file
    boxes: Layout | None = None  # in parts of the whole picture; None where nothing is said of them
    sides: Sides | None = None  # what those of the picture were when its boxes were written down, where that is said

    def open(self) -> BinaryIO:
        """The bytes of the picture as a file of its own; ValueError if there is none to open."""
        try:
            if self.offset is None:
                return self.path.open("rb")
            return io.BufferedReader(_Window(self.path.open("rb", buffering=0), self.offset, self.size))
        except OSError as error:
            raise ValueError(f"the file cannot be opened ({error.strerror or error})") from None

    def read(self) -> bytes:
        """The bytes of the picture; ValueError if they are no longer there."""
        with self.open() as file:
            try:
                data = file.read()
            except OSError as error:
                raise ValueError(f"the file cannot be read ({error.strerror or error})") from None
        if self.offset is not None and len(data) != self.size:
            raise ValueError("the shard became shorter since it was opened; open it again")
        return data


class Listing(NamedTuple):
    """The pictures of a data set in the order of its samples, and what is wrong with what is said about them."""

    root: Path
    kind: str  # what was found there, in words
    entries: tuple[Entry, ...]
    classes: tuple[str, ...]  # in the order of their labels
    problems: tuple[str, ...]  # a line each; one is enough to refuse the data set
    left_out: Mapping[str, str]  # other files by name, and why
    flat: int = 0  # boxes without area, which are not among those of the entries

    def where(self, entry: Entry) -> Path:
        """What a person calls the place of a picture: its path, or its path inside a shard."""
        return self.root / entry.name


def shown(name: Path | str) -> str:
    """A name in one line that can be printed, whatever bytes a file system allowed in it."""
    text = str(name).encode("utf-8", "backslashreplace").decode()
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


def sides_of(path: Path) -> tuple[int, int] | None:
    """Width and height of a picture, turned as EXIF says; None if it cannot be read."""
    try:
        with path.open("rb") as file:
            return header(file)[:2]
    except (OSError, ValueError):
        return None


def unused(name: str, split: str) -> str:
    """Why a file is left out, of which nothing was read, where those in `split` alone are ("train/")."""
    if name.startswith(split) or "/" not in name:
        return NOT_A_PICTURE
    return f"in {'/'.join(name.split('/')[:-1][: split.count('/')])}/"


def caption(text: str) -> str:
    """What somebody wrote, in one line of valid text."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


class _Window(io.RawIOBase):
    """A part of a file, which it closes."""

    def __init__(self, file: io.FileIO, start: int, size: int) -> None:
        self.file, self.start, self.size, self.at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self.at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence])
        return self.at

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        room = memoryview(buffer).cast("B")[: max(0, self.size - self.at)]
        self.file.seek(self.start + self.at)
        got = self.file.readinto(room) or 0
        self.at += got
        return got

    def close(self) -> None:
        self.file.close()
        super().close()
