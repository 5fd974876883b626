"""`sfumato samplers`: what there is, and what each promises."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from sfumato.cli.parse import parse
from sfumato.diffusion.samplers import SAMPLERS


@dataclass
class Samplers:
    """List the samplers: order of convergence, network evaluations a step, whether fresh noise is added."""

    json: bool = False
    """Print JSON."""


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    asked = parse(Samplers, arguments, verb="samplers")
    rows = [
        {
            "name": e.name,
            "order": e.order,
            "evaluations_a_step": e.calls,
            "stochastic": e.stochastic,
            "about": (e.run.__doc__ or "").splitlines()[0],
        }
        for e in SAMPLERS.values()
    ]
    if asked.json:
        print(json.dumps(rows))
        return 0
    table = Table("name", "order", "evaluations a step", "noise", "what it is", box=None)
    for row in rows:
        noise = "fresh" if row["stochastic"] else "none"
        table.add_row(row["name"], str(row["order"]), str(row["evaluations_a_step"]), noise, row["about"])
    Console().print(table)
    return 0
