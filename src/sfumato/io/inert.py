"""A pickle read as data: nothing that it names is looked up, and nothing is called but what the reader hands in.

The opcodes are those that Python's pickler writes in protocols 2 to 5; any other is refused. A global is only its name.
What is made with an unknown one (REDUCE, NEWOBJ, BUILD, items put into it) is an `Inert`, and so are lists, sets and
byte strings, which no tensor needs. Dicts keep their text keys alone: nothing is hashed but text, which is keyed at
random, so that no choice of keys is slow. Time is linear in the bytes; memory is paid for from a `Budget`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from struct import Struct
from typing import Any

from sfumato.io.head import Budget, damaged, quoted

_STEP = 160  # the most that an opcode leaves in memory, bytes: a dict with its place on the stack
_PAIR = 140  # the same for a pair in a dict
_NAMED = 1000  # a global costs time rather than memory; a pickle names each only once
_LONGEST_TEXT, _LONGEST_NUMBER, _LONGEST_NAME = 1 << 16, 255, 512
_U8, _U16, _U32, _U64, _I32, _F64 = map(Struct, ("<B", "<H", "<I", "<Q", "<i", ">d"))
_PROTO, _STOP = 0x80, ord(".")
_PROTOCOLS = range(2, 6)


@dataclass(frozen=True, slots=True, eq=False)
class Global:
    """The dotted name of something outside; it is never resolved."""

    name: str


@dataclass(slots=True, eq=False)
class Inert:
    """What would be an object of a foreign kind. `state` is the dict that it would be built with, if any."""

    name: str
    state: dict[str, Any] | None = None


Calls = Mapping[str, Callable[[tuple[Any, ...]], object]]


def load(data: bytes, *, calls: Calls, persistent: Callable[[object], object], budget: Budget) -> object:
    """What a pickle holds, of None, bool, int, float, str, tuple, dict, `Global`, `Inert` and what `calls` returns.

    `calls` maps the name of a global to what stands for calling it; `persistent` stands for the loading of a persistent
    id. ValueError for everything that is wrong, worded to go after the name of the file.
    """
    return _Machine(data, calls, persistent, budget).run()


class _Machine:
    def __init__(self, data: bytes, calls: Calls, persistent: Callable[[object], object], budget: Budget) -> None:
        self.data, self.at = data, 0
        self.calls, self.persistent, self.budget = calls, persistent, budget
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> object:
        if self.data[:1] != bytes([_PROTO]) or len(self.data) < 2 or self.data[1] not in _PROTOCOLS:  # noqa: PLR2004
            raise damaged("its index is no pickle of protocols 2 to 5")
        self.at = 2
        while (code := self.number(_U8)) != _STOP:
            self.budget.spend(_STEP)
            if code not in _ACTS:
                raise damaged(
                    f"its index holds the opcode 0x{code:02x} at {self.at - 1:,}, which torch.save never writes"
                )
            act, values = _ACTS[code]
            act(self, *values)
        if len(self.stack) != 1 or self.marks or self.at != len(self.data):
            raise damaged("its index does not end where it should")
        return self.stack[0]

    # Bytes ------------------------------------------------------------------------------------------------
    def take(self, count: int) -> bytes:
        """The next bytes; only as many as there are."""
        start = self.at
        self.skip(count)
        return self.data[start : self.at]

    def skip(self, count: int) -> None:
        self.at += count
        if count < 0 or self.at > len(self.data):
            raise damaged("its index ends in the middle")

    def number(self, form: Struct) -> Any:
        start = self.at
        self.skip(form.size)
        return form.unpack_from(self.data, start)[0]

    # The stack --------------------------------------------------------------------------------------------
    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise damaged("its index takes from an empty stack")
        return self.stack.pop()

    def top(self) -> Any:
        value = self.pop()
        self.push(value)
        return value

    def since_mark(self) -> list[Any]:
        if not self.marks:
            raise damaged("its index closes what it never opened")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    # Values -----------------------------------------------------------------------------------------------
    def scalar(self, form: Struct) -> None:
        self.push(self.number(form))

    def long(self, form: Struct) -> None:
        length = self.number(form)
        if length > _LONGEST_NUMBER:
            self.skip(length)
            self.push(Inert("a huge number"))
        else:
            self.push(int.from_bytes(self.take(length), "little", signed=True))

    def text(self, form: Struct) -> None:
        length = self.number(form)
        if length > _LONGEST_TEXT:
            self.skip(length)
            self.push(Inert("a long text"))
            return
        self.budget.spend(5 * length)
        try:
            self.push(self.take(length).decode("utf-8", "surrogatepass"))
        except UnicodeDecodeError:
            raise damaged("a text in its index is not UTF-8") from None

    def binary(self, form: Struct) -> None:
        self.skip(self.number(form))
        self.push(Inert("bytes"))

    def collection(self, kind: str) -> None:
        self.budget.spend(_STEP)
        self.push(Inert(kind))

    def empty_dict(self) -> None:
        self.push({})

    def short_tuple(self, count: int) -> None:
        self.budget.spend(_STEP)  # again: containers cost the collector time
        self.push(tuple(reversed([self.pop() for _ in range(count)])))

    def long_tuple(self) -> None:
        self.push(tuple(self.since_mark()))

    def frozen(self) -> None:
        self.since_mark()
        self.collection("a set")

    # Stack and memo ---------------------------------------------------------------------------------------
    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def drop(self) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.pop()

    def drop_to_mark(self) -> None:
        self.since_mark()

    def again(self) -> None:
        self.push(self.top())

    def keep(self, form: Struct) -> None:
        self.memo[self.number(form)] = self.top()

    def keep_next(self) -> None:
        self.memo[len(self.memo)] = self.top()

    def recall(self, form: Struct) -> None:
        key = self.number(form)
        if key not in self.memo:
            raise damaged("its index refers to what it did not hold before")
        self.push(self.memo[key])

    def frame(self) -> None:
        if self.number(_U64) > len(self.data) - self.at:
            raise damaged("its index ends in the middle")

    # Items ------------------------------------------------------------------------------------------------
    def append(self) -> None:
        self.items([self.pop()])

    def appends(self) -> None:
        self.items(self.since_mark())

    def items(self, _items: list[Any]) -> None:
        if not isinstance(self.top(), Inert):
            raise damaged("its index puts items into what is no list")

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.pairs([key, value])

    def set_items(self) -> None:
        self.pairs(self.since_mark())

    def pairs(self, flat: list[Any]) -> None:
        target = self.top()
        if len(flat) % 2 or not isinstance(target, dict | Inert):
            raise damaged("its index puts pairs into what is no dict")
        if isinstance(target, Inert):
            return
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            if type(key) is str:
                if key in target:
                    raise damaged(f"it holds {quoted(key)} twice")
                self.budget.spend(_PAIR)
                target[key] = value

    # Foreign things ---------------------------------------------------------------------------------------
    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + _LONGEST_NAME)
        if end < 0:
            raise damaged("a name in its index has no end")
        try:
            return self.take(end + 1 - self.at)[:-1].decode("utf-8")
        except UnicodeDecodeError:
            raise damaged("a name in its index is not UTF-8") from None

    def named(self) -> None:
        module, name = self.line(), self.line()
        self.budget.spend(_NAMED)
        self.push(Global(f"{module}.{name}"))

    def stack_named(self) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str or len(name) + len(module) > _LONGEST_NAME:
            raise damaged("a name in its index is no text, or is very long")
        self.budget.spend(_NAMED)
        self.push(Global(f"{module}.{name}"))

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        known = self.calls.get(function.name) if type(function) is Global else None
        if known is not None and type(arguments) is not tuple:
            raise damaged("its index calls with what are no arguments")
        self.push(known(arguments) if known is not None else Inert(_name(function)))

    def new(self, extra: int) -> None:
        for _ in range(extra):
            self.pop()
        self.push(Inert(_name(self.pop())))

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if type(target) is Inert and type(state) is dict:
            target.state = state

    def outside(self) -> None:
        self.push(self.persistent(self.pop()))


def _name(thing: object) -> str:
    return thing.name if isinstance(thing, Global | Inert) else type(thing).__name__


def _acts() -> dict[int, tuple[Callable[..., None], tuple[Any, ...]]]:
    """Opcode -> what it does, and with what. Names in the comments are those of Python's pickletools."""
    m = _Machine
    plain = {
        ord("("): m.mark,
        ord("0"): m.drop,
        ord("1"): m.drop_to_mark,
        ord("2"): m.again,  # DUP
        0x94: m.keep_next,  # MEMOIZE
        0x95: m.frame,
        ord("}"): m.empty_dict,
        ord("t"): m.long_tuple,
        0x91: m.frozen,
        ord("a"): m.append,
        ord("e"): m.appends,
        0x90: m.appends,  # ADDITEMS
        ord("s"): m.set_item,
        ord("u"): m.set_items,
        ord("c"): m.named,  # GLOBAL
        0x93: m.stack_named,
        ord("R"): m.call,  # REDUCE
        ord("b"): m.build,
        ord("Q"): m.outside,  # BINPERSID
    }
    families: dict[Callable[..., None], dict[int, Any]] = {
        m.push: {ord("N"): None, 0x88: True, 0x89: False},
        m.scalar: {ord("J"): _I32, ord("K"): _U8, ord("M"): _U16, ord("G"): _F64},
        m.long: {0x8A: _U8, 0x8B: _I32},
        m.text: {0x8C: _U8, ord("X"): _U32, 0x8D: _U64},
        m.binary: {ord("C"): _U8, ord("B"): _U32, 0x8E: _U64, 0x96: _U64},
        m.collection: {ord("]"): "a list", 0x8F: "a set"},
        m.short_tuple: {ord(")"): 0, 0x85: 1, 0x86: 2, 0x87: 3},
        m.keep: {ord("q"): _U8, ord("r"): _U32},  # BINPUT, LONG_BINPUT
        m.recall: {ord("h"): _U8, ord("j"): _U32},  # BINGET, LONG_BINGET
        m.new: {0x81: 1, 0x92: 2},  # NEWOBJ, NEWOBJ_EX
    }
    acts = {code: (act, ()) for code, act in plain.items()}
    return acts | {code: (act, (value,)) for act, codes in families.items() for code, value in codes.items()}


_ACTS = _acts()
