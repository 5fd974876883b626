"""Parts of a data set as people name them: for training, for validation and for testing."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from sfumato.data.listing import shown

TRAIN = "train"
FOLDERS = {TRAIN: TRAIN, "validation": "val", "valid": "val", "val": "val", "test": "test"}
"""Names of folders, and the part that lies in them."""


def part_of(name: str) -> str:
    """The part that a file is about, by its name: "captions_val2017" -> "val"; "" if it does not say."""
    return next((part for part in (TRAIN, "val", "test") if part in name), "")


def files(root: Path, names: Iterable[str], part: str) -> list[str]:
    """Of files by name, those that are about a part; all of them if none is about training, which is asked for."""
    by_name = {name: part_of(name.rpartition("/")[2]) for name in names}
    found = [name for name, mine in by_name.items() if mine == FOLDERS.get(part, part)]
    if not found and part != TRAIN:
        raise ValueError(missing(root, part, set(filter(None, by_name.values()))))
    return found or list(by_name)


def folder(root: Path, names: Collection[str], part: str) -> str:
    """ "train/" if all of these files lie in folders of parts, of which this one is asked for; "" for all of them."""
    tops = {name.partition("/")[0] if "/" in name else "" for name in names}
    there = tops if tops <= FOLDERS.keys() else set()
    found = [top for top in sorted(there) if top == part] or [
        top for top in sorted(there) if FOLDERS[top] == FOLDERS.get(part, part)
    ]
    if not found and part != TRAIN:
        raise ValueError(missing(root, part, there))
    return f"{found[0]}/" if found else ""


def missing(root: Path, part: str, there: Collection[str]) -> str:
    """The line that says that a part is not there, and which are."""
    others = f"there are: {', '.join(sorted(there))}" if there else "it has no parts, and is read whole"
    return f"{shown(root)}: there is no part {part!r}; {others}"
