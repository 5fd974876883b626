"""`sfumato data VERB ...`: a look at pictures before a training."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import Progress

from sfumato.cli.parse import parse
from sfumato.data.check import Report, examine
from sfumato.data.source import listed
from sfumato.registry import unknown


@dataclass
class Check:
    """Say what pictures, captions and classes --data would train on, and what is wrong with them.

    It reads headers alone and changes nothing. It ends with 0 if they can be trained on; otherwise with 2 and the line
    that a training would stop with.
    """

    path: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """A folder of pictures, of COCO captions or of tar shards, or one .tar."""
    thorough: bool = False
    """Decode every picture, and find those that are there twice."""
    json: bool = False
    """Print one JSON object, and nothing else, on standard output: all lists in full."""


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
    report = _examined(asked)
    if asked.json:
        print(json.dumps(report.as_dict()))  # in ASCII: names of files need not be text
    else:
        print(*report.lines(), sep="\n")
    if report.refusal:
        sys.stdout.flush()
        raise ValueError(report.refusal)
    return 0


VERBS = {"check": ("say what is in a folder of pictures, and what is wrong with it", check)}


def _examined(asked: Check) -> Report:
    """The report, with a bar on standard error while a person is watching."""
    listing = listed(asked.path)
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("pictures", total=len(listing.entries))
        for event in examine(listing, thorough=asked.thorough):
            if isinstance(event, Report):
                return event
            bar.update(task, completed=event)
    raise AssertionError("a look ends with its report")
