"""`sfumato plan RECIPE [--data DIR] [--set key=value ...]`: what a training will take, measured."""

import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from sfumato.cli.parse import Folder, parse
from sfumato.cli.train import chosen, terminable
from sfumato.cli.watched import watched
from sfumato.recipes import RECIPES
from sfumato.recipes.events import Event, Stepped
from sfumato.recipes.planned import PICTURES, STEPS, Cost, StageCost, planned
from sfumato.train.stop import Stopped


@dataclass
class Plan:
    """Say what a training will take before it begins: three steps of each kind are done, and thrown away.

    A stage has several kinds of steps where they get dearer in between, as when the adversary of a first stage begins.
    """

    recipe: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECIPE")]
    """Which recipe; an unknown one answers with all there are."""
    data: Folder = None
    """A folder of pictures in place of the bundled ones, as train takes it."""
    set: Annotated[
        tyro.conf.UseAppendAction[list[list[str]]], tyro.conf.arg(metavar="KEY=VALUE ...", help_behavior_hint="")
    ] = field(default_factory=list)
    """Other settings than the recipe's, as train takes them."""
    first_stage: Folder = None
    """A whole model's first stage, trained before."""
    json: bool = False
    """Print one JSON object, and nothing else, on standard output."""


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    asked = parse(Plan, arguments, verb="plan")
    name = RECIPES.name(asked.recipe)
    settings = chosen(name, asked.data, list(itertools.chain(*asked.set)), asked.first_stage, called=name)
    material = RECIPES[name].material(asked.data, settings)
    try:
        with terminable():
            cost = watched(planned(RECIPES[name].run, settings, material), Cost, "beginning", _stepped)
    except Stopped:
        print("stopped; nothing was kept", file=sys.stderr)
        return 0
    if asked.json:
        print(json.dumps({"recipe": name, **cost.as_dict()}))
    else:
        _say(cost)
    return 0


def _stepped(event: Event) -> dict[str, Any]:
    """Which step of which stage it is."""
    if not isinstance(event, Stepped):
        return {}
    return {"description": event.stage, "completed": event.progress.step, "total": event.progress.steps}


def _say(cost: Cost) -> None:
    table = Table("", "steps", "s a step", "pictures/s", "time", box=None)
    for stage in cost.stages:
        for kind in stage.kinds:
            name = f"  from {kind.begin:,} on" if kind.begin else stage.stage
            speed = (f"{kind.seconds:.3g}", f"{stage.batch / kind.seconds:.3g}")
            table.add_row(name, f"{kind.steps:,}", *speed, _time(kind.steps * kind.seconds))
    Console().print(table)
    for stage in cost.stages:
        saved = f"checkpoints of {_bytes(stage.checkpoint)}, {stage.kept} of which are kept"
        print(f"{stage.stage}: {_weights(stage)}, {_bytes(stage.memory)} of memory at its peak, {saved}")
    print(f"before: {_time(cost.read)} to read {cost.pictures:,} pictures", end="")
    print(f", {_time(cost.encoded)} to encode them to {_bytes(cost.latents)} of latents" if cost.latents else "")
    print(
        f"About {_time(cost.seconds)}, {_bytes(cost.memory)} of memory beside the program and {_bytes(cost.disk)} of "
        f"disk, by {STEPS} steps of each kind and at most {PICTURES} pictures, on this machine as it is now; previews "
        "and measures come on top."
    )


def _weights(stage: StageCost) -> str:
    return f"{stage.weights:,} weights" + (f" and {stage.critic:,} of the critic" if stage.critic else "")


def _bytes(n: int) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"  # noqa: PLR2004


def _time(seconds: float) -> str:
    if seconds < 90:  # noqa: PLR2004
        return f"{seconds:.0f} s"
    if seconds < 5400:  # noqa: PLR2004
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 172_800 else f"{seconds / 86400:.1f} days"  # noqa: PLR2004
