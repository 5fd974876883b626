"""The typed description of a model: all that is needed to build it, and nothing that runs by name."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from sfumato.diffusion.prediction import Prediction
from sfumato.diffusion.schedule import SCHEDULES, Schedule
from sfumato.nets.autoencoder import AutoencoderSize
from sfumato.nets.transformer import TransformerSize
from sfumato.nets.unet import UNetSize


class Closed(BaseModel):
    """A frozen schema: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ScheduleConfig(Closed):
    """A schedule by name, with the numbers that its kind takes; those left out are the field's defaults."""

    kind: Literal["scaled_linear", "linear", "cosine", "flow"] = "cosine"
    start: float | None = None
    end: float | None = None
    steps: int | None = None
    terminal_zero: bool | None = None

    def build(self) -> Schedule:
        """The schedule; ValueError if its kind does not take one of the numbers."""
        given = self.model_dump(exclude={"kind"}, exclude_none=True)
        try:
            return SCHEDULES[self.kind](**given)
        except TypeError:
            raise ValueError(f"schedule '{self.kind}' does not take {', '.join(sorted(given))} together") from None


class ModelConfig(Closed):
    """Sizes of the three parts, the schedule and the prediction."""

    first_stage: AutoencoderSize
    text: TransformerSize
    unet: UNetSize
    schedule: ScheduleConfig = ScheduleConfig()
    prediction: Prediction = Prediction.V
    resolution: int = Field(64, ge=8, le=4096)  # pixels a side that it was trained at
