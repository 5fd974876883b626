"""`sfumato encode DIR --vae RUN`: the latents of pictures, computed once for the trainings to come."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import Progress

from sfumato.cli.first_stages import fitting
from sfumato.cli.parse import Int, parse
from sfumato.data import opened
from sfumato.data.part import Part
from sfumato.data.training import TrainingPictures
from sfumato.io import atomic, first_stages, model_folder
from sfumato.recipes.autoencoder import Stage
from sfumato.recipes.events import Encoded, Found
from sfumato.recipes.latents import encoded


@dataclass
class Encode:
    """Compute the latents of a folder of pictures and keep them, by the content of each picture and of the first stage.

    Pictures that are there already are not encoded again: after a change to the folder, what changed is. A training
    reads them with --set diffusion.latents=OUT.
    """

    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """The pictures, in any form that train takes."""
    vae: str = model_folder.DEFAULT
    """The first stage: its run, or any other file or folder with one, or a model that has one."""
    size: Int = None
    """Their side in pixels; that which the first stage was trained at if not said."""
    out: Path = Path("latents")
    """The folder to keep them in."""
    json: bool = False
    """Print one JSON object, and nothing else, on standard output."""


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    asked = parse(Encode, arguments, verb="encode")
    atomic.check_writable(asked.out)
    found = first_stages.loaded(asked.vae)
    if not isinstance(found.stage, Stage):
        raise ValueError(f"{asked.vae} is a tiny first stage, which is made for a large one; give that one")
    size = fitting(found.resolution if asked.size is None else asked.size, found.stage.factor)
    whole = opened(asked.data, size=size)
    sound = Part(whole, TrainingPictures(whole, room=0).check())
    there = 0
    console = Console(stderr=True, highlight=False)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("latents", total=None)
        events = encoded(found.stage, sound, asked.out)
        try:
            while True:
                event = next(events)
                if isinstance(event, Encoded):
                    there = event.total
                    bar.update(task, completed=event.done, total=event.total)
                elif isinstance(event, Found):
                    console.print(event.text, soft_wrap=True, markup=False)
        except StopIteration as end:
            cache, names = end.value
    said = {"pictures": len(names), "encoded": there, "size": size, "first_stage": found.name, "out": str(cache.home)}
    if asked.json:
        print(json.dumps(said))
    else:
        print(
            f"{cache.home}: latents of {len(names):,} pictures of {size}x{size} ({found.name}), {there:,} of them new"
        )
    return 0
