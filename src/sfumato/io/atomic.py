"""Writing so that a reader sees all of it or none: to a neighbour first, to the disk, then by one rename."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def write_bytes(path: Path, data: bytes, *, new: bool = False) -> None:
    """Write a file whole. With `new`, FileExistsError if there is one, whoever made it."""
    with file(path, new=new) as written:
        written.write(data)


@contextmanager
def file(path: Path, *, new: bool = False) -> Iterator[BinaryIO]:
    """A temporary file that takes the place of `path` when the block ends well, and vanishes when it does not.

    Folders above it are made. With `new`, FileExistsError if there is a file at `path` by then, whoever made it. An
    OSError, of a full disk for instance, names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _named(path):
        try:
            with beside.open("wb") as written:
                yield written
                written.flush()
                os.fsync(written.fileno())
            if not (new and _linked(beside, path)):
                beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        _sync(path.parent)


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `path` when the block ends well, and vanishes when it does not.

    An OSError names a file, or the folder.
    """
    beside = staged(path)
    with _named(path):
        try:
            yield beside
            put(beside, path)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def staged(path: Path) -> Path:
    """An empty folder beside `path`, to be filled and `put` in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    return beside


def put(beside: Path, path: Path) -> None:
    """Let a folder take the place of `path`, when all of it is on the disk."""
    old = path.with_name(f".{path.name}.{os.getpid()}.old.tmp")
    for file in beside.rglob("*"):
        _sync(file)
    if path.exists():
        path.replace(old)
    try:
        beside.replace(path)
    except OSError:
        if old.exists():
            old.replace(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
    _sync(path.parent)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """An OSError that names no file, as those of a full disk do not, names this one."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def check_writable(folder: Path) -> None:
    """ValueError if nothing could be written below `folder`, which need not exist yet."""
    nearest = folder.absolute()
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise ValueError(f"{folder} cannot be a folder, for {nearest} is a file; choose another place")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"{folder} cannot be written, {nearest} does not allow it; choose another place")


def _linked(beside: Path, path: Path) -> bool:
    """Whether the file has its name now; FileExistsError if another has it. Some file systems know no links."""
    try:
        os.link(beside, path)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
