"""A first stage alone, from a folder of pictures: train it, measure its latents and itself, say whether it will do."""

from collections.abc import Iterator
from pathlib import Path
from typing import Self

import torch
from pydantic import Field, model_validator

from sfumato.data.part import LEAST
from sfumato.data.training import TRIED, TrainingPictures
from sfumato.io import first_stage_folder
from sfumato.io.first_stage_folder import FirstStageFile
from sfumato.models.config import Closed, within_bounds
from sfumato.models.latent_diffusion import autoencoder_of
from sfumato.nets.autoencoder import AutoencoderSize
from sfumato.nets.lpips import Lpips
from sfumato.recipes.autoencoder import FirstStageRun, calibrated, perceptual, trained
from sfumato.recipes.beginning import rests_on
from sfumato.recipes.events import Event, Found, Ready, Wrote
from sfumato.recipes.report import report
from sfumato.recipes.seen import Seen
from sfumato.train.parallel import check
from sfumato.train.stage import rollbacks
from sfumato.world import ALONE, World


class FirstStageTraining(Closed):
    """All settings of a run. Every one can be set from the command line by its path: `run.plan.steps=2000`."""

    name: str = Field(min_length=1)
    size: AutoencoderSize
    resolution: int = Field(default=128, ge=8, le=4096)  # pixels a side that pictures are brought to
    run: FirstStageRun
    statistics: int = Field(default=10_000, ge=1)  # pictures, at most, that the statistics of latents are taken over

    @model_validator(mode="after")
    def _trainable(self) -> Self:
        within_bounds("size", self.size)
        self.run.check(self.resolution, self.size.factor)
        return self


def run(settings: FirstStageTraining, material: Seen, out: Path, world: World = ALONE) -> Iterator[Event]:
    """Train in the folder `out`, going on from what is there. The last events name the model's folder and a report.

    ValueError, before anything is done, if there are not two pictures to judge it by, or no such features.
    """
    how = settings.run
    check(how.plan, world)
    found = perceptual(how.losses.perceptual, how.features, side=how.crop or settings.resolution)
    material.check()
    return _run(settings, material, out, world, found)


def _run(
    settings: FirstStageTraining, material: Seen, out: Path, world: World, features: tuple[Lpips | None, str]
) -> Iterator[Event]:
    torch.manual_seed(settings.run.plan.seed)
    stage = autoencoder_of(settings.size)
    learnt = TrainingPictures(material.training)
    unreadable = len(material.unreadable)
    held = f"{material.held} are held out" if material.held else f"none are held out, of fewer than {LEAST}"
    yield Found(f"{material.about}; {held}, {unreadable} were left out as unreadable")
    lpips, called = features
    learnt.check(TRIED)
    yield Ready(rests_on(material.fingerprint, settings.run.features))
    state = yield from trained(settings.run, stage, learnt, out / "first-stage", world, lpips, material.held_out)
    stage.cpu()
    if not world.first:
        return
    calibrated(stage, learnt, most=settings.statistics)
    provenance = {
        "recipe": settings.model_dump(mode="json", exclude={"size"}),
        **material.provenance(learnt, state, world, called=called, rolled_back=rollbacks(out / "first-stage")),
    }
    file = FirstStageFile(name=settings.name, size=settings.size, resolution=settings.resolution, provenance=provenance)
    about = f"average of the weights, decay {settings.run.plan.ema} with warm-up, {settings.run.plan.steps} steps"
    first_stage_folder.save(out / "model", file, about, stage.state_dict())
    yield Wrote("first stage", out / "model")
    yield from report(out, file, stage, material.judged, unseen=material.held > 0)
