"""What lies below a folder: every file once, and no way out of it by a name that somebody wrote down."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from posixpath import splitext
from typing import NamedTuple


class Files(NamedTuple):
    """The files below a folder by name, with forward slashes and in order; hidden ones are not among them."""

    root: Path
    sizes: dict[str, int]  # in bytes
    left_out: dict[str, str]  # what is no file that can be read, and why


def walk(root: Path) -> Files:
    """The files below `root`, one stat each; ValueError if it is no folder.

    Links to files are files. Links to folders are followed after all else, and never into a folder that was read
    already or that lies above `root`, so that every walk ends.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: there is no such folder")
    files = Files(root, {}, {})
    seen = {_identity(above) for above in root.resolve().parents}
    folders, links = [""], []
    while folders or links:
        if not folders:
            links.sort(reverse=True)
        name = folders.pop() if folders else links.pop()
        try:
            identity = _identity(root / name)
            if identity in seen:
                files.left_out[name] = "a link to a folder that is read already, or that lies above"
                continue
            seen.add(identity)
            for child, is_link in _read(files, name):
                (links if is_link else folders).append(child)
        except OSError as error:
            files.left_out[name] = f"a folder that cannot be opened ({error.strerror or error})"
    return Files(root, dict(sorted(files.sizes.items())), dict(sorted(files.left_out.items())))


def _read(files: Files, folder: str) -> Iterator[tuple[str, bool]]:
    """Notes the files in one folder; yields the folders in it, and whether they are links."""
    with os.scandir(files.root / folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                yield name, False
                continue
            try:
                found = entry.stat()
            except OSError as error:
                files.left_out[name] = f"cannot be opened ({error.strerror or error})"
                continue
            if stat.S_ISDIR(found.st_mode):
                yield name, True
            elif stat.S_ISREG(found.st_mode):
                files.sizes[name] = found.st_size
            else:
                files.left_out[name] = "a pipe or a device"


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def ending(name: str) -> str:
    """ "x/a.PNG" -> ".png"."""
    return splitext(name)[1].lower()


def leaves(name: str) -> bool:
    """Whether a path that somebody wrote down leads out of the folder that it is relative to."""
    windows = PureWindowsPath(name)
    return bool(windows.drive or windows.root) or ".." in windows.parts
