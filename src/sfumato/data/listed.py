"""The data set of a listing: pictures by index, those left out that cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path, PurePosixPath

from sfumato.data.buckets import Shape, filled
from sfumato.data.fingerprint import Fingerprint
from sfumato.data.listing import MOST_LOST, Entry, Listing, shown
from sfumato.data.sample import Sample
from sfumato.io.pictures import Header, decode, header


class Listed:
    """The pictures of a listing, `size` x `size` (shorter side, middle square), or each of its own of some `shapes`.

    Pictures whose header cannot be read are left out and listed in `skipped`; more than 1 % of them, no picture
    at all, or a problem of the listing is a ValueError of one line. `kind` says what was found, `sides` width and
    height of each picture before it is scaled.
    """

    def __init__(self, listing: Listing, *, size: int) -> None:
        self.root, self.kind, self.classes = listing.root, listing.kind, listing.classes
        self.size = size
        heads = [] if listing.problems else [_head(entry) for entry in listing.entries]
        read = [(entry, head) for entry, head in zip(listing.entries, heads, strict=False)]
        self.skipped = [(listing.where(entry), head) for entry, head in read if isinstance(head, str)]
        if why := refusal(listing, self.skipped):
            raise ValueError(why)
        self._entries = tuple(entry for entry, head in read if isinstance(head, Header))
        self.sides = tuple((head.width, head.height) for head in heads if isinstance(head, Header))
        self.shapes: Sequence[Shape] = [(size, size)] * len(self._entries)
        self._labels = {name: label for label, name in enumerate(self.classes)}
        whole = {"caption": all(entry.captions for entry in self._entries), "label": bool(self.classes)}
        self.fields = frozenset({"image", *(name for name, there in whole.items() if there)})

    @property
    def names(self) -> tuple[str, ...]:
        """The address of each picture."""
        return tuple(entry.name for entry in self._entries)

    @property
    def fingerprint(self) -> Fingerprint:
        """By names, sizes in bytes and captions; pixels are not read."""
        return Fingerprint.of((e.name, e.size, *(e.captions or ("",))) for e in self._entries)

    def shaped(self, among: Sequence[Shape], *, least: int) -> Listed:
        """The same pictures, each cut to the nearest of these shapes that at least `least` pictures have."""
        other = copy(self)
        other.shapes = filled(self.sides, among, least=least)
        return other

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, i: int) -> Sample:
        """The picture at an index; ValueError names the file if it is damaged or gone."""
        entry = self._entries[i]
        try:
            image = decode(entry.read(), size=self.shapes[i])
        except ValueError as error:
            raise ValueError(f"{shown(self.root / entry.name)}: {error}") from None
        sample: Sample = {
            "image": image,
            "key": entry.name,
            "meta": {"name": PurePosixPath(entry.name).stem, "file": entry.name},
        }
        if entry.captions:
            sample["caption"], sample["captions"] = entry.captions[0], entry.captions
        if self.classes:
            sample["label"] = self._labels[entry.class_name]
        return sample


def refusal(listing: Listing, unreadable: Sequence[tuple[Path, str]]) -> str:
    """The one line for which a listing cannot be trained on, with what is unreadable of it and why; "" if it can."""
    if listing.problems:
        return listing.problems[0]
    if not listing.entries:
        return f"{shown(listing.root)}: no pictures in here; PNG, JPEG, WebP, GIF and BMP are looked for"
    if len(unreadable) > MOST_LOST * len(listing.entries):
        path, why = unreadable[0]
        return f"{len(unreadable)} of {len(listing.entries)} pictures cannot be read, first {shown(path)}: {why}"
    return ""


def _head(entry: Entry) -> Header | str:
    """What the header of a picture says, or why it cannot be read."""
    try:
        with entry.open() as file:
            return header(file)
    except ValueError as error:
        return str(error)
