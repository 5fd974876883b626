"""Checkpoints as `torch.save` writes them: a zip of raw numbers and a pickle that says what they are.

The pickle is read by `inert`, so nothing in a checkpoint runs. Of a training's checkpoint the tensors under
"state_dict" are taken; optimizers, callbacks and settings beside them are passed over. The layout is that of torch
1.6 and later: `ROOT/data.pkl`, `ROOT/data/KEY` for each storage, perhaps `ROOT/byteorder`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from sfumato.io import inert
from sfumato.io.head import Budget, Entry, Head, Source, damaged, numel, quoted, reach
from sfumato.io.inert import Global, Inert
from sfumato.io.members import Member, members

STORAGES = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
UNTYPED = "torch.storage.UntypedStorage"
UNTYPED_TYPES = {"torch.float8_e4m3fn": torch.float8_e4m3fn, "torch.float8_e5m2": torch.float8_e5m2}
"""Types that torch stores without a storage class of their own."""

_PARAMETER_DICT = "torch.nn.modules.container.ParameterDict"  # textual inversions of 2022 hold one
_DEEPEST, _MOST_SIDES, _LONGEST = 16, 64, 1000
_ITEM = 300  # what a name with its entry takes in memory, bytes


@dataclass(frozen=True, slots=True, eq=False)
class _Storage:
    kind: str
    start: int
    size: int


def read_head(source: Source, budget: Budget) -> Head:
    """The tensors of a checkpoint and the scalars beside them; ValueError worded to go after the name of the file."""
    files = members(source, budget)
    root = _root(files)
    order = files.get(root + b"/byteorder")
    if order is not None and source.read(order.start, min(order.size, 8)) != b"little":
        raise ValueError("was written on a machine with the other byte order (big-endian); save it on a common one")
    top = _Reader(source, files, root, budget).top()
    if not isinstance(top, dict):
        raise ValueError(f"holds {_kind(top)}, not a dict of tensors; save the state_dict() of a model")
    inner = top.get("state_dict")
    entries: dict[str, Entry] = {}
    for name, entry in _named(inner if isinstance(inner, dict) else top, budget):
        if name in entries:
            raise damaged(f"it holds {quoted(name)} twice")
        entries[name] = entry
    if not entries:
        raise ValueError("holds no tensors; a checkpoint is a dict of tensors, or has one as its 'state_dict'")
    return Head(entries, {k: v for k, v in top.items() if isinstance(v, str | int | float | bool)})


def _kind(top: object) -> str:
    if isinstance(top, Inert):
        return f"an object of the kind {quoted(top.name)}"
    return "one tensor" if isinstance(top, Entry) else f"one value of the kind {type(top).__name__!r}"


def _root(files: dict[bytes, Member]) -> bytes:
    """The folder inside the zip that holds everything."""
    found = [name for name in files if name.endswith(b"/data.pkl") and name.count(b"/") == 1]
    if len(found) != 1:
        raise ValueError("is a zip, but not one that torch.save wrote (it has no data.pkl); unpack it if it holds one")
    root = found[0].removesuffix(b"/data.pkl")
    if root + b"/constants.pkl" in files:
        raise ValueError("is a TorchScript program, not a checkpoint; get the checkpoint that it was made from")
    return root


class _Reader:
    """The few things that a checkpoint's pickle may call, and what they mean."""

    def __init__(self, source: Source, files: dict[bytes, Member], root: bytes, budget: Budget) -> None:
        self.source, self.files, self.root, self.budget = source, files, root, budget

    def top(self) -> object:
        member = self.files[self.root + b"/data.pkl"]
        data = self.source.read(member.start, member.size)
        if member.crc and zlib.crc32(data) != member.crc:
            raise damaged("the checksum of its index is wrong")
        calls = {
            "collections.OrderedDict": _ordered,
            "torch.Size": _size,
            "torch._utils._rebuild_parameter": _parameter,
            "torch._utils._rebuild_tensor_v2": self.tensor,
            "torch._utils._rebuild_tensor_v3": self.untyped_tensor,
        }
        return inert.load(data, calls=calls, persistent=self.storage, budget=self.budget)

    def storage(self, identity: object) -> _Storage | Inert:
        """A persistent id: ("storage", class, key, device, number of items)."""
        match identity:
            case ("storage", Global() as kind, str() as key, str(), int() as count):
                pass
            case _:
                raise damaged("a storage in it is described wrongly")
        member = self.files.get(self.root + b"/data/" + key[:_LONGEST].encode("utf-8", "surrogatepass"))
        if member is None:
            raise damaged(f"the storage {quoted(key)} is missing")
        if kind.name not in STORAGES and kind.name != UNTYPED:
            return Inert(kind.name)
        itemsize = STORAGES[kind.name].itemsize if kind.name in STORAGES else 1
        if count * itemsize != member.size:
            raise damaged(f"the storage {quoted(key)} has {member.size:,} bytes where {count:,} items should be")
        return _Storage(kind.name, member.start, member.size)

    def tensor(self, arguments: tuple[Any, ...]) -> Entry | Inert:
        """storage, offset, shape, stride, requires_grad, hooks, and perhaps flags of complex numbers."""
        if len(arguments) not in (6, 7):
            raise damaged("a tensor in it is described wrongly")
        storage = arguments[0]
        if isinstance(storage, Inert):
            return Inert(f"torch._utils._rebuild of {storage.name}")
        if not isinstance(storage, _Storage) or storage.kind not in STORAGES:
            raise damaged("a tensor in it has no storage")
        if arguments[6:] not in ((), (None,), ({},)):
            return Inert("torch._utils._rebuild of a negated or conjugated view")
        return self.entry(storage, STORAGES[storage.kind], *arguments[1:4])

    def untyped_tensor(self, arguments: tuple[Any, ...]) -> Entry | Inert:
        """storage, offset, shape, stride, requires_grad, hooks, type, and perhaps flags."""
        if len(arguments) not in (7, 8) or not isinstance(arguments[0], _Storage) or type(arguments[6]) is not Global:
            raise damaged("a tensor in it is described wrongly")
        dtype = UNTYPED_TYPES.get(arguments[6].name)
        if dtype is None or arguments[0].kind != UNTYPED:
            return Inert(f"torch._utils._rebuild of {arguments[6].name}")
        return self.entry(arguments[0], dtype, *arguments[1:4])

    def entry(self, storage: _Storage, dtype: torch.dtype, offset: object, shape: object, stride: object) -> Entry:
        """A tensor that lies within its storage, and is no larger than the file."""
        sides, steps, (first,) = _whole(shape), _whole(stride), _whole((offset,))
        if len(sides) != len(steps):
            raise damaged("a tensor in it has another number of strides than of sides")
        used = reach(sides, steps)
        if used and (first + used) * dtype.itemsize > storage.size:
            raise damaged("a tensor in it reaches past its storage")
        if numel(sides, dtype.itemsize) * dtype.itemsize > self.source.size:
            raise damaged("a tensor in it is larger than the whole file")
        return Entry(sides, dtype, storage.start + first * dtype.itemsize if used else 0, steps)


