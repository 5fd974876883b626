"""A whole model from nothing: a first stage if it has one, then diffusion over latents, which are computed once."""

import platform
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from tokenizers import Tokenizer
from torch import nn

from sfumato import __version__
from sfumato.cond import Cond
from sfumato.conditioning.label import Labels
from sfumato.conditioning.text import Text
from sfumato.conditioning.vocabulary import vocabulary
from sfumato.data.fingerprint import Fingerprint
from sfumato.data.part import Part
from sfumato.data.sample import Dataset, Sample
from sfumato.data.training import TrainingPictures
from sfumato.diffusion.noise import Address, Stream
from sfumato.diffusion.objective import SIMPLE, Loss, Times, denoising_loss
from sfumato.evaluate.reconstruction import mean_psnr
from sfumato.generate import generate
from sfumato.io import first_stages, model_folder, pictures
from sfumato.io.model_folder import Defaults, Loaded, ModelFile
from sfumato.latents.pixels import Pixels
from sfumato.models.config import Closed, LabelsConfig, ModelConfig, WordsConfig, configured
from sfumato.models.latent_diffusion import LatentDiffusion, autoencoder_of
from sfumato.nets.autoencoder import AutoencoderSize, drawn
from sfumato.nets.lpips import Lpips
from sfumato.outcome import Outcome
from sfumato.recipes.autoencoder import File, FirstStageRun, Stage, perceptual, trained
from sfumato.recipes.beginning import rests_on
from sfumato.recipes.events import Event, Ready, Stepped, Wrote, reported
from sfumato.recipes.latents import Latents, latents_of
from sfumato.request import Request
from sfumato.train.batches import indices
from sfumato.train.fit import Batch, Phase
from sfumato.train.plan import Plan
from sfumato.train.stage import train
from sfumato.train.state import State

PREVIEWS = 16
VISIBLE = 64  # pixels a side that a picture of a preview has at least


class DiffusionRun(Closed):
    """How the denoiser and the conditioner are trained."""

    plan: Plan
    drop: float = Field(default=0.1, ge=0, le=1)  # share of conditions replaced by the null one (Ho & Salimans 2022)
    times: Times = "uniform"
    loss: Loss = SIMPLE  # distance, weighting of the levels, offset of the noise, and the bound of a learned variance
    encode: Literal["once", "always"] = "once"  # latents before the training, or those of a batch at each step
    latents: File | None = None  # a folder where they are kept for several runs; in the run's if not said


class DiffusionTraining(Closed):
    """All settings of a run. Every one can be set from the command line by its path: `diffusion.plan.steps=2000`."""

    name: str = Field(min_length=1)
    model: ModelConfig
    first_stage: FirstStageRun | None = None  # of a model that has a first stage
    given: str | None = None  # a first stage that is there, by path: it is used as it is, and none is trained
    diffusion: DiffusionRun
    defaults: Defaults = Defaults()


Way = Mapping[str, Any]
"""What the conditioner is told of a picture: {"caption": "a red apple"}, {"label": 3}, or nothing."""


@dataclass(frozen=True)
class Material:
    """What a run learns from."""

    pictures: Dataset  # for the first stage
    told: Dataset  # for the denoiser, with what it is told of them
    held_out: Dataset | None  # pictures that the first stage never sees, to measure it with
    ways: Callable[[Sample], tuple[Way, ...]]  # the ways to say what a picture shows
    about: str
    fingerprint: Fingerprint  # of all of them


def run(settings: DiffusionTraining, material: Material, out: Path) -> Iterator[Event]:
    """Train in the folder `out`, going on from what is there. Yields events; the last one names the model folder.

    ValueError, before anything is done, if the pictures lack what the model is told of them.
    """
    _check(settings, material)
    if settings.model.first_stage is None:
        return _run(settings, material, out, Pixels(), None)
    given = None if settings.given is None else _given(settings, settings.given)
    run = settings.first_stage
    if run is None:
        assert given is not None
        return _run(settings, material, out, given, None)
    run.check(settings.model.resolution, settings.model.first_stage.factor)
    lpips, _ = perceptual(run.losses.perceptual, run.features, side=run.crop or settings.model.resolution)
    return _run(settings, material, out, given, lpips)


