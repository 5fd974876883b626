"""One of two processes that train together: `python pair.py DATA OUT [slow]` under the variables that torchrun sets."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import tiny
from fill import inp
from sfumato.data import opened
from sfumato.data.training import TrainingPictures
from sfumato.io import pictures
from sfumato.io.model_folder import Defaults
from sfumato.latents.autoencoding import Losses
from sfumato.models.latent_diffusion import autoencoder_of
from sfumato.nets.autoencoder import AutoencoderSize
from sfumato.recipes import diffusion, emoji
from sfumato.recipes.autoencoder import FirstStageRun, trained
from sfumato.recipes.events import Event
from sfumato.recipes.settings import DiffusionRun, DiffusionTraining
from sfumato.train import batches, stop
from sfumato.train.plan import Plan
from sfumato.train.stop import Stopped
from sfumato.world import World, joined

STEPS, MIDDLE = 20, 10
PLAN = Plan(steps=STEPS, batch=8, rate=1e-3, warmup=1, save=MIDDLE, preview=STEPS, precision="fp32")
SETTINGS = DiffusionTraining(
    name="run",
    model=tiny.CONFIG,
    first_stage=FirstStageRun(plan=PLAN, losses=Losses(perceptual=0)),
    diffusion=DiffusionRun(plan=PLAN, drop=0.3, times="stratified"),
    defaults=Defaults(steps=1, guidance=1.0),
)
VQ = AutoencoderSize(channels=8, mult=(1, 2), blocks=1, latent_channels=2, patch=2, codebook=64)


def with_plan(**changes: object) -> DiffusionTraining:
    """The settings with another plan in both stages."""
    plan = replace(PLAN, **changes)
    run, first = SETTINGS.diffusion, SETTINGS.first_stage
    assert first
    parts = {
        "diffusion": run.model_copy(update={"plan": plan}),
        "first_stage": first.model_copy(update={"plan": plan}),
    }
    return SETTINGS.model_copy(update=parts)


def fill(root: Path) -> Path:
    """Some captioned pictures."""
    for i in range(18):
        pictures.save_png((inp(f"picture {i}", 3, 16, 16) / 2).clamp(-1, 1), root / f"{i}.png", {})
        (root / f"{i}.txt").write_text(f"{tiny.CAPTIONS[i % 3]} {i}")
    return root


def whole(data: Path, out: Path, world: World, settings: DiffusionTraining = SETTINGS) -> list[list[int]]:
    """Train a model in two stages; the samples of each step of the second, in their order."""
    seen: list[list[int]] = []
    real = batches.indices

    def spied(step: int, **more: int) -> Tensor:
        index = real(step, **more)
        seen.append(index.tolist())
        return index

    diffusion.indices = spied  # type: ignore[attr-defined]
    try:
        list(diffusion.run(settings, emoji.material(data, 16), out, world))
    finally:
        diffusion.indices = real  # type: ignore[attr-defined]
    return seen


def codes(data: Path, out: Path, world: World) -> None:
    """Train a codebook, most of whose entries die again and again."""
    run = FirstStageRun(plan=PLAN, losses=Losses(perceptual=0, patience=3))
    torch.manual_seed(0)
    events = trained(run, autoencoder_of(VQ), TrainingPictures(opened(data, size=16)), out, world, None)
    list(events)


def back(home: Path, to: Path, world: World) -> Path:
    """A copy of a run as it was in the middle of its second stage."""

    def copied() -> None:
        shutil.copytree(home, to)
        shutil.rmtree(to / "diffusion" / f"step-{STEPS}")

    world.by_first(copied)
    return to


def begun(home: Path, to: Path, world: World) -> Path:
    """A new run with the first stage of another."""
    world.by_first(lambda: shutil.copytree(home / "first-stage", to / "first-stage"))
    return to


def words(world: World) -> dict[str, object]:
    """What two processes tell each other."""
    said: dict[str, object] = {"told": world.told({"from": world.rank}), "any": world.any(world.rank == 1)}
    said["none"] = world.any(False)
    said["mean"] = world.mean(torch.tensor([float(world.rank), 2.0])).tolist()
    said["gathered"] = world.gathered(torch.full((2, 1), world.rank)).tolist()
    for error in (ValueError("a wrong word"), OSError("the disk is full")):

        def fail(error: Exception = error) -> None:
            raise error

        try:
            world.by_first(fail)
        except (ValueError, OSError) as raised:
            said[type(error).__name__] = f"{type(raised).__name__}: {raised}"
    return said


def stopped(data: Path, out: Path, world: World) -> int | None:
    """A stage where the second process alone is asked to stop, after a while."""

    def watched(events: list[Event]) -> None:
        for event in diffusion.run(SETTINGS, emoji.material(data, 16), out, world):
            events.append(event)
            if len(events) == 7 and world.rank == 1:
                stop.ask()

    try:
        watched([])
    except Stopped as end:
        stop.forget()
        return end.step
    return None


def main(data: Path, out: Path, *, slow: bool) -> None:
    """All that is looked at."""
    with joined("cpu") as world:
        sharded = replace(world, parallel="fsdp")
        found: dict[str, object] = {"words": words(world)}
        for name, here in (("ddp", world), ("fsdp", sharded)):
            found[name] = whole(data, out / name, here)
            found[f"one to {name}"] = whole(data, out / f"one-to-{name}", here)
            if slow:
                whole(data, back(out / name, out / f"{name}-again", here), here)
                whole(
                    data, begun(out / "one", out / f"{name}-parts", here), here, with_plan(accumulate=2, recompute=True)
                )
        if slow:
            whole(data, back(out / "fsdp", out / "fsdp-to-ddp", world), world)
        codes(data, out / "codes", world)
        found["stopped"] = stopped(data, out / "stopped", world)
        (out / f"found-{world.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), slow="slow" in sys.argv)
