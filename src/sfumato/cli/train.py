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
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sfumato.cli.parse import override, parse
from sfumato.io import atomic
from sfumato.models.config import complaint
from sfumato.recipes import RECIPES
from sfumato.recipes.text_to_image import Begun, Event, Stepped, TextToImage, Wrote
from sfumato.recipes.text_to_image import run as run_recipe

PROBE = 3  # steps that are timed before the time budget of a stage is said


@dataclass
class Train:
    """Train a model from nothing: a first stage, then diffusion over its latents."""

    recipe: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECIPE")]
    """Which recipe: emoji."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """A folder of pictures with captions (sidecars x.txt or metadata.jsonl) in place of the recipe's own."""
    out: Path = Path("runs/emoji")
    """The run's folder: checkpoints, metrics, previews, and at the end model/."""
    set: Annotated[
        tyro.conf.UseAppendAction[list[list[str]]], tyro.conf.arg(metavar="KEY=VALUE ...", help_behavior_hint="")
    ] = field(default_factory=list)
    """Other settings than the recipe's, for instance diffusion.plan.steps=2000; config.json in a run has them all."""
    resume: bool = False
    """Go on with the run in --out, with the settings that it began with."""


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    asked = parse(Train, arguments, verb="train")
    recipe = RECIPES[asked.recipe]
    config = asked.out / "config.json"
    atomic.check_writable(asked.out)
    if asked.resume:
        settings, data = _stored(config, asked)
    else:
        if config.exists():
            raise ValueError(f"{asked.out} already holds a run; add --resume to go on with it, or choose another --out")
        named = recipe.settings().model_copy(update={"name": asked.out.resolve().name})
        settings, data = _settings(named, list(itertools.chain(*asked.set))), asked.data
    material = recipe.material(data, settings.model.resolution)
    events = run_recipe(settings, material, asked.out)
    if not asked.resume:
        stored = {"recipe": asked.recipe, "data": str(data.resolve()) if data else None}
        text = json.dumps({**stored, "settings": settings.model_dump(mode="json")}, indent=2)
        atomic.write_bytes(config, text.encode())
    try:
        _show(events)
    except KeyboardInterrupt:
        print(f"stopped; go on with: sfumato train {asked.recipe} --out {asked.out} --resume", file=sys.stderr)
        raise
    return 0


def _settings(base: TextToImage, changes: Sequence[str]) -> TextToImage:
    try:
        return TextToImage.model_validate(override(base, changes))
    except ValidationError as error:
        raise ValueError(complaint(error)) from None


def _stored(config: Path, asked: Train) -> tuple[TextToImage, Path | None]:
    if asked.set or asked.data:
        raise ValueError("--resume goes on with the settings of the run; leave --set and --data out")
    try:
        stored = json.loads(config.read_bytes())
        data = stored["data"]
        return TextToImage.model_validate(stored["settings"]), Path(data) if data else None
    except FileNotFoundError:
        raise ValueError(f"{asked.out} holds no run to go on with; leave --resume out to begin one") from None
    except (ValidationError, ValueError, KeyError, TypeError):
        raise ValueError(f"{config} is damaged; it must be the file that the run wrote") from None


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
        task, timed, said = None, [], time.monotonic()
        for event in events:
            match event:
                case Begun(stage, step, plan):
                    if task is not None:
                        bars.stop_task(task)
                    timed = []
                    console.print(f"{stage}: {plan.steps:,} steps of {plan.batch} pictures, at step {step:,}")
                    task = bars.add_task(stage, total=plan.steps, completed=step, loss="")
                case Stepped(stage, p):
                    timed.append(p.seconds)
                    if len(timed) == PROBE:
                        left = _minutes(min(timed) * (p.steps - p.step))
                        console.print(f"{stage}: {left} to go ({PROBE} steps timed)")
                    assert task is not None
                    bars.update(task, completed=p.step, loss=f"loss {p.losses['loss']:.4f}")
                    if not console.is_terminal and time.monotonic() - said > 60:  # noqa: PLR2004
                        said = time.monotonic()
                        console.print(f"{stage}: step {p.step:,} of {p.steps:,}, loss {p.losses['loss']:.4f}")
                case Wrote(what, path):
                    console.print(f"{what}: {path}")


def _minutes(seconds: float) -> str:
    return f"about {seconds / 60:.0f} minutes" if seconds >= 90 else f"about {seconds:.0f} seconds"  # noqa: PLR2004
