"""The data set of a listing: pictures by index, those left out that cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path, PurePosixPath

from sfumato.boxes import Box, Layout, Window, largest, middle
from sfumato.data.buckets import Shape, filled
from sfumato.data.fingerprint import Fingerprint
from sfumato.data.limits import Counted, Limits, applied
from sfumato.data.listing import ENDINGS, MOST_LOST, Entry, Listing, shown
from sfumato.data.sample import Sample
from sfumato.data.walk import ending
from sfumato.io.pictures import Header, decode, header, orientation

SIDEWAYS = range(5, 9)  # orientations of EXIF in which width and height change places


class Listed:
    """The pictures of a listing, `size` x `size` (shorter side, middle square), or each of its own of some `shapes`.

    Pictures whose header cannot be read are left out and listed in `skipped`; more than 1 % of them, no picture
    at all, or a problem of the listing is a ValueError of one line. `kind` says what was found, `sides` width and
    height of each picture before it is scaled. Boxes are those of the picture as it is cut; a box that lies in what is
    cut off is not among them.
    """

    def __init__(self, listing: Listing, *, size: int) -> None:
        self.root, self.kind, self.classes = listing.root, listing.kind, listing.classes
        self.size = size
        heads = [] if listing.problems else [_head(entry) for entry in listing.entries]
        read = [(entry, head) for entry, head in zip(listing.entries, heads, strict=False)]
        self.skipped = [(listing.where(entry), head) for entry, head in read if isinstance(head, str)]
        if why := refusal(listing, self.skipped):
            raise ValueError(why)
        self._entries = tuple(measured(entry, head) for entry, head in read if isinstance(head, Header))
        self.sides = tuple((head.width, head.height) for head in heads if isinstance(head, Header))
        self.shapes: Sequence[Shape] = [(size, size)] * len(self._entries)
        self._labels = {name: label for label, name in enumerate(self.classes)}
        self.counted = Counted()
        self._most: int | None = None  # boxes
        whole = {
            "caption": all(entry.captions for entry in self._entries),
            "label": bool(self.classes),
            "boxes": all(entry.boxes is not None for entry in self._entries),
        }
        self.fields = frozenset({"image", *(name for name, there in whole.items() if there)})

    @property
    def names(self) -> tuple[str, ...]:
        """The address of each picture."""
        return tuple(entry.name for entry in self._entries)

    @property
    def fingerprint(self) -> Fingerprint:
        """By names, sizes in bytes and captions, and by boxes that have limits: others may not be what is learnt, and
        came later to data that is learnt from without them. Pixels are not read."""
        return Fingerprint.of((e.name, e.size, *(e.captions or ("",)), *self._boxes_said(e)) for e in self._entries)

    def _boxes_said(self, entry: Entry) -> tuple[object, ...]:
        return () if self._most is None else ({"boxes": entry.boxes, "most": self._most},)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of what is in boxes, sorted."""
        return tuple(sorted({box.label for entry in self._entries for box in entry.boxes or ()}))

    @property
    def unboxed(self) -> tuple[str, ...]:
        """The addresses of the pictures of which no boxes are said, nor that there are none."""
        return tuple(entry.name for entry in self._entries if entry.boxes is None)

    def limited(self, limits: Limits) -> Listed:
        """The same with limits on its boxes; `counted` says what they took away. ValueError if no picture is left.

        Which pictures have too few boxes is seen in the shapes that they have now.
        """
        if missing := self.unboxed:
            count = f"{len(missing)} of {len(self)} pictures"
            raise ValueError(f"{shown(self.root)}: nothing is said of boxes in {count}, first {shown(missing[0])}")
        kept, counted = applied([entry.boxes or () for entry in self._entries], limits, self.windows)
        if not kept:
            many = "a box that is" if limits.least == 1 else f"{limits.least} boxes that are"
            least = f"{many} {limits.least_area:g} of it or more"
            raise ValueError(f"{shown(self.root)}: none of {len(self)} pictures has {least}")
        other = copy(self)
        entries = (self._entries[i] for i in kept)
        other._entries = tuple(entry._replace(boxes=limits.large(entry.boxes or ())) for entry in entries)
        other.sides = tuple(self.sides[i] for i in kept)
        other.shapes = [self.shapes[i] for i in kept]
        other.counted, other._most = counted, limits.most
        return other

    @property
    def windows(self) -> list[Window]:
        """What is seen of each picture."""
        return [middle(sides, shape) for sides, shape in zip(self.sides, self.shapes, strict=True)]

    def shaped(self, among: Sequence[Shape], *, least: int) -> Listed:
        """The same pictures, each cut to the nearest of these shapes that at least `least` pictures have."""
        other = copy(self)
        other.shapes = filled(self.sides, among, least=least)
        return other

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, i: int) -> Sample:
        """The picture at an index; ValueError names the file if it is damaged or gone."""
        sample = self._sample(i, self.shapes[i], None)
        boxes = self._entries[i].boxes
        if boxes is not None:
            _, sample["boxes"] = self._seen(boxes, middle(self.sides[i], self.shapes[i]))
        return sample

    def through(self, i: int, window: Window, *, size: int) -> Sample:
        """What a window shows of the picture at an index, `size` x `size`; its boxes are "boxes" as they are cut and
        "uncut" as they were."""
        sample = self._sample(i, (size, size), window)
        sample["window"] = window
        boxes = self._entries[i].boxes
        if boxes is not None:
            sample["uncut"], sample["boxes"] = self._seen(boxes, window)
        return sample

    def _sample(self, i: int, shape: Shape, window: Window | None) -> Sample:
        """All but the boxes."""
        entry = self._entries[i]
        try:
            image = decode(entry.read(), size=shape, window=window)
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

    def _seen(self, boxes: Layout, window: Window) -> tuple[Layout, Layout]:
        """The boxes of a picture that a window shows some of, as they are and as they are cut."""
        pairs = [(whole, box) for whole in boxes if (box := whole.within(window)) is not None]
        kept = largest([box for _, box in pairs], len(pairs) if self._most is None else self._most)
        of = set(map(id, kept))
        return tuple(whole for whole, box in pairs if id(box) in of), kept


