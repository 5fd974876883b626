"""`sfumato train RECIPE [--data DIR] [--out RUN] [--set key=value ...] [--resume]`."""

import collections
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

from sfumato.cli.parse import Folder, Name, override, parse
from sfumato.io import atomic
from sfumato.models.config import Closed, complaint
from sfumato.recipes import RECIPES, Recipe, beginning, diffusion, page, track
from sfumato.recipes.beginning import Beginning
from sfumato.recipes.events import Begun, Encoded, Event, Found, Ready, RolledBack, Stepped, Validated, Wrote
from sfumato.recipes.settings import DiffusionTraining
from sfumato.train import stop
from sfumato.train.stop import Stopped
from sfumato.world import Parallel, World, joined

PROBE = 3  # steps that are timed before the time budget of a stage is said


@dataclass
class Train:
    """Train on your own pictures or on the bundled ones: from nothing, or a model that is there.

    emoji is a whole model: a first stage, then diffusion over its latents. super-resolution, inpainting, semantic,
    class-to-image, unconditional and layout, which is asked with boxes (docs/layouts.md), are others of its kind
    (docs/recipes.md), pixels has no first stage, and classifier
    pulls what a model paints to a class (--set model=runs/x). kl-f2, kl-f4, kl-f8, kl-f16 and vq-f2 to
    vq-f16 are first stages alone, small enough for two CPU cores; ldm-kl-f8 and the like are the published ones with
    the settings of their authors, for a GPU, and so are ldm-celebahq, sd-v1, ddpm-cifar10, adm-64 and others of their
    kinds. A first stage ends with a report that says whether it will do. tiny-decoder makes previews for a first stage
    that is there (--set teacher=runs/kl-f4). finetune, lora, textual-inversion and dreambooth go on from a model that
    is there (--model; docs/fine-tuning.md).
    """

    recipe: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECIPE")]
    """Which recipe; an unknown one answers with all there are."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """A folder of pictures in place of the bundled ones; a whole model needs captions (x.txt or metadata.jsonl),
    layout needs boxes (docs/data.md)."""
    out: Folder = None
    """The run's folder: checkpoints, metrics, previews, and at the end model/; runs/RECIPE if not said."""
    set: Annotated[
        tyro.conf.UseAppendAction[list[list[str]]], tyro.conf.arg(metavar="KEY=VALUE ...", help_behavior_hint="")
    ] = field(default_factory=list)
    """Other settings than the recipe's: diffusion.plan.steps=2000 of a whole model, run.plan.steps=2000 of a first
    stage, plan.steps=2000 of a tiny decoder; a wrong one answers with those there are, and config.json has them all."""
    first_stage: Folder = None
    """A whole model's first stage, trained before (the folder of its run) and used as it is."""
    model: Name = None
    """The model that finetune, lora, textual-inversion and dreambooth go on from, as generate's; the bundled one if
    not said."""
    parallel: Parallel = "ddp"
    """Under torchrun: ddp, where every process has all weights, or fsdp, where they are divided among them."""
    device: Name = None
    """cpu, cuda or cuda:N; the GPU if there is one and it is not said."""
    tensorboard: bool = False
    """Write numbers and previews for TensorBoard too, into tensorboard/ in the run's folder; it must be installed (pip
    install tensorboard). With --resume say it again."""
    resume: bool = False
    """Go on with the run in --out, with the settings that it began with; --data says where its pictures are now."""


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    asked = parse(Train, arguments, verb="train")
    with joined(asked.device, asked.parallel) as world:
        try:
            return _train(asked, world)
        except ValueError:
            if world.first:
                raise
            return 2  # the first process says it
        except OSError as error:
            if world.first:
                raise
            raise OSError(f"process {world.rank}: {error}") from None


def _train(asked: Train, world: World) -> int:
    recipe, name = RECIPES[asked.recipe], RECIPES.name(asked.recipe)
    out = asked.out or Path("runs") / name
    atomic.check_writable(out)
    writers = track.opened() if asked.tensorboard else None
    if asked.resume:
        began = _stored(asked, name, recipe, out)
    else:
        beginning.check_free(out)
        changes = list(itertools.chain(*asked.set))
        changed = chosen(name, asked.data, changes, asked.first_stage, asked.model, called=out.resolve().name)
        began = Beginning(name, asked.data, changed)
    again = f"go on with: sfumato train {name} --out {out} --resume"
    try:
        with terminable():
            events = recipe.run(began.settings, recipe.material(began.data, began.settings), out, world)
            events = beginning.settled(began, events, out, world)
            if world.first:
                events = page.followed(events, out)
                events = events if writers is None else track.tracked(events, out, writers)
            _show(events, world)
    except Stopped as stopped:
        begun = (out / beginning.NAME).exists()
        if world.first:
            print(f"{stopped}; {again}" if begun else "stopped before anything was written", file=sys.stderr)
    except KeyboardInterrupt:
        if world.first:
            print(f"stopped; {again}", file=sys.stderr)
        raise
    except FloatingPointError as error:
        raise FloatingPointError(f"{error}; begin another run with lower rates (settings that end in .rate)") from None
    return 0


@contextmanager
def terminable() -> Iterator[None]:
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


def chosen(
    name: str,
    data: Path | None,
    changes: Sequence[str],
    first_stage: Path | None,
    model: str | None = None,
    *,
    called: str,
) -> Closed:
    """The settings of the recipe `name` for this data, with changes; ValueError of one line if they are not right."""
    base = _base(name, data, first_stage, model).model_copy(update={"name": called})
    try:
        return type(base).model_validate(override(base, changes))
    except ValidationError as error:
        raise ValueError(complaint(error)) from None


def _base(name: str, data: Path | None, first_stage: Path | None, model: str | None) -> Closed:
    """The recipe's settings for what it is to go on from."""
    recipe = RECIPES[name]
    if model is not None and recipe.on is None:
        raise ValueError(f"{name} begins from nothing, and --model says nothing to it; leave it out")
    settings = recipe.settings(data) if model is None or recipe.on is None else recipe.on(model)
    if first_stage is None:
        return settings
    if not isinstance(settings, DiffusionTraining):
        raise ValueError(f"{name} trains no first stage, and --first-stage says nothing to it; leave it out")
    return diffusion.on(settings, first_stage)


def _stored(asked: Train, name: str, recipe: Recipe, out: Path) -> Beginning:
    if asked.set or asked.first_stage or asked.model:
        raise ValueError("--resume goes on with the settings of the run; leave --set, --first-stage and --model out")
    began = beginning.read(out, name, type(recipe.settings(None)))
    return replace(began, data=asked.data) if asked.data else began  # the same pictures, which may have moved


def _show(events: Iterator[Event], world: World) -> None:
    """Progress bars and lines, on standard error, of the first process."""
    if not world.first:
        collections.deque(events, maxlen=0)
        return
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


def _line(event: RolledBack | Wrote | Validated | Found) -> str:
    match event:
        case Validated(step, n, held_out, learnt):
            both = f"{held_out.loss:.4f} on {n} pictures held out, {learnt.loss:.4f} on {n} trained on"
            return f"validation at step {step:,}: loss {both}"
        case RolledBack(stage, back):
            went = f"{stage}: went wrong at step {back.at:,} ({back.cause})"
            return f"{went}; goes on from step {back.step:,} with a weaker adversary"
        case Found(text):
            return text
        case Wrote(what, path):
            return f"{what}: {path}"


def _minutes(seconds: float) -> str:
    return f"about {seconds / 60:.0f} minutes" if seconds >= 90 else f"about {seconds:.0f} seconds"  # noqa: PLR2004
