"""COCO's captions and boxes are a data set: pictures that JSON files name, and all that these say of each, in order."""

from __future__ import annotations

import io
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from sfumato.boxes import Modifier
from sfumato.data import parts, rectangles
from sfumato.data.listing import ENDINGS, MOST_LOST, NOT_A_PICTURE, Entry, Listing, Sides, caption, shown, sides_of
from sfumato.data.lists import read_lists
from sfumato.data.rectangles import Written
from sfumato.data.sidecars import Marked, boxes_beside, captions_beside
from sfumato.data.walk import Files, ending, leaves

_KINDS = "captions|instances|stuff"
_OURS = re.compile(rf"annotations/({_KINDS})(_[^/]*)?\.json")
_PERHAPS = re.compile(rf"(({_KINDS})[^/]*|annotations)\.json")
_PREFIX = re.compile(rf"({_KINDS})_?")
_KEPT = ("id", "file_name", "width", "height", "name", "image_id", "caption", "category_id", "bbox", "iscrowd")
"""What is read of a row; outlines ("segmentation") are most of a file."""
BOXED = "has an 'image_id', a 'category_id' and a 'bbox'"


class Annotation(NamedTuple):
    """A box as it is in the file."""

    number: int  # of the row
    label: str
    bbox: Sequence[float]  # left, top, width and height in pixels
    modifiers: int


@dataclass(slots=True)
class Told:
    """What one JSON file says."""

    pictures: dict[int | str, str] = field(default_factory=dict)  # id -> file_name
    captions: dict[int | str, list[str]] = field(default_factory=dict)  # id of a picture -> captions in order
    problems: list[str] = field(default_factory=list)  # rows that cannot be used, and why
    sides: dict[int | str, tuple[int, int]] = field(default_factory=dict)  # id of a picture -> width and height
    boxes: dict[int | str, list[Annotation]] | None = None  # id of a picture -> boxes; None where no file says any


def recognised(files: Files, part: str = parts.TRAIN) -> Listing | None:
    """The pictures that `annotations/captions_*.json`, `instances_*` or `stuff_*`, or such files at the top, name; None
    if there are none.

    Where there are files for training and others ("captions_train2017.json"), those of the `part` alone are read. Rows
    that cannot be used are problems; pictures that are named and are not there are one, if they are more than 1 %.
    """
    ours = [name for name in files.sizes if _OURS.fullmatch(name)]
    if ours:
        chosen = parts.files(files.root, ours, part)
        found = {name: _told(files.root / name) for name in chosen}
        found = {name: told for name, told in found.items() if told != Told()}
        return _listing(files, found, f", {part} alone" if len(chosen) < len(ours) else "") if found else None
    found = {name: _told(files.root / name) for name in files.sizes if _PERHAPS.fullmatch(name)}
    found = {name: told for name, told in found.items() if told.pictures and (told.captions or told.boxes is not None)}
    if not found:
        return None
    chosen = parts.files(files.root, found, part)
    alone = f", {part} alone" if len(chosen) < len(found) else ""
    return _listing(files, {name: found[name] for name in chosen}, alone)


def _listing(files: Files, found: Mapping[str, Told], alone: str) -> Listing:
    joined = _Joined(files)
    for name, told in found.items():
        joined.add(name, told)
    captioned = any(told.captions for told in found.values()) or all(told.boxes is None for told in found.values())
    what = [*(["captions"] if captioned else []), *(["boxes"] if joined.written.boxes else [])]
    kind = f"COCO {' and '.join(what)}{alone}"
    marked = Marked()
    if not captioned:
        marked = boxes_beside(files, joined.captions, Written())  # YOLO's labels are no captions
        for name, text in captions_beside(files, joined.captions, marked, joined.written.problems).items():
            joined.captions[name].extend(filter(None, [text]))
    names = {PurePosixPath(name).name for name in found}
    unnamed = f"not named in {shown(', '.join(sorted(names)))}"
    return Listing(
        files.root,
        kind,
        tuple(joined.entry(name) for name in sorted(joined.captions)),
        (),
        tuple(joined.written.problems),
        files.left_out
        | {
            name: unnamed if ending(name) in ENDINGS else NOT_A_PICTURE
            for name in files.sizes
            if name not in joined.captions and name not in found
        },
        joined.written.flat,
    )


