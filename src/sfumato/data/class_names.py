"""Files that say what numbered classes are called: `data.yaml`, `obj.names`, `classes.txt`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sfumato.data.listing import caption, shown
from sfumato.data.walk import Files

NAMES = ("data.yaml", "obj.names", "classes.txt")
"""In the order in which they are looked for."""
PLACES = ("", "labels/", "train/", "train/labels/")
"""Where they are looked for, from the top of the data set."""
_KEY = re.compile(r"names[ \t]*:(?:[ \t]+(.*))?")
_ITEM = re.compile(r"[ \t]*-[ \t]+(.*)")
_PAIR = re.compile(r"[ \t]+(['\"]?)(\d{1,9})\1[ \t]*:[ \t]+(.*)")
_FLOW_PAIR = re.compile(r"\s*(['\"]?)(\d{1,9})\1\s*:(.*)", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.?))", re.DOTALL)
_CLOSING = {"[": "]", "{": "}"}
_SHOWN = 40  # characters


def class_names(files: Files, problems: list[str]) -> tuple[Mapping[int, str], list[str]]:
    """The names of classes by number, and the file that has them; nothing if there is none."""
    for wanted in NAMES:
        for name in (f"{place}{wanted}" for place in PLACES if f"{place}{wanted}" in files.sizes):
            path = files.root / name
            try:
                text = _text(path)
                found = yaml_names(text) if wanted == NAMES[0] else dict(enumerate(map(caption, text.split("\n"))))
            except ValueError as error:
                problems.append(f"{shown(path)}: {error}")
                return {}, [name]
            if any(found.values()):
                return found, [name]
    return {}, []


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text; save it again as UTF-8") from None
    except OSError as error:
        raise ValueError(f"the file cannot be opened ({error.strerror or error})") from None


def yaml_names(text: str) -> dict[int, str]:
    """What `names` is in a data.yaml, a list or a mapping from numbers; nothing if it is not there.

    So much of YAML is read and no more: names in brackets or braces, or one a line, with quotes or without. ValueError
    if they are there in another form.
    """
    lines = [_uncommented(line) for line in text.splitlines()]
    for at, line in enumerate(lines):
        if match := _KEY.fullmatch(line):
            rest = (match[1] or "").strip()
            if not rest:
                return _block(lines[at + 1 :])
            if rest[0] in _CLOSING:
                return _flow("\n".join([rest, *lines[at + 1 :]]))
            raise ValueError("'names' is neither a list nor a mapping from numbers to names")
    return {}


def _block(lines: Sequence[str]) -> dict[int, str]:
    """A name a line."""
    found: dict[int, str] = {}
    for line in filter(str.strip, lines):
        if match := _ITEM.fullmatch(line):
            found[len(found)] = _name(match[1])
        elif match := _PAIR.fullmatch(line):
            found[int(match[2])] = _name(match[3])
        elif line[0] in " \t":
            raise ValueError(f"'names' has the line {shown(line.strip()[:_SHOWN])!r}, which is no name")
        else:
            break
    return found


def _flow(text: str) -> dict[int, str]:
    """ "[a, b]" or "{0: a, 1: b}", over several lines."""
    found: dict[int, str] = {}
    for item in _items(text):
        if text[0] == "[":
            found[len(found)] = _name(item)
        elif match := _FLOW_PAIR.fullmatch(item):
            found[int(match[2])] = _name(match[3])
        else:
            raise ValueError(f"'names' has {shown(item.strip()[:_SHOWN])!r}, which is no number with its name")
    return found


def _items(text: str) -> Iterator[str]:
    """What stands between the commas up to the bracket that closes the first one."""
    item: list[str] = []
    quote, fresh = "", True  # whether a value may begin here
    for character in text[1:]:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and fresh:
            quote = character
        elif character in ",[]{}":
            if item and "".join(item).strip():
                yield "".join(item)
            if character == _CLOSING[text[0]]:
                return
            if character != ",":
                break
            item, fresh = [], True
            continue
        fresh = character == ":" or (fresh and character.isspace())
        item.append(character)
    raise ValueError(f"'names' begins with {text[0]!r} and is not closed, or has more than names in it")


def _name(text: str) -> str:
    """A name, without its quotes."""
    text = text.strip()
    if text[:1] == '"' == text[-1:] and len(text) > 1:
        text = _ESCAPE.sub(_escaped, text[1:-1])
    elif text[:1] == "'" == text[-1:] and len(text) > 1:
        text = text[1:-1].replace("''", "'")
    return caption(text)


def _escaped(match: re.Match[str]) -> str:
    """What a backslash in double quotes stands for."""
    code = match[1] or match[2] or match[3]
    if code and int(code, 16) <= sys.maxunicode:
        return chr(int(code, 16))
    if match[4] in ('"', "\\", "/", " "):
        return match[4]
    raise ValueError(f"'names' has {shown(match[0])} in a name, which cannot be read")


def _uncommented(line: str) -> str:
    """The line before a "#" that begins a comment: at its beginning or behind a blank, and in no quotes."""
    quote, before = "", " "
    for at, character in enumerate(line):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and before in " \t[{,:":
            quote = character
        elif character == "#" and before in " \t":
            return line[:at].rstrip()
        before = character
    return line.rstrip()
