"""How the autoencoder of a first stage is trained: a step is the autoencoder's phase, then its critic's."""

from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Self

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from sfumato.data.part import spaced
from sfumato.data.sample import Dataset
from sfumato.data.training import TrainingPictures, cut
from sfumato.diffusion.noise import Address
from sfumato.evaluate.reconstruction import at_once, reconstructed
from sfumato.io import feature_networks
from sfumato.io import pictures as files
from sfumato.latents.adversary import Adversary, Criticism
from sfumato.latents.autoencoding import Autoencoding, Losses
from sfumato.latents.codes import start_from_latents
from sfumato.latents.first_stage import FirstStage
from sfumato.latents.kl import KLFirstStage
from sfumato.latents.statistics import LatentStatistics
from sfumato.latents.vq import VQFirstStage
from sfumato.models.config import Closed, within_bounds
from sfumato.nets.autoencoder import NARROWEST, moments
from sfumato.nets.lpips import Lpips
from sfumato.nets.patchgan import PatchGan, PatchGanSize
from sfumato.recipes.events import Event, Stepped, Wrote, reported
from sfumato.train.batches import indices
from sfumato.train.fit import Batch, Batches, Phase
from sfumato.train.parallel import recompute
from sfumato.train.plan import Plan
from sfumato.train.stage import Remedy, train
from sfumato.train.state import State
from sfumato.train.watch import Watch
from sfumato.world import ALONE, World

SAMPLE = 2048  # pictures, at most, that the first weights are fitted to
SHOWN = 8  # pictures of a preview
LOWERED = 0.25  # of the adversary's weight, after the training went wrong

Stage = KLFirstStage | VQFirstStage
File = Annotated[Path, AfterValidator(Path.absolute)]  # so that a run can go on from any folder


class FirstStageRun(Closed):
    """How an autoencoder is trained."""

    plan: Plan
    losses: Losses = Losses()
    adversary: Adversary | None = None
    features: File | None = None  # a file of LPIPS weights; those that ship with the project if not said
    crop: int | None = Field(default=None, ge=1)  # pixels a side of what a step sees of a picture; all if not said
    flips: bool = False  # half of the pictures mirrored

    def check(self, resolution: int, factor: int) -> None:
        """ValueError if pictures of `resolution` cannot be trained on so."""
        check_sides(resolution, self.crop, factor, of="first stage")
        if self.adversary:
            _judges(self.adversary.critic, self.crop or resolution)

    @property
    def dearer(self) -> tuple[int, ...]:
        """The steps from which on a step takes longer."""
        begins = [self.losses.perceptual_from] if self.losses.perceptual > 0 else []
        return tuple(sorted({*begins, *([self.adversary.start] if self.adversary else [])} - {0}))

    @model_validator(mode="after")
    def _lasts(self) -> Self:
        if self.adversary and self.plan.precision == "fp16":
            raise ValueError("the gradients that an adversary is weighed by are too small for fp16; take bf16 or fp32")
        if self.adversary and self.adversary.start >= self.plan.steps:
            raise ValueError(
                f"adversary.start is {self.adversary.start}, and the run ends at {self.plan.steps}; begin earlier, or "
                "set the adversary to none"
            )
        if self.losses.perceptual > 0 and self.losses.perceptual_from >= self.plan.steps:
            raise ValueError(
                f"losses.perceptual_from is {self.losses.perceptual_from}, and the run ends at {self.plan.steps}; "
                "begin earlier, or set its weight, losses.perceptual, to 0"
            )
        return self


def check_sides(resolution: int, crop: int | None, factor: int, *, of: str) -> None:
    """ValueError if squares of `crop` pixels are no part of pictures of `resolution`, or do not divide by `factor`."""
    side = crop or resolution
    if side > resolution:
        raise ValueError(f"crop is {side}; it is cut out of pictures of {resolution} pixels a side")
    for name, pixels in (("resolution", resolution), ("crop", side)):
        if pixels % factor:
            raise ValueError(f"{name} is {pixels}; it must divide by {factor}, the factor of the {of}")


def perceptual(weight: float, features: Path | None, *, side: int) -> tuple[Lpips | None, str]:
    """The network of the perceptual term, if it has a weight, and what a report calls it.

    ValueError if `features` is a file of another thing, or wants larger pictures than those of `side` pixels.
    """
    if weight == 0:
        return None, "none"
    lpips, called = feature_networks.perceptual(features)
    if side < lpips.smallest:
        raise ValueError(
            f"{called} needs pictures of {lpips.smallest} pixels a side, and would see {side}; set losses.perceptual=0"
        )
    return lpips, called


