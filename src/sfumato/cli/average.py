"""`sfumato average RUN --sigma-rel 0.05 --out MODEL`: an average of any length, after the training."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from sfumato.cli.parse import Int, parse
from sfumato.io import atomic
from sfumato.recipes.average import average

FAR = 0.05  # a misfit that a person should know of


@dataclass
class Average:
    """Make a model of the average of the weights whose length is chosen now, from the snapshots of a run.

    A run keeps snapshots with --set diffusion.averages=[0.05,0.1]. How long an average should be is not known before;
    models of several lengths are compared, and the best is kept (Karras et al. 2024, post-hoc EMA).
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The folder of the run."""
    sigma_rel: Annotated[float, tyro.conf.arg(metavar="X", help_behavior_hint="")]
    """The average's length, as its deviation in parts of the training: 0.05 or 0.1 for instance, at most 0.2886."""
    out: Annotated[Path, tyro.conf.arg(metavar="MODEL", help_behavior_hint="")]
    """The model folder to write."""
    at: Int = None
    """The step at which the average is taken; that of the last snapshot if not said."""
    json: bool = False
    """Print one JSON object, and nothing else, on standard output."""


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    asked = parse(Average, arguments, verb="average")
    atomic.check_writable(asked.out)
    made = average(asked.run, asked.out, sigma_rel=asked.sigma_rel, at=asked.at)
    if asked.json:
        print(json.dumps(asdict(made) | {"path": str(made.path)}))
        return 0
    off = "exactly" if made.misfit < 1e-6 else f"within {made.misfit:.2g} of its size"  # noqa: PLR2004
    print(
        f"{made.path}: weights {made.weights}, the average of sigma_rel {made.sigma_rel:g} at step {made.step:,}, "
        f"{off}, from {made.snapshots} snapshots"
    )
    if made.misfit > FAR:
        print("that is far from it: snapshots of two averages, and more of them, come nearer")
    return 0
