"""A feature map of one picture that is read and written by strips of rows, and kept in memory or in a scratch file."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

TOGETHER = 2**18  # numbers whose moments are taken at once: as doubles they stay in a processor's cache
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Moments:
    """Mean and squared deviations of each channel of the rows added so far, in float64."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.mean = torch.zeros(channels, dtype=torch.float64)
        self.m2 = torch.zeros(channels, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Rows (n, C, W) more: the moments of both sets from those of each (Chan, Golub & LeVeque 1979)."""
        for part in rows.split(max(1, TOGETHER // rows[0].numel())):
            x, n = part.double(), part.numel() // len(self.mean)
            mean = x.mean((0, 2))
            m2 = x.sub_(mean[:, None]).square_().sum((0, 2))
            delta, both = mean - self.mean, self.count + n
            self.mean += delta * (n / both)
            self.m2 += m2 + delta.square() * (self.count * n / both)
            self.count = both

    def grouped(self, groups: int) -> tuple[Tensor, Tensor]:
        """Mean and variance (groups,) of each group of neighbouring channels."""
        means, m2 = self.mean.view(groups, -1), self.m2.view(groups, -1)
        mean = means.mean(1)
        return mean, (m2 / self.count + (means - mean[:, None]).square()).mean(1)


class Window(NamedTuple):
    """Some rows of a map and those about them."""

    first: int
    last: int  # one after the rows themselves
    rows: Tensor  # (before + last - first + after, C, W), a copy
    there: slice  # which of them the map has; the others hold anything


class FeatureMap:
    """Numbers (H, C, W), so that a strip of rows is one piece, on the CPU; `moments` are of the rows written."""

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, kept: "Tensor | ScratchFile") -> None:
        self.height, self.channels, self.width = shape
        self.dtype, self.kept = dtype, kept
        self.moments = Moments(self.channels)

    @staticmethod
    def of(picture: Tensor) -> "FeatureMap":
        """The map of (1, C, H, W), without moments."""
        rows = picture[0].transpose(0, 1).cpu()
        return FeatureMap((rows.shape[0], rows.shape[1], rows.shape[2]), rows.dtype, rows)

    def whole(self) -> Tensor:
        """(1, C, H, W)."""
        return self.read(0, self.height).transpose(0, 1)[None]

    def empty(self, rows: int) -> Tensor:
        """Room for so many rows."""
        return torch.empty(rows, self.channels, self.width, dtype=self.dtype)

    def read(self, first: int, last: int) -> Tensor:
        """A copy of the rows from `first` to before `last`."""
        rows = self.empty(last - first)
        self._fill(rows, first)
        return rows

    def write(self, first: int, rows: Tensor) -> None:
        """Put rows (n, C, W) in their place, and into the moments."""
        rows = rows.cpu()
        if isinstance(self.kept, Tensor):
            self.kept[first : first + len(rows)] = rows
        else:
            self.kept.write(first * self.row, rows.contiguous())
        self.moments.add(rows)

    def rewritten(self) -> None:
        """From here on the rows are written anew, each after it was read: the moments begin again."""
        self.moments = Moments(self.channels)

    def windows(self, rows: int, *, before: int = 0, after: int = 0, wrap: bool = False) -> Iterator[Window]:
        """All strips of so many rows from top to bottom, with the rows `before` and `after` them, one at most of each.

        No row is read twice, so a strip may be overwritten once its window is there. With `wrap` the rows about the
        first and the last strip are those of the other end.
        """
        assert max(before, after) <= 1 <= rows
        top = self.read(self.height - before, self.height) if wrap else self.empty(0)
        bottom = self.read(0, after) if wrap else self.empty(0)
        carried, done = top, 0  # the rows of the next window that were read already, and the rows read
        for first in range(0, self.height, rows):
            last = min(first + rows, self.height)
            end = min(last + after, self.height)
            window = self.empty(before + last - first + after)
            start = before - len(carried) if first == 0 else 0
            fresh = start + len(carried)
            stop = fresh + end - done
            window[start:fresh] = carried
            self._fill(window[fresh:stop], done)
            window[stop : stop + len(bottom)] = bottom
            carried, done = window[len(window) - before - after :].clone(), end
            yield Window(first, last, window, slice(start, len(window) if wrap else stop))

    @property
    def row(self) -> int:
        """Bytes of one."""
        return self.channels * self.width * self.dtype.itemsize

    def _fill(self, rows: Tensor, first: int) -> None:
        if isinstance(self.kept, Tensor):
            rows.copy_(self.kept[first : first + len(rows)])
        elif len(rows):
            self.kept.read(first * self.row, rows)


class ScratchFile:
    """A file without a name, which is gone with the process at the latest. Read and written, not mapped: what is in it
    is no memory of the process.
    """

    def __init__(self, folder: Path, full: Callable[[], OSError]) -> None:
        self.file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        self.full = full  # what is raised when the disk is

    def read(self, at: int, into: Tensor) -> None:
        """Fill a contiguous tensor."""
        left = _bytes(into)
        self.file.seek(at)
        while left:
            n = self.file.readinto(left)
            if not n:
                raise OSError("a scratch file ended too early")
            left = left[n:]

    def write(self, at: int, given: Tensor) -> None:
        """Write a contiguous tensor."""
        left = _bytes(given)
        self.file.seek(at)
        while left:
            try:
                left = left[self.file.write(left) :]
            except OSError as error:
                raise (self.full() if error.errno in FULL else error) from None


class Scratch:
    """The feature maps of one picture: those of more than `limit` bytes are files in a folder, the others in memory.

    At the end of the block all of them are gone. OSError if the disk has no room for `needed` bytes, all that will be
    in files at one time; at once, or when another has filled it meanwhile.
    """

    def __init__(self, limit: float, needed: int, folder: Path | None = None) -> None:
        self.limit, self.needed, self.folder = limit, needed, folder or scratch_folder()
        self.maps: list[FeatureMap] = []
        self.peak = 0  # of the bytes in files

    def __enter__(self) -> "Scratch":
        if self.needed and shutil.disk_usage(self.folder).free < self.needed:
            raise self.full()
        return self

    def __exit__(self, *_: object) -> None:
        for kept in list(self.maps):
            self.release(kept)

    def new(self, height: int, channels: int, width: int, dtype: torch.dtype) -> FeatureMap:
        """Room for a map."""
        shape, size = (height, channels, width), height * channels * width * dtype.itemsize
        kept = torch.empty(shape, dtype=dtype) if size <= self.limit else ScratchFile(self.folder, self.full)
        made = FeatureMap(shape, dtype, kept)
        self.maps.append(made)
        self.peak = max(self.peak, sum(m.height * m.row for m in self.maps if isinstance(m.kept, ScratchFile)))
        return made

    def release(self, done: FeatureMap) -> None:
        """The map is not needed any more; one that was given from outside is left alone."""
        if done in self.maps:
            self.maps.remove(done)
            if isinstance(done.kept, ScratchFile):
                done.kept.file.close()
            done.kept = done.empty(0)

    def full(self) -> OSError:
        """What to say when there is no room."""
        error = OSError(
            f"there is no room in {self.folder}: this picture needs {self.needed / 2**30:.2f} GiB of scratch there; "
            "free some, or name another folder in TMPDIR"
        )
        error.errno = errno.ENOSPC
        return error


def scratch_folder() -> Path:
    """The folder for temporary files, where the environment names one; else /var/tmp, which unlike /tmp is a disk."""
    large = Path("/var/tmp")
    named = any(os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    return large if not named and os.access(large, os.W_OK) else Path(tempfile.gettempdir())


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.flatten().view(torch.uint8).numpy().data
