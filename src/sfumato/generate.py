"""From a request to pictures: prompt -> condition -> guide -> grid -> sampler -> latent -> picture."""

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from PIL.Image import Image
from pydantic import AfterValidator, Field, ValidationError
from torch import Tensor

from sfumato.diffusion import drive
from sfumato.diffusion.grid import SPACINGS
from sfumato.diffusion.guidance import guided
from sfumato.diffusion.noise import seeded
from sfumato.diffusion.samplers import SAMPLERS, start
from sfumato.io import model_folder, pictures
from sfumato.io.model_folder import Defaults, Guidance, Loaded, SamplerName, SpacingName, Steps
from sfumato.models.config import Closed, complaint

LARGEST_SEED = 2**32 - 1  # what seeds are drawn from; any up to 2^64 - 1 may be given
LARGEST = 2048  # pixels a side


def _in_range(size: tuple[int, int]) -> tuple[int, int]:
    if not 1 <= min(size) <= max(size) <= LARGEST:
        raise ValueError(f"{size[0]}x{size[1]} is out of range; each side has 1 to {LARGEST} pixels")
    return size


Size = Annotated[tuple[int, int], AfterValidator(_in_range)]


class Request(Closed):
    """What is asked for. What is None is taken from the model's own defaults."""

    prompt: str = Field(default="", max_length=8000)
    negative: str = Field(default="", max_length=8000)
    sampler: SamplerName | None = None
    spacing: SpacingName | None = None
    steps: Steps | None = None
    guidance: Guidance | None = None
    seed: int = Field(default=0, ge=0, lt=2**64)
    n: int = Field(default=1, ge=1, le=64)
    size: Size | None = None  # width, height
    strength: float = Field(default=0.6, gt=0, le=1)  # of the change, when there is a picture to begin from

    def completed(self, defaults: Defaults, resolution: int) -> "Request":
        """The request with nothing left open, as it is written into pictures."""
        given = self.model_dump(exclude_none=True)
        return Request(**{**defaults.model_dump(), "size": (resolution, resolution), **given})


def requested(**asked: Any) -> Request:
    """A Request; ValueError of one line if it is wrong."""
    try:
        return Request(**asked)
    except ValidationError as error:
        raise ValueError(complaint(error)) from None


@dataclass(frozen=True)
class Preview:
    """One network evaluation done: how many of how many, and the clean guess as latents (n, C, h, w)."""

    done: int
    total: int
    x0: Tensor = field(repr=False)


@dataclass(frozen=True)
class Result:
    """Finished pictures."""

    images: Tensor = field(repr=False)  # (n, 3, H, W) in [-1, 1]
    latents: Tensor = field(repr=False)  # (n, C, h, w)
    requests: tuple[Request, ...]  # one a picture, each of which makes that picture again
    weights: str  # the weight set that was used
    evaluations: int
    tokens: int  # of the longest prompt that were read
    dropped: int  # of it that were over the model's length
    unknown: tuple[str, ...]  # words of the prompts that the model was never shown
    seconds: float

    def pil(self) -> list[Image]:
        """The pictures for Pillow."""
        return [pictures.to_pil(image) for image in self.images]


@dataclass(frozen=True)
class Model:
    """A loaded model as most people use it: `load("emoji").generate(prompt="a red apple, 3d")`."""

    loaded: Loaded

    def sample(self, *, init: Tensor | None = None, **asked: Any) -> Iterator[Preview | Result]:
        """`sample` for the fields of a Request given by name."""
        return sample(self.loaded, requested(**asked), init=init)

    def generate(self, *, init: Tensor | None = None, **asked: Any) -> Result:
        """The Result for the fields of a Request given by name."""
        return generate(self.loaded, requested(**asked), init=init)


def load(name_or_path: str | Path, *, weights: str | None = None) -> Model:
    """A bundled model by name or a model folder by path; `weights` chooses a weight set. ValueError if it is not so."""
    return Model(model_folder.load(name_or_path, weights=weights))


def random_seed() -> int:
    """A seed for those who ask for none."""
    return secrets.randbelow(LARGEST_SEED + 1)


@torch.no_grad()
def sample(
    loaded: Loaded, request: Request | Sequence[Request], *, init: Tensor | None = None
) -> Iterator[Preview | Result]:
    """Generate, yielding a Preview after each evaluation and the Result last. Closing it stops the run.

    Several requests make one batch if they differ in prompt, negative, seed and n alone. Picture k of a request has
    its `seed + k` and does not depend on its batch mates. `init` (3, H, W) in [-1, 1] is a picture to begin from; its
    size is the size of the result. ValueError for what the model cannot do.
    """
    began = time.perf_counter()
    model, requests = loaded.model, _each(loaded, [request] if isinstance(request, Request) else request, init)
    common = requests[0]
    assert common.size is not None and common.steps is not None and common.guidance is not None  # noqa: PT018
    assert common.sampler is not None and common.spacing is not None  # noqa: PT018
    shape = model.latent_shape(*common.size)
    prompts = [r.prompt for r in requests]
    tokens = max(model.conditioner.count(list(set(prompts))))
    read = min(tokens, model.conditioner.size.length)

    grid = SPACINGS[common.spacing](model.denoiser.schedule, common.steps)
    noise = seeded([r.seed for r in requests])
    x = grid.levels[0].sigma * noise(torch.empty(len(requests), *shape))
    if init is not None:
        grid = grid.part(common.strength)
        first = grid.levels[0]
        z = model.first_stage.encode(init[None]).expand_as(x)
        x = first.alpha * z + first.sigma * noise(z)
    guide = guided(
        model.conditioner.of(prompts), model.conditioner.of([r.negative for r in requests]), scale=common.guidance
    )

    entry = SAMPLERS[common.sampler]
    total = entry.evaluations(grid)
    done, latents = 0, x
    for event in drive.steps(start(entry, x, grid, noise), model.denoiser.bind(guide)):
        if isinstance(event, Tensor):
            latents = event
        else:
            done += 1
            yield Preview(done, total, event.x0)
    images = model.first_stage.decode(latents).clamp(-1, 1)
    seconds = time.perf_counter() - began
    unknown = model.conditioner.unknown(prompts)
    yield Result(images, latents, requests, loaded.weights, done, read, tokens - read, unknown, seconds)


def generate(loaded: Loaded, request: Request | Sequence[Request], *, init: Tensor | None = None) -> Result:
    """The Result of `sample`."""
    *_, result = sample(loaded, request, init=init)
    assert isinstance(result, Result)
    return result


def _each(loaded: Loaded, requests: Sequence[Request], init: Tensor | None) -> tuple[Request, ...]:
    """One complete request for each picture; ValueError if they cannot share a batch."""
    given = {"size": (init.shape[2], init.shape[1])} if init is not None else {}
    each = []
    for request in requests:
        whole = request.completed(loaded.file.defaults, loaded.file.config.resolution).model_copy(update=given)
        seeds = [(whole.seed + k) % 2**64 for k in range(whole.n)]
        each += [whole.model_copy(update={"n": 1, "seed": seed}) for seed in seeds]
    shared = {r.model_copy(update={"prompt": "", "negative": "", "seed": 0}) for r in each}
    if len(shared) != 1:
        raise ValueError("requests in one batch differ in more than prompt, negative, seed and n; ask for each alone")
    return tuple(each)
