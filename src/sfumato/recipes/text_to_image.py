"""Text to image from nothing: an autoencoder first, then diffusion over its latents, which are computed once."""

import platform
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato import __version__
from sfumato.conditioning.text import Text
from sfumato.conditioning.vocabulary import vocabulary
from sfumato.data.part import Part
from sfumato.data.sample import Dataset, Sample
from sfumato.data.training import TrainingPictures
from sfumato.diffusion.noise import Address, Stream
from sfumato.diffusion.objective import Times, denoising_loss
from sfumato.evaluate.reconstruction import mean_psnr, reconstructed
from sfumato.generate import generate
from sfumato.io import first_stages, model_folder, pictures, tensors
from sfumato.io.model_folder import Defaults, Loaded, ModelFile
from sfumato.latents.statistics import LatentStatistics
from sfumato.models.config import Closed, ModelConfig, WordsConfig, configured
from sfumato.models.latent_diffusion import LatentDiffusion, autoencoder_of
from sfumato.nets.autoencoder import AutoencoderSize, drawn
from sfumato.nets.lpips import Lpips
from sfumato.outcome import Outcome
from sfumato.recipes.autoencoder import FirstStageRun, Stage, perceptual, posterior, trained
from sfumato.recipes.events import Event, Stepped, Wrote, reported
from sfumato.request import Request
from sfumato.train.batches import indices
from sfumato.train.fit import Batch, Phase
from sfumato.train.plan import Plan
from sfumato.train.stage import train
from sfumato.train.state import State

CHUNK = 64  # pictures encoded at once


class DiffusionRun(Closed):
    """How the denoiser and the conditioner are trained."""

    plan: Plan
    drop: float = Field(default=0.1, ge=0, le=1)  # share of captions replaced by the empty one (Ho & Salimans 2022)
    times: Times = "uniform"


class TextToImage(Closed):
    """All settings of a run. Every one can be set from the command line by its path: `diffusion.plan.steps=2000`."""

    name: str
    model: ModelConfig
    first_stage: FirstStageRun
    given: str | None = None  # a first stage that is there, by path: it is used as it is, and none is trained
    diffusion: DiffusionRun
    defaults: Defaults = Defaults()


@dataclass(frozen=True)
class Material:
    """What a run learns from."""

    pictures: Dataset  # for the autoencoder
    captioned: Dataset  # for the denoiser
    held_out: Dataset | None  # pictures that the autoencoder never sees, to measure it with
    captions: Callable[[Sample], tuple[str, ...]]  # the ways to say what a picture shows
    about: str


def run(settings: TextToImage, material: Material, out: Path) -> Iterator[Event]:
    """Train in the folder `out`, going on from what is there. Yields events; the last one names the model folder.

    ValueError, before anything is done, if the pictures have no captions.
    """
    if settings.model.first_stage is None or not isinstance(settings.model.conditioner, WordsConfig):
        raise ValueError("this recipe trains a first stage and a conditioner of words; the settings have other parts")
    settings.first_stage.check(settings.model.resolution, settings.model.first_stage.factor)
    given = None if settings.given is None else _given(settings, settings.given)
    run = settings.first_stage
    lpips, _ = perceptual(run.losses.perceptual, run.features, side=run.crop or settings.model.resolution)
    if "caption" not in material.captioned.fields:
        raise ValueError(f"the pictures have no captions ({material.about}); add sidecars or a metadata.jsonl")
    return _run(settings, material, out, given, lpips)


def _sound(material: Material) -> Material:
    """The same without the captioned and held-out pictures that cannot be decoded."""
    captioned, held_out = material.captioned, material.held_out
    if held_out is not None:
        held_out = Part(held_out, TrainingPictures(held_out, room=0).check())
    return replace(material, captioned=Part(captioned, TrainingPictures(captioned, room=0).check()), held_out=held_out)


def on(settings: TextToImage, path: Path) -> TextToImage:
    """The settings with the first stage at `path` in the place of one that is trained; ValueError if it is tiny."""
    size, _ = first_stages.opened(path)
    if not isinstance(size, AutoencoderSize):
        raise ValueError(f"{path} is a tiny first stage, which is made for a large one; give that one")
    unet = replace(settings.model.unet, channels=size.latent_channels)
    model = configured(path, **{**dict(settings.model), "first_stage": size, "unet": unet})
    return settings.model_copy(update={"model": model, "given": str(path.resolve())})


