"""The head of a safetensors file: eight bytes of length, JSON that says what is where, then numbers without gaps.

The format is that of safetensors' own README, and what is accepted here its library accepts too. It is read here
because the library does not say where a tensor lies. Reasons are worded to go after the name of the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import torch

from sfumato.io.head import Budget, Entry, Head, Source, damaged, numel, quoted

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_PREFIX, _MOST_SIDES = 8, 64
_FIELDS = {"dtype", "shape", "data_offsets"}
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[{,]', re.DOTALL)
_HALF = re.compile("[\ud800-\udfff]")  # half of a surrogate pair, which an escape of JSON can make
_COST = 120  # what a value of JSON takes in memory, bytes, at most


def read_head(source: Source, budget: Budget) -> Head:
    """The tensors of a file and its metadata; ValueError worded to go after the name of the file."""
    length = int.from_bytes(source.read(0, _PREFIX), "little")
    header = _parsed(source.read(_PREFIX, length), budget)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged("its metadata are not texts")
    entries = {name: _entry(name, fields, _PREFIX + length) for name, fields in header.items()}
    _check_extents(entries, _PREFIX + length, source.size)
    if not entries:
        raise ValueError("holds no tensors")
    return Head(entries, metadata)


def _parsed(data: bytes, budget: Budget) -> dict[str, Any]:
    """The JSON of a header, counted before it is read so that it cannot grow beyond measure."""
    budget.spend((2 if data.isascii() else 8) * len(data))
    for _ in _TOKEN.finditer(data):
        budget.spend(_COST)
    try:
        header = json.loads(data.decode("utf-8"), object_pairs_hook=_once, parse_int=_count, parse_constant=_no)
    except (RecursionError, UnicodeDecodeError, json.JSONDecodeError):
        raise damaged("its header is not JSON") from None
    if not isinstance(header, dict) or data[:1] != b"{":
        raise damaged("its header is not a JSON object")
    return header


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise damaged(f"it holds {quoted(name)} twice")
        if _HALF.search(name) or (isinstance(value, str) and _HALF.search(value)):
            raise damaged(f"its header holds half a character beside {quoted(name)}")
        found[name] = value
    return found


def _count(digits: str) -> int:
    """A number of JSON; none that a header needs is negative or has more than 19 digits."""
    if not digits.isdigit() or len(digits) > 19:  # noqa: PLR2004
        raise damaged(f"its header holds the number {quoted(digits)}")
    return int(digits)


def _no(word: str) -> None:
    raise damaged(f"its header holds {word}")


def _entry(name: str, fields: object, data: int) -> Entry:
    """One tensor; its offsets count from the byte `data`."""
    if not isinstance(fields, dict) or fields.keys() != _FIELDS:
        raise damaged(f"its header describes {quoted(name)} wrongly")
    if not isinstance(fields["dtype"], str):
        raise damaged(f"its header describes {quoted(name)} wrongly")
    dtype = TYPES.get(fields["dtype"])
    if dtype is None:
        raise ValueError(f"holds {quoted(name)} as {quoted(fields['dtype'])}; the types read are {', '.join(TYPES)}")
    shape, offsets = (_whole(name, fields[key]) for key in ("shape", "data_offsets"))
    if len(offsets) != 2 or numel(shape, dtype.itemsize) * dtype.itemsize != offsets[1] - offsets[0]:  # noqa: PLR2004
        raise damaged(f"the size of {quoted(name)} is not that of its data")
    return Entry(shape, dtype, data + offsets[0], _steps(shape))


def _whole(name: str, numbers: object) -> tuple[int, ...]:
    if not isinstance(numbers, list) or len(numbers) > _MOST_SIDES:
        raise damaged(f"its header describes {quoted(name)} wrongly")
    if any(type(n) is not int or n >= 1 << 63 for n in numbers):
        raise damaged(f"its header describes {quoted(name)} wrongly")
    return tuple(numbers)


def _steps(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides."""
    return tuple(reversed(list(_products(shape[::-1]))))


def _products(sides: tuple[int, ...]) -> Iterator[int]:
    step = 1
    for side in sides:
        yield step
        step *= max(side, 1)


def _check_extents(entries: dict[str, Entry], data: int, size: int) -> None:
    """The tensors cover the bytes from `data` to the end, each byte once."""
    end = data
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].extent)):
        if entry.start != end:
            raise damaged(f"{quoted(name)} does not begin where the tensor before it ends")
        end += entry.extent
    if end > size:
        raise ValueError(f"is cut short: it should have {end:,} bytes and has {size:,}; get it again")
    if end < size:
        raise ValueError(f"has {size - end:,} bytes behind its last tensor; get it again")
