"""A folder of pictures with a map of classes for each: `a.jpg`, or `images/a.jpg`, and `masks/a.png`."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from posixpath import splitext

from sfumato.data import folder
from sfumato.data.fingerprint import Fingerprint
from sfumato.data.listed import Listed
from sfumato.data.listing import shown
from sfumato.data.sample import Sample
from sfumato.data.walk import Files, ending, walk
from sfumato.io.pictures import header, read_map

PLACES = ("masks", "annotations", "SegmentationClass")
"""The folders at the top in which maps are looked for, in this order."""
UNSAID = 255


class Mapped:
    """Pictures, `size` x `size`, each with its map "map" (size, size) uint8, cut in the same way.

    A map is an 8-bit PNG, grey or with a palette, with a class for each pixel, and 255 where nothing is said. Below
    masks/ it has the path of its picture, or the rest of it behind the first folder. ValueError of one line if there
    are no maps, or if a picture has none, or one of another size.
    """

    fields = frozenset({"image", "map"})

    def __init__(self, root: Path | str, *, size: int) -> None:
        self.root, self.size = Path(root), size
        files = walk(self.root)
        maps, rest = _parted(files)
        self.pictures = Listed(folder.listing(rest), size=size)
        names = self.pictures.names
        found = [_map_of(name, maps) for name in names]
        missing = [name for name, path in zip(names, found, strict=True) if path is None]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(names)} pictures have no map, first {shown(missing[0])}; "
                f"give it one of its name and .png in {PLACES[0]}/"
            )
        self.maps = tuple(path for path in found if path is not None)
        self._sizes = files.sizes
        for name, path, sides in zip(names, self.maps, self.pictures.sides, strict=True):
            with (self.root / path).open("rb") as file:
                mine = header(file)[:2]
            if mine != sides:
                sizes = f"{shown(path)} is {mine[0]}x{mine[1]} and {shown(name)} is {sides[0]}x{sides[1]}"
                raise ValueError(f"{sizes}; a map has the size of its picture")

    @cached_property
    def classes(self) -> int:
        """One more than the largest class of any map; reads them all."""
        largest = 0
        for path in self.maps:
            found = read_map(self.root / path)
            said = found[found != UNSAID]
            largest = max(largest, int(said.max()) if len(said) else 0)
        return largest + 1

    @property
    def fingerprint(self) -> Fingerprint:
        """By names and sizes in bytes of pictures and maps; pixels are not read."""
        return Fingerprint.of((name, self._sizes[name]) for name in (*self.pictures.names, *self.maps))

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int, /) -> Sample:
        sample = self.pictures[i]
        sample["map"] = read_map(self.root / self.maps[i], size=self.size)
        return sample


def _parted(files: Files) -> tuple[dict[str, str], Files]:
    """The maps by what they are of, without ending, and the other files."""
    for place in PLACES:
        below = {name for name in files.sizes if name.startswith(f"{place}/") and ending(name) == ".png"}
        if below:
            maps = {splitext(name)[0].partition("/")[2]: name for name in sorted(below)}
            return maps, files._replace(sizes={n: s for n, s in files.sizes.items() if not n.startswith(f"{place}/")})
    raise ValueError(
        f"{shown(files.root)}: there are no maps; put one for each picture, of its name and .png, into {PLACES[0]}/"
    )


def _map_of(name: str, maps: dict[str, str]) -> str | None:
    own = splitext(name)[0]
    return maps.get(own) or maps.get(own.partition("/")[2])
