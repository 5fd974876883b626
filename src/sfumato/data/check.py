"""What a look at the pictures of a data set finds, before a training does: counts, sizes, and all that is wrong."""

from __future__ import annotations

import hashlib
import io
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from sfumato.boxes import middle
from sfumato.data.limits import Limits, applied
from sfumato.data.listed import measured, refusal
from sfumato.data.listing import NOT_A_PICTURE, Entry, Listing, shown
from sfumato.data.training import complaint
from sfumato.data.walk import ending
from sfumato.io.pictures import Header, header, rgb

FEW = 20  # lines of a list for a person
FEW_CLASSES = 5
FEW_LABELS = 8
EVERY = 100  # pictures, after which progress is said


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxes:
    """What is said of boxes, and what `Limits` would take away of them."""

    said: int  # pictures of which something is said, be it that there is none
    first_unsaid: str | None  # the first of the others
    pictures: int  # that have some
    boxes: int
    most: int  # in one picture
    labels: Mapping[str, int]  # boxes of each, the most first
    flat: int  # boxes without area, which are dropped and are not among these
    small: int  # boxes that are smaller than the least area
    over: int  # boxes that are more than the most, of what is seen of a square
    few: int  # pictures that are left out, since they have fewer than the least
    limits: Limits

    def lines(self, of: int) -> Iterator[tuple[str, str]]:
        """For a person; there are `of` pictures."""
        each = f"{self.boxes / of:.1f} a picture, {self.most:,} at most" if of else ""
        yield "boxes", f"{self.pictures:,} of {of:,} pictures have some; {self.boxes:,} in all, {each}"
        if self.first_unsaid is not None:
            first = shown(self.first_unsaid)
            yield "not said", f"of {of - self.said:,} pictures nothing is said of boxes, first {first}; boxes need all"
        few = ", ".join(f"{shown(name)} {n:,}" for name, n in islice(self.labels.items(), FEW_LABELS))
        more = len(self.labels) - FEW_LABELS
        yield "labels", f"{len(self.labels):,}: {few}{f' and {more:,} more' if more > 0 else ''}"
        small = f"{self.small:,} smaller than {self.limits.least_area:g} of the picture"
        over = f"{self.over:,} of more than {self.limits.most} in its middle square"
        yield "limits drop", f"{self.flat:,} boxes without area, {small}, {over}"
        yield "and leave out", f"{self.few:,} pictures with fewer than {self.limits.least} in their middle square"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What is in a data set; every list is in the order of the samples, and names are addresses."""

    path: str
    kind: str
    pictures: int  # that can be read
    width: tuple[int, int, int] | None  # smallest, median, largest; None where there is no picture
    height: tuple[int, int, int] | None
    captioned: int  # pictures
    captions: int
    words: float | None  # of a caption, on average
    classes: Mapping[str, int]  # pictures in each
    turned: int  # by EXIF
    alpha: int
    deep: int  # 16 bits
    cmyk: int
    broken: tuple[tuple[str, str], ...]  # and why
    duplicates: tuple[tuple[str, str], ...] | None  # and the first picture with the same bytes; None if not looked for
    problems: tuple[str, ...]  # what is said about pictures and cannot be used
    others: Mapping[str, int]  # files that are not pictures, by ending
    left_out: Mapping[str, tuple[str, ...]]  # why -> other things that were not read
    refusal: str  # the line that a training stops with; "" if it can begin
    boxes: Boxes | None = None  # None where nothing is said of them

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        found = asdict(self)
        if self.boxes is not None:
            found["boxes"]["limits"] = self.boxes.limits._asdict()
        return found

    def lines(self) -> Iterator[str]:
        """The report for a person, a line at a time: counts first, then the reasons."""
        yield f"{shown(self.path)}: {self.kind}"
        for key, value in self._counts():
            yield f"{key:16} {value}"
        yield from _few("broken", (f"{shown(name)}: {why}" for name, why in self.broken), len(self.broken))
        pairs = self.duplicates or ()
        yield from _few("the same bytes", (f"{shown(name)} as {shown(first)}" for name, first in pairs), len(pairs))
        yield from _few("cannot be used", map(shown, self.problems), len(self.problems))
        for why, names in self.left_out.items():
            first, *others = names
            yield f"{'left out':16} {shown(first)}{f' and {len(others):,} more' if others else ''}: {why}"

    def _counts(self) -> Iterator[tuple[str, str]]:
        yield "pictures", f"{self.pictures:,}"
        for side, of in (("width", self.width), ("height", self.height)):
            if of is not None:
                yield side, f"{of[0]} to {of[2]}, median {of[1]}"
        if self.captions:
            have = f"{self.captioned:,} of {self.pictures:,} pictures have one"
            yield "captions", f"{have}; {self.captions:,} in all, of {self.words:.1f} words each"
        else:
            yield (
                "captions",
                "none; a model that is asked with prompts needs them, one asked with boxes and a first stage do not",
            )
        if self.classes:
            few = ", ".join(f"{shown(name)} {n:,}" for name, n in islice(self.classes.items(), FEW_CLASSES))
            more = len(self.classes) - FEW_CLASSES
            yield "classes", f"{len(self.classes):,}: {few}{f' and {more:,} more' if more > 0 else ''}"
        if self.boxes is not None:
            yield from self.boxes.lines(self.pictures)
        kinds = {"turned by EXIF": self.turned, "with alpha": self.alpha, "of 16 bits": self.deep, "CMYK": self.cmyk}
        yield "of these", ", ".join(f"{n:,} {what}" for what, n in kinds.items())
        if self.others:
            yield "not pictures", ", ".join(f"{n:,} {shown(end) or 'without ending'}" for end, n in self.others.items())


def _few(what: str, lines: Iterable[str], n: int) -> Iterator[str]:
    yield from (f"{what:16} {line}" for line in islice(lines, FEW))
    if n > FEW:
        yield f"{'':16} … and {n - FEW:,} more"


@dataclass(slots=True)
class _Found:
    """What was found so far."""

    problems: list[str] = field(default_factory=list)
    headers: list[Header] = field(default_factory=list)
    read: list[Entry] = field(default_factory=list)
    unreadable: list[tuple[Entry, str]] = field(default_factory=list)
    damaged: list[tuple[Entry, str]] = field(default_factory=list)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    first: dict[bytes, str] = field(default_factory=dict)  # hash of the bytes -> name

    def look(self, entry: Entry) -> None:
        """At the header."""
        try:
            with entry.open() as file:
                found = header(file)
        except ValueError as error:
            self.unreadable.append((entry, str(error)))
        else:
            self._keep(entry, found)

    def decode(self, entry: Entry) -> None:
        """All of it."""
        try:
            data = entry.read()
            found = header(io.BytesIO(data))
        except ValueError as error:
            self.unreadable.append((entry, str(error)))
            return
        try:
            rgb(data)
        except ValueError as error:
            self.damaged.append((entry, str(error)))
            return
        self._keep(entry, found)
        same = self.first.setdefault(hashlib.sha256(data).digest(), entry.name)
        if same != entry.name:
            self.duplicates.append((entry.name, same))

    def _keep(self, entry: Entry, found: Header) -> None:
        self.headers.append(found)
        try:
            self.read.append(measured(entry, found))
        except ValueError as error:
            self.read.append(entry._replace(boxes=None))
            self.problems.append(str(error))


def examine(listing: Listing, *, thorough: bool = False) -> Iterator[int | Report]:
    """Looks at the header of every picture, or decodes them all; yields how many it has seen, at last the report."""
    found = _Found()
    for seen, entry in enumerate(listing.entries, 1):
        (found.decode if thorough else found.look)(entry)
        if seen % EVERY == 0:
            yield seen
    yield _report(listing, found, thorough=thorough)


def _report(listing: Listing, found: _Found, *, thorough: bool) -> Report:
    headers = found.headers
    captions = [caption for entry in found.read for caption in entry.captions]
    counts = Counter(entry.class_name for entry in found.read)
    broken = dict((*found.unreadable, *found.damaged))
    endings = Counter(ending(name) for name, why in listing.left_out.items() if why == NOT_A_PICTURE)
    left_out: dict[str, list[str]] = {}
    for name, why in listing.left_out.items():
        if why != NOT_A_PICTURE:
            left_out.setdefault(why, []).append(name)
    return Report(
        path=str(listing.root),
        kind=listing.kind,
        pictures=len(found.read),
        width=_spread([head.width for head in headers]),
        height=_spread([head.height for head in headers]),
        captioned=sum(bool(entry.captions) for entry in found.read),
        captions=len(captions),
        words=sum(len(caption.split()) for caption in captions) / len(captions) if captions else None,
        classes={name: counts[name] for name in listing.classes},
        turned=sum(head.turned for head in headers),
        alpha=sum(head.alpha for head in headers),
        deep=sum(head.deep for head in headers),
        cmyk=sum(head.cmyk for head in headers),
        broken=tuple((entry.name, broken[entry]) for entry in listing.entries if entry in broken) if broken else (),
        duplicates=tuple(found.duplicates) if thorough else None,
        problems=(*listing.problems, *found.problems),
        others=dict(sorted(endings.items(), key=lambda pair: (-pair[1], pair[0]))),
        left_out={why: tuple(names) for why, names in left_out.items()},
        refusal=_refusal(listing, found),
        boxes=_boxes(listing, found),
    )


def _boxes(listing: Listing, found: _Found) -> Boxes | None:
    read = zip(found.read, found.headers, strict=True)
    said = [(entry.boxes, head) for entry, head in read if entry.boxes is not None]
    if not said:
        return None
    layouts, limits = [layout for layout, _ in said], Limits()
    _, counted = applied(layouts, limits, [middle((head.width, head.height), (1, 1)) for _, head in said])
    labels = Counter(box.label for layout in layouts for box in layout)
    return Boxes(
        said=len(said),
        first_unsaid=next((entry.name for entry in found.read if entry.boxes is None), None),
        pictures=sum(map(bool, layouts)),
        boxes=sum(map(len, layouts)),
        most=max(map(len, layouts)),
        labels=dict(sorted(labels.items(), key=lambda pair: (-pair[1], pair[0]))),
        flat=listing.flat,
        **counted._asdict(),
        limits=limits,
    )


def _refusal(listing: Listing, found: _Found) -> str:
    unreadable, damaged = (
        [(listing.where(entry), why) for entry, why in group] for group in (found.unreadable, found.damaged)
    )
    one = "".join(f"{shown(path)}: {why}" for path, why in damaged[:1])
    return (
        refusal(listing, unreadable)
        or next(iter(found.problems), "")
        or complaint(len(damaged), len(found.read) + len(damaged), one)
    )


def _spread(numbers: Sequence[int]) -> tuple[int, int, int] | None:
    return (min(numbers), statistics.median_low(numbers), max(numbers)) if numbers else None
