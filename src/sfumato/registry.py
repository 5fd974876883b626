"""A name for a thing that can be built. Unknown names answer with what exists."""

import difflib
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def unknown(kind: str, name: str, known: list[str]) -> str:
    """The one line for a name that is not there."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ";"
    return f"unknown {kind} '{name}'{hint} known: {', '.join(known)}"


class Registry(Generic[T]):
    """Builders of one kind of thing, by name. Registering a name twice is an error."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._builders: dict[str, Callable[..., T]] = {}

    def register(self, name: str) -> Callable[[F], F]:
        """Decorate a builder to give it a name."""

        def add(builder: F) -> F:
            if name in self._builders:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            self._builders[name] = builder
            return builder

        return add

    def __getitem__(self, name: str) -> Callable[..., T]:
        """The builder called `name`; ValueError, listing what exists, if there is none."""
        try:
            return self._builders[name]
        except KeyError:
            raise ValueError(unknown(self.kind, name, sorted(self._builders))) from None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._builders))

    def __len__(self) -> int:
        return len(self._builders)
