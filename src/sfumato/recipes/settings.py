"""The settings of a training of a whole model."""

from typing import Literal, Self

from pydantic import Field, model_validator

from sfumato.data.cropped import Kind
from sfumato.data.degradation import Degradation
from sfumato.data.holes import Holes
from sfumato.diffusion.objective import SIMPLE, Loss, Times
from sfumato.io.model_folder import Defaults
from sfumato.models.config import Closed, ModelConfig
from sfumato.recipes.autoencoder import File, FirstStageRun
from sfumato.train import snapshots
from sfumato.train.plan import Plan


class Showing(Closed):
    """How what a network is shown beside the latent is made of the pictures that it learns from."""

    degradation: Degradation = "light"  # of the small pictures of a super-resolution
    holes: Holes = "both"  # of an inpainting


class Layouts(Closed):
    """Which boxes of a folder are learnt from, and what is seen of its pictures."""

    least_area: float = Field(default=1e-5, ge=0, lt=1)  # of a box, in parts of its picture; LDM's 1e-4 of Open Images
    least: int = Field(default=1, ge=0)  # boxes of a picture; LDM's is 2
    most: int = Field(default=30, ge=1)  # of more the largest are learnt
    crops: int = Field(default=0, ge=0, le=1000)  # of each picture, at random places; 0: the middle square
    windows: Kind = "random-2d"  # what they are

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.least > self.most:
            raise ValueError(f"least is {self.least} boxes and most is {self.most}; no picture has so many")
        return self


class DiffusionRun(Closed):
    """How the denoiser and the conditioner are trained."""

    plan: Plan
    drop: float = Field(default=0.1, ge=0, le=1)  # share of conditions replaced by the null one (Ho & Salimans 2022)
    times: Times = "uniform"
    flips: bool = False  # half of the pictures mirrored: both forms of each are seen once in an epoch
    showing: Showing = Showing()
    layouts: Layouts = Layouts()
    loss: Loss = SIMPLE  # distance, weighting of the levels, offset of the noise, and the bound of a learned variance
    buckets: bool = False  # pictures in shapes of their own, of as many pixels, instead of squares
    encode: Literal["once", "always"] = "once"  # latents before the training, or those of a batch at each step
    validation: int | None = Field(default=None, ge=0)  # steps between, as of previews; 0: none held out
    latents: File | None = None  # a folder where they are kept for several runs; in the run's if not said
    averages: tuple[float, ...] = ()  # sigma_rel of power-function averages, to choose a length from afterwards
    snapshots: int | None = Field(default=None, ge=1)  # steps between those of them; a sixteenth of all if not said
    decays: tuple[float, ...] = ()  # of exponential averages beside `plan.ema`, each a weight set of the model

    @model_validator(mode="after")
    def _averaged(self) -> Self:
        snapshots.check(self.averages, self.decays)
        if self.snapshots and not self.averages:
            raise ValueError("snapshots are of averages, and there are none; set averages=[0.05,0.1]")
        return self


class DiffusionTraining(Closed):
    """All settings of a run. Every one can be set from the command line by its path: `diffusion.plan.steps=2000`."""

    name: str = Field(min_length=1)
    model: ModelConfig
    first_stage: FirstStageRun | None = None  # of a model that has a first stage
    given: str | None = None  # a first stage that is there, by path: it is used as it is, and none is trained
    told_by: str | None = None  # a model, by name or path, whose conditioner is used as it is, and none is trained
    diffusion: DiffusionRun
    defaults: Defaults = Defaults()
