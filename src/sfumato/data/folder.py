"""A folder of pictures is a data set: captions in sidecars or metadata files, classes in sub-folders, boxes beside."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from sfumato.data import metadata, yolo
from sfumato.data.listing import ENDINGS, Entry, Listing, caption, unused
from sfumato.data.rectangles import Written
from sfumato.data.sidecars import CAPTIONS, boxes_beside, captions_beside
from sfumato.data.walk import Files, ending

CLASSES = "folder of classes"
IMAGES = "images/"


def listing(files: Files, *, split: str = "") -> Listing:
    """The pictures below a folder by path; of those in `split` ("train/") alone if one is given.

    The caption of `x.png` is, in this order: the `text` of its `file_name` in a `metadata.jsonl` or
    `metadata.csv` beside or above it, the sidecar `x.txt`, the name of its class. There are classes when
    every picture lies in a sub-folder; labels number these sub-folders by name. Its boxes are, in this order:
    the `objects` in its metadata, the sidecar `x.bbox`, YOLO's `x.txt`, which is no caption then.
    """
    everything = {name for name in files.sizes if ending(name) in ENDINGS}
    pictures = {name: name[len(split) :] for name in files.sizes if name in everything and name.startswith(split)}
    texts, described, written = _metadata(files, everything, split)
    marked = boxes_beside(files, pictures, written)
    said = captions_beside(files, [name for name in pictures if not texts.get(name)], marked, written.problems)
    folders = {name: _class_of(inside, mirrored=marked.mirrored) for name, inside in pictures.items()}
    classed = all(folders.values())
    sources = dict.fromkeys(PurePosixPath(name).name for name in described)
    entries: list[Entry] = []
    for name in pictures:
        text = texts.get(name) or said.get(name, "")
        if name in said:
            sources[CAPTIONS] = None
        if classed and not text:
            text = _words(folders[name])
            sources[CLASSES] = None
        entries.append(
            Entry(
                files.root / name,
                name,
                files.sizes[name],
                (text,) if text else (),
                folders[name] if classed else "",
                boxes=written.layout(name),
            )
        )
    used = {*pictures, *described, *marked.used, *(yolo.beside(name) for name in pictures)}
    return Listing(
        files.root,
        ", ".join([*sources, *marked.kinds]) or "pictures without captions",
        tuple(entries),
        tuple(sorted(set(folders.values()))) if classed else (),
        tuple(written.problems),
        files.left_out | {name: unused(name, split) for name in files.sizes if name not in used},
        written.flat,
    )


def _metadata(files: Files, pictures: set[str], split: str) -> tuple[Mapping[str, str], list[str], Written]:
    """What metadata files say of pictures, which files these are, and the boxes in them."""
    texts: dict[str, str] = {}
    found: list[str] = []
    written = Written()
    for name in files.sizes:
        path = PurePosixPath(name)
        if path.name in metadata.NAMES and (name.startswith(split) or "/" not in name):
            written.problems.extend(metadata.describe(files.root / name, path.parent, pictures, texts, written))
            found.append(name)
    return texts, found, written


def _class_of(inside: str, *, mirrored: bool) -> str:
    """The sub-folder in which a picture lies, "" if it is in none; images/ is none where there is labels/ beside."""
    inside = inside.removeprefix(IMAGES) if mirrored else inside
    return inside.partition("/")[0] if "/" in inside else ""


def _words(folder: str) -> str:
    """A class folder as a caption: "10_sunset_photo" -> "sunset photo"."""
    return caption(re.sub(r"[_\s]+", " ", re.sub(r"^\d+_", "", folder)))
