"""Whatever a file holds, opening it ends soon, takes little memory, and gives tensors or one line that says why not.

Files are changed at random from a seed: bytes of a checkpoint's index, which is zipped again; bytes of the zip; headers
of safetensors. What opens as safetensors must open with that library too, and hold the same.
"""

from __future__ import annotations

import json
import pickletools
import random
import signal
import struct
import tracemalloc
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from hostile import DATA, field, headed, pickled, storage, table, tensor, text, zipped
from sfumato.io import inert
from sfumato.io.head import FREE
from sfumato.io.stored import Stored, open_stored

Rng = random.Random
OPCODES = bytes(inert._ACTS) + b"."
HUGE = (0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


# Any bytes ------------------------------------------------------------------------------------------------
def changed(rng: Rng, data: bytes, pieces: tuple[bytes, ...]) -> bytes:
    """One to four changes: bits, bytes, numbers, parts cut, doubled, moved, zeroed, and foreign pieces."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        to = min(len(data), at + rng.choice((1, 1, 2, 4, 8, 30, 200)))
        other = rng.randrange(len(data) + 1)
        value = struct.pack("<Q", rng.choice(HUGE))[: rng.choice((1, 2, 4, 8))]
        part = data[at:to]
        data = rng.choice(
            (
                data[:at] + rng.randbytes(1) + data[at + 1 :],
                data[:at] + bytes([part[0] ^ 1 << rng.randrange(8)]) + data[at + 1 :] if part else data,
                data[:at] + value + data[at + len(value) :],
                data[:at] + bytes([rng.choice(OPCODES)]) + data[at + 1 :],
                data[:at] + rng.choice(pieces) + data[to:],
                data[:at] + rng.choice(pieces) + data[at:],
                data[:at] + data[to:],
                data[:to] + part + data[to:],
                data[:other] + part + data[other:],
                data[:at] + bytes(to - at) + data[to:],
                data[:at],
            )
        )
    return data


# Indexes of checkpoints -----------------------------------------------------------------------------------
def pieces() -> tuple[bytes, ...]:
    """Parts of pickles that are meant to hurt."""
    names = (
        b"cposix\nsystem\n",
        b"ccollections\nOrderedDict\n",
        b"ctorch\nSize\n",
        b"ctorch._utils\n_rebuild_parameter\n",
    )
    lengths = [code + struct.pack("<Q", n) for code in (b"X", b"\x8d", b"\x8e", b"\x96", b"B", b"\x95") for n in HUGE]
    longs = [b"\x8b" + struct.pack("<I", n & 0xFFFFFFFF) for n in HUGE] + [b"\x8a\xff" + b"\x7f" * 255, b"\x8a\0"]
    loops = [b"]q\0h\0a", b"}q\0X\1\0\0\0ah\0s", b"]q\0(h\0h\0h\0h\0e", b"\x94" * 40, b"2" * 40, b"h\0" * 40]
    calls = [
        b")R",
        b"NR",
        b"]R",
        b"}R",
        b")\x81",
        b"}b",
        b"Nb",
        b")}\x92",
        b"NN\x93",
        text("os") + text("system") + b"\x93",
    ]
    tuples = [
        b"NQ",
        b")Q",
        b"(" + text("storage") + b"NNNNtQ",
        storage(),
        storage(count=-6),
        storage("1", 0),
        b"(NNNNNtQ",
    ]
    odd = [(1 << 62,), (0,), (-1,), (2, 3), (1,) * 70, (1 << 40, 0)]
    tensors = [tensor(a, b, o) for a in odd for b in odd[:4] for o in (0, -1, 1 << 62)]
    return (*names, *lengths, *longs, *loops, *calls, *tuples, *tensors, b"(", b"(l", b"t", b"u", b"e", b"0", b"1")


def bombs() -> tuple[bytes, ...]:
    """Longer ones: 100,000 deep or wide, and twice what was before, 200 times."""
    deep = 100_000
    doubled = b"]q\0" + b"".join(
        b"0](" + b"h" + bytes([i]) * 1 + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(200)
    )
    keyed = b"}q\0" + b"".join(
        b"0}(" + text("a") + b"h" + bytes([i]) + text("b") + b"h" + bytes([i]) + b"uq" + bytes([i + 1])
        for i in range(200)
    )
    units = (b"(", b"]", b"}", b"(l", b"N\x85", b")", b"\x8f", b"}" + text("k"), b"N\x94", b"(((", b"K\1", b"ca\nb\n)R")
    nested = (b"(" * deep + b"t" * deep, b"]" * deep + b"a" * deep, b"N" + b"\x85" * deep, b"}N" + b"2" * deep + b"u")
    return (*(unit * deep for unit in units), *nested, doubled, keyed, b"\x8b" + struct.pack("<I", deep) + bytes(deep))


def indexes(folder: Path) -> list[tuple[bytes, dict[str, bytes]]]:
    """Good ones to begin with, and their storages, by hand and by torch.save in each protocol."""
    shared = torch.arange(6.0)
    module = torch.nn.Linear(2, 1)
    values: Any = {
        "state_dict": OrderedDict(module.state_dict(), a=shared, b=shared.view(2, 3).t(), c=torch.ones(1).expand(2)),
        "optimizer": [torch.optim.Adam(module.parameters()).state_dict(), {1, 2}, frozenset([3]), b"raw", bytearray(2)],
        "callbacks": {Path: Path("x"), "n": 1 << 100, "f": 0.5},
        "step": 7,
    }
    by_hand = (pickled(table(a=tensor(), b=tensor((3,), (2,)))), pickled(table(state_dict=table(a=tensor()), n=b"K\7")))
    found = [(index, {"0": DATA}) for index in by_hand]
    for protocol in (2, 3, 4, 5):
        torch.save(values, folder / "made", pickle_protocol=protocol)
        with zipfile.ZipFile(folder / "made") as made:
            parts = {name.partition("/")[2]: made.read(name) for name in made.namelist()}
        storages = {name.removeprefix("data/"): data for name, data in parts.items() if name.startswith("data/")}
        found.append((parts["data.pkl"], storages))
    return found


def parts(index: bytes) -> list[bytes]:
    """The opcodes of a good pickle, each with what belongs to it."""
    starts = [at for _, _, at in pickletools.genops(index)]
    return [index[start:end] for start, end in pairwise([*starts, len(index)])]


def edited(rng: Rng, codes: list[bytes], hurting: tuple[bytes, ...]) -> bytes:
    """A pickle with one to three of its opcodes changed: put in, taken out, doubled, exchanged, misread."""
    codes = list(codes)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at, other = rng.randrange(1, len(codes)), rng.randrange(1, len(codes))
        code, value = codes[at], struct.pack("<Q", rng.choice(HUGE))
        codes[at : at + 1] = rng.choice(
            (
                [rng.choice(hurting), code],
                [rng.choice(hurting), b"0", code],
                [rng.choice(hurting)],
                [codes[other]],
                [codes[other], code],
                [code, code],
                [],
                [code[:1] + value[: len(code) - 1] + code[9:]],
                [bytes([rng.choice(OPCODES)]) + code[1:]],
            )
        )
    return b"".join(codes)


def checkpoints(rng: Rng, folder: Path) -> Iterator[bytes]:
    """Changed indexes, zipped again as they should be."""
    good, hurting, exploding = indexes(folder), pieces(), bombs()
    codes = {index: parts(index) for index, _ in good}
    while True:
        index, storages = rng.choice(good)
        if rng.random() < 0.004:
            at = rng.randrange(1, len(codes[index]))
            yield zipped(b"".join((*codes[index][:at], rng.choice(exploding), *codes[index][at:])), storages)
        elif rng.random() < 0.6:
            yield zipped(edited(rng, codes[index], hurting), storages)
        else:
            yield zipped(changed(rng, index, hurting), storages)


# Zips -----------------------------------------------------------------------------------------------------
def zips(rng: Rng, folder: Path) -> Iterator[bytes]:
    """Changed anywhere, and above all in the numbers of their records; a 64-bit end now and then."""
    torch.save({"state_dict": {"a": torch.ones(2), "b": torch.zeros(3)}, "step": 1}, folder / "made")
    good = [(folder / "made").read_bytes(), zipped(pickled(table(a=tensor())), byteorder=b"little")]
    wide = b"\x01\0\x18\0" + struct.pack("<QQQ", 6, 1 << 40, 1 << 63)
    signs = (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", wide)
    while True:
        data = bytearray(rng.choice(good))
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            places = [i for sign in signs[:5] for i in occurrences(data, sign)]
            at, form = rng.choice(places) + rng.randrange(4, 56), rng.choice(("<B", "<H", "<I", "<Q"))
            if at + 8 <= len(data):
                struct.pack_into(
                    form, data, at, rng.choice((*HUGE, len(data), at)) & ((1 << 8 * struct.calcsize(form)) - 1)
                )
        yield bytes(data) if rng.random() < 0.5 else changed(rng, bytes(data), signs)


def occurrences(data: bytearray, sign: bytes) -> Iterator[int]:
    at = data.find(sign)
    while at >= 0:
        yield at
        at = data.find(sign, at + 1)


# Safetensors ----------------------------------------------------------------------------------------------
def headers(rng: Rng, folder: Path) -> Iterator[bytes]:
    """Headers with other values, doubled keys, other texts, lengths and data."""
    odd: list[Any] = [
        *HUGE,
        -1,
        1.5,
        True,
        None,
        "",
        "F64",
        "BOOL",
        "F8_E4M3",
        "U16",
        [],
        {},
        [[]],
        [1],
        [0, 24],
        "\ud800",
        "é",
    ]
    signs = (b",", b"[", b"{", b"}", b'"', b"\\u0000", b"-0", b"NaN", b"1e9")
    parts = (*signs, *(json.dumps(value).encode() for value in odd))
    deep = b"[" * 100_000
    while True:
        header: dict[str, Any] = {"a": field(), "b": field("I64", (), 24, 32), "c": field("F16", (0, 2), 32, 32)}
        header |= {"__metadata__": {"k": "v"}} if rng.random() < 0.5 else {}
        for _ in range(rng.choice((0, 1, 1, 2))):
            name = rng.choice(list(header))
            inner = header[name]
            if rng.random() < 0.2 or not isinstance(inner, dict) or not inner:
                header[rng.choice((name, "d", "é", ""))] = rng.choice((*odd, field(), field("U8", (1,), 32, 33)))
            else:
                inner[rng.choice((*inner, "more"))] = rng.choice((*odd, [rng.choice(HUGE), rng.choice(HUGE)]))
        head = json.dumps(header, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
        head = changed(rng, head, (*parts, deep) if rng.random() < 0.01 else parts) if rng.random() < 0.4 else head
        head += b" " * rng.choice((0, 0, 0, 3))
        data = headed(head, (DATA + DATA)[: rng.choice((32, 32, 32, 32, 33, 24, 0))])
        yield data if rng.random() < 0.9 else changed(rng, data, parts)


# The trial ------------------------------------------------------------------------------------------------
class Hung(BaseException):
    """A file took more than a second of computing."""


@contextmanager
def watched() -> Iterator[None]:
    """The one place in these tests where time counts: a second of this process's own."""

    def stop(*_: object) -> None:
        raise Hung

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def outcome(path: Path) -> Stored | str:
    try:
        with watched():
            return open_stored(path)
    except ValueError as error:
        kind, message = type(error), str(error)
    assert kind is ValueError
    assert message.startswith(f"{path} ")
    assert message.isprintable()
    assert len(message) < len(str(path)) + 400
    return message.removeprefix(f"{path} ")


def bits(value: torch.Tensor) -> bytes:
    """The bytes of a tensor in row-major order, whatever its strides."""
    return torch.empty(value.shape, dtype=value.dtype).copy_(value).view(-1).view(torch.uint8).numpy().tobytes()


def check(path: Path, found: Stored, size: int) -> None:
    """Every tensor can be read, lies in the file, and is what the safetensors library says."""
    for name, entry in found.entries.items():
        value = found.tensor(name)
        assert (value.shape, value.dtype) == (entry.shape, entry.dtype)
        assert value.nbytes == len(bits(value)) <= size
        assert 0 <= entry.start <= entry.start + entry.extent <= size
    if not path.read_bytes().startswith(b"PK"):
        with safe_open(path, "pt") as theirs:
            assert set(theirs.keys()) == set(found.entries)
            assert (theirs.metadata() or {}) == found.metadata
            for name in found.entries:
                mine, other = found.tensor(name), theirs.get_tensor(name)
                assert (mine.shape, mine.dtype, bits(mine)) == (other.shape, other.dtype, bits(other))


def memory(path: Path) -> int:
    """The most that Python has at once while a file is opened, in bytes."""
    tracemalloc.start()
    try:
        open_stored(path)
    except ValueError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def trial(makers: tuple[Callable[[Rng, Path], Iterator[bytes]], ...], count: int, folder: Path) -> Counter[str]:
    """`count` files in turn from each maker; what became of them, in words."""
    rng, path, seen = Rng(1), folder / "file", Counter[str]()
    streams = [maker(rng, folder) for maker in makers]
    for i in range(count):
        data = next(streams[i % len(streams)])
        path.write_bytes(data)
        found = outcome(path)
        if isinstance(found, Stored):
            check(path, found, len(data))
        if i % 10 == 0 or len(data) > 50_000:
            assert memory(path) < 2 * len(data) + FREE
        seen["opened" if isinstance(found, Stored) else found[:24]] += 1
        del found
    return seen


@pytest.mark.parametrize("maker", [checkpoints, zips, headers])
def test_changed_files(maker: Callable[[Rng, Path], Iterator[bytes]], tmp_path: Path) -> None:
    seen = trial((maker,), 1500, tmp_path)
    assert seen["opened"] > 100  # the changes are not so large that all fail at the door
    assert len(seen) > 8


@pytest.mark.slow
def test_a_hundred_thousand_changed_files(tmp_path: Path) -> None:
    seen = trial((checkpoints, headers, zips, headers), 100_000, tmp_path)
    assert sum(seen.values()) == 100_000
    assert seen["opened"] > 5000
    assert len(seen) > 30
