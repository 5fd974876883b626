"""Files beside pictures: their captions and their boxes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from sfumato.data import bbox_file, yolo
from sfumato.data.class_names import class_names
from sfumato.data.listing import caption, shown
from sfumato.data.rectangles import Written
from sfumato.data.walk import Files

CAPTIONS = "captions beside the pictures"


class Marked(NamedTuple):
    """Which files say where something is in the pictures."""

    used: frozenset[str] = frozenset()
    kinds: tuple[str, ...] = ()  # in words
    mirrored: bool = False  # whether they are in labels/, and the pictures in images/


def boxes_beside(files: Files, pictures: Collection[str], out: Written) -> Marked:
    """Puts the boxes of pictures into `out`, from `x.bbox` or YOLO's labels; those that are there already stay."""
    labels = yolo.labels_of(files, pictures)
    marks = {name: other for name in pictures if (other := bbox_file.beside(name)) in files.sizes}
    if not labels and not marks:
        return Marked()
    names, source = class_names(files, out.problems)
    for name, other in marks.items():
        if name not in out.boxes:
            bbox_file.read(files.root / other, name, out, names)
    if labels:  # then a picture without a file has no boxes
        for name in [name for name in pictures if name not in out.boxes]:
            yolo.read(files.root, labels.get(name), name, out, names)
    kinds = (*((bbox_file.KIND,) if marks else ()), *((yolo.KIND,) if labels else ()))
    mirrored = any(yolo.mirror(name) == other for name, other in labels.items())
    return Marked(frozenset({*labels.values(), *marks.values(), *source}), kinds, mirrored)


def captions_beside(files: Files, pictures: Collection[str], marked: Marked, problems: list[str]) -> dict[str, str]:
    """What `x.txt` says of a picture, where it is there and has no boxes in it."""
    found: dict[str, str] = {}
    for name in pictures:
        other = yolo.beside(name)
        if other in files.sizes and other not in marked.used:
            try:
                found[name] = _text(files.root / other)
            except ValueError as error:
                found[name] = ""
                problems.append(str(error))
    return found


def _text(path: Path) -> str:
    """The text beside a picture, in one line."""
    try:
        return caption(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError(f"{shown(path)}: not UTF-8 text; save it again as UTF-8") from None
    except OSError as error:
        raise ValueError(f"{shown(path)}: the file cannot be opened ({error.strerror or error})") from None
