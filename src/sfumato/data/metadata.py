"""metadata.jsonl and metadata.csv: a picture, its caption and its boxes a line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from sfumato.data import rectangles
from sfumato.data.listing import caption, shown, sides_of
from sfumato.data.rectangles import Written
from sfumato.data.walk import leaves

NAMES = ("metadata.jsonl", "metadata.csv")
LABELS = ("categories", "category", "labels", "label")
"""Keys of "objects" that have been seen to hold what the objects are."""


class Object(NamedTuple):
    """A thing in a picture."""

    label: str
    bbox: Sequence[float]  # left, top, width and height in pixels


class Row(NamedTuple):
    """What one line of metadata says."""

    file_name: str
    text: str
    objects: tuple[Object, ...] | None = None  # None where nothing is said of them


def read_row(fields: object) -> Row:
    """The parsed object of a line -> what it says, `text` or `caption`; neither is ""; ValueError if unusable."""
    if not isinstance(fields, dict):
        raise ValueError(f"a {type(fields).__name__}; an object with 'file_name' and 'text' is expected")
    file_name: object = fields.get("file_name")
    key = "caption" if fields.get("text") in (None, "") else "text"
    text: object = fields.get(key)
    if not isinstance(file_name, str) or not file_name:
        raise ValueError("'file_name' is missing; it is the path of a picture, relative to this file")
    if not isinstance(text, str | None):
        raise ValueError(f"{key!r} is a {type(text).__name__}; it must be the caption, a string")
    if leaves(file_name):
        raise ValueError(f"'file_name' is {file_name!r}, which leaves the folder; it is relative and without '..'")
    return Row(file_name, caption(text or ""), read_objects(fields.get("objects")))


def read_objects(said: object) -> tuple[Object, ...] | None:
    """What "objects" of a line is: a list of boxes, and one of names or numbers; ValueError if it is something else."""
    if said is None:
        return None
    boxes = said.get("bbox") if isinstance(said, dict) else None
    labels = next((said[key] for key in LABELS if key in said), None) if isinstance(said, dict) else None
    if not isinstance(boxes, list) or not isinstance(labels, list):
        raise ValueError("'objects' must be an object with the lists 'bbox' and 'categories'")
    if len(boxes) != len(labels):
        raise ValueError(f"'objects' has {len(boxes)} boxes and {len(labels)} categories; each box has one")
    return tuple(
        Object(rectangles.label(name), rectangles.numbers(box, f"'bbox' {number} of 'objects'"))
        for number, (name, box) in enumerate(zip(labels, boxes, strict=True))
    )


def read_json_line(line: str) -> Row:
    """One line of metadata.jsonl; ValueError says what is wrong."""
    try:
        fields: object = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError('not JSON; a line looks like {"file_name": "x.png", "text": "a caption"}') from None
    return read_row(fields)


def describe(
    path: Path, folder: PurePosixPath, pictures: Collection[str], texts: dict[str, str], boxes: Written
) -> Iterator[str]:
    """Puts what a metadata file says into `texts` and `boxes`, by picture; yields what is wrong, a line each.

    Where it says something of boxes, which are in pixels, the header of the picture is read.
    """
    for number, found in _rows(path):
        if isinstance(found, ValueError):
            yield f"{shown(path)}, line {number}: {found}"
            continue
        name = str(folder / found.file_name)
        if name not in pictures:
            yield f"{shown(path)}, line {number}: there is no picture {found.file_name!r} beside this file"
        elif name in texts:
            yield f"{shown(path)}, line {number}: {found.file_name!r} is described a second time; keep one"
        else:
            texts[name] = found.text
            if found.objects is not None:
                yield from _boxes(name, found, path, number, boxes)


def _boxes(name: str, row: Row, path: Path, number: int, out: Written) -> Iterator[str]:
    sides = sides_of(path.parent / row.file_name)
    out.boxes[name] = []
    if sides is None:  # of a picture that cannot be read
        return
    for thing in row.objects or ():
        try:
            corners = rectangles.from_corner(*thing.bbox)
            out.add(name, rectangles.box(thing.label, corners, sides))
        except ValueError as error:
            yield f"{shown(path)}, line {number}: {error}"


def _rows(path: Path) -> Iterator[tuple[int, Row | ValueError]]:
    """Line numbers and what the lines say, or what is wrong with them."""
    try:
        data = path.read_bytes()
    except OSError as error:
        yield 1, ValueError(f"the file cannot be opened ({error.strerror or error})")
        return
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield (
            data.count(b"\n", 0, error.start) + 1,
            ValueError("not UTF-8 text; save the file again as UTF-8"),
        )
        return
    yield from _json_rows(text) if path.suffix == ".jsonl" else _csv_rows(text)


def _json_rows(text: str) -> Iterator[tuple[int, Row | ValueError]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, read_json_line(line)
            except ValueError as error:
                yield number, error


def _csv_rows(text: str) -> Iterator[tuple[int, Row | ValueError]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        if "file_name" not in (reader.fieldnames or ()):
            yield 1, ValueError("the first line must name the columns: file_name,text")
            return
        for fields in reader:
            fields.pop("objects", None)  # a cell has no lists in it
            try:
                yield reader.line_num, read_row(fields)
            except ValueError as error:
                yield reader.line_num, error
    except csv.Error as error:
        yield reader.reader.line_num, ValueError(f"not CSV ({error})")
