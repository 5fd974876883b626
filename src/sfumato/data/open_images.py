"""Open Images' tables of boxes are a data set: the pictures that are there of those that a CSV file names."""

from __future__ import annotations

import csv
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from posixpath import splitext

from sfumato.boxes import Modifier
from sfumato.data import parts, rectangles
from sfumato.data.listing import ENDINGS, NOT_A_PICTURE, Entry, Listing, caption, shown
from sfumato.data.rectangles import Written
from sfumato.data.sidecars import boxes_beside, captions_beside
from sfumato.data.walk import Files, ending

KIND = "Open Images boxes"
COLUMNS = ("ImageID", "LabelName", "XMin", "YMin", "XMax", "YMax")
"""What a table must have."""
MODIFIERS = {
    "IsGroupOf": Modifier.GROUP,
    "IsOccluded": Modifier.OCCLUDED,
    "IsDepiction": Modifier.DEPICTION,
    "IsInside": Modifier.INSIDE,
}
"""What it may have: 1 where it is so, 0 where it is not, -1 where nobody knows, which counts as 0."""
NO = ("0", "-1", "")
_OURS = re.compile(r"(.*/)?[^/]*-annotations-bbox\.csv")
_NAMES = re.compile(r"(.*/)?[^/]*class-descriptions[^/]*\.csv")


def recognised(files: Files, part: str = parts.TRAIN) -> Listing | None:
    """The pictures that `*-annotations-bbox.csv`, or a table at the top with these columns, names; None without one.

    Where there are tables for training and others, those of the `part` alone are read. A picture is called as its
    ImageID, wherever it lies; most people have a few of Open Images' pictures, so those that are not there are passed
    over.
    """
    found = [name for name in files.sizes if _OURS.fullmatch(name) or _is_table(files, name)]
    if not found:
        return None
    chosen = parts.files(files.root, found, part)
    tables = _Tables(files)
    named = [name for name in files.sizes if _NAMES.fullmatch(name)]
    for name in named:
        tables.read_labels(files.root / name)
    for name in chosen:
        tables.read(files.root / name, near=parts.part_of(PurePosixPath(name).name))
    kind = KIND if len(chosen) == len(found) else f"{KIND}, {part} alone"
    return _listing(files, tables, kind, [*chosen, *named], chosen)


def _listing(files: Files, tables: _Tables, kind: str, read: Sequence[str], chosen: Sequence[str]) -> Listing:
    written, pictures = tables.written, sorted(tables.written.boxes)
    marked = boxes_beside(files, pictures, Written())  # YOLO's labels are no captions
    said = captions_beside(files, pictures, marked, written.problems)
    unnamed = f"not named in {shown(', '.join(sorted(PurePosixPath(name).name for name in chosen)))}"
    left_out = {
        name: unnamed if ending(name) in ENDINGS else NOT_A_PICTURE
        for name in files.sizes
        if name not in written.boxes and name not in read
    }
    if tables.missing:
        first = f"{min(tables.missing)}.jpg"
        if not pictures:
            written.problems.append(
                f"{shown(files.root)}: there is none of the pictures that are named, first {first!r}"
            )
        left_out[first] = f"named and not here, as {len(tables.missing) - 1:,} others are"
    entries = (
        Entry(files.root / name, name, files.sizes[name], captions, boxes=written.layout(name))
        for name, captions in ((name, tuple(filter(None, [said.get(name)]))) for name in pictures)
    )
    return Listing(
        files.root, kind, tuple(entries), (), tuple(written.problems), files.left_out | left_out, written.flat
    )


@dataclass(slots=True)
class _Tables:
    """What tables say of the pictures that are there."""

    files: Files
    labels: dict[str, str] = field(default_factory=dict)  # MID -> name
    written: Written = field(default_factory=Written)
    missing: set[str] = field(default_factory=set)
    places: dict[str, list[str]] = field(default_factory=dict)  # ImageID -> addresses

    def __post_init__(self) -> None:
        for name in self.files.sizes:
            if ending(name) in ENDINGS:
                self.places.setdefault(splitext(name.rpartition("/")[2])[0], []).append(name)

    def read(self, path: Path, *, near: str) -> None:
        """Reads a table; `near` is the part that it is about."""
        column: dict[str, int] = {}
        try:
            for number, row in _rows(path):
                if not column:
                    column = {name.strip(): at for at, name in enumerate(row)}
                    if not column.keys() >= set(COLUMNS):
                        raise ValueError(f"line {number}: it must name the columns {', '.join(COLUMNS)}")
                    continue
                try:
                    self._row(row, column, near)
                except ValueError as error:
                    self.written.problems.append(f"{shown(path)}, line {number}: {error}")
        except ValueError as error:
            self.written.problems.append(f"{shown(path)}, {error}")

    def read_labels(self, path: Path) -> None:
        """Reads what labels are called: "/m/0xyz,Name"."""
        try:
            for number, row in _rows(path):
                if len(row) < 2 or not caption(row[1]):  # noqa: PLR2004
                    raise ValueError(f"line {number}: a label and its name are expected")
                self.labels[row[0]] = caption(row[1])
        except ValueError as error:
            self.written.problems.append(f"{shown(path)}, {error}")

    def _row(self, row: Sequence[str], column: Mapping[str, int], near: str) -> None:
        """One box; ValueError if it cannot be used."""
        if len(row) < len(column):
            raise ValueError(f"it has {len(row)} columns, and the first line {len(column)}")
        ident = row[column["ImageID"]]
        if ident not in self.places:
            self.missing.add(ident)
            return
        place = self._place(ident, near)
        label = row[column["LabelName"]]
        if self.labels and label not in self.labels:
            raise ValueError(f"there is no name for the label {label[:40]!r} in a class-descriptions file")
        corners = [_number(row[column[name]]) for name in COLUMNS[2:]]
        modifiers = sum(modifier for name, modifier in MODIFIERS.items() if name in column and _yes(row[column[name]]))
        name = sys.intern(self.labels.get(label) or rectangles.label(label))
        self.written.add(place, rectangles.box(name, corners, modifiers=modifiers))

    def _place(self, ident: str, near: str) -> str:
        found = self.places[ident]
        if len(found) > 1:
            found = [name for name in found if near and near in map(parts.part_of, name.split("/")[:-1])] or found
        if len(found) > 1:
            raise ValueError(f"{ident!r} may be {found[0]!r} or {found[1]!r}; a picture may be there once")
        return found[0]


def _number(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"{text[:40]!r} is no place in a picture; it must be a number from 0 to 1")
    return found


def _yes(text: str) -> bool:
    if text != "1" and text not in NO:
        raise ValueError(f"{text[:40]!r} is neither 1 nor 0 nor -1")
    return text == "1"


def _is_table(files: Files, name: str) -> bool:
    """Whether a file at the top has the columns of a table."""
    if "/" in name or ending(name) != ".csv":
        return False
    try:
        return set(COLUMNS) <= {column.strip() for column in next(_rows(files.root / name), (1, []))[1]}
    except ValueError:
        return False


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file that are not empty, and their lines; ValueError says in which one it ends to be one."""
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            for row in reader:
                number = reader.line_num
                if row:
                    yield number, row
    except UnicodeDecodeError:
        raise ValueError(f"line {number + 1}: not UTF-8 text; save the file again as UTF-8") from None
    except csv.Error as error:
        raise ValueError(f"line {number + 1}: not CSV ({error})") from None
    except OSError as error:
        raise ValueError(f"line {number + 1}: the file cannot be opened ({error.strerror or error})") from None
