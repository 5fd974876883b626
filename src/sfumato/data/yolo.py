"""YOLO's labels: a text file a picture, a line a box: the number of its class, and where it is, in parts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from posixpath import splitext

from sfumato.boxes import Box
from sfumato.data.listing import shown
from sfumato.data.rectangles import Written, box, from_middle, numbers
from sfumato.data.walk import Files

KIND = "YOLO labels"
PLAIN, SURE = 5, 6  # numbers in a line: a class and a box, and how sure somebody was
MOST_CLASSES = 1_000_000


class NotYolo(Exception):
    """A line is something else."""


# Lines ----------------------------------------------------------------------------------------------------
def read_line(line: str) -> list[float]:
    """The numbers in a line; `NotYolo` if they are not five or six."""
    words = line.split()
    if len(words) not in (PLAIN, SURE):
        raise NotYolo
    try:
        return [float(word) for word in words]
    except ValueError:
        raise NotYolo from None


def boxed(found: Sequence[float], names: Mapping[int, str]) -> Box | None:
    """What the numbers of a line say; without names the number of the class is the label. None if it has no area."""
    number = int(found[0]) if found[0].is_integer() and 0 <= found[0] < MOST_CLASSES else -1
    if number < 0:
        raise ValueError(f"it begins with {found[0]:g}, which must be the number of a class")
    if names and not names.get(number):
        raise ValueError(f"there is no name for the class {number}")
    return box(names[number] if names else str(number), from_middle(*numbers(found[1:PLAIN])))


# Folders --------------------------------------------------------------------------------------------------
def labels_of(files: Files, pictures: Collection[str]) -> dict[str, str]:
    """The files of labels by picture; nothing where there are none of YOLO's.

    These are files in labels/ where the pictures are in images/, if any line is one of YOLO's; else files beside the
    pictures, if every line of all of them is, for otherwise they are captions.
    """
    found = {name: other for name in pictures if (other := mirror(name)) in files.sizes}
    if _some(files.root, found.values()):
        return found
    found = {name: other for name in pictures if (other := beside(name)) in files.sizes}
    return found if _all(files.root, found.values()) else {}


def read(root: Path, file: str | None, name: str, out: Written, names: Mapping[int, str]) -> None:
    """Puts the boxes in a file into `out`, as those of the picture `name`, which has none if there is no file."""
    out.boxes.setdefault(name, [])
    if file is None:
        return
    path = root / file
    try:
        for number, line in _lines(path):
            _put(out, name, f"{shown(path)}, line {number}", line, names)
    except ValueError as error:
        out.problems.append(f"{shown(path)}: {error}")


def _put(out: Written, name: str, where: str, line: str, names: Mapping[int, str]) -> None:
    try:
        out.add(name, boxed(read_line(line), names))
    except ValueError as error:
        out.problems.append(f"{where}: {error}")
    except NotYolo:
        out.problems.append(f"{where}: it is no box; one is a class and four numbers, 'class x y width height'")


def beside(name: str) -> str:
    """ "x/a.jpg" -> "x/a.txt"."""
    return f"{splitext(name)[0]}.txt"


def mirror(name: str) -> str:
    """ "images/a.jpg" -> "labels/a.txt", wherever images/ is; "" if it is not there."""
    *folders, last = name.split("/")
    if "images" not in folders:
        return ""
    at = len(folders) - 1 - folders[::-1].index("images")
    return beside("/".join([*folders[:at], "labels", *folders[at + 1 :], last]))


def _some(root: Path, names: Iterable[str]) -> bool:
    """Whether any line of any file is one of YOLO's."""
    return any(_is_line(line) for name in names for line in _readable(root / name))


def _all(root: Path, names: Iterable[str]) -> bool:
    """Whether every line of all files is one of YOLO's, and there are some."""
    some = False
    for name in names:
        for line in _readable(root / name):
            if not _is_line(line):
                return False
            some = True
    return some


def _is_line(line: str) -> bool:
    try:
        read_line(line)
    except NotYolo:
        return False
    return True


def _readable(path: Path) -> Iterator[str]:
    """The lines of a file; one that is no box if it is not text."""
    try:
        yield from (line for _, line in _lines(path))
    except ValueError:
        yield "?"


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that are not empty, and their numbers; ValueError if it cannot be read."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text; save it again as UTF-8") from None
    except OSError as error:
        raise ValueError(f"the file cannot be opened ({error.strerror or error})") from None
    yield from ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
