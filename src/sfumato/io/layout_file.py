"""A layout file: JSON that says what is to be where, as people write it, or as COCO and sidecars of boxes have it.

A list of boxes, or an object with the list and more:

    [{"label": "dog", "box": [0.1, 0.2, 0.6, 0.9]}]         left, top, right, bottom in parts of the picture
    [{"label": "dog", "box": [64, 96, 384, 432], "unit": "px"}]                        the same in pixels
    [{"label": "dog", "bbox": [0.1, 0.2, 0.6, 0.9]}]        as .bbox sidecars have it: in parts; also in JSON lines
    [{"category": "dog", "bbox": [64, 96, 320, 336]}]       left, top, width and height in pixels, as COCO has it
    {"boxes": [...], "prompt": "a dog", "size": [640, 480]}   `size`, width and height, is what pixels refer to
    {"images": [one], "annotations": [...], "categories": [...]}   one picture's part of a COCO file
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sfumato.boxes import EDGE, Box, Layout, Modifier, boxed, four, listed, modified
from sfumato.registry import unknown

LARGEST = 16_000_000  # bytes of a file
BEYOND = 0.5  # pixels that a box may lie outside of the picture, for annotations are rounded
SIDE = 10**6  # pixels, at most

OBJECT = ("boxes", "prompt", "size", "annotations", "categories", "images", "info", "licenses")
OURS = ("label", "box", "unit", "modifiers")
SIDECAR = ("label", "bbox", "mask")  # which is passed over
COCO = (
    *("category", "category_id", "bbox", "id", "image_id", "area", "iscrowd", "segmentation"),
    *("keypoints", "num_keypoints"),
)
LOOKS = 'a layout is a list of boxes, as [{"label": "dog", "box": [0.1, 0.2, 0.6, 0.9]}], or an object with "boxes"'
PIXELS = 'pixels are said as "box" with "unit": "px", or as COCO\'s "bbox" with a "category"'
OF_ANOTHER = 'if they are those of a larger one, an object with the list as "boxes" says its "size"'

Size = tuple[float, float]
"""Width and height in pixels."""


class LayoutFile(NamedTuple):
    """What a file says."""

    boxes: Layout  # in the order of the file
    places: tuple[str, ...]  # where in the file each of them is, as "boxes[3]"
    prompt: str | None = None


def read(path: Path, size: Size) -> LayoutFile:
    """The layout in a file, whose pixels are those of a picture of `size` where it says no other.

    ValueError of one line that names the file, and the entry if it is one.
    """
    try:
        return parse(_text(path), size)
    except OSError as error:
        raise ValueError(f"{path} cannot be opened ({error.strerror or error})") from None
    except ValueError as error:
        said = str(error)
        raise ValueError(f"{path}{', ' if said.startswith(PLACES) else ': '}{said}") from None


PLACES = ("boxes[", "annotations[", "categories[", "line ")


def parse(text: str, size: Size) -> LayoutFile:
    """The layout that a text says. ValueError of one line, which begins with the entry if it is one."""
    found, lines = _json(text)
    if lines:
        return _entries(found, [f"line {number}" for number in lines], size)
    if isinstance(found, list):
        return _entries(found, [f"boxes[{i}]" for i in range(len(found))], size)
    if not isinstance(found, dict):
        raise ValueError(LOOKS)
    _known(found, OBJECT)
    list_key = "annotations" if "annotations" in found and "boxes" not in found else "boxes"
    entries = found.get(list_key)
    if not isinstance(entries, list) or ("annotations" in found and list_key == "boxes"):
        raise ValueError(f"it has no list 'boxes', nor 'annotations' in its place; {LOOKS}")
    prompt = found.get("prompt")
    if not isinstance(prompt, str | None):
        raise ValueError("'prompt' is no text; leave it out, or put it in quotes")
    places = [f"{list_key}[{i}]" for i in range(len(entries))]
    shown = _size(found)
    _of_one_picture(found, entries, places)
    return _entries(entries, places, shown or size, _names(found.get("categories")))._replace(prompt=prompt)


def _text(path: Path) -> str:
    if path.exists() and not path.is_file():
        raise ValueError("it is a folder, a pipe or a device; give a file")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"the file has over {LARGEST // 10**6} MB; give the layout of one picture")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"not UTF-8 text; save the file again as UTF-8, if it is text: {LOOKS}") from None


def _json(text: str) -> tuple[Any, list[int]]:
    """What the text says; if it is JSON lines, the objects, and the number of the line of each."""
    try:
        found = json.loads(text)
        alone = (
            isinstance(found, dict) and {"box", "bbox"} & found.keys() and not {"boxes", "annotations"} & found.keys()
        )
        return ([found], [text[: text.index("{")].count("\n") + 1]) if alone else (found, [])
    except RecursionError:
        raise ValueError(f"it is nested too deep; {LOOKS}") from None
    except ValueError as error:
        if (rows := _rows(text)) is not None:
            return rows
        where = (
            f"line {error.lineno}: not JSON ({error.msg})" if isinstance(error, json.JSONDecodeError) else "not JSON"
        )
        raise ValueError(f"{where}; {LOOKS}") from None


def _rows(text: str) -> tuple[list[Any], list[int]] | None:
    """The objects of JSON lines; None if the first line is none."""
    numbered = [(number, row) for number, row in enumerate(text.split("\n"), 1) if row.strip()]
    found: list[Any] = []
    for number, row in numbered:
        try:
            found.append(json.loads(row))
        except (ValueError, RecursionError):
            if not found:
                return None
            raise ValueError(f"line {number}: not JSON; each line is a box, as the first one") from None
        if not isinstance(found[0], dict):
            return None
    return (found, [number for number, _ in numbered]) if found else None


# The parts of an object -------------------------------------------------------------------------------------
def _size(found: Mapping[str, Any]) -> Size | None:
    """The size that pixels refer to: that which is said, or that of the one picture."""
    if "size" in found:
        return _pair(found["size"], "'size' is [width, height] in pixels")
    if "images" not in found:
        return None
    images = found["images"]
    if not isinstance(images, list) or len(images) != 1 or not isinstance(images[0], dict):
        raise ValueError("'images' is a list of one; give the part of one picture, and its annotations")
    return _pair([images[0].get("width"), images[0].get("height")], "images[0] has a 'width' and a 'height' in pixels")


def _pair(given: object, what: str) -> Size:
    sides = given if isinstance(given, list) else []
    good = [
        side for side in sides if isinstance(side, int | float) and not isinstance(side, bool) and 1 <= side <= SIDE
    ]
    if not len(good) == len(sides) == 2:  # noqa: PLR2004
        raise ValueError(f"{what}, two numbers from 1 to {SIDE:,}")
    return good[0], good[1]


def _names(categories: object) -> dict[Any, str]:
    """The names of COCO's categories by their ids."""
    names: dict[Any, str] = {}
    if not isinstance(categories, list | None):
        raise ValueError('\'categories\' is a list, as [{"id": 18, "name": "dog"}]')
    for i, row in enumerate(categories or ()):
        ident, name = (row.get("id"), row.get("name")) if isinstance(row, dict) else (None, None)
        if not _is_id(ident) or not isinstance(name, str):
            raise ValueError(f"categories[{i}]: it has an 'id', a whole number or text, and a 'name', text")
        if names.setdefault(ident, name) != name:
            raise ValueError(f"categories[{i}]: another one has the same id already; keep one")
    return names


