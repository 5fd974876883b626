"""Shards are tar files in WebDataset's layout, read by index: every sample has an address."""

from __future__ import annotations

import json
import struct
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from sfumato.data.sample import Meta, Sample
from sfumato.io.pictures import decode

IMAGES = ("webp", "png", "jpg", "jpeg")
KINDS = (*IMAGES, "json", "txt", "cls")
MAX_FACTS = 1 << 20  # bytes of a .json, .txt or .cls file


class Place(NamedTuple):
    """Where the bytes of a file lie."""

    shard: int
    offset: int
    size: int


class Shards:
    """The samples of tar shards, in the order of shards and of their files.

    Files that share the name before the first dot form a sample: `.webp .png .jpg .jpeg` the picture, `.json`
    the meta, `.txt` the caption, `.cls` the label; other endings are left alone. A shard that is damaged,
    repeats a key, or holds links or paths that leave it is a ValueError of one line that names it. Samples
    without a picture are allowed; `fields` says what all of them have.
    """

    def __init__(self, paths: Iterable[Path | str], *, size: int | None = None) -> None:
        self.paths = tuple(Path(path) for path in paths)
        self.size = size
        found: dict[str, dict[str, Place]] = {}
        for number, path in enumerate(self.paths):
            for key, files in scan(path, number).items():
                if key in found:
                    other = self.paths[next(iter(found[key].values())).shard]
                    raise ValueError(f"{path}: sample {key!r} is already in {other}; a key may occur once")
                found[key] = files
        self.keys = tuple(found)
        self._files = tuple(found.values())

    @property
    def fields(self) -> frozenset[str]:
        """Those of image, caption, label and meta that every sample has."""
        kinds = [{_field(kind) for kind in files} for files in self._files]
        return frozenset(set.intersection(*kinds)) if kinds else frozenset()

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: int) -> Sample:
        """The sample at an index, picture decoded; ValueError names the shard and the file if damaged."""
        sample: Sample = {"key": self.keys[i]}
        for kind, place in self._files[i].items():
            try:
                _put(sample, kind, self._read(place), self.size)
            except ValueError as error:
                raise ValueError(f"{self.paths[place.shard]}: {self.keys[i]}.{kind}: {error}") from None
        return sample

    def meta(self, i: int) -> Meta:
        """The facts of a sample without its picture; empty where it has no .json."""
        place = self._files[i].get("json")
        if place is None:
            return {}
        try:
            return read_facts(self._read(place))
        except ValueError as error:
            raise ValueError(f"{self.paths[place.shard]}: {self.keys[i]}.json: {error}") from None

    def raw(self, i: int, kind: str) -> bytes:
        """The bytes of one file of a sample: raw(3, "webp")."""
        return self._read(self._files[i][kind])

    def kinds(self, i: int) -> tuple[str, ...]:
        """The endings of the files of a sample."""
        return tuple(self._files[i])

    def sizes(self, i: int) -> dict[str, int]:
        """The bytes of each file of a sample, by its ending."""
        return {kind: place.size for kind, place in self._files[i].items()}

    def _read(self, place: Place) -> bytes:
        with self.paths[place.shard].open("rb") as file:  # opened anew: nothing to share, to pickle or to close
            file.seek(place.offset)
            data = file.read(place.size)
        if len(data) != place.size:
            raise ValueError("the shard became shorter since it was opened; open it again")
        return data


# The index ------------------------------------------------------------------------------------------------
# What tarfile raises on damaged headers, apart from its own errors.
_BROKEN = (
    *(tarfile.TarError, OSError, ValueError, EOFError, OverflowError, LookupError, TypeError, AttributeError),
    *(RuntimeError, MemoryError, AssertionError, zlib.error, struct.error),
)