def _check(settings: DiffusionTraining, material: Material) -> None:
    """ValueError if the settings do not hold together, or ask for what the pictures have not."""
    model, fields = settings.model, material.told.fields
    run = settings.diffusion
    run.loss.check(model.schedule.build(), model.prediction, run.times, learned=model.learned)
    if not isinstance(model.conditioner, WordsConfig | LabelsConfig | None):
        raise ValueError(f"a conditioner of kind '{model.conditioner.kind}' cannot be trained; take words or labels")
    if model.first_stage is not None and settings.first_stage is None and settings.given is None:
        raise ValueError("the model has a first stage; say in first_stage how it is trained, or give one")
    if isinstance(model.conditioner, WordsConfig) and "caption" not in fields:
        raise ValueError(f"the pictures have no captions ({material.about}); add sidecars or a metadata.jsonl")
    if isinstance(model.conditioner, LabelsConfig) and "label" not in fields:
        raise ValueError(f"the pictures have no classes ({material.about}); put those of a class into a folder")


def _sound(material: Material) -> Material:
    """The same without the pictures that cannot be decoded."""
    told, held_out = material.told, material.held_out
    if held_out is not None:
        held_out = Part(held_out, TrainingPictures(held_out, room=0).check())
    return replace(material, told=Part(told, TrainingPictures(told, room=0).check()), held_out=held_out)


def on(settings: DiffusionTraining, path: Path) -> DiffusionTraining:
    """The settings with the first stage at `path` in the place of one that is trained; ValueError if it is tiny."""
    size, _ = first_stages.opened(path)
    if not isinstance(size, AutoencoderSize):
        raise ValueError(f"{path} is a tiny first stage, which is made for a large one; give that one")
    unet = replace(settings.model.unet, channels=size.latent_channels)
    model = configured(path, **{**dict(settings.model), "first_stage": size, "unet": unet})
    return settings.model_copy(update={"model": model, "given": model_folder.from_anywhere(str(path))})


def _given(settings: DiffusionTraining, path: str) -> Stage:
    stage = first_stages.loaded(path).stage
    if not isinstance(stage, Stage) or stage.net.size != settings.model.first_stage:
        raise ValueError(f"{path} is not the first stage that model.first_stage describes; begin with --first-stage")
    return stage


def _run(
    settings: DiffusionTraining, material: Material, out: Path, ready: Stage | Pixels | None, lpips: Lpips | None
) -> Iterator[Event]:
    """`ready` is a first stage that is not trained, if there is one."""
    material = _sound(material)
    given = ready if isinstance(ready, Stage) else None
    yield Ready(rests_on(material.fingerprint, settings.first_stage and settings.first_stage.features, given))
    first_stage = ready or (yield from _trained(settings, material, out / "first-stage", lpips))
    run = settings.diffusion
    kept = None if run.encode == "always" else run.latents or out / "latents"
    latents = yield from latents_of(first_stage, material.told, kept, calibrate=given is None)
    ways = [material.ways(material.told[i]) for i in range(len(material.told))]
    said = [way["caption"] for picture in ways for way in picture if "caption" in way]
    torch.manual_seed(settings.diffusion.plan.seed)
    model = LatentDiffusion(settings.model, vocabulary(said) if said else None)
    model.first_stage.load_state_dict(first_stage.state_dict())
    provenance = {
        "recipe": settings.model_dump(mode="json", exclude={"model"}),
        "material": material.about,
        "pictures": {"first stage": len(material.pictures), "diffusion": len(material.told)},
        "first stage psnr, held out": _psnr(first_stage, material.held_out),
        "hardware": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "sfumato": __version__,
        "torch": torch.__version__,
    }
    yield from _diffusion(settings, model, latents, ways, out, provenance)


def _psnr(stage: Stage | Pixels, pictures: Dataset | None) -> float | None:
    return None if pictures is None or isinstance(stage, Pixels) else round(mean_psnr(stage, pictures), 2)


def _trained(
    settings: DiffusionTraining, material: Material, home: Path, lpips: Lpips | None
) -> Generator[Event, None, Stage]:
    assert settings.model.first_stage is not None
    assert settings.first_stage is not None
    torch.manual_seed(settings.first_stage.plan.seed)
    stage = autoencoder_of(settings.model.first_stage)
    learnt = TrainingPictures(material.pictures)
    yield from trained(settings.first_stage, stage, learnt, home, lpips, material.held_out)
    return stage


class _Told(nn.Module):
    """The objective of the second stage; its parameters are the conditioner's and the denoiser's."""

    def __init__(self, model: LatentDiffusion, drop: float, times: Times, loss: Loss = SIMPLE) -> None:
        super().__init__()
        self.conditioner, self.denoiser = model.conditioner, model.denoiser
        self.drop = drop
        self.times: Times = times
        self.loss = loss

    def forward(self, batch: Batch, at: Address) -> Outcome:
        """`batch`: "mean" (B, C, h, w) of the latents, "logvar" of those that are drawn; the conditioner's tensors."""
        z = batch["mean"]
        if "logvar" in batch:
            z = drawn(z, batch["logvar"], at.normal(z, Stream.ENCODE))
        cond = Cond()
        if self.conditioner is not None:
            keep = (at.uniform(Stream.DROP)[:, 0] >= self.drop).to(z.device)
            cond = self.conditioner(batch).where(keep, self.conditioner.null(len(z)))
        return Outcome(denoising_loss(self.denoiser, z, cond, at, kind=self.times, loss=self.loss).mean())


