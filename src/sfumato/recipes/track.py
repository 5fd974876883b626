"""What a run tells, for TensorBoard: the numbers of steps and previews, a folder a stage, nothing twice."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from sfumato.io import pictures
from sfumato.recipes.events import Begun, Event, Stepped, Validated, Wrote

NAME = "tensorboard"
MOST = 20_000  # steps that are written, evenly spaced: of more no curve becomes clearer


class Writer(Protocol):
    """What is used of torch.utils.tensorboard.SummaryWriter."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """A number of a step."""
        ...

    def add_image(self, tag: str, img_tensor: Any, global_step: int) -> None:
        """A picture (3, H, W), uint8, of a step."""
        ...

    def close(self) -> None:
        """Write what waits."""
        ...


Opened = Callable[[Path, int], Writer]
"""A folder, and the step from which on what it holds is to be forgotten, to a writer."""


def opened() -> Opened:
    """The writers of the package; ValueError, with the command that installs it, if it is not there."""
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  # an extra
    except ImportError:
        raise ValueError(
            "TensorBoard is not installed; pip install tensorboard (or 'sfumato[track]'), or leave --tensorboard out"
        ) from None
    return lambda home, step: SummaryWriter(str(home), purge_step=step, flush_secs=10)


def tracked(events: Iterator[Event], out: Path, opened: Opened) -> Iterator[Event]:
    """The events of a run, written to `out`/tensorboard/STAGE as they come.

    A stage that goes on, or that went back, lets TensorBoard forget what was written of the steps that are done again.
    """
    writer: Writer | None = None
    step, each = 0, 1
    try:
        for event in events:
            yield event
            if isinstance(event, Begun):
                if writer:
                    writer.close()
                writer = opened(out / NAME / event.stage.replace(" ", "-"), event.step + 1)
                step, each = event.step, max(1, event.plan.steps // MOST)
            elif writer and isinstance(event, Stepped):
                step = event.progress.step
                if event.progress.every(each):
                    _numbers(writer, event)
            elif writer:
                _others(writer, event, step)
    finally:
        if writer:
            writer.close()


def _numbers(writer: Writer, event: Stepped) -> None:
    p = event.progress
    said = {**p.losses, "rate": p.rate, "gradient norm": p.norm, "seconds": p.seconds}
    for name, value in said.items():
        if not isinstance(value, list):
            writer.add_scalar(name.replace(" ", "_"), value, p.step)


def _others(writer: Writer, event: Event, step: int) -> None:
    if isinstance(event, Validated):
        for name, part in (("held_out", event.held_out), ("trained_on", event.trained_on)):
            writer.add_scalar(f"validation/{name}", part.loss, event.step)
        for n, loss in enumerate(event.held_out.bins, 1):
            writer.add_scalar(f"validation_by_time/{n}", loss, event.step)
    elif isinstance(event, Wrote) and event.what == "preview":
        writer.add_image("preview", _levels(pictures.read(event.path)), step)


def _levels(image: Tensor) -> "np.ndarray[Any, Any]":
    """(3, H, W) of 8 bits."""
    return np.asarray(pictures.to_pil(image)).transpose(2, 0, 1)