def _given(settings: TextToImage, path: str) -> Stage:
    stage = first_stages.loaded(path).stage
    if not isinstance(stage, Stage) or stage.net.size != settings.model.first_stage:
        raise ValueError(f"{path} is not the first stage that model.first_stage describes; begin with --first-stage")
    return stage


def _run(
    settings: TextToImage, material: Material, out: Path, given: Stage | None, lpips: Lpips | None
) -> Iterator[Event]:
    material = _sound(material)
    first_stage = given or (yield from _trained(settings, material, out / "first-stage", lpips))
    cache = _cached(first_stage, material.captioned, out / "latents.safetensors")
    if given is None or float(given.std) == 1:  # a file that does not say what its latents are like
        statistics = LatentStatistics(first_stage.channels)
        statistics.update(cache["mean"], cache["logvar"])
        statistics.put(first_stage)
    score = None if material.held_out is None else round(mean_psnr(first_stage, material.held_out), 2)

    ways = [material.captions(material.captioned[i]) for i in range(len(material.captioned))]
    tokenizer = vocabulary(way for captions in ways for way in captions)
    torch.manual_seed(settings.diffusion.plan.seed)
    model = LatentDiffusion(settings.model, tokenizer)
    model.first_stage.load_state_dict(first_stage.state_dict())
    provenance = {
        "recipe": settings.model_dump(mode="json", exclude={"model"}),
        "material": material.about,
        "pictures": {"first stage": len(material.pictures), "diffusion": len(material.captioned)},
        "first stage psnr, held out": score,
        "hardware": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "sfumato": __version__,
        "torch": torch.__version__,
    }
    yield from _diffusion(settings, model, cache, ways, out, provenance)


def _trained(
    settings: TextToImage, material: Material, home: Path, lpips: Lpips | None
) -> Generator[Event, None, Stage]:
    torch.manual_seed(settings.first_stage.plan.seed)
    assert settings.model.first_stage is not None
    stage = autoencoder_of(settings.model.first_stage)
    yield from trained(settings.first_stage, stage, TrainingPictures(material.pictures), home, lpips)
    if material.held_out is not None:
        sheet = home / "held-out.png"
        yield Wrote("first stage on held-out pictures", _pairs(stage, material.held_out, sheet))
    return stage


class _Captioned(nn.Module):
    """The objective of the second stage; its parameters are the conditioner's and the denoiser's."""

    def __init__(self, model: LatentDiffusion, drop: float, times: Times) -> None:
        super().__init__()
        self.conditioner, self.denoiser = _captions(model), model.denoiser
        self.drop = drop
        self.times: Times = times

    def forward(self, batch: Batch, at: Address) -> Outcome:
        """`batch`: "mean", "logvar" (B, C, h, w) of the latents and the conditioner's tensors."""
        z = drawn(batch["mean"], batch["logvar"], at.normal(batch["mean"], Stream.ENCODE))
        keep = (at.uniform(Stream.DROP)[:, 0] >= self.drop).to(z.device)
        cond = self.conditioner(batch).where(keep, self.conditioner.null(len(z)))
        return Outcome(denoising_loss(self.denoiser, z, cond, at, kind=self.times).mean())


