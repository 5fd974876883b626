"""The typed description of a model: all that is needed to build it, and nothing that runs by name."""

import inspect
import math
from dataclasses import fields
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from sfumato.diffusion.prediction import Prediction
from sfumato.diffusion.schedule import SCHEDULES, Schedule
from sfumato.nets.autoencoder import AutoencoderSize
from sfumato.nets.transformer import TransformerSize
from sfumato.nets.unet import UNetSize
from sfumato.registry import Registry

LONG = 80  # characters of what was given that are said again
MOST = {"depth": 64, "blocks": 16, "mult": 64, "heads": 256}  # what each costs a module, or many


class Closed(BaseModel):
    """A frozen schema: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def registered(registry: Registry[Any]) -> AfterValidator:
    """The check of a field that holds a name: it must be in the registry, whose error lists what is."""
    return AfterValidator(registry.name)


class ScheduleConfig(Closed):
    """A schedule by name, with the numbers that its kind takes; those left out are the field's defaults."""

    kind: Annotated[str, registered(SCHEDULES)] = "cosine"
    start: float | None = Field(default=None, gt=0, lt=1)
    end: float | None = Field(default=None, gt=0, lt=1)
    steps: int | None = Field(default=None, ge=2, le=100_000)
    terminal_zero: bool | None = None

    def build(self) -> Schedule:
        """The schedule; ValueError if its kind does not take one of the numbers."""
        given = self.model_dump(exclude={"kind"}, exclude_none=True)
        takes = inspect.signature(SCHEDULES[self.kind]).parameters
        wrong = [name for name in given if name not in takes]
        if wrong:
            known = ", ".join(name for name in type(self).model_fields if name in takes) or "no numbers"
            raise ValueError(f"schedule '{self.kind}' does not take {', '.join(wrong)}; it takes {known}")
        return SCHEDULES[self.kind](**given)


def complaint(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, in one line."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "there is no such setting"
    given, shown = first.get("input"), ""
    if isinstance(given, str | int | float) and first["type"] != "value_error":
        text = repr(given)
        shown = f" (given: {text if len(text) <= LONG else text[:LONG] + '...'})"
    return f"{where + ': ' if where else ''}{message[:1].lower()}{message[1:]}{shown}"


class ModelConfig(Closed):
    """Sizes of the three parts, the schedule and the prediction."""

    first_stage: AutoencoderSize
    text: TransformerSize
    unet: UNetSize
    schedule: ScheduleConfig = ScheduleConfig()
    prediction: Prediction = Prediction.V
    resolution: int = Field(default=64, ge=8, le=4096)  # pixels a side that it was trained at

    @model_validator(mode="after")
    def _buildable(self) -> Self:
        """A model that cannot be built is refused here, and not after hours of training its first stage."""
        self.schedule.build()
        for name in ("first_stage", "text", "unet"):
            _within_bounds(name, getattr(self, name))
        first, text, unet = self.first_stage, self.text, self.unet
        factor = first.factor * 2 ** (len(unet.mult) - 1)
        for wrong, message in (
            (unet.channels != first.latent_channels, f"unet.channels must be {first.latent_channels}, as the latent's"),
            (unet.context_dim != text.dim, f"unet.context_dim must be {text.dim}, as text.dim"),
            (unet.vector_dim not in (None, text.dim), f"unet.vector_dim must be {text.dim}, as text.dim, or none"),
            (unet.map_channels > 0, "unet.map_channels must be 0, for nothing here gives maps"),
            (self.resolution % factor > 0, f"resolution must divide by {factor}, as all sizes of this model must"),
        ):
            if wrong:
                raise ValueError(message)
        return self


def _within_bounds(name: str, size: AutoencoderSize | TransformerSize | UNetSize) -> None:
    """ValueError if a number of `size` is not positive, or too large to build; one that is 0 by default may be 0."""
    for field in fields(size):
        value = getattr(size, field.name)
        numbers = [v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, int | float)]
        most = MOST.get(field.name, math.inf)
        good = all(0 < v < math.inf or v == field.default == 0 for v in numbers)
        if not good or (field.name == "mult" and not numbers):
            raise ValueError(f"{name}.{field.name} is {value}; it must be positive")
        if max([*numbers, len(numbers)], default=0) > most:
            raise ValueError(f"{name}.{field.name} is {value}; at most {most} can be built")
