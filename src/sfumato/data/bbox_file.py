"""`x.bbox`: the boxes of the picture beside it, as a JSON array, as JSON lines, or as YOLO has them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from posixpath import splitext

from sfumato.boxes import Box
from sfumato.data.listing import shown
from sfumato.data.rectangles import Written, box, label, numbers
from sfumato.data.yolo import NotYolo, boxed, read_line

KIND = "boxes beside the pictures"


def beside(name: str) -> str:
    """ "x/a.jpg" -> "x/a.bbox"."""
    return f"{splitext(name)[0]}.bbox"


def read(path: Path, name: str, out: Written, names: Mapping[int, str]) -> None:
    """Puts the boxes in a file into `out`, as those of the picture `name`; `names` are those of YOLO's classes."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        out.boxes.setdefault(name, [])
        for where, found in read_text(text, names):
            if isinstance(found, ValueError):
                out.problems.append(f"{shown(path)}, {where}: {found}")
            else:
                out.add(name, found)
    except UnicodeDecodeError:
        out.problems.append(f"{shown(path)}: not UTF-8 text; save it again as UTF-8")
    except OSError as error:
        out.problems.append(f"{shown(path)}: the file cannot be opened ({error.strerror or error})")


def read_text(text: str, names: Mapping[int, str]) -> Iterator[tuple[str, Box | ValueError | None]]:
    """Each entry: where it is, and its box, None if that has no area, or what is wrong with it."""
    if text.lstrip()[:1] == "[":
        try:
            rows: object = json.loads(text)
        except (ValueError, RecursionError):
            yield "line 1", ValueError("not JSON, though it begins with '['")
            return
        assert isinstance(rows, list)
        yield from ((f"entry {number}", _attempt(row)) for number, row in enumerate(rows, 1))
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number}", _line(line, names)


def _attempt(row: object) -> Box | ValueError | None:
    try:
        return read_row(row)
    except ValueError as error:
        return error


def _line(line: str, names: Mapping[int, str]) -> Box | ValueError | None:
    """One object, or one line of YOLO's."""
    try:
        return read_row(_object(line)) if line.lstrip()[0] == "{" else boxed(read_line(line), names)
    except ValueError as error:
        return error
    except NotYolo:
        return ValueError('it is no box; one is {"label": "cat", "bbox": [0.1, 0.2, 0.5, 0.9]}')


def _object(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError('not JSON; a line looks like {"label": "cat", "bbox": [0.1, 0.2, 0.5, 0.9]}') from None


def read_row(row: object) -> Box | None:
    """A parsed object -> its box, corners in parts of the picture; other keys are passed over."""
    if not isinstance(row, dict):
        raise ValueError(f"a {type(row).__name__}; an object with 'label' and 'bbox' is expected")
    return box(label(row.get("label")), numbers(row.get("bbox"), "'bbox'"))
