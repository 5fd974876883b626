"""What can be asked for: one typed request for the command line, for Python and inside the pictures."""

import re
import secrets
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, ValidationError, model_validator

from sfumato.boxes import Box, boxed, described, modified
from sfumato.diffusion.grid import SPACINGS
from sfumato.diffusion.samplers import SAMPLERS
from sfumato.io.model_folder import Defaults, Guidance, SamplerName, SpacingName, Steps
from sfumato.models.config import Closed, complaint

LARGEST_SEED = 2**32 - 1  # what seeds are drawn from; any up to 2^64 - 1 may be given
LARGEST = 2048  # pixels a side


def _in_range(size: tuple[int, int]) -> tuple[int, int]:
    if not 1 <= min(size) <= max(size) <= LARGEST:
        raise ValueError(f"{size[0]}x{size[1]} is out of range; each side has 1 to {LARGEST} pixels")
    return size


def _border(extend: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    if not 0 <= min(extend) <= max(extend) <= LARGEST or not any(extend):
        raise ValueError(
            f"{extend} is out of range; on the left, top, right and bottom go 0 to {LARGEST} pixels, not all 0"
        )
    return extend


Size = Annotated[tuple[int, int], AfterValidator(_in_range)]
Border = Annotated[tuple[int, int, int, int], AfterValidator(_border)]


def _box(given: Any) -> Any:
    """{"label": "cat", "box": [left, top, right, bottom]} as a Box; ValueError if there is no such box."""
    if isinstance(given, Box):
        return boxed(given.label, given[1:5], given.modifiers)
    if not isinstance(given, dict) or given.keys() - {"modifiers"} != {"label", "box"}:
        raise ValueError('a box looks like {"label": "cat", "box": [0.1, 0.2, 0.6, 0.9]}')
    return boxed(given["label"], given["box"], modified(given.get("modifiers", ())))


MOST_BOXES = 1000  # of one request
AskedBox = Annotated[Box, BeforeValidator(_box), PlainSerializer(described)]
Seed = Annotated[int, Field(ge=0, lt=2**64)]
Part = Annotated[float, Field(ge=0, le=1)]
Label = Annotated[int, Field(ge=0, le=1_000_000)]
FUSED = re.compile(r"^(.*\S)[\s_-]+(karras|exponential)$", re.IGNORECASE)  # "DPM++ 2M Karras", as it once was written


def unfused(name: str) -> tuple[str, str | None]:
    """The sampler and the spacing in a name like "DPM++ 2M Karras"; no spacing if there is none in it."""
    match = FUSED.match(name.strip()) if name not in SAMPLERS else None
    return (match[1], match[2].lower()) if match is not None and match[1] in SAMPLERS else (name, None)


class Request(Closed):
    """What is asked for. What is None is taken from the model's own defaults, or is chosen by what is given."""

    prompt: str = Field(default="", max_length=8000)
    negative: str = Field(default="", max_length=8000)
    boxes: Annotated[tuple[AskedBox, ...], Field(max_length=MOST_BOXES)] | None = None  # what is to be where
    label: Label | Annotated[str, Field(min_length=1, max_length=200)] | None = None  # a class by number or by name
    sampler: SamplerName | None = None
    spacing: SpacingName | None = None
    steps: Steps | None = None
    guidance: Guidance | None = None
    classifier_scale: Guidance | None = None  # how far a given classifier pulls to the label; 1
    rescale: Part = 0.0  # of the guess back to the spread of the conditional one
    eta: Part | None = None  # share of the fresh noise of the ancestral chain, for samplers that take it
    churn: float | None = Field(default=None, ge=0, le=1000, allow_inf_nan=False)  # S_churn, for samplers that take it
    seed: Seed = 0
    variation_seed: Seed = 0
    variation_strength: Part = 0.0  # how far the first noise goes from that of `seed` to that of `variation_seed`
    n: int = Field(default=1, ge=1, le=64)
    size: Size | None = None  # width, height
    tiling: bool = False  # whether the picture continues on its opposite side
    strength: Part | None = None  # of the change of a given picture: 0.6, and 1 for a hole in it
    extend: Border | None = None  # pixels to paint around a given picture: left, top, right, bottom
    feather: int = Field(default=2, ge=0, le=256)  # pixels in which a hole fades into what is kept
    inversion: bool = False  # whether to begin from the noise that paints the given picture
    source: str = Field(default="", max_length=8000)  # what the given picture shows, for the inversion

    @model_validator(mode="before")
    @classmethod
    def _unfused(cls, given: Any) -> Any:
        """A name of a sampler with its spacing behind it is both."""
        name = given.get("sampler") if isinstance(given, dict) else None
        sampler, spacing = unfused(name) if isinstance(name, str) else (name, None)
        if spacing is None:
            return given
        if given.get("spacing") is not None and SPACINGS.name(given["spacing"]) != spacing:
            raise ValueError(
                f"sampler '{name}' has its spacing in its name, and spacing is '{given['spacing']}'; say one"
            )
        return {**given, "sampler": sampler, "spacing": spacing}

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


def random_seed() -> int:
    """A seed for those who ask for none."""
    return secrets.randbelow(LARGEST_SEED + 1)
