"""`sfumato train RECIPE [--data DIR] [--out RUN] [--set key=value ...] [--resume]`."""

import itertools
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import ValidationError
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sfumato.cli.parse import Folder, override, parse
from sfumato.io import atomic
from sfumato.models.config import Closed, complaint
from sfumato.recipes import RECIPES, Recipe, beginning, diffusion
from sfumato.recipes.beginning import Beginning
from sfumato.recipes.diffusion import DiffusionTraining
from sfumato.recipes.events import Begun, Encoded, Event, Found, Ready, RolledBack, Stepped, Wrote
from sfumato.train import stop
from sfumato.train.stop import Stopped

PROBE = 3  # steps that are timed before the time budget of a stage is said


@dataclass
class Train:
    """Train from nothing, on your own pictures or on the bundled ones.

    emoji is a whole model: a first stage, then diffusion over its latents. kl-f2, kl-f4, kl-f8, kl-f16 and vq-f2 to
    vq-f16 are first stages alone, small enough for two CPU cores; ldm-kl-f8 and the like are the published ones with
    the settings of their authors, for a GPU. A first stage ends with a report that says whether it will do.
    tiny-decoder makes previews for a first stage that is there (--set teacher=runs/kl-f4).
    """

    recipe: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECIPE")]
    """Which recipe; an unknown one answers with all there are."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """A folder of pictures in place of the bundled ones; a whole model needs captions (x.txt or metadata.jsonl)."""
    out: Folder = None
    """The run's folder: checkpoints, metrics, previews, and at the end model/; runs/RECIPE if not said."""
    set: Annotated[
        tyro.conf.UseAppendAction[list[list[str]]], tyro.conf.arg(metavar="KEY=VALUE ...", help_behavior_hint="")
    ] = field(default_factory=list)
    """Other settings than the recipe's: diffusion.plan.steps=2000 of a whole model, run.plan.steps=2000 of a first
    stage, plan.steps=2000 of a tiny decoder; a wrong one answers with those there are, and config.json has them all."""
    first_stage: Folder = None
    """A whole model's first stage, trained before (the folder of its run) and used as it is."""
    resume: bool = False
    """Go on with the run in --out, with the settings that it began with; --data says where its pictures are now."""


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    asked = parse(Train, arguments, verb="train")
    recipe, name = RECIPES[asked.recipe], RECIPES.name(asked.recipe)
    out = asked.out or Path("runs") / name
    atomic.check_writable(out)
    if asked.resume:
        began = _stored(asked, name, recipe, out)
    else:
        beginning.check_free(out)
        given = recipe.settings(asked.data)
        if asked.first_stage is not None:
            given = _on(given, asked.first_stage, name)
        named = given.model_copy(update={"name": out.resolve().name})
        began = Beginning(name, asked.data, _settings(named, list(itertools.chain(*asked.set))))
    again = f"go on with: sfumato train {name} --out {out} --resume"
    try:
        with _terminable():
            events = recipe.run(began.settings, recipe.material(began.data, began.settings), out)
            _show(beginning.settled(began, events, out))
    except Stopped as stopped:
        begun = (out / beginning.NAME).exists()
        print(f"{stopped}; {again}" if begun else "stopped before anything was written", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"stopped; {again}", file=sys.stderr)
        raise
    except FloatingPointError as error:
        raise FloatingPointError(f"{error}; begin another run with lower rates (settings that end in .rate)") from None
    return 0


@contextmanager
def _terminable() -> Iterator[None]:
    """In here SIGTERM asks the training to stop."""
    if threading.current_thread() is not threading.main_thread():  # where no signals are handled
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop.ask())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        stop.forget()


def _on(settings: Closed, path: Path, recipe: str) -> Closed:
    if not isinstance(settings, DiffusionTraining):
        raise ValueError(f"{recipe} is no whole model, and --first-stage says nothing to it; leave it out")
    return diffusion.on(settings, path)


def _settings(base: Closed, changes: Sequence[str]) -> Closed:
    try:
        return type(base).model_validate(override(base, changes))
    except ValidationError as error:
        raise ValueError(complaint(error)) from None


def _stored(asked: Train, name: str, recipe: Recipe, out: Path) -> Beginning:
    if asked.set or asked.first_stage:
        raise ValueError("--resume goes on with the settings of the run; leave --set and --first-stage out")
    began = beginning.read(out, name, type(recipe.settings(None)))
    return replace(began, data=asked.data) if asked.data else began  # the same pictures, which may have moved


def _show(events: Iterator[Event]) -> None:
    """Progress bars and lines, on standard error."""
    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        stages = _Stages(console, bars)
        for event in events:
            if isinstance(event, Begun):
                stages.begin(event)
            elif isinstance(event, Stepped):
                stages.step(event)
            elif isinstance(event, Encoded):
                stages.encode(event)
            elif not isinstance(event, Ready):
                stages.say(_line(event))


class _Stages:
    """What is shown of the stages of a run."""

    def __init__(self, console: Console, bars: Progress) -> None:
        self.console, self.bars = console, bars
        self.task: TaskID | None = None
        self.timed: list[float] = []
        self.dearer: tuple[int, ...] = ()
        self.said = time.monotonic()

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False)

    def begin(self, event: Begun) -> None:
        if self.task is not None:
            self.bars.stop_task(self.task)
        stage, plan = event.stage, event.plan
        self.timed, self.dearer = [], event.dearer
        self.say(f"{stage}: {plan.steps:,} steps of {plan.batch} pictures, at step {event.step:,}")
        self.task = self.bars.add_task(stage, total=plan.steps, completed=event.step, loss="")

    def encode(self, event: Encoded) -> None:
        if self.task is None or self.bars.tasks[self.task].description != "latents":
            self.task = self.bars.add_task("latents", total=event.total, loss="")
        self.bars.update(self.task, completed=event.done)

    def step(self, event: Stepped) -> None:
        p, loss = event.progress, f"loss {event.progress.losses['loss']:.4f}"
        if p.step - 1 in self.dearer:
            self.timed = []
        self.timed.append(p.seconds)
        if len(self.timed) == PROBE:
            left = _minutes(min(self.timed) * (p.steps - p.step))
            later = next((f"; steps after {n:,} take longer" for n in self.dearer if n >= p.step), "")
            self.say(f"{event.stage}: {left} to go ({PROBE} steps timed{later})")
        assert self.task is not None
        self.bars.update(self.task, completed=p.step, loss=loss)
        if not self.console.is_terminal and time.monotonic() - self.said > 60:  # noqa: PLR2004
            self.said = time.monotonic()
            self.say(f"{event.stage}: step {p.step:,} of {p.steps:,}, {loss}")


def _line(event: RolledBack | Wrote | Found) -> str:
    match event:
        case RolledBack(stage, back):
            went = f"{stage}: went wrong at step {back.at:,} ({back.cause})"
            return f"{went}; goes on from step {back.step:,} with a weaker adversary"
        case Found(text):
            return text
        case Wrote(what, path):
            return f"{what}: {path}"


def _minutes(seconds: float) -> str:
    return f"about {seconds / 60:.0f} minutes" if seconds >= 90 else f"about {seconds:.0f} seconds"  # noqa: PLR2004
