"""What people have: a path is looked at, and the data set is opened that it holds."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from sfumato.data import coco, folder, metadata, open_images, parts, tars
from sfumato.data.listed import Listed
from sfumato.data.listing import ENDINGS, Listing, shown, unused
from sfumato.data.parts import TRAIN
from sfumato.data.walk import Files, ending, walk

IMAGES, LABELS = "images/", "labels/"


def opened(path: Path | str, *, size: int, part: str = TRAIN) -> Listed:
    """The pictures of a folder or of tar shards, `size` x `size`; ValueError of one line if they cannot be used."""
    return Listed(listed(path, part), size=size)


def listed(path: Path | str, part: str = TRAIN) -> Listing:
    """The pictures of a folder or of tar shards, by which layout it is; none is decoded yet.

    In this order: a metadata file at the top; captions or boxes of COCO; boxes of Open Images; tar shards, where there
    are no pictures beside them; else pictures with sidecars or in folders of classes. Of folders of parts ("train",
    "val", "test"), and of COCO's and Open Images' files with such names, those of the `part` alone are read; of others
    all, for "train". ValueError if there is no such path, or no such part.
    """
    path = Path(path)
    if path.is_file():
        if ending(path.name) != ".tar":
            raise ValueError(f"{shown(path)}: neither a folder nor a .tar; unpack other archives first")
        if part != TRAIN:
            raise ValueError(parts.missing(path, part, ()))
        return tars.listing(path, {"": path})
    files = walk(path)
    if not any(name in files.sizes for name in metadata.NAMES) and (
        found := coco.recognised(files, part) or open_images.recognised(files, part)
    ):
        return found
    pictures = [name for name in files.sizes if ending(name) in ENDINGS]
    shards = [name for name in files.sizes if ending(name) == ".tar"]
    split = _split(files, pictures or shards, part)
    if pictures or not shards:
        found = folder.listing(files, split=split)
    else:
        mine = {f"{name}/": path / name for name in shards if name.startswith(split)}
        found = tars.listing(path, mine)
        beside = {name: unused(name, split) for name in files.sizes if f"{name}/" not in mine}
        found = found._replace(left_out={**files.left_out, **beside, **found.left_out})
    return found._replace(kind=f"{found.kind}, {split} alone") if split else found


def _split(files: Files, names: Collection[str], part: str) -> str:
    """ "train/" if all names lie in folders of parts, of which that one is asked for, or "images/train/" where YOLO's
    labels are in labels/; else ""."""
    if names and all(name.startswith(IMAGES) for name in names) and any(map(_is_label, files.sizes)):
        inner = parts.folder(files.root, [name.removeprefix(IMAGES) for name in names], part)
        return f"{IMAGES}{inner}" if inner else ""
    return parts.folder(files.root, names, part)


def _is_label(name: str) -> bool:
    return name.startswith(LABELS) and ending(name) == ".txt"
