"""`sfumato train RECIPE [--data DIR] [--out RUN] [--set key=value ...] [--resume]`."""

import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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
from sfumato.recipes import RECIPES, Recipe, text_to_image
from sfumato.recipes.events import Begun, Event, Found, RolledBack, Stepped, Wrote
from sfumato.recipes.text_to_image import TextToImage

PROBE = 3  # steps that are timed before the time budget of a stage is said


@dataclass
class Train:
    """Train from nothing, on your own pictures or on the bundled ones.

    emoji is a whole model: a first stage, then diffusion over its latents. kl-f2, kl-f4, kl-f8, kl-f16 and vq-f2 to
    vq-f16 are first stages alone, small enough for two CPU cores; ldm-kl-f8 and the like are the published ones with
    the settings of their authors, for a GPU. A first stage ends with a report that says whether it will do.
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
    """Other settings than the recipe's, for instance diffusion.plan.steps=2000, or run.plan.steps=2000 of a first
    stage; config.json in a run has them all."""
    first_stage: Folder = None
    """A whole model's first stage, trained before (the folder of its run) and used as it is."""
    resume: bool = False
    """Go on with the run in --out, with the settings that it began with."""


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    asked = parse(Train, arguments, verb="train")
    recipe, name = RECIPES[asked.recipe], RECIPES.name(asked.recipe)
    out = asked.out or Path("runs") / name
    config = out / "config.json"
    atomic.check_writable(out)
    if asked.resume:
        settings, data = _stored(config, asked, recipe)
    else:
        if config.exists():
            raise ValueError(f"{out} already holds a run; add --resume to go on with it, or choose another --out")
        begun = recipe.settings(asked.data)
        if asked.first_stage is not None:
            begun = _on(begun, asked.first_stage, name)
        named = begun.model_copy(update={"name": out.resolve().name})
        settings, data = _settings(named, list(itertools.chain(*asked.set))), asked.data
    material = recipe.material(data, settings)
    events = recipe.run(settings, material, out)
    if not asked.resume:
        stored = {"recipe": name, "data": str(data.resolve()) if data else None}
        text = json.dumps({**stored, "settings": settings.model_dump(mode="json")}, indent=2)
        atomic.write_bytes(config, text.encode())
    try:
        _show(events)
    except KeyboardInterrupt:
        print(f"stopped; go on with: sfumato train {name} --out {out} --resume", file=sys.stderr)
        raise
    return 0


def _on(settings: Closed, path: Path, recipe: str) -> Closed:
    if not isinstance(settings, TextToImage):
        raise ValueError(f"{recipe} is no whole model, and --first-stage says nothing to it; leave it out")
    return text_to_image.on(settings, path)


def _settings(base: Closed, changes: Sequence[str]) -> Closed:
    try:
        return type(base).model_validate(override(base, changes))
    except ValidationError as error:
        raise ValueError(complaint(error)) from None


def _stored(config: Path, asked: Train, recipe: Recipe) -> tuple[Closed, Path | None]:
    if asked.set or asked.data or asked.first_stage:
        raise ValueError("--resume goes on with the settings of the run; leave --set, --data and --first-stage out")
    kind, name = type(recipe.settings(None)), RECIPES.name(asked.recipe)
    try:
        stored = json.loads(config.read_bytes())
        data, began = stored["data"], stored["recipe"]
        home = Path(data) if data else None
        settings = kind.model_validate(stored["settings"]) if began == name else None
    except FileNotFoundError:
        raise ValueError(f"{config.parent} holds no run to go on with; leave --resume out to begin one") from None
    except (ValidationError, ValueError, KeyError, TypeError):
        raise ValueError(f"{config} is damaged; it must be the file that the run wrote") from None
    if settings is None:
        raise ValueError(f"{config.parent} holds a run of the recipe {began}; go on with: sfumato train {began}")
    return settings, home


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
            else:
                console.print(_line(event))


class _Stages:
    """What is shown of the stages of a run."""

    def __init__(self, console: Console, bars: Progress) -> None:
        self.console, self.bars = console, bars
        self.task: TaskID | None = None
        self.timed: list[float] = []
        self.said = time.monotonic()

    def begin(self, event: Begun) -> None:
        if self.task is not None:
            self.bars.stop_task(self.task)
        stage, plan = event.stage, event.plan
        self.timed = []
        self.console.print(f"{stage}: {plan.steps:,} steps of {plan.batch} pictures, at step {event.step:,}")
        self.task = self.bars.add_task(stage, total=plan.steps, completed=event.step, loss="")

    def step(self, event: Stepped) -> None:
        p, loss = event.progress, f"loss {event.progress.losses['loss']:.4f}"
        self.timed.append(p.seconds)
        if len(self.timed) == PROBE:
            left = _minutes(min(self.timed) * (p.steps - p.step))
            self.console.print(f"{event.stage}: {left} to go ({PROBE} steps timed)")
        assert self.task is not None
        self.bars.update(self.task, completed=p.step, loss=loss)
        if not self.console.is_terminal and time.monotonic() - self.said > 60:  # noqa: PLR2004
            self.said = time.monotonic()
            self.console.print(f"{event.stage}: step {p.step:,} of {p.steps:,}, {loss}")


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
