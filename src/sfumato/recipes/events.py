"""What a run tells while it goes on."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sfumato.train.fit import Progress
from sfumato.train.plan import Plan
from sfumato.train.stage import Rollback
from sfumato.train.state import State


@dataclass(frozen=True)
class Ready:
    """All that can be wrong before the first step has been looked at; nothing is written before this."""

    rests_on: dict[str, str]  # what the run takes from outside -> a fingerprint of it


class Measured(NamedTuple):
    """A denoising loss: its mean over the clock, and in each of equal parts of it, beginning at the picture."""

    loss: float
    bins: tuple[float, ...]


@dataclass(frozen=True)
class Begun:
    """A stage begins, or goes on at `step`."""

    stage: str
    step: int
    plan: Plan
    dearer: tuple[int, ...] = ()  # steps from which on a step takes longer


@dataclass(frozen=True)
class Stepped:
    """A step of a stage is done."""

    stage: str
    progress: Progress


@dataclass(frozen=True)
class Encoded:
    """So many pictures of so many have latents that are kept."""

    done: int
    total: int


@dataclass(frozen=True)
class RolledBack:
    """A stage went wrong and went back."""

    stage: str
    rollback: Rollback


@dataclass(frozen=True)
class Wrote:
    """A file or folder is there."""

    what: str
    path: Path


@dataclass(frozen=True)
class Validated:
    """The averaged weights were measured with fixed noise, on pictures held out and on as many of those learnt from."""

    step: int
    pictures: int
    held_out: Measured
    trained_on: Measured


@dataclass(frozen=True)
class Found:
    """Something worth a line."""

    text: str


Event = Ready | Encoded | Begun | Stepped | RolledBack | Wrote | Validated | Found


def reported(
    stage: str, steps: Iterator[Progress | Rollback], state: State, *, dearer: tuple[int, ...] = ()
) -> Iterator[Event]:
    """A stage's progress as events. The first step is done before it is said where the stage began."""
    begun = False
    for event in steps:
        if isinstance(event, Rollback):
            yield RolledBack(stage, event)
            begun = False
            continue
        if not begun:
            yield Begun(stage, event.step - 1, state.plan, dearer)
            begun = True
        yield Stepped(stage, event)
    if not begun:
        yield Begun(stage, state.step, state.plan, dearer)
