"""Checkpoints of a running training: folders `step-N`, written whole, verified when read."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.io import atomic, tensors

KEEP = 2
_NAME = re.compile(r"step-(\d+)")


def save(home: Path, step: int, weights: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> Path:
    """Write `home/step-N` and forget all but the newest few."""
    path = home / f"step-{step}"
    with atomic.folder(path) as folder:
        tensors.write(folder / "state.safetensors", weights)
        manifest = {"format": 1, "sha256": tensors.sha256(folder / "state.safetensors"), "numbers": dict(numbers)}
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))
    for _, old in _all(home)[:-KEEP]:
        shutil.rmtree(old)
    return path


def latest(home: Path, *, until: int | None = None) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint whose hash is right, or None; a damaged one is passed over for the one before.

    With `until`, those of later steps are passed over too, unless there is no other.
    """
    found = _all(home)
    early = [entry for entry in found if until is None or entry[0] <= until]
    for _, path in reversed(early or found[:1]):
        try:
            manifest = json.loads((path / "manifest.json").read_text())
            if tensors.sha256(path / "state.safetensors") == manifest["sha256"]:
                return tensors.load(path / "state.safetensors"), manifest["numbers"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def forget(home: Path, *, after: int) -> None:
    """Remove the checkpoints of later steps."""
    for step, path in _all(home):
        if step > after:
            shutil.rmtree(path)


def _all(home: Path) -> list[tuple[int, Path]]:
    found = ((_NAME.fullmatch(p.name), p) for p in home.glob("step-*"))
    return sorted((int(match[1]), p) for match, p in found if match)
