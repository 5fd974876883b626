"""The lists in a JSON object, an element at a time: a file is read that is larger than what is wanted of it."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO

CHUNK = 1 << 20  # bytes that are read at once
TAIL = 3  # characters behind a number, as the "e+" of 1e+5, without which it may be cut and still be one
_BLANK = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def read_lists(file: BinaryIO, take: Mapping[str, Callable[[object], object]]) -> frozenset[str]:
    """Gives each element of the lists that `take` names to its function, in order; says which of them are there.

    None are in what is no object. ValueError if the file is not JSON.
    """
    try:
        return _read(_Text(file), take)
    except (ValueError, RecursionError):
        raise ValueError("not JSON; get the file again") from None


def _read(text: _Text, take: Mapping[str, Callable[[object], object]]) -> frozenset[str]:
    found: set[str] = set()
    if text.next() == "{":
        _members(text, take, found)
    else:
        text.value()
    if text.next():
        raise ValueError("more than one value")
    return frozenset(found)


def _members(text: _Text, take: Mapping[str, Callable[[object], object]], found: set[str]) -> None:
    for _ in text.items("{", "}"):
        key = text.value()
        if not isinstance(key, str):
            raise ValueError(key)
        text.skip(":")
        if key in take and text.next() == "[":
            found.add(key)
            for _ in text.items("[", "]"):
                take[key](text.value())
        else:
            text.value()


class _Text:
    """The text of a file, of which what has been read is forgotten."""

    def __init__(self, file: BinaryIO) -> None:
        head = file.read(4)
        self.file, self.at = file, 0
        self.decoder = codecs.getincrementaldecoder(json.detect_encoding(head))("surrogatepass")
        self.text = self.decoder.decode(head)

    def next(self) -> str:
        """The next character that is not blank; "" at the end."""
        while True:
            blank = _BLANK.match(self.text, self.at)
            self.at = blank.end() if blank else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more():
                return ""

    def skip(self, character: str) -> None:
        """Goes over this character; ValueError if another comes."""
        if self.next() != character:
            raise ValueError(character)
        self.at += 1

    def items(self, first: str, last: str) -> Iterator[None]:
        """Goes over what stands between the elements of a list or an object; yields where each of them begins."""
        self.skip(first)
        if self.next() != last:
            yield
            while self.next() == ",":
                self.at += 1
                yield
        self.skip(last)

    def value(self) -> object:
        """The value that begins here."""
        self.next()
        while True:
            try:
                found, end = _DECODER.raw_decode(self.text, self.at)
            except ValueError:  # it may go on in what was not read yet
                if not self._more():
                    raise
                continue
            if end + TAIL <= len(self.text) or not self._more():
                self.at = end
                return found

    def _more(self) -> bool:
        """Reads on, twice as much as there is; False at the end, where nothing changes."""
        data = self.file.read(max(CHUNK, len(self.text) - self.at))
        piece = self.decoder.decode(data, final=not data)
        if piece:
            self.text, self.at = self.text[self.at :] + piece, 0
        return bool(data)
