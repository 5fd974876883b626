"""`sfumato data VERB ...`: a look at pictures before a training, and pictures to train on."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import Progress

from sfumato.cli.parse import File, parse
from sfumato.cli.watched import counted, watched
from sfumato.data import coco_folder
from sfumato.data.check import Report, examine
from sfumato.data.contact import MOST, contact_sheet
from sfumato.data.scenes import LABELS, SIDE, Scenes
from sfumato.data.source import listed
from sfumato.io import atomic, pictures
from sfumato.registry import unknown


@dataclass
class Check:
    """Say what pictures, captions, classes and boxes --data would train on, and what is wrong with them.

    It reads headers alone and changes nothing. It ends with 0 if they can be trained on; otherwise with 2 and the line
    that a training would stop with.
    """

    path: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """A folder of pictures, with captions, classes or boxes in any form that docs/data.md has, or one .tar."""
    part: str = "train"
    """Which part is looked at, where there are several: train, val or test. A training reads train."""
    draw: File = None
    """Write a PNG with up to 48 of the pictures, spread over all, and their boxes with their labels."""
    thorough: bool = False
    """Decode every picture, and find those that are there twice."""
    json: bool = False
    """Print one JSON object, and nothing else, on standard output: all lists in full."""


@dataclass
class MakeScenes:
    """Write pictures with boxes and captions as a folder of COCO's form, to try a training of layouts with.

    A scene is a picture of 1 to 6 things of 64 kinds of the emoji world, in one style, on a background, each with its
    box. What it shows depends on --seed, --labels and its number alone: another seed gives other scenes, to learn from
    or to measure with.
    """

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """The folder to write, which must not be there yet."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 2000
    """How many; of more the first are the same."""
    seed: int = 0
    """Which ones."""
    size: int = SIDE
    """Their side in pixels, 32 to 1024."""
    labels: Annotated[list[str] | None, tyro.conf.arg(metavar="LABEL ...", help_behavior_hint="")] = None
    """Which things there are in them; all 64 if not said. Fewer are learnt sooner. A wrong one is answered with all."""


def run(arguments: Sequence[str]) -> int:
    """Run the verb that comes first; `--help` prints and exits."""
    verb, *rest = arguments or ["--help"]
    if verb in ("-h", "--help", "help"):
        verbs = "\n".join(f"  {name:10}  {about}" for name, (about, _) in VERBS.items())
        print(f"usage: sfumato data VERB [...]\n\n{verbs}\n\nsfumato data VERB --help says more.")
        raise SystemExit(0)
    if verb not in VERBS:
        raise ValueError(unknown("command", f"data {verb}", [f"data {name}" for name in VERBS]))
    return VERBS[verb][1](rest)


def check(arguments: Sequence[str]) -> int:
    """Look at pictures and print what is found; ValueError if they cannot be trained on."""
    asked = parse(Check, arguments, verb="data check")
    if asked.draw is not None:
        _check_new(asked.draw)
    listing = listed(asked.path, asked.part)
    events = examine(listing, thorough=asked.thorough)
    report = watched(events, Report, "pictures", counted, total=len(listing.entries))
    if asked.json:
        print(json.dumps(report.as_dict()))  # in ASCII: names of files need not be text
    else:
        print(*report.lines(), sep="\n")
    if asked.draw is not None and report.pictures:
        pictures.save_png(contact_sheet(listing.entries), asked.draw, {}, new=True)
        print(f"{asked.draw}: {min(MOST, len(listing.entries))} of the pictures with their boxes", file=sys.stderr)
    if report.refusal:
        sys.stdout.flush()
        raise ValueError(report.refusal)
    return 0


def scenes(arguments: Sequence[str]) -> int:
    """Write scenes."""
    asked = parse(MakeScenes, arguments, verb="data scenes")
    if not 32 <= asked.size <= 1024:  # noqa: PLR2004
        raise ValueError(f"--size is {asked.size}; a scene has a side of 32 to 1024 pixels")
    if asked.out.exists():
        raise ValueError(f"{asked.out} is there already; choose another place")
    atomic.check_writable(asked.out)
    labels = LABELS if asked.labels is None else asked.labels
    whole = Scenes(asked.n, seed=asked.seed, side=asked.size, labels=labels)
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("scenes", total=asked.n)
        for done in coco_folder.written(whole, asked.out):
            bar.update(task, completed=done)
    of = f"{asked.size} x {asked.size} pixels, with boxes of {len(whole.classes)} labels and captions"
    print(f"{asked.out}: {asked.n:,} scenes of {of}")
    return 0


VERBS = {
    "check": ("say what is in a folder of pictures, and what is wrong with it", check),
    "scenes": ("write pictures with boxes and captions, to try a training of layouts with", scenes),
}


def _check_new(file: Path) -> None:
    if file.suffix.lower() != ".png":
        raise ValueError(f"--draw is {file}; it must be the name of a .png")
    if file.exists():
        raise ValueError(f"{file} is there already; choose another name")
    atomic.check_writable(file.parent)
