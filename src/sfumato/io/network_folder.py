"""One network on disk: a folder with its description as JSON, and its weights, whose hash the description has."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sfumato.io import atomic, tensors
from sfumato.io.model_folder import WeightSet
from sfumato.models.config import Closed

WEIGHTS = "weights.safetensors"


def find(path: Path, name: str) -> Path | None:
    """The folder with a description `name` at `path`: itself, or what a run wrote in it; None if there is none."""
    places = (path.parent if path.name == name else path, path / "model")
    return next((place for place in places if (place / name).is_file()), None)


def read(folder: Path, name: str, weights: WeightSet | None) -> dict[str, Tensor]:
    """The tensors; ValueError if they are not those that the description names."""
    path = folder / WEIGHTS
    if weights is None or tensors.sha256(path) != weights.sha256:
        raise ValueError(f"{path} is not the file that {name} describes (its hash differs); copy it again")
    return tensors.load(path)


def save(path: Path, name: str, file: Closed, about: str, weights: Mapping[str, Tensor]) -> None:
    """Write the folder whole; the description's `weights` is filled in: which file, its hash, what it is `about`."""
    with atomic.folder(path) as folder:
        target = folder / WEIGHTS
        tensors.write(target, weights)
        entry = WeightSet(file=WEIGHTS, sha256=tensors.sha256(target), about=about)
        whole = file.model_copy(update={"weights": entry})
        text = json.dumps(whole.model_dump(mode="json", exclude_none=True), indent=2, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")
