"""Things by name: schedules, spacings, samplers, recipes. Unknown names answer with what exists."""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")
MANY, SHOWN = 64, 24  # of more names than that so many are listed


def unknown(kind: str, name: str, known: Iterable[str], *, near: str | None = None) -> str:
    """The one line for a name that is not there; `near` is what was meant, if that is known better than by spelling."""
    known = list(known)
    near = near or next(iter(difflib.get_close_matches(name, known, n=1)), None)
    hint = f"; did you mean '{near}'?" if near else ";"
    more = f" and {len(known) - SHOWN:,} more" if len(known) > MANY else ""
    return f"unknown {kind} '{name}'{hint} known: {', '.join(known[:SHOWN] if more else known)}{more}"


class Registry(Mapping[str, T]):
    """Things of one kind by name, in the order of the alphabet. A name can be given once.

    A thing may have other names, those that other tools use. Case, spaces, dashes and underscores do not matter.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._things: dict[str, T] = {}
        self._names: dict[str, str] = {}  # plain form of any name -> the name

    def add(self, name: str, thing: T, also: Iterable[str] = ()) -> None:
        """Give `thing` a name, and the others in `also`; ValueError if one is taken."""
        plain = {_plain(n) for n in (name, *also)}
        if taken := plain & self._names.keys():
            raise ValueError(f"{self.kind} '{sorted(taken)[0]}' is registered twice")
        self._things[name] = thing
        self._names.update(dict.fromkeys(plain, name))

    def name(self, name: str) -> str:
        """The name itself of what is called `name`; ValueError, listing what exists, if there is nothing."""
        if _plain(name) not in self._names:
            near = difflib.get_close_matches(_plain(name), self._names, n=1)
            raise ValueError(unknown(self.kind, name, self, near=self._names[near[0]] if near else None))
        return self._names[_plain(name)]

    def register(self, name: str, also: Iterable[str] = ()) -> Callable[[T], T]:
        """Decorate a thing to give it a name, and the others in `also`."""

        def add(thing: T) -> T:
            self.add(name, thing, also)
            return thing

        return add

    def __getitem__(self, name: str) -> T:
        """The thing called `name`; ValueError, listing what exists, if there is none."""
        return self._things[self.name(name)]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _plain(name) in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._things))

    def __len__(self) -> int:
        return len(self._things)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip().lower())
