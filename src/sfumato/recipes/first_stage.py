"""A first stage alone, from a folder of pictures: train it, measure its latents and itself, say whether it will do."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from pydantic import Field, model_validator

from sfumato.data import Dataset, Emoji, Folder, Split
from sfumato.data.part import Part, split, spread
from sfumato.data.training import TRIED, TrainingPictures
from sfumato.evaluate.first_stage import KEPT
from sfumato.io import first_stage_folder
from sfumato.io.first_stage_folder import FirstStageFile
from sfumato.models.config import Closed, within_bounds
from sfumato.models.latent_diffusion import autoencoder_of
from sfumato.nets.autoencoder import AutoencoderSize
from sfumato.nets.lpips import Lpips
from sfumato.recipes.autoencoder import FirstStageRun, calibrated, perceptual, trained
from sfumato.recipes.events import Event, Found, Wrote
from sfumato.recipes.report import origin, report
from sfumato.train.stage import rollbacks

EVERY, MOST = 20, 400  # one picture in so many is held out, and no more than so many
LEAST = 2  # pictures, of which distances of features can be taken


class FirstStageTraining(Closed):
    """All settings of a run. Every one can be set from the command line by its path: `run.plan.steps=2000`."""

    name: str
    size: AutoencoderSize
    resolution: int = Field(default=128, ge=8, le=4096)  # pixels a side that pictures are brought to
    run: FirstStageRun
    statistics: int = Field(default=10_000, ge=1)  # pictures, at most, that the statistics of latents are taken over

    @model_validator(mode="after")
    def _trainable(self) -> Self:
        within_bounds("size", self.size)
        self.run.check(self.resolution, self.size.factor)
        return self


@dataclass(frozen=True)
class Seen:
    """What a first stage is trained on, and what it is judged by."""

    training: Dataset
    held_out: Dataset | None
    unreadable: tuple[str, ...]  # files that were left out, and why
    about: str


def seen(data: Path | None, resolution: int) -> Seen:
    """The pictures of a folder, or of the emoji world where none is given."""
    if data is None:
        whole = Emoji(split=Split.TRAIN, size=resolution)
        return Seen(whole, Emoji(split=Split.CONCEPT, size=resolution), (), "emoji world, all styles")
    folder = Folder(data, size=resolution)
    training, held_out = split(folder, every=EVERY, most=MOST)
    if held_out is not None:
        held_out = Part(held_out, spread(len(held_out), KEPT))  # so that a contact sheet shows more than one sub-folder
    unreadable = tuple(f"{path}: {why}" for path, why in folder.skipped)
    return Seen(training, held_out, unreadable, f"{len(folder)} pictures of the folder {data.name}")


def run(settings: FirstStageTraining, material: Seen, out: Path) -> Iterator[Event]:
    """Train in the folder `out`, going on from what is there. The last events name the model's folder and a report.

    ValueError, before anything is done, if there are not two pictures to judge it by, or no such features.
    """
    how = settings.run
    found = perceptual(how.losses.perceptual, how.features, side=how.crop or settings.resolution)
    if len(material.held_out or material.training) < LEAST:
        raise ValueError(f"there are fewer than {LEAST} pictures ({material.about}); a first stage needs many")
    return _run(settings, material, out, found)


def _run(
    settings: FirstStageTraining, material: Seen, out: Path, features: tuple[Lpips | None, str]
) -> Iterator[Event]:
    torch.manual_seed(settings.run.plan.seed)
    stage = autoencoder_of(settings.size)
    learnt = TrainingPictures(material.training)
    held = 0 if material.held_out is None else len(material.held_out)
    yield Found(f"{material.about}; {held} are held out, {len(material.unreadable)} were left out as unreadable")
    lpips, called = features
    learnt.check(TRIED)
    state = yield from trained(settings.run, stage, learnt, out / "first-stage", lpips)
    calibrated(stage, learnt, most=settings.statistics)
    provenance = {
        "recipe": settings.model_dump(mode="json", exclude={"size"}),
        "pictures": {"training": len(material.training), "held out": held},
        "skipped": {"unreadable": len(material.unreadable), "damaged": len(learnt.damaged), "steps": state.skipped},
        "rolled back": rollbacks(out / "first-stage"),
        "perceptual loss": called,
        **origin(material.about),
    }
    file = FirstStageFile(name=settings.name, size=settings.size, resolution=settings.resolution, provenance=provenance)
    about = f"average of the weights, decay {settings.run.plan.ema} with warm-up, {settings.run.plan.steps} steps"
    first_stage_folder.save(out / "model", file, about, stage.state_dict())
    yield Wrote("first stage", out / "model")
    yield from report(out, file, stage, material.held_out or material.training, unseen=held > 0)
