"""Tensors in a file, read when they are asked for.

Safetensors files and the checkpoints of `torch.save` are told apart by what is in them. Nothing in a file runs, and
opening one costs no more than a reading of its head.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sfumato.io import ckpt, safetensors_file
from sfumato.io.head import Budget, Entry, Head, Source, quoted

__all__ = ["Entry", "Stored", "open_stored"]

_ZIP = b"PK\x03\x04"
_AGAIN = "download the file itself"
_OTHERS = (
    (b"version https://git-lfs", "is a git-lfs pointer, not the file that it stands for; run `git lfs pull`"),
    (b"<", f"is a web page, perhaps of an error or a login; {_AGAIN}"),
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "was saved by torch before 1.6; load and save it with a newer torch"),
    (b"\x80", "is a bare pickle; a checkpoint is a zip that torch.save wrote, 1.6 or later"),
    (b"PK", "is an empty zip, or one part of several; a checkpoint is one that torch.save wrote"),
    (b"\x1f\x8b", "is compressed with gzip; unpack it first"),
    (b"7z\xbc\xaf", "is a 7z archive; unpack it first"),
    (b"Rar!", "is a RAR archive; unpack it first"),
    (b"GGUF", "is a GGUF file; get the safetensors file that it was made from"),
    (b"\x89HDF", "is an HDF5 file; get the safetensors file of the same model"),
)
_TAR = (257, b"ustar", "is a tar archive; unpack it, or load it with an old torch and save it with a newer one")


@dataclass(frozen=True, eq=False)
class Stored:
    """The tensors of a file by name.

    `entries` has the shape and type of each, known without reading it. `metadata` is a safetensors file's
    `__metadata__`; of a checkpoint the plain scalars beside the tensors, such as "global_step". The file is mapped into
    memory when it is opened, so it may be renamed or deleted afterwards, but must not be cut or written to.
    """

    path: Path
    entries: Mapping[str, Entry] = field(repr=False)
    metadata: Mapping[str, str | int | float | bool] = field(repr=False)
    _bytes: mmap.mmap = field(repr=False)

    def tensor(self, name: str) -> Tensor:
        """One tensor on the CPU, with the shape, type and strides that it was saved with.

        It is a window on the mapped file: nothing is read before it is used, and memory that is written to is copied
        first, so that the file never changes. Two tensors that share memory in a file do here, as do two calls with
        the same name. (Where the file has a number across its alignment, the tensor is a copy.) ValueError if there is
        no such tensor.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise ValueError(f"{self.path} holds no tensor {quoted(name)}")
        if 0 in entry.shape:
            return torch.empty(entry.shape, dtype=entry.dtype, device="cpu")
        window = torch.frombuffer(self._bytes, dtype=torch.uint8, count=entry.extent, offset=entry.start)
        piece = (window.clone() if window.data_ptr() % entry.dtype.itemsize else window).untyped_storage()
        return torch.empty(0, dtype=entry.dtype, device="cpu").set_(piece, 0, entry.shape, entry.stride)

    def release(self, name: str) -> None:
        """Give back the memory that reading a tensor took, after its numbers were copied elsewhere.

        The tensor can be read again. What was written into it is forgotten.
        """
        entry, page = self.entries[name], mmap.PAGESIZE
        first, last = -(-entry.start // page) * page, (entry.start + entry.extent) // page * page
        if last > first and hasattr(mmap, "MADV_DONTNEED"):
            self._bytes.madvise(mmap.MADV_DONTNEED, first, last - first)


def open_stored(path: Path) -> Stored:
    """The tensors of a file, told by its content; all that is wrong is a ValueError of one line that names it."""
    try:
        size = _size(path)
        with path.open("rb", buffering=0) as file:
            head = _head(Source(file, size))
            mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)  # what is written there stays there
    except OSError as error:
        raise ValueError(f"{path} cannot be opened ({error.strerror or error})") from None
    except UnicodeError as error:
        raise ValueError(f"{path} cannot be opened ({error})") from None
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None
    return Stored(path, head.entries, head.metadata, mapped)


def _size(path: Path) -> int:
    found = os.stat(path)  # noqa: PTH116  # `Path.stat` says the same of a name with a zero byte in more words
    if stat.S_ISDIR(found.st_mode):
        raise ValueError("is a folder; give the .safetensors or .ckpt file in it")
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("is a pipe or a device; give a plain file")
    if not found.st_size:
        raise ValueError("is empty; get it again")
    return found.st_size


def _head(source: Source) -> Head:
    """What the file says of itself, or what it is instead."""
    start, budget = source.read(0, min(source.size, 512)), Budget(source.size)
    if start.startswith(_ZIP):
        return ckpt.read_head(source, budget)
    if start[8:9] == b"{":
        return safetensors_file.read_head(source, budget)
    offset, sign, what = _TAR
    if start[offset:].startswith(sign):
        raise ValueError(what)
    for sign, what in _OTHERS:
        if start.lstrip(b" \t\r\n\xef\xbb\xbf").startswith(sign):
            raise ValueError(what)
    raise ValueError("is neither a safetensors file nor a checkpoint of torch.save; get it again")
