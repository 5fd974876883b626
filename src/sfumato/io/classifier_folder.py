"""A classifier of noisy pictures on disk: a folder with `classifier.json` (what it reads) and weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from sfumato.diffusion.level import Level
from sfumato.io import network_folder, tensors
from sfumato.io.model_folder import WeightSet
from sfumato.models.config import LARGEST, Closed, ModelConfig, ScheduleConfig, complaint, within_bounds
from sfumato.models.latent_diffusion import hollowed
from sfumato.nets.classifier import Classifier, ClassifierSize

NAME = "classifier.json"


class ClassifierFile(Closed):
    """The content of classifier.json."""

    format: Literal[1] = 1
    name: str
    size: ClassifierSize
    factor: int = Field(ge=1)  # pixels to one position of what it reads
    schedule: ScheduleConfig  # whose noise it learnt to read through
    classes: tuple[str, ...] | None = None
    weights: WeightSet | None = None
    provenance: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _buildable(self) -> Self:
        within_bounds("size.body", self.size.body)
        if not 1 <= self.size.classes <= LARGEST or self.size.side % 2 ** (len(self.size.body.mult) - 1):
            raise ValueError("size is of no classifier; its side must divide by the factor of its body")
        return self


@dataclass(frozen=True)
class LoadedClassifier:
    """A classifier with its weights."""

    net: Classifier
    file: ClassifierFile
    path: Path

    @property
    def classes(self) -> int:
        """How many it tells apart."""
        return self.file.size.classes

    def check(self, model: ModelConfig, size: tuple[int, int]) -> None:
        """ValueError of one line if it does not read what this model paints, `size` (width, height) pixels large."""
        own, factor = self.file, 1 if model.first_stage is None else model.first_stage.factor
        side = own.size.side * own.factor
        for wrong, message in (
            ((own.factor, own.size.body.channels) != (factor, model.unet.channels), "reads other latents"),
            (own.schedule != model.schedule, "learnt at the noise of another schedule"),
            (size != (side, side), f"reads pictures of {side}x{side} alone"),
        ):
            if wrong:
                raise ValueError(f"the classifier '{own.name}' {message} than what is painted; train one on this model")

    def log_prob(self, labels: Tensor) -> Callable[[Tensor, Level], Tensor]:
        """log p(y | x_t) (B,) of the labels (B,), for `diffusion.guidance.classifier_guided`."""

        def log_prob(x: Tensor, at: Level) -> Tensor:
            t = at.t.to(x.device, torch.float32).reshape(-1).expand(len(x))
            return self.net(x, t).float().log_softmax(1).gather(1, labels.to(x.device)[:, None])[:, 0]

        return log_prob


def find(path: Path) -> Path | None:
    """The folder of a classifier at `path`: itself, or the one that a run wrote in it; None if there is none."""
    return network_folder.find(path, NAME)


def load(path: Path) -> LoadedClassifier:
    """The classifier of a run or a folder; ValueError of one line if there is none, or if it is damaged."""
    folder = find(path)
    if folder is None:
        raise ValueError(f"{path} holds no classifier; train one: sfumato train classifier --set model=RUN")
    try:
        file = ClassifierFile.model_validate_json((folder / NAME).read_bytes())
    except ValidationError as error:
        raise ValueError(f"{folder / NAME} is not the description of a classifier: {complaint(error)}") from None
    weights = network_folder.read(folder, NAME, file.weights)
    with hollowed():
        net = Classifier(file.size)
    tensors.fill(net, weights, source=folder)
    return LoadedClassifier(net.eval().requires_grad_(False), file, folder)


def save(path: Path, file: ClassifierFile, about: str, weights: Mapping[str, Tensor]) -> None:
    """Write the folder whole."""
    network_folder.save(path, NAME, file, about, weights)