def _diffusion(
    settings: TextToImage,
    model: LatentDiffusion,
    cache: dict[str, Tensor],
    ways: list[tuple[str, ...]],
    out: Path,
    provenance: dict[str, object],
) -> Iterator[Event]:
    """Train the denoiser and the conditioner on cached latents; write previews and the model folder."""
    run, plan = settings.diffusion, settings.diffusion.plan
    assert isinstance(model.first_stage, Stage)
    mean, logvar = _normalised(model.first_stage, cache)
    objective = _Captioned(model, run.drop, run.times)

    def batches(step: int) -> Batch:
        index = indices(step, batch=plan.batch, n=len(mean), seed=plan.seed)
        which = Address.of(plan.seed, index, step).uniform(Stream.CAPTION)[:, 0]
        said = [ways[i][int(u * len(ways[i]))] for i, u in zip(index.tolist(), which, strict=True)]
        tokens = objective.conditioner.collate([{"caption": c} for c in said])
        return {"index": index, "mean": mean[index], "logvar": logvar[index], **tokens}

    state = State(objective, plan)
    spread = [ways[i * len(ways) // 16][0] for i in range(16)]
    steps = train(Phase(objective, state), batches, out / "diffusion")
    for event in reported("diffusion", steps, state):
        yield event
        if isinstance(event, Stepped) and event.progress.every(plan.preview) and state.step < plan.steps:
            averaged = _averaged(settings, model, state)
            yield Wrote("preview", _preview(averaged, spread, out / "samples" / f"step-{state.step}.png"))
            yield _delivered(settings, averaged, state, provenance, out)
    averaged = _averaged(settings, model, state)  # also where a run was stopped between its last checkpoint and this
    yield Wrote("preview", _preview(averaged, spread, out / "samples" / f"step-{state.step}.png"))
    yield _delivered(settings, averaged, state, provenance, out)


def _delivered(
    settings: TextToImage, averaged: Loaded, state: State, provenance: Mapping[str, object], out: Path
) -> Wrote:
    """The model folder, as the run has it so far."""
    plan = settings.diffusion.plan
    seen = {"steps": state.step, "images": state.step * plan.batch, "skipped": state.skipped}
    about = f"average of the weights, decay {plan.ema} with warm-up, {state.ema.updates} updates"
    model_folder.save(
        out / "model",
        averaged.file.model_copy(update={"provenance": {**provenance, **seen}}),
        {"ema": (about, averaged.model.state_dict())},
        tokenizer=_captions(averaged.model).tokenizer,
    )
    return Wrote("model", out / "model")


@torch.no_grad()
def _cached(stage: Stage, images: Dataset, path: Path) -> dict[str, Tensor]:
    """Raw moments (N, C, h, w) of all pictures, from the file or into it."""
    if path.exists():
        return tensors.load(path)
    parts = []
    for begin in range(0, len(images), CHUNK):
        parts.append(posterior(stage, _stack(images, range(begin, min(begin + CHUNK, len(images))))))
    mean, logvar = (torch.cat(p) for p in zip(*parts, strict=True))
    tensors.write(path, {"mean": mean, "logvar": logvar})
    return {"mean": mean, "logvar": logvar}


def _normalised(stage: Stage, cache: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return (cache["mean"] - stage.mean) / stage.std, cache["logvar"] - 2 * stage.std.log()


@torch.no_grad()
def _averaged(settings: TextToImage, model: LatentDiffusion, state: State) -> Loaded:
    """A model of its own with the averaged weights."""
    copy = LatentDiffusion(settings.model, _captions(model).tokenizer)
    copy.load_state_dict(model.state_dict())
    state.ema.copy_to(_Captioned(copy, 0.0, "uniform"))
    file = ModelFile(name=settings.name, config=settings.model, defaults=settings.defaults)
    return Loaded(copy.eval().requires_grad_(False), file, Path(), "ema")


def _captions(model: LatentDiffusion) -> Text:
    """The conditioner, which is one of words here."""
    assert isinstance(model.conditioner, Text)
    return model.conditioner


def _pairs(stage: Stage, images: Dataset, path: Path) -> Path:
    """The first pictures above their reconstructions."""
    x = _stack(images, range(min(8, len(images))))
    y = reconstructed(stage, x).clamp(-1, 1)
    pictures.save_png(pictures.sheet(torch.cat([x, y]), columns=len(x)), path, {})
    return path


def _preview(loaded: Loaded, captions: list[str], path: Path) -> Path:
    """One picture a caption, in a sheet."""
    images = generate(loaded, [Request(prompt=c, seed=i) for i, c in enumerate(captions)]).images
    pictures.save_png(pictures.sheet(images, columns=8), path, {"captions": captions})
    return path


def _stack(images: Dataset, index: range | list[int]) -> Tensor:
    return torch.stack([images[i]["image"] for i in index])
