"""Tar shards are a data set: each picture where it lies in its shard, with the captions and the label beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from sfumato.data.listing import Entry, Listing, caption, shown
from sfumato.data.shards import IMAGES, Place, read_facts, read_label, scan

SAID = ("caption", "text")  # keys of a .json that hold a caption, or a list of them
MOST_CLASSES = 100_000


class _Told(NamedTuple):
    """What the files beside a picture say of it."""

    captions: tuple[str, ...]
    label: int | None


def listing(root: Path, shards: Mapping[str, Path]) -> Listing:
    """The pictures of shards, given by what their addresses begin with: "00000.tar/" or nothing for a single one.

    The captions of a picture are its .txt, else the `caption` or `text` of its .json; its label is its .cls. There
    are classes when every picture has a label. A damaged shard is a problem, and so is a file that cannot be read.
    """
    entries: list[Entry] = []
    problems: list[str] = []
    left_out: dict[str, str] = {}
    labels: list[int | None] = []
    for prefix, path in shards.items():
        try:
            samples = scan(path)
        except ValueError as error:
            problems.append(shown(str(error)))
            continue
        for key, kind, files in _pictures(samples):
            if kind is None:
                left_out[f"{prefix}{key}"] = "a sample without a picture"
                continue
            try:
                told = _told(path, files)
            except ValueError as error:
                problems.append(f"{shown(path)}: {shown(key)}: {shown(str(error))}")
                told = _Told((), None)
            labels.append(told.label)
            name = "" if told.label is None else str(told.label)
            place = files[kind]
            entries.append(Entry(path, f"{prefix}{key}.{kind}", place.size, told.captions, name, place.offset))
    kind = f"WebDataset shards, {len(shards)} file{'' if len(shards) == 1 else 's'}"
    classes = _classes(labels)
    if not classes:
        entries = [entry._replace(class_name="") for entry in entries]
    return Listing(root, kind, tuple(entries), classes, tuple(problems), left_out)


def _pictures(samples: Mapping[str, dict[str, Place]]) -> Iterator[tuple[str, str | None, dict[str, Place]]]:
    """Keys, the endings of their pictures if there are any, and their files."""
    for key, files in samples.items():
        yield key, next((kind for kind in files if kind in IMAGES), None), files


def _classes(labels: list[int | None]) -> tuple[str, ...]:
    """The names of all labels up to the largest, so that a label stays the number that it is."""
    numbers = [label for label in labels if label is not None]
    whole = len(numbers) == len(labels) > 0 and max(numbers) < MOST_CLASSES
    return tuple(map(str, range(max(numbers) + 1))) if whole else ()


def _told(path: Path, files: Mapping[str, Place]) -> _Told:
    if not files.keys() & {"txt", "json", "cls"}:
        return _Told((), None)
    with path.open("rb") as file:
        captions: tuple[str, ...] = ()
        if "txt" in files:
            captions = (caption(_text(_bytes(file, files["txt"]))),)
        elif "json" in files:
            captions = _captions(read_facts(_bytes(file, files["json"])))
        label = read_label(_bytes(file, files["cls"])) if "cls" in files else None
    return _Told(tuple(filter(None, captions)), label)


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("its .txt is not UTF-8 text; write the shard again") from None


def _captions(facts: Mapping[str, str | list[str]]) -> tuple[str, ...]:
    said = next((facts[key] for key in SAID if facts.get(key)), [])
    return tuple(caption(text) for text in ([said] if isinstance(said, str) else said))


def _bytes(file: BinaryIO, place: Place) -> bytes:
    file.seek(place.offset)
    return file.read(place.size)
