"""COCO's captions are a data set: pictures that a JSON file names, and all that it says of each, in order."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from sfumato.data.listing import ENDINGS, MOST_LOST, NOT_A_PICTURE, Entry, Listing, caption, shown
from sfumato.data.walk import Files, ending, leaves

KIND = "COCO captions"
_OURS = re.compile(r"annotations/captions_[^/]*\.json")
_PERHAPS = re.compile(r"(captions[^/]*|annotations)\.json")


@dataclass(frozen=True, slots=True)
class Told:
    """What one JSON file says."""

    pictures: dict[int | str, str] = field(default_factory=dict)  # id -> file_name
    captions: dict[int | str, list[str]] = field(default_factory=dict)  # id of a picture -> captions in order
    problems: list[str] = field(default_factory=list)  # rows that cannot be used, and why


def recognised(files: Files) -> Listing | None:
    """The pictures that `annotations/captions_*.json`, or such a file at the top, names; None if there is none.

    Where there are files for training and others ("captions_train2017.json"), the former alone are read. Rows that
    cannot be used are problems; pictures that are named and are not there are one, if they are more than 1 %.
    """
    found = {name: _told(files.root / name) for name in files.sizes if _OURS.fullmatch(name)}
    for name in filter(_PERHAPS.fullmatch, {} if found else files.sizes):
        told = _told(files.root / name)
        if told.pictures and told.captions:
            found[name] = told
    if not found:
        return None
    training = {name: told for name, told in found.items() if "train" in PurePosixPath(name).stem} or found
    return _listing(files, training, KIND if len(training) == len(found) else f"{KIND}, train alone")


def _listing(files: Files, found: Mapping[str, Told], kind: str) -> Listing:
    captions: dict[str, list[str]] = {}
    problems: list[str] = []
    places = _Places(files)
    for name, told in found.items():
        path = shown(files.root / name)
        problems.extend(f"{path}, {problem}" for problem in told.problems)
        missing: list[str] = []
        for ident, file_name in told.pictures.items():
            try:
                place = places.of(file_name, near=PurePosixPath(name).stem.removeprefix("captions_"))
            except ValueError as error:
                problems.append(f"{path}: {error}")
                continue
            if place is None:
                missing.append(file_name)
            else:
                captions.setdefault(place, []).extend(told.captions.get(ident, ()))
        if len(missing) > MOST_LOST * len(told.pictures):
            count = f"{len(missing)} of {len(told.pictures)} pictures that it names are not below {shown(files.root)}"
            problems.append(f"{path}: {count}, first {missing[0]!r}")
    names = {PurePosixPath(name).name for name in found}
    unnamed = f"not named in {shown(', '.join(sorted(names)))}"
    return Listing(
        files.root,
        kind,
        tuple(Entry(files.root / name, name, files.sizes[name], tuple(captions[name])) for name in sorted(captions)),
        (),
        tuple(problems),
        files.left_out
        | {
            name: unnamed if ending(name) in ENDINGS else NOT_A_PICTURE
            for name in files.sizes
            if name not in captions and name not in found
        },
    )


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
    try:
        return read(path.read_bytes())
    except OSError as error:
        return Told(problems=[f"the file cannot be opened ({error.strerror or error})"])
    except ValueError as error:
        return Told(problems=[str(error)])


def read(data: bytes) -> Told:
    """A captions file of COCO -> what it says; ValueError of one line if it is none."""
    try:
        found: object = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("not JSON; get the file again") from None
    parts = [found.get(key) for key in ("images", "annotations")] if isinstance(found, dict) else []
    if not parts or not all(isinstance(part, list) for part in parts):
        raise ValueError("no captions of COCO; it is an object with the lists 'images' and 'annotations'")
    told = Told()
    told.problems.extend(_pictures(told, parts[0] or ()))
    told.problems.extend(_captions(told, parts[1] or ()))
    return told


def _pictures(told: Told, rows: Iterable[object]) -> Iterator[str]:
    for number, row in enumerate(rows):
        ident, file_name = (row.get("id"), row.get("file_name")) if isinstance(row, dict) else (None, None)
        if not isinstance(ident, int | str) or not isinstance(file_name, str) or not file_name:
            yield f"images[{number}]: it has an 'id', a number or a string, and a 'file_name'"
        elif told.pictures.setdefault(ident, file_name) != file_name:
            yield f"images[{number}]: the id {ident!r} is that of {told.pictures[ident]!r} already"


def _captions(told: Told, rows: Iterable[object]) -> Iterator[str]:
    """Annotations without a caption are of another kind, and passed over."""
    for number, row in enumerate(rows):
        if isinstance(row, dict) and "caption" not in row:
            continue
        ident, text = (row.get("image_id"), row["caption"]) if isinstance(row, dict) else (None, None)
        if not isinstance(ident, int | str) or not isinstance(text, str):
            yield f"annotations[{number}]: it has an 'image_id' and a 'caption', a string"
        elif ident not in told.pictures:
            yield f"annotations[{number}]: there is no image with the id {ident!r}"
        elif said := caption(text):
            told.captions.setdefault(ident, []).append(said)