def measured(entry: Entry, head: Header) -> Entry:
    """The entry with its boxes in parts of the picture as it is decoded; ValueError if they are not this picture's.

    Where they were measured in the picture as the file holds it, before EXIF turns it on its side, they are turned too.
    """
    said = entry.sides
    if said is None or (said.width, said.height) == (head.width, head.height):
        return entry
    turn = _turn(entry) if (said.height, said.width) == (head.width, head.height) else 1
    if turn in SIDEWAYS:
        return entry._replace(boxes=tuple(_turned(box, turn) for box in entry.boxes or ()))
    sizes = f"{shown(entry.name)!r} is {said.width} x {said.height} there and {head.width} x {head.height} in its file"
    raise ValueError(f"{said.file}: {sizes}; its boxes are those of another picture")


def _turn(entry: Entry) -> int:
    with entry.open() as file:
        return orientation(file)


def _turned(box: Box, turn: int) -> Box:
    """As EXIF's orientations from 5 on: about the diagonal, then 6 and 7 to a mirror across, 7 and 8 along."""
    x0, y0, x1, y1 = box.y0, box.x0, box.y1, box.x1
    if turn in (6, 7):
        x0, x1 = 1 - x1, 1 - x0
    if turn in (7, 8):
        y0, y1 = 1 - y1, 1 - y0
    return box._replace(x0=x0, y0=y0, x1=x1, y1=y1)


def refusal(listing: Listing, unreadable: Sequence[tuple[Path, str]]) -> str:
    """The one line for which a listing cannot be trained on, with what is unreadable of it and why; "" if it can."""
    if listing.problems:
        return listing.problems[0]
    if not listing.entries and any(ending(name) in ENDINGS for name in listing.left_out):
        return f"{shown(listing.root)}: none of the pictures in here is named ({listing.kind})"
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
