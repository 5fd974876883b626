"""What goes on and ends with its result: a bar on standard error while a person is watching."""

import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import Progress

R = TypeVar("R")


def counted(done: int) -> dict[str, Any]:
    """What the bar shows of an event that says how many are done."""
    return {"completed": done}


def watched(
    events: Iterator[object],
    result: type[R],
    what: str,
    shown: Callable[[Any], dict[str, Any]],
    total: int | None = None,
) -> R:
    """The first event that is a `result`; of those before, the bar called `what` shows what `shown` says of them."""
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=total)
        for event in events:
            if isinstance(event, result):
                return event
            bar.update(task, **shown(event))
    raise AssertionError("what is watched ends with its result")