class _Joined:
    """What several files say, by the address of the picture."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.captions: dict[str, list[str]] = {}  # of every picture that is named
        self.written = Written()
        self.sides: dict[str, Sides] = {}
        self._places = _Places(files)

    def entry(self, name: str) -> Entry:
        """All of a picture."""
        captions, layout = tuple(self.captions[name]), self.written.layout(name)
        path, size = self.files.root / name, self.files.sizes[name]
        return Entry(path, name, size, captions, boxes=layout, sides=self.sides.get(name))

    def add(self, name: str, told: Told) -> None:
        """What one file says."""
        path = shown(self.files.root / name)
        self.written.problems.extend(f"{path}, {problem}" for problem in told.problems)
        missing: list[str] = []
        near = _PREFIX.sub("", PurePosixPath(name).stem, count=1)
        for ident, file_name in told.pictures.items():
            try:
                place = self._places.of(file_name, near=near)
            except ValueError as error:
                self.written.problems.append(f"{path}: {error}")
                continue
            if place is None:
                missing.append(file_name)
                continue
            self.captions.setdefault(place, []).extend(told.captions.get(ident, ()))
            if told.boxes is not None:
                self._box(path, place, told.boxes.get(ident, ()), told.sides.get(ident))
        if len(missing) > MOST_LOST * len(told.pictures):
            below = shown(self.files.root)
            count = f"{len(missing)} of {len(told.pictures)} pictures that it names are not below {below}"
            self.written.problems.append(f"{path}: {count}, first {missing[0]!r}")

    def _box(self, path: str, place: str, rows: Sequence[Annotation], said: tuple[int, int] | None) -> None:
        """The boxes of a picture that are in one file; `said` are its sides there."""
        self.written.boxes.setdefault(place, [])
        if said is not None:
            other = self.sides.setdefault(place, Sides(*said, path))
            if other[:2] != said:
                line = f"{place!r} is {said[0]} x {said[1]}, and {other.width} x {other.height} in {other.file}"
                self.written.problems.append(f"{path}: {line}")
        sides = said or (sides_of(self.files.root / place) if rows else None)
        if sides is None:  # there are none, or they are of a picture that cannot be read
            return
        for row in rows:
            try:
                box = rectangles.box(row.label, rectangles.from_corner(*row.bbox), sides, row.modifiers)
                self.written.add(place, box)
            except ValueError as error:
                self.written.problems.append(f"{path}, annotations[{row.number}]: {error}")


class _Places:
    """Where the pictures are that are called by a file name, or by the end of a path."""

    def __init__(self, files: Files) -> None:
        self.by_name: dict[str, list[str]] = {}
        for name in files.sizes:
            if ending(name) in ENDINGS:
                self.by_name.setdefault(name.rpartition("/")[2], []).append(name)

    def of(self, file_name: str, *, near: str) -> str | None:
        """The picture; of several the one in the folder `near`; ValueError if it remains unclear."""
        if leaves(file_name):
            raise ValueError(f"'file_name' is {file_name!r}, which leaves the folder; it is relative and without '..'")
        wanted = PurePosixPath(file_name)
        ends = f"/{wanted}"
        found = [name for name in self.by_name.get(wanted.name, ()) if f"/{name}".endswith(ends)]
        if len(found) > 1:
            found = [name for name in found if name == str(wanted) or near in name.split("/")] or found
        if len(found) > 1:
            raise ValueError(f"{file_name!r} may be {found[0]!r} or {found[1]!r}; name it with its folder")
        return found[0] if found else None


# The file -------------------------------------------------------------------------------------------------
def _told(path: Path) -> Told:
    kind = _PREFIX.match(path.name)
    try:
        with path.open("rb") as file:
            return read_file(file, boxes=kind is not None and kind[1] != "captions")
    except OSError as error:
        return Told(problems=[f"the file cannot be opened ({error.strerror or error})"])
    except ValueError as error:
        return Told(problems=[str(error)])


def read(data: bytes, *, boxes: bool = False) -> Told:
    """A file of COCO -> what it says; ValueError of one line if it is none."""
    return read_file(io.BytesIO(data), boxes=boxes)


def read_file(file: BinaryIO, *, boxes: bool) -> Told:
    """The same of an open file, a row at a time.

    Boxes are read where the file has categories, or should have them since it is called one of `boxes`; that one may
    also say nothing at all.
    """
    rows: dict[str, list[_Row | None]] = {"images": [], "annotations": [], "categories": []}
    there = read_lists(file, {key: lambda row, mine=mine: mine.append(_light(row)) for key, mine in rows.items()})
    if boxes and not there:
        return Told()
    if not {"images", "annotations"} <= there:
        what = "boxes" if boxes else "captions"
        raise ValueError(f"no {what} of COCO; it is an object with the lists 'images' and 'annotations'")
    told = Told()
    labels: dict[int | str, str] = {}
    if boxes or rows["categories"]:
        told.boxes = {}
        told.problems.extend(_categories(labels, rows["categories"]))
    told.problems.extend(_pictures(told, rows["images"]))
    told.problems.extend(_annotations(told, rows["annotations"], labels))
    return told


SIDE = 10**9  # pixels, at most: far more than any picture has, and a number that floats hold
_Row = Mapping[str, object]


def _light(row: object) -> _Row | None:
    """What is wanted of a row; None if it is no object."""
    return {key: row[key] for key in _KEPT if key in row} if isinstance(row, dict) else None


def _categories(labels: dict[int | str, str], rows: Iterable[_Row | None]) -> Iterator[str]:
    for number, row in enumerate(rows):
        ident, name = (row.get("id"), row.get("name")) if row else (None, None)
        if not isinstance(ident, int | str) or not isinstance(name, str) or not caption(name):
            yield f"categories[{number}]: it has an 'id', a number or a string, and a 'name'"
        elif labels.setdefault(ident, caption(name)) != caption(name):
            yield f"categories[{number}]: the id {ident!r} is that of {labels[ident]!r} already"


def _pictures(told: Told, rows: Iterable[_Row | None]) -> Iterator[str]:
    for number, row in enumerate(rows):
        ident, file_name = (row.get("id"), row.get("file_name")) if row else (None, None)
        if not isinstance(ident, int | str) or not isinstance(file_name, str) or not file_name:
            yield f"images[{number}]: it has an 'id', a number or a string, and a 'file_name'"
        elif told.pictures.setdefault(ident, file_name) != file_name:
            yield f"images[{number}]: the id {ident!r} is that of {told.pictures[ident]!r} already"
        elif told.boxes is not None and row:
            try:
                told.sides.update({ident: sides} if (sides := _sides(row)) else {})
            except ValueError as error:
                yield f"images[{number}]: {error}"


def _sides(row: _Row) -> tuple[int, int] | None:
    """Those of a picture, where they are said; ValueError if they cannot be."""
    match row.get("width"), row.get("height"):
        case None, None:
            return None
        case int(width), int(height) if 1 <= min(width, height) <= max(width, height) <= SIDE:
            return width, height
        case width, height:
            said = f"{reprlib.repr(width)} and {reprlib.repr(height)}"
            raise ValueError(f"its width and height are {said}; they are whole numbers of pixels")


def _annotations(told: Told, rows: Iterable[_Row | None], labels: Mapping[int | str, str]) -> Iterator[str]:
    """Annotations without a caption are boxes, or of another kind in a file that says none, and passed over."""
    for number, row in enumerate(rows):
        if row is not None and "caption" not in row:
            if told.boxes is not None:
                yield from _boxed(told.boxes, told, number, row, labels)
            continue
        if row is None and told.boxes is not None:
            yield f"annotations[{number}]: it is no object; one {BOXED}"
            continue
        ident, text = (row.get("image_id"), row["caption"]) if row else (None, None)
        if not isinstance(ident, int | str) or not isinstance(text, str):
            yield f"annotations[{number}]: it has an 'image_id' and a 'caption', a string"
        elif ident not in told.pictures:
            yield f"annotations[{number}]: there is no image with the id {ident!r}"
        elif said := caption(text):
            told.captions.setdefault(ident, []).append(said)


def _boxed(
    boxes: dict[int | str, list[Annotation]], told: Told, number: int, row: _Row, labels: Mapping[int | str, str]
) -> Iterator[str]:
    ident, category = row.get("image_id"), row.get("category_id")
    if not isinstance(ident, int | str) or not isinstance(category, int | str):
        yield f"annotations[{number}]: it {BOXED}"
    elif ident not in told.pictures:
        yield f"annotations[{number}]: there is no image with the id {ident!r}"
    elif category not in labels:
        yield f"annotations[{number}]: there is no category with the id {category!r}"
    else:
        try:
            bbox = rectangles.numbers(row.get("bbox"), "'bbox'")
        except ValueError as error:
            yield f"annotations[{number}]: {error}"
        else:
            modifiers = Modifier.GROUP if row.get("iscrowd") == 1 else 0
            boxes.setdefault(ident, []).append(Annotation(number, labels[category], bbox, int(modifiers)))
