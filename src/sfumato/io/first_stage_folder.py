"""A first stage on disk: a folder with `first_stage.json` (what it is) and its weights, the statistics among them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from sfumato.io import network_folder
from sfumato.io.model_folder import WeightSet, check_statistics
from sfumato.io.network_folder import WEIGHTS
from sfumato.models.config import Closed, complaint, within_bounds
from sfumato.nets.autoencoder import AutoencoderSize
from sfumato.nets.tiny import TinySize

NAME = "first_stage.json"


class FirstStageFile(Closed):
    """The content of first_stage.json."""

    format: Literal[1] = 1
    name: str
    size: AutoencoderSize | None = None  # this, or
    tiny: TinySize | None = None  # that
    resolution: int = Field(ge=1)  # pixels a side that it was trained at
    weights: WeightSet | None = None
    provenance: dict[str, Any] = Field(default_factory=dict)

    @property
    def built(self) -> AutoencoderSize | TinySize:
        """What is built."""
        found = self.size or self.tiny
        assert found is not None
        return found

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.size is None) == (self.tiny is None):
            raise ValueError("one of 'size' and 'tiny' must be there, and not both")
        if self.size is not None:
            within_bounds("size", self.size)
        if self.tiny is not None:
            within_bounds("tiny", self.tiny)
        return self


def find(path: Path) -> Path | None:
    """The folder of a first stage at `path`: itself, or the one that a run wrote in it; None if there is none."""
    return network_folder.find(path, NAME)


def describe(folder: Path) -> FirstStageFile:
    """What first_stage.json says; ValueError of one line if it is not as it should be."""
    path = folder / NAME
    try:
        return FirstStageFile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path} is not the description of a first stage: {complaint(error)}") from None


def read(folder: Path, file: FirstStageFile) -> dict[str, Tensor]:
    """The tensors; ValueError if they are not those that the description names, or if the statistics are none."""
    stored = network_folder.read(folder, NAME, file.weights)
    check_statistics(stored, "", source=folder / WEIGHTS)
    return stored


def save(path: Path, file: FirstStageFile, about: str, weights: Mapping[str, Tensor]) -> None:
    """Write the folder whole."""
    network_folder.save(path, NAME, file, about, weights)