def scan(path: Path, number: int = 0) -> dict[str, dict[str, Place]]:
    """Key -> kind -> place, from the headers of one shard; ValueError names it and says why it cannot be read."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such shard")
    found: dict[str, dict[str, Place]] = {}
    for name, offset, size in _headers(path):
        key, kind = _split(name)
        if kind not in KINDS:
            continue
        files = found.setdefault(key, {})
        if kind in files or (kind in IMAGES and any(other in IMAGES for other in files)):
            raise ValueError(f"{path}: sample {key!r} has more than one {_field(kind)}; a key may occur once")
        if kind not in IMAGES and size > MAX_FACTS:
            raise ValueError(f"{path}: {name!r} is {size:,} bytes; at most {MAX_FACTS:,} are read of such a file")
        files[kind] = Place(number, offset, size)
    return found


def _headers(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of the plain files of a tar; anything amiss is a ValueError that names it."""
    end = path.stat().st_size
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            last = -1
            while (member := tar.next()) is not None:
                if member.offset <= last or member.size < 0 or member.offset_data + member.size > end:
                    raise tarfile.ReadError("a file reaches past its end")
                last = member.offset
                if not member.isdir():
                    _allow(member)
                    yield member.name, member.offset_data, member.size
            # tarfile stops silently at a damaged or missing header; a whole shard stops at a block of zeros
            file.seek(tar.offset)
            if file.read(512) != bytes(512):
                raise tarfile.ReadError("its end is missing")
    except _Refused as error:
        raise ValueError(f"{path}: {error}") from None
    except _BROKEN as error:
        raise ValueError(f"{path}: the shard is damaged or not a plain tar ({_line(error)}); get it again") from None


class _Refused(Exception):
    """A file that is well written but may not be in a shard."""


def _allow(member: tarfile.TarInfo) -> None:
    """Plain files inside the shard only."""
    if not member.isreg() or member.issparse():
        raise _Refused(f"{member.name!r} is a link or a device; a shard holds plain files only")
    if member.name.startswith(("/", "\\")) or ".." in member.name.split("/"):
        raise _Refused(f"the path {member.name!r} leaves the shard; paths are relative and without '..'")


def _split(name: str) -> tuple[str, str]:
    """ "a/b.seg.PNG" -> ("a/b", "seg.png"): the key is the path up to the first dot of its last part."""
    folder, _, last = name.rpartition("/")
    base, _, kind = last.partition(".")
    return (str(PurePosixPath(folder, base)), kind.lower()) if base else ("", "")


# The files ------------------------------------------------------------------------------------------------
def _field(kind: str) -> str:
    """The field of `Sample` that a file fills."""
    return {"json": "meta", "txt": "caption", "cls": "label"}.get(kind, "image")


def _put(sample: Sample, kind: str, data: bytes, size: int | None) -> None:
    """Reads the bytes of one file into its field."""
    if kind == "json":
        sample["meta"] = read_facts(data)
    elif kind == "txt":
        sample["caption"] = data.decode("utf-8").strip()
    elif kind == "cls":
        sample["label"] = read_label(data)
    else:
        sample["image"] = decode(data, size=size)


def read_label(data: bytes) -> int:
    """The number in a .cls file."""
    text = data.decode("utf-8").strip()
    if not (text.isascii() and text.isdigit() and len(text) < 10):  # noqa: PLR2004
        raise ValueError(f"the label is {text[:40]!r}; it must be a whole number, 0 or more")
    return int(text)


def read_facts(data: bytes) -> Meta:
    """A JSON object with every value as text or a list of texts; nulls are left out."""
    try:
        found: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({_line(error)})") from None
    if not isinstance(found, dict):
        raise ValueError(f"the facts are a {type(found).__name__}; they must be a JSON object")
    return {str(name): _text(value) for name, value in found.items() if value is not None}


def _text(value: object) -> str | list[str]:
    if isinstance(value, list):
        return [item if isinstance(item, str) else json.dumps(item) for item in value]
    return value if isinstance(value, str) else json.dumps(value)


def _line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