def trained(
    run: FirstStageRun,
    stage: Stage,
    pictures: TrainingPictures,
    home: Path,
    world: World,
    lpips: Lpips | None,
    held_out: Dataset | None = None,
) -> Generator[Event, None, State]:
    """Train the network of `stage` in the folder `home`, leave the average of its weights in it, return the state.

    A preview shows the first pictures of those that are held out above what they become.
    """
    critic = PatchGan(run.adversary.critic).to(world.device) if run.adversary else None
    objective = Autoencoding(
        stage.net, lpips, run.losses, steps=run.plan.steps, adversary=run.adversary, critic=critic, world=world
    ).to(world.device)
    recompute(stage.net, run.plan)
    state = State(stage.net, run.plan, memory=objective.memory)
    phases = [Phase(objective, state)]
    if run.adversary and critic:
        rate = run.adversary.rate or run.plan.rate
        plan = replace(run.plan, rate=rate, betas=run.adversary.betas, weight_decay=0.0)
        phases.append(Phase(Criticism(critic, run.adversary), State(critic, plan, average=False)))
    remedy = _remedy(objective, state, run.adversary) if run.adversary else None

    source = batches(pictures, run.plan, world, crop=run.crop, flips=run.flips)
    steps = train(
        phases, source, home, world, watch=Watch, remedy=remedy, begin=lambda: _start(stage, pictures, run.plan.seed)
    )
    events = reported("first stage", steps, state, dearer=run.dearer)
    yield from previewed(events, state, stage, held_out if world.first else None, home / "samples")
    state.ema.copy_to(stage.net)
    stage.eval().requires_grad_(False)
    return state


def batches(pictures: TrainingPictures, plan: Plan, world: World = ALONE, *, crop: int | None, flips: bool) -> Batches:
    """This process's pictures of a step, cut and turned, as a function of the step."""
    part = world.part(plan.batch)

    def batch(step: int) -> Batch:
        index = indices(step, batch=plan.batch, n=len(pictures), seed=plan.seed)[part]
        at = Address.of(plan.seed, index, step)
        return {"index": index, "image": cut(pictures.stack(index.tolist()), at, side=crop, flips=flips)}

    return batch


def posterior(stage: Stage, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance (B, C, h, w) of the latents of pictures as the network gives them; VQ has no variance.

    On the CPU, wherever the network is.
    """
    images = images.to(next(stage.net.parameters()).device)
    if isinstance(stage, KLFirstStage):
        mean, logvar = moments(stage.net.encoder(images))
        return mean.cpu(), logvar.cpu()
    mean = stage.raw(images).cpu()
    return mean, torch.full_like(mean, NARROWEST)


def previewed(
    events: Iterator[Event], state: State, stage: FirstStage, pictures: Dataset | None, home: Path
) -> Iterator[Event]:
    """The events of a stage, and each `plan.preview` steps a picture: some of `pictures` above what they become."""
    for event in events:
        yield event
        if pictures is not None and isinstance(event, Stepped) and event.progress.every(state.plan.preview):
            shown = TrainingPictures(pictures)
            x = shown.stack(shown.sound(SHOWN))
            with state.ema.shown():
                y = reconstructed(stage, x.to(next(state.module.parameters()).device)).clamp(-1, 1).cpu()
            path = home / f"step-{state.step}.png"
            files.save_png(files.sheet(torch.cat([x, y]), columns=len(x)), path, {})
            yield Wrote("preview", path)


@torch.no_grad()
def calibrated(stage: Stage, pictures: TrainingPictures, *, most: int) -> LatentStatistics:
    """The statistics of the latents of a data set, or of `most` pictures spread over it, which are put in `stage`."""
    chosen = pictures.sound(most)
    together = at_once(pictures[0].shape[-1])
    statistics = LatentStatistics(stage.channels)
    for begin in range(0, len(chosen), together):
        statistics.update(*posterior(stage, pictures.stack(chosen[begin : begin + together])))
    statistics.put(stage)
    return statistics


@torch.no_grad()
def _start(stage: Stage, pictures: TrainingPictures, seed: int) -> None:
    """Let the first weights be what linear algebra and the pictures say, where there is a place for that."""
    net = stage.net
    if net.encoder.linear is None and net.codebook is None:
        return
    side = pictures[0].shape[-1]
    images = pictures.stack(spaced(len(pictures), max(1, min(SAMPLE, SAMPLE * 128**2 // side**2))))
    images = images.to(next(net.parameters()).device)
    if net.encoder.linear is not None:
        net.start_at_principal_components(images)
    if net.codebook is not None:
        latents = torch.cat([net.encoder(part) for part in images.split(at_once(side))])
        start_from_latents(net.codebook, latents, seed)


def _judges(critic: PatchGanSize, side: int) -> None:
    """ValueError if there can be no such critic of pictures of `side` pixels."""
    within_bounds("adversary.critic", critic)
    if critic.channels != 3:  # noqa: PLR2004
        raise ValueError(f"adversary.critic.channels is {critic.channels}; pictures have 3")
    if side < critic.least:
        raise ValueError(
            f"a critic of {critic.layers} layers needs {critic.least} pixels a side, and sees {side}; "
            "take fewer layers or larger pictures"
        )


def _remedy(objective: Autoencoding, state: State, adversary: Adversary) -> Remedy:
    """A weaker adversary: of use once, and only where it has begun."""

    def weaken() -> None:
        objective.strength.mul_(LOWERED)

    return Remedy(
        apply=weaken,
        applied=lambda: float(objective.strength) < 1 or state.step <= adversary.start,
    )
