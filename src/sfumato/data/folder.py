"""A folder of pictures is a data set: captions in sidecars or metadata files, classes in sub-folders."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from sfumato.data.sample import Sample
from sfumato.io.pictures import check, decode

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"})
METADATA = ("metadata.jsonl", "metadata.csv")
MAX_SKIPPED = 0.01


class Entry(NamedTuple):
    """One picture and what is said about it."""

    path: Path
    name: str  # below the root, with forward slashes: the key of the sample
    caption: str
    folder: str  # the sub-folder of the root it lies in, or ""


class Folder:
    """Pictures of a folder and its sub-folders by path, `size` x `size` (shorter side, middle square).

    The caption of `x.png` is, in this order: the `text` of its `file_name` in a `metadata.jsonl` or
    `metadata.csv` beside or above it, the sidecar `x.txt`, the name of its class. There are classes when
    every picture lies in a sub-folder of `root`; labels number these sub-folders by name. Pictures whose
    header cannot be read are left out and listed in `skipped`; more than 1 % of them, no picture at all, or
    a damaged metadata line is a ValueError of one line.
    """

    def __init__(self, root: Path | str, *, size: int) -> None:
        self.root = Path(root)
        self.size = size
        listing = _list(self.root)
        if listing.problems:
            raise ValueError(listing.problems[0])
        self.classes = listing.classes
        self.skipped: list[tuple[Path, str]] = []
        self._entries = tuple(self._readable(listing.entries))
        if not self._entries and not self.skipped:
            raise ValueError(f"{root}: no pictures in here; PNG, JPEG, WebP, GIF and BMP are looked for")
        if len(self.skipped) > MAX_SKIPPED * len(listing.entries):
            path, why = self.skipped[0]
            count = f"{len(self.skipped)} of {len(listing.entries)} pictures cannot be read"
            raise ValueError(f"{count}, first {path}: {why}")
        whole = {"caption": all(entry.caption for entry in self._entries), "label": bool(self.classes)}
        self.fields = frozenset({"image", *(name for name, there in whole.items() if there)})

    def _readable(self, entries: tuple[Entry, ...]) -> Iterator[Entry]:
        for entry in entries:
            try:
                check(entry.path)
            except ValueError as error:
                self.skipped.append((entry.path, str(error)))
            else:
                yield entry

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, i: int) -> Sample:
        """The picture at an index; ValueError names the file if it is damaged or gone."""
        entry = self._entries[i]
        try:
            image = decode(entry.path.read_bytes(), size=self.size)
        except (ValueError, OSError) as error:
            raise ValueError(f"{entry.path}: {error}") from None
        sample: Sample = {
            "image": image,
            "key": entry.name,
            "meta": {"name": entry.path.stem, "file": entry.name},
        }
        if entry.caption:
            sample["caption"] = entry.caption
        if self.classes:
            sample["label"] = self.classes.index(entry.folder)
        return sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What is in a folder; every list is in the order of paths."""

    readable: int
    unreadable: tuple[tuple[Path, str], ...]  # and why
    duplicates: tuple[tuple[Path, Path], ...]  # and the first picture with the same bytes
    uncaptioned: tuple[Path, ...]
    classes: tuple[str, ...]
    problems: tuple[str, ...]  # lines of metadata that cannot be used

    def lines(self) -> Iterator[str]:
        """The report for a person, a line at a time: counts first, then the reasons."""
        yield f"{self.readable} pictures, {len(self.classes)} classes"
        counts = {
            "unreadable": len(self.unreadable),
            "duplicates": len(self.duplicates),
            "without caption": len(self.uncaptioned),
            "broken descriptions": len(self.problems),
        }
        yield ", ".join(f"{count} {what}" for what, count in counts.items())
        yield from (f"unreadable {path}: {why}" for path, why in self.unreadable)
        yield from (f"duplicate {path}: the same as {first}" for path, first in self.duplicates)
        yield from (f"no caption {path}" for path in self.uncaptioned)
        yield from self.problems


def scan(root: Path | str) -> Report:
    """Reads and decodes every picture of a folder and says what is there and what is wrong with it."""
    listing = _list(Path(root))
    unreadable: list[tuple[Path, str]] = []
    duplicates: list[tuple[Path, Path]] = []
    first: dict[bytes, Path] = {}
    for entry in listing.entries:
        try:
            data = entry.path.read_bytes()
            decode(data)
        except (ValueError, OSError) as error:
            unreadable.append((entry.path, str(error)))
            continue
        same = first.setdefault(hashlib.sha256(data).digest(), entry.path)
        if same != entry.path:
            duplicates.append((entry.path, same))
    return Report(
        readable=len(listing.entries) - len(unreadable),
        unreadable=tuple(unreadable),
        duplicates=tuple(duplicates),
        uncaptioned=tuple(entry.path for entry in listing.entries if not entry.caption),
        classes=listing.classes,
        problems=listing.problems,
    )


