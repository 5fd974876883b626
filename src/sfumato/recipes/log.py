"""What a run wrote down, a line of JSON at a time: all lines, or some of very many."""

import json
from pathlib import Path
from typing import Any

WHOLE = 2**22  # bytes up to which all lines are read
LONGEST = 2**16  # bytes of a line

Line = dict[str, Any]


def lines(path: Path, most: int | None = None) -> list[Line]:
    """The lines of a file that have a whole number as their "step", in order; none where there is no file.

    Lines that are not whole, as after a kill, are passed over. With `most`, of a long file about so many lines, evenly
    spaced by bytes, the first and the last one among them: a file of any length is read in the same time.
    """
    try:
        if most is None or path.stat().st_size <= WHOLE:
            return [line for text in path.read_bytes().splitlines() if (line := _line(text))]
        return _some(path, most)
    except FileNotFoundError:
        return []


def _some(path: Path, most: int) -> list[Line]:
    size = path.stat().st_size
    found: dict[int, Line] = {}
    with path.open("rb") as file:
        for k in range(most):
            file.seek(at := max(0, (size - LONGEST) * k // max(1, most - 1)))
            if at:
                file.readline(LONGEST)  # of a line that began before
            if line := _line(file.readline(LONGEST)):
                found[line["step"]] = line
        for text in file.read().splitlines():
            if line := _line(text):
                found[line["step"]] = line
    return [found[step] for step in sorted(found)]


def _line(text: bytes) -> Line | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) and type(line.get("step")) is int else None
