"""A training that is asked to stop: a stage finishes its step and saves it first, everything else ends at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class Stopped(BaseException):
    """Raised where a training ends that was asked to; no failure, so `except Exception` lets it pass."""

    def __init__(self, step: int | None = None) -> None:
        super().__init__("stopped" if step is None else f"stopped at step {step:,}")
        self.step = step  # that was finished and saved, in a stage


@dataclass
class _Asked:
    asked: bool = False
    waits: int = 0  # for so many steps to be finished


_state = _Asked()


def ask() -> None:
    """Ask the training of this process to stop; raises Stopped here if no step is being done."""
    _state.asked = True
    if not _state.waits:
        raise Stopped


def asked() -> bool:
    """Whether it was asked to stop."""
    return _state.asked


def forget() -> None:
    """As if nobody had asked."""
    _state.asked = False


@contextmanager
def awaited() -> Iterator[None]:
    """Whoever asks in here waits until the stage looks, which it does after each step."""
    _state.waits += 1
    try:
        yield
    finally:
        _state.waits -= 1
    if _state.asked:  # after the stage looked last
        raise Stopped
