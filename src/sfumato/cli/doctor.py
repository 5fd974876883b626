"""`sfumato doctor`: what this machine and this installation can do."""

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sfumato import __version__
from sfumato.cli.parse import parse
from sfumato.generate import generate
from sfumato.io import model_folder, opening
from sfumato.request import Request

PARTS = ("torch", "numpy", "safetensors", "pillow", "pydantic", "tyro", "rich", "tokenizers")


@dataclass
class Doctor:
    """Say what this machine and this installation can do, and try it: each bundled model makes a picture."""

    json: bool = False
    """Print JSON."""


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    asked = parse(Doctor, arguments, verb="doctor")
    report: dict[str, Any] = {
        "sfumato": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        **{name: importlib.metadata.version(name) for name in PARTS},
    }
    healthy = True
    for name in model_folder.names():
        try:
            loaded = opening.load(name)
            seconds = generate(loaded, Request(prompt="a red apple, 3d", steps=4)).seconds
            report[f"model {name}"] = f"works, {seconds:.2f} s for a picture in 4 steps"
        except (ValueError, RuntimeError) as error:
            healthy = False
            report[f"model {name}"] = f"broken: {error}"
    report["checked"] = time.strftime("%Y-%m-%d %H:%M:%S")
    if asked.json:
        print(json.dumps(report))
    else:
        width = max(map(len, report))
        print("\n".join(f"{key:{width}}  {value}" for key, value in report.items()))
    return 0 if healthy else 1
