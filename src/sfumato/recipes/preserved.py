"""Prior preservation: what a model paints of a class, kept in mind while it learns one of its kind (Ruiz et al. 2023).

    loss = instance + weight * prior                                               (eq. 2)

where both are the denoising loss, one of the pictures that are learnt from and one of pictures that the model painted
of the class before it learnt anything.
"""

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from sfumato.conditioning.text import Text
from sfumato.data import Listed, opened
from sfumato.diffusion.noise import Address
from sfumato.generate import generate
from sfumato.io import pictures
from sfumato.io.model_folder import Guidance, Loaded, Steps
from sfumato.models.config import Closed
from sfumato.outcome import Outcome
from sfumato.recipes.events import Event, Found
from sfumato.request import Request
from sfumato.train.fit import Batch, Batches, Objective

TOGETHER = 8  # pictures painted at once; which are together is always the same, so that they are the same to the bit
BESIDE = "prior."  # before the names of what a batch holds of the class
FAR = 2**31  # added to the index of its pictures, so that no two samples share an address


class Prior(Closed):
    """What is painted of the class, and how much it counts."""

    prompt: str = ""  # of the class, without the word that is learnt: "a mug"
    pictures: int = Field(default=64, ge=1, le=100_000)
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)  # lambda
    steps: Steps | None = None  # how they are painted; as the model's defaults say if not said
    guidance: Guidance | None = None

    def check(self, loaded: Loaded) -> None:
        """ValueError if the model cannot be asked for the class."""
        if not self.prompt.strip():
            raise ValueError('there is no class to preserve; say what it is, as prior.prompt="a mug", or prior=none')
        conditioner = loaded.model.conditioner
        if isinstance(conditioner, Text) and (words := conditioner.unknown([self.prompt])):
            raise ValueError(
                f"prior.prompt says words that the model was never shown ({', '.join(words)}); it paints no such class"
            )


def painted(loaded: Loaded, prior: Prior, home: Path, *, side: int, seed: int) -> Generator[Event, None, Listed]:
    """The pictures of the class in the folder `home`; those that are not there yet are painted.

    Picture k has the seed `seed + k`.
    """
    for first in range(0, prior.pictures, TOGETHER):
        some = range(first, min(first + TOGETHER, prior.pictures))
        paths = [home / f"{k:05d}.png" for k in some]
        if all(path.exists() for path in paths):
            continue
        asked = [
            Request(
                prompt=prior.prompt,
                seed=(seed + k) % 2**64,
                size=(side, side),
                steps=prior.steps,
                guidance=prior.guidance,
            )
            for k in some
        ]
        for path, image in zip(paths, generate(loaded, asked).images, strict=True):
            pictures.save_png(image, path, {"prompt": prior.prompt})
        yield Found(f"prior: {some.stop:,} of {prior.pictures:,} pictures of the class are painted")
    return opened(home, size=side)


def beside(instance: Batches, prior: Batches) -> Batches:
    """Both batches of a step in one."""

    def batches(step: int) -> Batch:
        return {**instance(step), **{BESIDE + name: tensor for name, tensor in prior(step).items()}}

    return batches


class Preserving:
    """The objective: that of the pictures plus `weight` times that of the class; both are said."""

    def __init__(self, objective: Objective, weight: float) -> None:
        self.objective, self.weight = objective, weight

    def __call__(self, batch: Batch, at: Address) -> Outcome:
        """`batch` holds both, as `beside` joins them."""
        own = {name: tensor for name, tensor in batch.items() if not name.startswith(BESIDE)}
        theirs = {name.removeprefix(BESIDE): tensor for name, tensor in batch.items() if name.startswith(BESIDE)}
        far = theirs["index"].cpu() + FAR
        instance = self.objective(own, at)
        prior = self.objective(theirs, replace(at, seed=at.seed[:1].expand(len(far)), index=far))
        assert instance is not None
        assert prior is not None
        said = {"instance": instance.loss, "prior": prior.loss}
        return Outcome(instance.loss + self.weight * prior.loss, said)
