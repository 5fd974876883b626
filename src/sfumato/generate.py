"""From a request to pictures: prompt -> condition -> guide -> grid -> sampler -> latent -> picture."""

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from pydantic import Field, field_validator
from torch import Tensor

from sfumato.diffusion import drive
from sfumato.diffusion.grid import SPACINGS
from sfumato.diffusion.guidance import guided
from sfumato.diffusion.noise import seeded
from sfumato.diffusion.samplers import find, start
from sfumato.io.model_folder import Defaults, Loaded
from sfumato.models.config import Closed
from sfumato.models.latent_diffusion import LatentDiffusion

LARGEST_SEED = 2**32 - 1  # what seeds are drawn from; any up to 2^64 - 1 may be given


class Request(Closed):
    """What is asked for. What is None is taken from the model's own defaults."""

    prompt: str = Field("", max_length=8000)
    negative: str = Field("", max_length=8000)
    sampler: str | None = None
    spacing: str | None = None
    steps: int | None = Field(None, ge=1, le=1000)
    guidance: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    seed: int = Field(0, ge=0, lt=2**64)
    n: int = Field(1, ge=1, le=64)
    size: tuple[int, int] | None = None  # width, height
    strength: float = Field(0.6, gt=0, le=1)  # of the change, when there is a picture to begin from

    @field_validator("sampler")
    @classmethod
    def _known_sampler(cls, name: str | None) -> str | None:
        return name if name is None else find(name).name

    @field_validator("spacing")
    @classmethod
    def _known_spacing(cls, name: str | None) -> str | None:
        if name is not None:
            SPACINGS[name]
        return name

    def completed(self, defaults: Defaults, resolution: int) -> "Request":
        """The request with nothing left open, as it is written into pictures."""
        given = self.model_dump(exclude_none=True)
        return Request(**{**defaults.model_dump(), "size": (resolution, resolution), **given})


@dataclass(frozen=True)
class Preview:
    """One network evaluation done: how many of how many, and the clean guess as latents (n, C, h, w)."""

    done: int
    total: int
    x0: Tensor


@dataclass(frozen=True)
class Result:
    """Finished pictures."""

    images: Tensor  # (n, 3, H, W) in [-1, 1]
    latents: Tensor  # (n, C, h, w)
    requests: tuple[Request, ...]  # one a picture, each of which makes that picture again
    weights: str  # the weight set that was used
    evaluations: int
    tokens: int  # of the prompt that were read
    dropped: int  # of the prompt that were over the model's length
    seconds: float


def random_seed() -> int:
    """A seed for those who ask for none."""
    return secrets.randbelow(LARGEST_SEED + 1)


@torch.no_grad()
def sample(loaded: Loaded, request: Request, *, init: Tensor | None = None) -> Iterator[Preview | Result]:
    """Generate, yielding a Preview after each evaluation and the Result last. Closing it stops the run.

    `init` (3, H, W) in [-1, 1] is a picture to begin from; its size is the size of the result. Picture k has seed
    `request.seed + k` and does not depend on how many there are. ValueError for what the model cannot do.
    """
    began = time.perf_counter()
    model = loaded.model
    request = request.completed(loaded.file.defaults, loaded.file.config.resolution)
    if init is not None:
        request = request.model_copy(update={"size": (init.shape[2], init.shape[1])})
    assert request.size and request.sampler and request.spacing and request.steps and request.guidance is not None
    shape = model.latent_shape(*request.size)
    requests = tuple(request.model_copy(update={"n": 1, "seed": s}) for s in _seeds(request))
    tokens, dropped = _tokens(model, request.prompt)

    grid = SPACINGS[request.spacing](model.denoiser.schedule, request.steps)
    noise = seeded([r.seed for r in requests])
    x = grid.levels[0].sigma * noise(torch.empty(request.n, *shape))
    if init is not None:
        grid = grid.part(request.strength)
        first = grid.levels[0]
        z = model.first_stage.encode(init[None].expand(request.n, -1, -1, -1))
        x = first.alpha * z + first.sigma * noise(z)
    cond, null = model.conditioner.of([request.prompt]), model.conditioner.of([request.negative])
    guide = guided(cond.repeat(request.n), null.repeat(request.n), scale=request.guidance)

    entry = find(request.sampler)
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
    yield Result(images, latents, requests, loaded.weights, done, tokens, dropped, seconds)


def generate(loaded: Loaded, request: Request, *, init: Tensor | None = None) -> Result:
    """The Result of `sample`."""
    *_, result = sample(loaded, request, init=init)
    assert isinstance(result, Result)
    return result


def _seeds(request: Request) -> list[int]:
    return [(request.seed + k) % 2**64 for k in range(request.n)]


def _tokens(model: LatentDiffusion, prompt: str) -> tuple[int, int]:
    (count,) = model.conditioner.count([prompt])
    read = min(count, model.conditioner.size.length)
    return read, count - read


