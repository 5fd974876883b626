"""What people have: a path is looked at, and the data set is opened that it holds."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from sfumato.data import coco, folder, metadata, tars
from sfumato.data.listed import Listed
from sfumato.data.listing import ENDINGS, Listing, shown, unused
from sfumato.data.walk import ending, walk

TRAIN = "train"
SPLITS = frozenset({TRAIN, "validation", "valid", "val", "test"})


def opened(path: Path | str, *, size: int) -> Listed:
    """The pictures of a folder or of tar shards, `size` x `size`; ValueError of one line if they cannot be used."""
    return Listed(listed(path), size=size)


def listed(path: Path | str) -> Listing:
    """The pictures of a folder or of tar shards, by which layout it is; none is opened yet.

    In this order: a metadata file at the top; captions of COCO; tar shards, where there are no pictures beside them;
    else pictures with sidecars or in folders of classes. Where all folders at the top are splits ("train", "val",
    "test"), train/ alone is read. ValueError if there is no such path.
    """
    path = Path(path)
    if path.is_file():
        if ending(path.name) != ".tar":
            raise ValueError(f"{shown(path)}: neither a folder nor a .tar; unpack other archives first")
        return tars.listing(path, {"": path})
    files = walk(path)
    if not any(name in files.sizes for name in metadata.NAMES) and (found := coco.recognised(files)):
        return found
    pictures = [name for name in files.sizes if ending(name) in ENDINGS]
    shards = [name for name in files.sizes if ending(name) == ".tar"]
    split = _split(pictures or shards)
    if pictures or not shards:
        found = folder.listing(files, split=split)
    else:
        mine = {f"{name}/": path / name for name in shards if name.startswith(split)}
        found = tars.listing(path, mine)
        beside = {name: unused(name, split) for name in files.sizes if f"{name}/" not in mine}
        found = found._replace(left_out={**files.left_out, **beside, **found.left_out})
    return found._replace(kind=f"{found.kind}, {split} alone") if split else found


def _split(names: Collection[str]) -> str:
    """ "train/" if all names lie in folders of splits, one of which it is; else ""."""
    tops = {name.partition("/")[0] if "/" in name else "" for name in names}
    return f"{TRAIN}/" if TRAIN in tops and tops <= SPLITS else ""