def _ordered(arguments: tuple[Any, ...]) -> dict[str, Any] | Inert:
    return Inert("collections.OrderedDict") if arguments else {}


def _size(arguments: tuple[Any, ...]) -> tuple[int, ...]:
    if len(arguments) != 1:
        raise damaged("a shape in it is described wrongly")
    return _whole(arguments[0])


def _parameter(arguments: tuple[Any, ...]) -> Entry | Inert:
    """data, requires_grad, hooks; the data is all that matters."""
    if len(arguments) != 3 or not isinstance(arguments[0], Entry | Inert):  # noqa: PLR2004
        raise damaged("a parameter in it is described wrongly")
    return arguments[0]


def _whole(numbers: object) -> tuple[int, ...]:
    """A tuple of numbers that a shape, a stride or an offset may have."""
    if type(numbers) is not tuple or len(numbers) > _MOST_SIDES:
        raise damaged("a tensor in it has a shape that is none")
    if any(type(n) is not int or not 0 <= n < 1 << 63 for n in numbers):
        raise damaged("a tensor in it has a negative or senseless size")
    return numbers


def _named(tree: dict[str, Any], budget: Budget, before: str = "", depth: int = 1) -> Iterator[tuple[str, Entry]]:
    """The tensors in nested dicts by their path, dots between. A dict that occurs twice is walked twice, and paid."""
    for key, value in tree.items():
        budget.spend(_ITEM)
        name = f"{before}{key[: _LONGEST + 1]}"
        inner = (value.state or {}).get("_parameters") if _is_parameter_dict(value) else value
        if isinstance(value, Entry):
            if len(name) > _LONGEST:
                raise damaged(f"a tensor in it is called {quoted(name)}, and on")
            budget.spend(4 * len(name))
            yield name, value
        elif isinstance(inner, dict):
            if depth == _DEEPEST or len(name) > _LONGEST:
                raise ValueError(f"nests its dicts more than {_DEEPEST} deep; a checkpoint is a flat dict of tensors")
            yield from _named(inner, budget, f"{name}.", depth + 1)
        elif isinstance(value, Inert) and value.name.startswith("torch.") and "._rebuild" in value.name:
            raise ValueError(f"holds {quoted(name)} as {quoted(value.name)}, which is not read; save a plain tensor")


def _is_parameter_dict(value: object) -> bool:
    return isinstance(value, Inert) and value.name == _PARAMETER_DICT