def _is_id(given: object) -> bool:
    return isinstance(given, int | str) and not isinstance(given, bool)


def _of_one_picture(found: Mapping[str, Any], entries: list[Any], places: list[str]) -> None:
    """ValueError if annotations are of several pictures."""
    said = [(places[i], e["image_id"]) for i, e in enumerate(entries) if isinstance(e, dict) and "image_id" in e]
    image = found["images"][0].get("id") if "images" in found and "size" not in found else None
    first = said[0][1] if image is None and said else image
    for place, ident in said:
        if ident != first:
            raise ValueError(f"{place}: it is of another picture ('image_id') than the others; give those of one")


# Boxes ------------------------------------------------------------------------------------------------------
def _entries(entries: list[Any], places: list[str], size: Size, names: Mapping[Any, str] | None = None) -> LayoutFile:
    boxes = []
    for place, entry in zip(places, entries, strict=True):
        try:
            boxes.append(_box(entry, size, names or {}))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    return LayoutFile(tuple(boxes), tuple(places))


def _box(entry: object, size: Size, names: Mapping[Any, str]) -> Box:
    if not isinstance(entry, dict):
        raise ValueError('a box looks like {"label": "dog", "box": [0.1, 0.2, 0.6, 0.9]}')
    if {"category", "category_id"} & entry.keys():
        return _coco(entry, size, names)
    if "bbox" in entry and "box" not in entry:
        _known(entry, SIDECAR)
        return _part(entry.get("label"), entry["bbox"])
    _known(entry, OURS)
    unit, modifiers = entry.get("unit", "norm"), modified(entry["modifiers"]) if "modifiers" in entry else 0
    if unit not in ("norm", "px"):
        raise ValueError('\'unit\' is "norm", parts of the picture from 0 to 1, or "px", pixels')
    if unit == "px":
        return _pixels(entry.get("label"), entry.get("box"), modifiers, size)
    return _part(entry.get("label"), entry.get("box"), modifiers)


def _part(label: object, sides: object, modifiers: int = 0) -> Box:
    """A box in parts of the picture."""
    try:
        return boxed(label, sides, modifiers)
    except ValueError as error:
        pixels = max(four(sides) or (0,)) > 1 + EDGE
        raise ValueError(f"{error}; {PIXELS}" if pixels else str(error)) from None


def _pixels(label: object, sides: object, modifiers: int, size: Size) -> Box:
    """A box in pixels of a picture of this size."""
    try:
        return boxed(label, sides, modifiers, of=size, beyond=BEYOND)
    except ValueError as error:
        numbers = four(sides) or (0, 0, 0, 0)
        larger = numbers[2] > size[0] + BEYOND or numbers[3] > size[1] + BEYOND
        raise ValueError(f"{error}; {OF_ANOTHER}" if larger else str(error)) from None


def _coco(entry: Mapping[str, Any], size: Size, names: Mapping[Any, str]) -> Box:
    _known(entry, COCO)
    if "category" in entry:
        label = entry["category"]
    else:
        ident = entry["category_id"]
        label = names.get(ident) if _is_id(ident) else None
        if label is None:
            raise ValueError("'categories' beside the list says no name of this 'category_id'; or say it as 'category'")
    numbers = four(entry.get("bbox"))
    if numbers is None:
        raise ValueError("'bbox' is four finite numbers: left, top, width, height in pixels")
    left, top, width, height = numbers
    if width <= 0 or height <= 0:
        raise ValueError(f"'bbox' is {listed(numbers)}; its width and height, the last two, are above 0")
    modifiers = Modifier.GROUP if entry.get("iscrowd") in (1, True) else 0
    return _pixels(label, [left, top, left + width, top + height], int(modifiers), size)


def _known(found: Mapping[str, Any], known: Collection[str]) -> None:
    for key in found:
        if key not in known:
            shown = "".join(c if c.isprintable() else "?" for c in key[:40])
            raise ValueError(unknown("key", shown, known))
