"""A folder of pictures is a data set: captions in sidecars or metadata files, classes in sub-folders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from posixpath import splitext

from sfumato.data import metadata
from sfumato.data.listing import ENDINGS, Entry, Listing, caption, shown, unused
from sfumato.data.walk import Files, ending

BESIDE = "captions beside the pictures"
CLASSES = "folder of classes"


def listing(files: Files, *, split: str = "") -> Listing:
    """The pictures below a folder by path; of those in `split` ("train/") alone if one is given.

    The caption of `x.png` is, in this order: the `text` of its `file_name` in a `metadata.jsonl` or
    `metadata.csv` beside or above it, the sidecar `x.txt`, the name of its class. There are classes when
    every picture lies in a sub-folder; labels number these sub-folders by name.
    """
    everything = {name for name in files.sizes if ending(name) in ENDINGS}
    pictures = {name: name[len(split) :] for name in files.sizes if name in everything and name.startswith(split)}
    texts, described, problems = _metadata(files, everything, split)
    folders = {name: inside.partition("/")[0] if "/" in inside else "" for name, inside in pictures.items()}
    classed = all(folders.values())
    entries: list[Entry] = []
    sources = dict.fromkeys(PurePosixPath(name).name for name in described)
    used = {*pictures, *described}
    for name in pictures:
        beside = f"{splitext(name)[0]}.txt"
        text = texts.get(name, "")
        if not text and beside in files.sizes:
            try:
                text = _sidecar(files.root / beside)
            except ValueError as error:
                problems.append(str(error))
            sources[BESIDE] = None
        if beside in files.sizes:
            used.add(beside)
        if classed and not text:
            text = _words(folders[name])
            sources[CLASSES] = None
        said = (text,) if text else ()
        entries.append(Entry(files.root / name, name, files.sizes[name], said, folders[name] if classed else ""))
    return Listing(
        files.root,
        ", ".join(sources) or "pictures without captions",
        tuple(entries),
        tuple(sorted(set(folders.values()))) if classed else (),
        tuple(problems),
        files.left_out | {name: unused(name, split) for name in files.sizes if name not in used},
    )


def _metadata(files: Files, pictures: set[str], split: str) -> tuple[Mapping[str, str], list[str], list[str]]:
    """What metadata files say of pictures, which files these are, and what is wrong with them."""
    texts: dict[str, str] = {}
    found: list[str] = []
    problems: list[str] = []
    for name in files.sizes:
        path = PurePosixPath(name)
        if path.name in metadata.NAMES and (name.startswith(split) or "/" not in name):
            problems.extend(metadata.describe(files.root / name, path.parent, pictures, texts))
            found.append(name)
    return texts, found, problems


def _words(folder: str) -> str:
    """A class folder as a caption: "10_sunset_photo" -> "sunset photo"."""
    return caption(re.sub(r"[_\s]+", " ", re.sub(r"^\d+_", "", folder)))


def _sidecar(path: Path) -> str:
    """The text beside a picture, in one line."""
    try:
        return caption(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError(f"{shown(path)}: not UTF-8 text; save it again as UTF-8") from None
    except OSError as error:
        raise ValueError(f"{shown(path)}: the file cannot be opened ({error.strerror or error})") from None
