"""The files inside a zip, stored as they are: where the bytes of each lie.

Sections are those of PKWARE's APPNOTE 6.3.9. Much is refused that the format allows and `torch.save` does not write:
compression, encryption, comments, bytes before, behind or in between that no record speaks of, a name that occurs
twice, and members that overlap. Reasons are worded to go after the name of the file.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from sfumato.io.head import Budget, Source, damaged, quoted

_LOCAL = struct.Struct("<4sHHHHHIIIHH")  # 4.3.7
_RECORD = struct.Struct("<4sHHHHHHIIIHHHHHII")  # 4.3.12
_END = struct.Struct("<4sHHHHIIH")  # 4.3.16
_LOCATOR = struct.Struct("<4sIQI")  # 4.3.15
_END64 = struct.Struct("<4sQHHIIQQQQ")  # 4.3.14

_COST = 600  # what a member takes in memory, bytes, at most
_ENCRYPTED, _SIZES_BEHIND = 0x2041, 0x8  # bits of the flags, 4.4.4
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF  # "see the 64-bit field"
_FULL = (_FULL32, _FULL32, _FULL16)  # of start, size and entries


class Member(NamedTuple):
    """A file inside: its first byte, its length, the CRC-32 of its bytes (0 where none was computed)."""

    start: int
    size: int
    crc: int


class _Record(NamedTuple):
    name: bytes
    flags: int
    crc: int
    size: int
    local: int


class _Directory(NamedTuple):
    start: int
    size: int
    entries: int


def members(source: Source, budget: Budget) -> dict[bytes, Member]:
    """All files in a zip by name; ValueError for whatever is wrong with it. Their bytes are not read."""
    directory = _directory(source)
    found: dict[bytes, Member] = {}
    end = 0
    for record in sorted(_records(source, directory, budget), key=lambda record: record.local):
        if record.name in found:
            raise damaged(f"it holds {quoted(record.name)} twice")
        start = _first_byte(source, record)
        if record.local < end or (not found and record.local):
            raise damaged(f"{quoted(record.name)} does not begin behind the file before it")
        end = start + record.size
        if end > directory.start:
            raise damaged(f"{quoted(record.name)} runs into what follows")
        found[record.name] = Member(start, record.size, record.crc)
    return found


def _directory(source: Source) -> _Directory:
    """Where the list of members is, from the last bytes of the file."""
    at = source.size - _END.size
    tail = source.read(max(0, at - _FULL16), min(source.size, _END.size + _FULL16))
    place = tail.rfind(b"PK\x05\x06")
    if place < 0:
        raise ValueError("is cut short: the list of what is in it, which comes last, is missing; get it again")
    surplus = len(tail) - _END.size - place
    if surplus < 0:
        raise ValueError("is cut short: it ends in the middle of its last record; get it again")
    if surplus:
        raise damaged(f"it has {surplus:,} bytes behind its end")
    _, disk, disk2, here, count, size, start, comment = _END.unpack_from(tail, place)
    wide = _end64(source, at)
    if disk or disk2 or comment or here != count:
        raise damaged("it is one part of several, or has a comment")
    found = _Directory(start, size, count)
    if wide is not None:
        at -= _LOCATOR.size + _END64.size
        if any(short not in (full, long) for short, full, long in zip(found, _FULL, wide, strict=True)):
            raise damaged("its two ends disagree")
        found = wide
    if found.start + found.size != at:
        raise damaged("its list of contents is not where it says; perhaps two files were joined")
    return found


def _end64(source: Source, at: int) -> _Directory | None:
    """The 64-bit end record in front of the short one at `at`, if there is one."""
    if at < _LOCATOR.size + _END64.size:
        return None
    sign, disk, place, _ = _LOCATOR.unpack(source.read(at - _LOCATOR.size, _LOCATOR.size))
    if sign != b"PK\x06\x07":
        return None
    expected = at - _LOCATOR.size - _END64.size
    sign, length, _, _, disk2, disk3, here, count, size, start = _END64.unpack(source.read(expected, _END64.size))
    if sign != b"PK\x06\x06" or place != expected or length != _END64.size - 12:
        raise damaged("its list of contents is not where it says; perhaps two files were joined")
    if disk or disk2 or disk3 or here != count:
        raise damaged("it is one part of several")
    return _Directory(start, size, count)


def _records(source: Source, directory: _Directory, budget: Budget) -> list[_Record]:
    """The records of the central directory, 4.3.12."""
    data, at = source.read(directory.start, directory.size), 0
    records: list[_Record] = []
    while at < len(data):
        if len(data) - at < _RECORD.size:
            raise damaged("its list of contents ends in the middle")
        sign, _, _, flags, method, _, _, crc, packed, size, n, extra, comment, disk, _, _, local = _RECORD.unpack_from(
            data, at
        )
        at += _RECORD.size
        name, fields = data[at : at + n], data[at + n : at + n + extra]
        at += n + extra + comment
        if sign != b"PK\x01\x02" or at > len(data):
            raise damaged("its list of contents is broken")
        budget.spend(_COST + n)
        if method or flags & _ENCRYPTED:
            raise ValueError(
                f"holds {quoted(name)} compressed or encrypted, which torch.save never does; save it again"
            )
        size, packed, local = _wide(fields, (size, packed, local))
        if disk or packed != size:
            raise damaged(f"the sizes of {quoted(name)} disagree")
        records.append(_Record(name, flags, crc, size, local))
    if len(records) != directory.entries:
        raise damaged(f"it says that it holds {directory.entries:,} files and lists {len(records):,}")
    return records


def _wide(fields: bytes, values: tuple[int, int, int]) -> tuple[int, int, int]:
    """Size, packed size and offset, where they are all ones from the 64-bit extra field, 4.5.3."""
    if _FULL32 not in values:
        return values
    at = 0
    while at + 4 <= len(fields):
        kind, length = struct.unpack_from("<HH", fields, at)
        body = fields[at + 4 : at + 4 + length]
        if kind == 1:
            wanted = values.count(_FULL32)
            if len(body) != length or length < 8 * wanted:
                break
            wide = iter(struct.unpack_from(f"<{wanted}Q", body))
            size, packed, local = (next(wide) if value == _FULL32 else value for value in values)
            return size, packed, local
        at += 4 + length
    raise damaged("a size in it is missing")


def _first_byte(source: Source, record: _Record) -> int:
    """Where the bytes of a member begin, behind its local header, which must agree with the record."""
    header = source.read(record.local, _LOCAL.size + len(record.name))
    sign, _, flags, method, _, _, _, packed, size, n, extra = _LOCAL.unpack_from(header)
    if sign != b"PK\x03\x04" or n != len(record.name) or header[_LOCAL.size :] != record.name:
        raise damaged(f"{quoted(record.name)} is not where its list of contents says")
    known = not flags & _SIZES_BEHIND
    if flags != record.flags or method or (known and any(s not in (_FULL32, record.size) for s in (size, packed))):
        raise damaged(f"the two descriptions of {quoted(record.name)} disagree")
    return record.local + _LOCAL.size + n + extra
