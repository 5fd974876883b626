"""`sfumato samplers [NAME]`: what there is, and what each promises."""

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from sfumato.cli.parse import Name, parse
from sfumato.diffusion.samplers import SAMPLERS, Entry
from sfumato.request import unfused


@dataclass
class Samplers:
    """List the samplers: order of convergence, network evaluations a step, whether fresh noise is added, other names.

    Any of the names is understood, in upper or lower case, with spaces, dashes or underscores.
    """

    name: Annotated[tyro.conf.Positional[Name], tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None
    """Say all about one."""
    json: bool = False
    """Print JSON."""


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    asked = parse(Samplers, arguments, verb="samplers")
    rows = [_row(entry) for entry in ([SAMPLERS[unfused(asked.name)[0]]] if asked.name else SAMPLERS.values())]
    if asked.json:
        print(json.dumps(rows))
        return 0
    console = Console(highlight=False, markup=False)
    table = Table(box=None, pad_edge=False)
    for title in ("name", "order", "calls a step", "noise", "steps"):
        table.add_column(title, no_wrap=True)
    table.add_column("other names", overflow="fold")
    for row in rows:
        noise = "fresh" if row["stochastic"] else "none"
        cells = (
            str(row["order"] or "-"),
            str(row["evaluations_a_step"] or "varies"),
            noise,
            f"from {row['least_steps']}",
        )
        table.add_row(row["name"], *cells, ", ".join(row["also"]))
    console.print(table)
    if asked.name:
        spacing = unfused(asked.name)[1]
        if spacing:
            console.print(f"\nAsked for by this name, its spacing is {spacing}.")
        options = "".join(f"\n\nIt takes --{option}." for option in rows[0]["options"])
        console.print(f"\n{rows[0]['about']}{options}")
    else:
        console.print("\nsfumato samplers NAME says what it is, its source, and whether it takes --eta or --churn.")
    return 0


def _row(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "order": entry.order,
        "evaluations_a_step": None if entry.adaptive else entry.calls,
        "stochastic": entry.stochastic,
        "least_steps": entry.least,
        "options": [name for name in ("eta", "churn") if entry.takes(name)],
        "also": entry.others,
        "about": inspect.getdoc(entry.run) or "",
    }
