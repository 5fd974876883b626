"""What a network is shown beside the latent in training: made of the pictures of a step as sampling makes it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.conditioning.segmentation import UNSAID, Segmentation
from sfumato.data.degradation import degraded
from sfumato.data.holes import holes
from sfumato.data.part import spaced
from sfumato.data.sample import Dataset
from sfumato.data.training import TrainingPictures
from sfumato.diffusion.noise import Address
from sfumato.generate import Given
from sfumato.latents.maps import low_resolution, shown
from sfumato.models.latent_diffusion import LatentDiffusion
from sfumato.recipes.settings import DiffusionTraining

EXAMPLES = 8  # of a preview
SAID = (None, "boxes")  # maps that no picture is needed for


@dataclass(frozen=True)
class Shown:
    """The pictures of a data set, and how what is shown is made of them."""

    model: LatentDiffusion
    make: Callable[[Tensor, Address], Given]  # pictures (B, 3, H, W) -> init and mask, of a batch
    pictures: TrainingPictures
    told: Dataset
    seed: int

    def __call__(self, index: Tensor, step: int) -> dict[str, Tensor]:
        """For the pictures (B,) of a step: "maps" (B, M, h, w), or "map" (B, H, W) for a conditioner; or nothing."""
        kind, first_stage = self.model.config.maps, self.model.first_stage
        if kind in SAID:
            return {}
        if isinstance(self.model.conditioner, Segmentation):
            return self.model.conditioner.collate([self.told[i] for i in index.tolist()])
        given = self.make(self.pictures.stack(index.tolist()), Address.of(self.seed, index, step))
        assert given.init is not None
        if kind == "low_resolution":
            return {"maps": low_resolution(given.init, self.model.config.larger, first_stage.factor)}
        assert kind in ("inpainting", "inpainting_black")
        with torch.no_grad():
            return {"maps": shown(kind, first_stage, given.init, given.mask)}

    def examples(self) -> list[Given]:
        """What previews are asked with: of some pictures far apart, the same each time."""
        index = torch.tensor(spaced(len(self.told), EXAMPLES))
        if self.model.config.maps in SAID:
            return []
        if isinstance(self.model.conditioner, Segmentation):
            return [Given(map=self.told[i]["map"]) for i in index.tolist()]
        init, mask, _, _ = self.make(self.pictures.stack(index.tolist()), Address.of(self.seed, index))
        assert init is not None
        return [Given(x, None if mask is None else mask[k]) for k, x in enumerate(init)]


def shown_of(settings: DiffusionTraining, model: LatentDiffusion, told: Dataset) -> Shown:
    """What a model of these settings is shown of `told`."""
    how = settings.diffusion.showing

    def make(images: Tensor, at: Address) -> Given:
        if model.config.maps == "low_resolution":
            return Given(degraded(images, at, factor=model.config.larger, kind=how.degradation))
        return Given(images, holes(at, images.shape[2], images.shape[3], how.holes))

    return Shown(model, make, TrainingPictures(told), told, settings.diffusion.plan.seed)


def drawn(given: Given, side: int) -> Tensor:
    """What was given, as a picture (3, side, side): small ones larger, holes grey, classes in colours of their own."""
    if given.map is not None:
        index = given.map.long()
        angle = index.float() * 2.399963  # the golden angle: neighbours in number are far apart in colour
        colour = torch.stack([torch.cos(angle + turn) for turn in (0.0, 2.0944, 4.1888)]) * 0.8
        return torch.where(index == UNSAID, torch.ones(()), colour)
    assert given.init is not None
    image = given.init if given.mask is None else given.init * (1 - given.mask)
    larger = side // image.shape[-1]
    return image.repeat_interleave(larger, dim=1).repeat_interleave(larger, dim=2)
