"""metadata.jsonl and metadata.csv: a picture and its caption a line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from sfumato.data.listing import caption, shown
from sfumato.data.walk import leaves

NAMES = ("metadata.jsonl", "metadata.csv")


class Row(NamedTuple):
    """What one line of metadata says."""

    file_name: str
    text: str


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
    return Row(file_name, caption(text or ""))


def read_json_line(line: str) -> Row:
    """One line of metadata.jsonl; ValueError says what is wrong."""
    try:
        fields: object = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError('not JSON; a line looks like {"file_name": "x.png", "text": "a caption"}') from None
    return read_row(fields)


def describe(path: Path, folder: PurePosixPath, pictures: Collection[str], texts: dict[str, str]) -> Iterator[str]:
    """Puts the captions of a metadata file into `texts`, by picture; yields what is wrong, a line each."""
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
            try:
                yield reader.line_num, read_row(fields)
            except ValueError as error:
                yield reader.line_num, error
    except csv.Error as error:
        yield reader.reader.line_num, ValueError(f"not CSV ({error})")
