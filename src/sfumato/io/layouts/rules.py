"""Key rules: which tensors of a file are which of ours, in both directions, with every key accounted for."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn


class Form(Protocol):
    """How the tensors of a rule are shaped there and here; each direction undoes the other to the bit."""

    def read(self, there: Sequence[Tensor]) -> Sequence[Tensor]:
        """Ours; RuntimeError if they have another number of entries than they should."""
        ...

    def write(self, here: Sequence[Tensor]) -> Sequence[Tensor]:
        """Theirs."""
        ...


class Same:
    """As it is."""

    def read(self, there: Sequence[Tensor]) -> Sequence[Tensor]:
        """Ours."""
        return there

    def write(self, here: Sequence[Tensor]) -> Sequence[Tensor]:
        """Theirs."""
        return here


@dataclass(frozen=True)
class Pointwise:
    """A matrix here, a convolution of one pixel over `dims` dimensions there: (O, I) and (O, I, 1, ...)."""

    dims: int = 2

    def read(self, there: Sequence[Tensor]) -> Sequence[Tensor]:
        """Ours."""
        return [t.reshape(t.shape[:2]) if t.shape[2:].numel() == 1 else t for t in there]

    def write(self, here: Sequence[Tensor]) -> Sequence[Tensor]:
        """Theirs."""
        return [t.reshape(*t.shape, *[1] * self.dims) for t in here]


@dataclass(frozen=True)
class Fused:
    """Q, K and V here, one tensor there: the three after each other, or with `heads` head by head (H, 3, D)."""

    heads: int | None = None
    dims: int = 0  # of one pixel behind the matrix there

    def read(self, there: Sequence[Tensor]) -> Sequence[Tensor]:
        """Ours."""
        whole = there[0]
        whole = whole.reshape(whole.shape[: whole.ndim - self.dims]) if whole.ndim > self.dims + 1 else whole
        if self.heads is None:
            return whole.chunk(3)
        parts = whole.reshape(self.heads, 3, -1, *whole.shape[1:])
        return [parts[:, i].reshape(-1, *whole.shape[1:]) for i in range(3)]

    def write(self, here: Sequence[Tensor]) -> Sequence[Tensor]:
        """Theirs."""
        if self.heads is None:
            whole = torch.cat(list(here))
        else:
            parts = [t.reshape(self.heads, -1, *t.shape[1:]) for t in here]
            whole = torch.stack(parts, dim=1).reshape(-1, *here[0].shape[1:])
        return [whole.reshape(*whole.shape, *[1] * self.dims) if whole.ndim > 1 else whole]


SAME = Same()


@dataclass(frozen=True)
class Rule:
    """Some tensors here are some tensors there."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    form: Form = SAME


class Place(NamedTuple):
    """The name of a module there, and the form of its weight."""

    there: str
    form: Form = SAME


Places = dict[str, Place]
"""Modules here -> places there."""


def under(places: Mapping[str, Place | str], here: str, there: str) -> Places:
    """The places below two prefixes."""
    found = {a: Place(b) if isinstance(b, str) else b for a, b in places.items()}
    return {f"{here}.{a}": Place(f"{there}.{b.there}", b.form) for a, b in found.items()}


def ruled(net: nn.Module, places: Mapping[str, Place], extra: Iterable[Rule] = ()) -> list[Rule]:
    """A rule for each parameter of `net`, from the places of its modules; `extra` are those that no place can say."""
    extra = list(extra)
    said = {name for rule in extra for name in rule.ours}
    rules = []
    for name, _ in net.named_parameters():
        if name in said:
            continue
        module, _, leaf = name.rpartition(".")
        there, form = places[module]
        rules.append(Rule((name,), (f"{there}.{leaf}",), form if leaf == "weight" else SAME))
    return rules + extra


def fused(here: Sequence[str], there: str, form: Form, *, bias: bool = True) -> list[Rule]:
    """The rules of Q, K and V modules that are one module there."""
    leaves = ("weight", "bias") if bias else ("weight",)
    return [Rule(tuple(f"{h}.{leaf}" for h in here), (f"{there}.{leaf}",), form) for leaf in leaves]


def prefixed(rules: Iterable[Rule], ours: str, theirs: str) -> list[Rule]:
    """The rules with a prefix on both sides."""
    return [replace(r, ours=tuple(ours + n for n in r.ours), theirs=tuple(theirs + n for n in r.theirs)) for r in rules]


class Tensors(Protocol):
    """Where tensors are read from, by name; see `io.stored.Stored`."""

    def tensor(self, name: str) -> Tensor:
        """One of them."""
        ...

    def release(self, name: str) -> None:
        """It was copied elsewhere, and is not needed here any more."""
        ...


@dataclass(frozen=True)
class Layout:
    """All rules of a file. `passed` are the keys, as patterns, that may be there beside them and say nothing to us."""

    rules: tuple[Rule, ...]
    passed: tuple[str, ...] = ()
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_pattern", re.compile("|".join(f"(?:{p})" for p in self.passed) or r"(?!)"))

    def theirs(self) -> set[str]:
        """Every key that a file of this layout has."""
        return {name for rule in self.rules for name in rule.theirs}

    def account(self, names: Iterable[str], *, source: object) -> list[str]:
        """The keys that are passed over; ValueError, naming one, if a key is missing or fits nothing."""
        names, known = set(names), self.theirs()
        surplus = sorted(names - known)
        unknown = [n for n in surplus if not self._pattern.fullmatch(n)]
        for what, keys in (("lacks tensor", sorted(known - names)), ("has a tensor that fits nothing,", unknown)):
            if keys:
                more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
                raise ValueError(f"{source} {what} '{keys[0]}'{more}; it is not whole, or not of this kind")
        return surplus

    def read(
        self,
        stored: Tensors,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        source: object,
        dtype: torch.dtype | None = None,
    ) -> dict[str, Tensor]:
        """Our tensors, of `dtype` if it is given; ValueError, naming a key, if one has another shape than ours.

        What is of that type already stays a window on the file; what is not is copied, and its window closed.
        """
        out: dict[str, Tensor] = {}
        for rule in self.rules:
            there = [stored.tensor(name) for name in rule.theirs]
            try:
                here = rule.form.read(there)
            except RuntimeError:
                here = [torch.empty(0) for _ in rule.ours]
            for name, value in zip(rule.ours, here, strict=True):
                if value.shape != shapes[name]:
                    had = "x".join(map(str, there[0].shape)) or "one number"
                    raise ValueError(f"{source}: tensor '{rule.theirs[0]}' is {had}, which does not fit this model")
                if not value.is_floating_point():
                    raise ValueError(f"{source}: tensor '{rule.theirs[0]}' holds whole numbers, which no weights are")
                out[name] = value if dtype is None else value.to(dtype)
            if dtype is not None and any(t.dtype != dtype for t in there):
                for name in rule.theirs:
                    stored.release(name)
        return out

    def write(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Their tensors, from ours; those without a rule here belong to another layout."""
        out: dict[str, Tensor] = {}
        for rule in self.rules:
            out.update(zip(rule.theirs, rule.form.write([tensors[name] for name in rule.ours]), strict=True))
        return out
