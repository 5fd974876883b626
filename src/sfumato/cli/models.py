"""`sfumato models`: the models that ship with the package."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from sfumato.cli.parse import parse
from sfumato.io import model_folder


@dataclass
class Models:
    """List the bundled models. A model folder of your own is given to --model by its path."""

    json: bool = False
    """Print JSON."""


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    asked = parse(Models, arguments, verb="models")
    files = [(name, model_folder.describe(name)) for name in model_folder.names()]
    if asked.json:
        print(json.dumps([{**f.model_dump(mode="json", exclude_none=True), "name": n} for n, f in files]))
        return 0
    table = Table("name", "pixels", "weights", "learnt from", "MB", box=None)
    for name, file in files:
        size = sum(p.stat().st_size for p in (model_folder.BUNDLED / name).iterdir()) / 1e6
        side = file.config.resolution
        about = str(file.provenance.get("material", ""))
        table.add_row(name, f"{side}x{side}", ", ".join(file.weights), about, f"{size:.1f}")
    Console().print(table)
    return 0