# What is there --------------------------------------------------------------------------------------------
class Listing(NamedTuple):
    """The pictures of a folder before any was opened, and what is wrong with what is said about them."""

    entries: tuple[Entry, ...]
    classes: tuple[str, ...]
    problems: tuple[str, ...]


def _list(root: Path) -> Listing:
    if not root.is_dir():
        raise ValueError(f"{root}: there is no such folder")
    found = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    files = {name: path for name, path in sorted(found.items()) if not _hidden(name)}
    pictures = {name: path for name, path in files.items() if path.suffix.lower() in ENDINGS}
    texts: dict[str, str] = {}
    problems: list[str] = []
    for name, path in files.items():
        if path.name in METADATA:
            problems.extend(_describe(path, PurePosixPath(name).parent, pictures.keys(), texts))
    folders = {name: name.partition("/")[0] if "/" in name else "" for name in pictures}
    classed = all(folders.values())
    entries: list[Entry] = []
    for name, path in pictures.items():
        try:
            caption = texts.get(name) or _sidecar(path)
        except ValueError as error:
            problems.append(str(error))
            caption = ""
        caption = caption or (_words(folders[name]) if classed else "")
        entries.append(Entry(path, name, caption, folders[name]))
    classes = tuple(sorted(set(folders.values()))) if classed else ()
    return Listing(tuple(entries), classes, tuple(problems))


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _words(folder: str) -> str:
    """A class folder as a caption: "10_sunset_photo" -> "sunset photo"."""
    return re.sub(r"[_\s]+", " ", re.sub(r"^\d+_", "", folder)).strip()


def _sidecar(path: Path) -> str:
    """The text beside a picture, in one line; "" where there is none."""
    beside = path.with_suffix(".txt")
    if not beside.is_file():
        return ""
    try:
        return " ".join(beside.read_bytes().decode("utf-8-sig").split())
    except UnicodeDecodeError:
        raise ValueError(f"{beside}: not UTF-8 text; save it again as UTF-8") from None


# Metadata -------------------------------------------------------------------------------------------------
class Row(NamedTuple):
    """What one line of metadata says."""

    file_name: str
    text: str


def read_row(fields: object) -> Row:
    """The parsed object of a line -> what it says; no `text` is ""; ValueError if unusable."""
    if not isinstance(fields, dict):
        raise ValueError(f"a {type(fields).__name__}; an object with 'file_name' and 'text' is expected")
    file_name: object = fields.get("file_name")
    text: object = fields.get("text")
    if not isinstance(file_name, str) or not file_name:
        raise ValueError("'file_name' is missing; it is the path of a picture, relative to this file")
    if not isinstance(text, str | None):
        raise ValueError(f"'text' is a {type(text).__name__}; it must be the caption, a string")
    windows = PureWindowsPath(file_name)
    if windows.drive or windows.root or ".." in windows.parts:
        raise ValueError(f"'file_name' is {file_name!r}, which leaves the folder; it is relative and without '..'")
    return Row(file_name, " ".join((text or "").split()))


def read_json_line(line: str) -> Row:
    """One line of metadata.jsonl; ValueError says what is wrong."""
    try:
        fields: object = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError('not JSON; a line looks like {"file_name": "x.png", "text": "a caption"}') from None
    return read_row(fields)


def _describe(path: Path, folder: PurePosixPath, pictures: Collection[str], texts: dict[str, str]) -> Iterator[str]:
    """Puts the captions of a metadata file into `texts`, by picture; yields what is wrong, a line each."""
    for number, found in _rows(path):
        if isinstance(found, ValueError):
            yield f"{path}, line {number}: {found}"
            continue
        name = str(folder / found.file_name)
        if name not in pictures:
            yield f"{path}, line {number}: there is no picture {found.file_name!r} beside this file"
        elif name in texts:
            yield f"{path}, line {number}: {found.file_name!r} is described a second time; keep one"
        else:
            texts[name] = found.text


def _rows(path: Path) -> Iterator[tuple[int, Row | ValueError]]:
    """Line numbers and what the lines say, or what is wrong with them."""
    data = path.read_bytes()
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
