"""Things by name: schedules, spacings, samplers, recipes. Unknown names answer with what exists."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The one line for a name that is not there."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ";"
    return f"unknown {kind} '{name}'{hint} known: {', '.join(known)}"


class Registry(Mapping[str, T]):
    """Things of one kind by name, in the order of the alphabet. A name can be given once."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._things: dict[str, T] = {}

    def add(self, name: str, thing: T) -> None:
        """Give `thing` a name; ValueError if it is taken."""
        if name in self._things:
            raise ValueError(f"{self.kind} '{name}' is registered twice")
        self._things[name] = thing

    def register(self, name: str) -> Callable[[T], T]:
        """Decorate a thing to give it a name."""

        def add(thing: T) -> T:
            self.add(name, thing)
            return thing

        return add

    def __getitem__(self, name: str) -> T:
        """The thing called `name`; ValueError, listing what exists, if there is none."""
        if name not in self._things:
            raise ValueError(unknown(self.kind, name, self))
        return self._things[name]

    def __contains__(self, name: object) -> bool:
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._things))

    def __len__(self) -> int:
        return len(self._things)
