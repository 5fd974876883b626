"""`sfumato report RUN`: the page of a run, also of one that is still going or was killed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from sfumato.cli.parse import File, parse
from sfumato.io import atomic
from sfumato.recipes import page


@dataclass
class Report:
    """Write the page of a run: curves, validation, previews, settings, and what it rests on, in one file of HTML.

    A training writes it by itself after each preview and at its end. The file needs no network and runs no program.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The folder of the run."""
    out: File = None
    """The file to write; report.html in the run's folder if not said."""


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    asked = parse(Report, arguments, verb="report")
    if asked.out is not None:
        atomic.check_writable(asked.out.parent)
    print(page.write(asked.run, asked.out))
    return 0
