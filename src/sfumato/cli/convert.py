"""`sfumato convert SRC DST --to KIND`: a model in another program's files, every tensor to the bit."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sfumato.cli.additions import Loras, weighted
from sfumato.cli.parse import Name, parse
from sfumato.io import atomic
from sfumato.io.conversion import convert


@dataclass
class Convert:
    """Write a model as another program's files: a model folder, a single LDM file, or a folder of diffusers."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SRC")]
    """What `sfumato inspect` understands."""
    target: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DST")]
    """What is written: a folder, or for ldm a file that ends in .safetensors. It must not be there yet."""
    to: Literal["sfumato", "ldm", "diffusers"]
    """The kind: a model folder of sfumato, LDM's single file, a folder of diffusers."""
    weights: Name = None
    """Which of the source's weight sets; ema, the average, where there is one."""
    lora: Loras = field(default_factory=list)
    """A LoRA that becomes part of the model, with its weight, as style.safetensors:0.8; may be given several times."""
    json: bool = False
    """Print one JSON object, and nothing else, on standard output."""


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    asked = parse(Convert, arguments, verb="convert")
    atomic.check_writable(asked.target.parent)
    loras = [weighted(given) for given in asked.lora]
    done = convert(asked.source, asked.target, asked.to, weights=asked.weights, loras=loras)
    if asked.json:
        said = {"path": str(done.path), "kind": done.kind, "weights": done.weights, "tensors": done.tensors}
        print(json.dumps({**said, "passed_over": done.passed}))
        return 0
    print(f"{done.path}  ({done.tensors} tensors, weights {done.weights})")
    if done.passed:
        print(f"left out, for they say nothing to the model: {len(done.passed)} tensors ('{done.passed[0]}' first)")
    return 0
