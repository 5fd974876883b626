"""A tiny decoder for a first stage that is there: previews at a fraction of the time, by distilling the large one."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
from pydantic import AfterValidator, Field

from sfumato.data.training import TRIED, TrainingPictures
from sfumato.io import first_stage_folder, first_stages, model_folder
from sfumato.io.first_stage_folder import FirstStageFile
from sfumato.io.first_stages import LoadedFirstStage
from sfumato.latents.distilling import Distilling
from sfumato.latents.tiny import TinyFirstStage
from sfumato.models.config import Closed
from sfumato.nets.lpips import Lpips
from sfumato.nets.tiny import TinySize
from sfumato.recipes.autoencoder import File, batches, calibrated, check_sides, perceptual, previewed
from sfumato.recipes.beginning import rests_on
from sfumato.recipes.events import Event, Found, Ready, Wrote, reported
from sfumato.recipes.report import report
from sfumato.recipes.seen import Seen
from sfumato.train.fit import Phase
from sfumato.train.parallel import check
from sfumato.train.plan import Plan
from sfumato.train.stage import train
from sfumato.train.state import State
from sfumato.train.watch import Watch
from sfumato.world import ALONE, World

STAGE = "tiny decoder"
UNSAID = 500  # pictures over which the statistics of latents are taken that a file does not say


class TinyDecoderTraining(Closed):
    """All settings of a run. Every one can be set from the command line by its path: `plan.steps=2000`."""

    name: str = Field(default="tiny-decoder", min_length=1)
    teacher: Annotated[str, AfterValidator(model_folder.from_anywhere)] = "emoji"  # a model or a first stage
    width: int = Field(default=32, ge=1, le=1024)
    blocks: int = Field(default=2, ge=1, le=16)
    resolution: int = Field(default=64, ge=8, le=4096)
    plan: Plan
    squares: float = Field(default=1.0, ge=0)
    perceptual: float = Field(default=0.1, ge=0)
    features: File | None = None
    crop: int | None = Field(default=None, ge=1)
    flips: bool = False


def settings(data: Path | None) -> TinyDecoderTraining:
    """For the bundled model and its world, or for a teacher and a folder of pictures."""
    plan = Plan(steps=2000, batch=16, rate=1e-3, warmup=50, ema=0.995, save=250, preview=500)
    return TinyDecoderTraining(plan=plan, resolution=128 if data else 64, crop=64 if data else None, flips=bool(data))


def run(settings: TinyDecoderTraining, material: Seen, out: Path, world: World = ALONE) -> Iterator[Event]:
    """Train in the folder `out`, going on from what is there.

    ValueError, before anything is done, if there is no teacher, if its factor is no power of two, or if there are no
    weights for the perceptual loss.
    """
    check(settings.plan, world)
    teacher = first_stages.loaded(settings.teacher)
    _check(settings, teacher.stage)
    found = perceptual(settings.perceptual, settings.features, side=settings.crop or settings.resolution)
    material.check()
    size = TinySize(
        width=settings.width,
        blocks=settings.blocks,
        latent_channels=teacher.stage.channels,
        levels=round(math.log2(teacher.stage.factor)),
        encoder=False,
    )
    return _run(settings, material, out, world, teacher, size, found)


def _check(settings: TinyDecoderTraining, teacher: first_stages.Stage) -> None:
    """ValueError if a tiny decoder cannot be taught so."""
    factor = teacher.factor
    if factor & (factor - 1) or factor == 1:
        raise ValueError(f"{settings.teacher} has the factor {factor}; a tiny decoder needs 2, 4, 8, ...")
    if isinstance(teacher, TinyFirstStage) and teacher.net.encoder is None:
        raise ValueError(f"{settings.teacher} is a decoder alone, and makes no latents to learn from")
    check_sides(settings.resolution, settings.crop, factor, of="teacher")


def _run(
    settings: TinyDecoderTraining,
    material: Seen,
    out: Path,
    world: World,
    teacher: LoadedFirstStage,
    size: TinySize,
    features: tuple[Lpips | None, str],
) -> Iterator[Event]:
    lpips, called = features
    torch.manual_seed(settings.plan.seed)
    stage = TinyFirstStage(size, teacher.stage)
    student, pictures = stage.net.decoder, TrainingPictures(material.training)
    count, large = (sum(p.numel() for p in net.parameters()) for net in (student, teacher.stage.net.decoder))
    yield Found(f"{material.about}; a decoder of {count:,} weights learns from one of {large:,} ({teacher.name})")
    pictures.check(TRIED)
    yield Ready(rests_on(material.fingerprint, settings.features, teacher.stage))
    if not isinstance(teacher.stage, TinyFirstStage) and float(teacher.stage.std) == 1:
        calibrated(teacher.stage, pictures, most=UNSAID)  # its file does not say what its latents are like
    objective = Distilling(student, teacher.stage, lpips, squares=settings.squares, perceptual=settings.perceptual)
    objective.to(world.device)
    stage.to(world.device)
    state = State(student, settings.plan)
    source = batches(pictures, settings.plan, world, crop=settings.crop, flips=settings.flips)
    steps = train(Phase(objective, state), source, out / "tiny-decoder", world, watch=Watch)
    events = reported(STAGE, steps, state)
    held_out = material.held_out if world.first else None
    yield from previewed(events, state, stage, held_out, out / "tiny-decoder" / "samples")
    state.ema.copy_to(student)
    stage.eval().requires_grad_(False).cpu()
    if not world.first:
        return
    teacher.stage.cpu()
    provenance = {
        "recipe": settings.model_dump(mode="json"),
        "teacher": teacher.name,
        **material.provenance(pictures, state, world, called=called),
    }
    file = FirstStageFile(name=settings.name, tiny=size, resolution=settings.resolution, provenance=provenance)
    about = f"average of the weights, decay {settings.plan.ema} with warm-up, {settings.plan.steps} steps"
    own = {k: v for k, v in stage.state_dict().items() if not k.startswith("encoder.")}
    first_stage_folder.save(out / "model", file, about, own)
    yield Wrote(STAGE, out / "model")
    yield from report(out, file, stage, material.judged, unseen=material.held > 0, large=teacher.stage)