def _diffusion(
    settings: DiffusionTraining,
    model: LatentDiffusion,
    latents: Latents,
    ways: list[tuple[Way, ...]],
    out: Path,
    provenance: dict[str, object],
) -> Iterator[Event]:
    """Train the denoiser and the conditioner on latents; write previews and the model folder."""
    run, plan = settings.diffusion, settings.diffusion.plan
    objective = _Told(model, run.drop, run.times, run.loss)

    def batches(step: int) -> Batch:
        index = indices(step, batch=plan.batch, n=len(ways), seed=plan.seed)
        which = Address.of(plan.seed, index, step).uniform(Stream.CAPTION)[:, 0]
        said = [ways[i][int(u * len(ways[i]))] for i, u in zip(index.tolist(), which, strict=True)]
        told = {} if objective.conditioner is None else objective.conditioner.collate(said)
        return {"index": index, **latents(index), **told}

    state = State(objective, plan)
    asked = _asked(model, ways)
    steps = train(Phase(objective, state), batches, out / "diffusion")
    for event in reported("diffusion", steps, state):
        yield event
        if isinstance(event, Stepped) and event.progress.every(plan.preview) and state.step < plan.steps:
            averaged = _averaged(settings, model, state)
            yield Wrote("preview", _preview(averaged, asked, out / "samples" / f"step-{state.step}.png"))
            yield _delivered(settings, averaged, state, provenance, out)
    averaged = _averaged(settings, model, state)  # also where a run was stopped between its last checkpoint and this
    yield Wrote("preview", _preview(averaged, asked, out / "samples" / f"step-{state.step}.png"))
    yield _delivered(settings, averaged, state, provenance, out)


def _asked(model: LatentDiffusion, ways: list[tuple[Way, ...]]) -> list[Request]:
    """What previews are asked for: captions far apart, or one class after the other."""
    match model.conditioner:
        case Labels(classes=classes, none=none):
            labels = [label for label in range(classes) if label != none]
            return [Request(label=labels[i % len(labels)], seed=i) for i in range(PREVIEWS)]
        case None:
            return [Request(seed=i) for i in range(PREVIEWS)]
        case _:
            spread = [ways[i * len(ways) // PREVIEWS][0] for i in range(PREVIEWS)]
            return [Request(prompt=way["caption"], seed=i) for i, way in enumerate(spread)]


def _delivered(
    settings: DiffusionTraining, averaged: Loaded, state: State, provenance: Mapping[str, object], out: Path
) -> Wrote:
    """The model folder, as the run has it so far."""
    plan = settings.diffusion.plan
    seen = {"steps": state.step, "images": state.step * plan.batch, "skipped": state.skipped}
    about = f"average of the weights, decay {plan.ema} with warm-up, {state.ema.updates} updates"
    model_folder.save(
        out / "model",
        averaged.file.model_copy(update={"provenance": {**provenance, **seen}}),
        {"ema": (about, averaged.model.state_dict())},
        tokenizer=_tokenizer(averaged.model),
    )
    return Wrote("model", out / "model")


@torch.no_grad()
def _averaged(settings: DiffusionTraining, model: LatentDiffusion, state: State) -> Loaded:
    """A model of its own with the averaged weights."""
    copy = LatentDiffusion(settings.model, _tokenizer(model))
    copy.load_state_dict(model.state_dict())
    state.ema.copy_to(_Told(copy, 0.0, "uniform"))
    file = ModelFile(name=settings.name, config=settings.model, defaults=settings.defaults)
    return Loaded(copy.eval().requires_grad_(False), file, Path(), "ema")


def _tokenizer(model: LatentDiffusion) -> Tokenizer | None:
    return model.conditioner.tokenizer if isinstance(model.conditioner, Text) else None


def _preview(loaded: Loaded, asked: list[Request], path: Path) -> Path:
    """One picture a request, in a sheet; tiny ones larger."""
    images = generate(loaded, asked).images
    larger = max(1, VISIBLE // images.shape[-1])
    images = images.repeat_interleave(larger, dim=2).repeat_interleave(larger, dim=3)
    told = [r.prompt if r.label is None else r.label for r in asked]
    pictures.save_png(pictures.sheet(images, columns=8), path, {"captions": told})
    return path
