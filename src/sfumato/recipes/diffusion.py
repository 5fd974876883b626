"""A whole model from nothing: a first stage if it has one, then diffusion over latents, which are computed once."""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from sfumato import __version__
from sfumato.conditioning.layout import LayoutTokens
from sfumato.conditioning.vocabulary import vocabulary
from sfumato.data.buckets import Shape, shapes
from sfumato.data.part import Mirrored
from sfumato.data.sample import Dataset, Sample
from sfumato.data.training import TrainingPictures
from sfumato.diffusion.noise import Address, Stream
from sfumato.evaluate.reconstruction import mean_psnr
from sfumato.io import first_stages, model_folder, opening, tensors
from sfumato.latents.pixels import Pixels
from sfumato.models.config import BoxesConfig, SegmentationConfig, WordsConfig, configured, map_channels
from sfumato.models.latent_diffusion import AnyConditioner, LatentDiffusion, autoencoder_of
from sfumato.nets.autoencoder import AutoencoderSize
from sfumato.nets.lpips import Lpips
from sfumato.recipes.autoencoder import Stage, perceptual, trained
from sfumato.recipes.beginning import rests_on
from sfumato.recipes.delivered import asked_of, averaged, decayed, delivered, preview
from sfumato.recipes.events import Event, Found, Ready, Stepped, Wrote, reported
from sfumato.recipes.latents import Latents, latents_of, unsaid
from sfumato.recipes.material import Material, Way, bucketed, sound
from sfumato.recipes.settings import DiffusionRun, DiffusionTraining
from sfumato.recipes.shown import Shown, shown_of
from sfumato.recipes.told import Told, check_told, shuffled
from sfumato.recipes.validation import LAST, Pictures, Validation
from sfumato.train.batches import Grouped, indices
from sfumato.train.fit import Batch, Batches, Phase
from sfumato.train.parallel import check, recompute, shard
from sfumato.train.plan import Plan
from sfumato.train.snapshots import Snapshots, averages, spacing
from sfumato.train.stage import train
from sfumato.train.state import State
from sfumato.world import ALONE, World, hardware


def run(settings: DiffusionTraining, material: Material, out: Path, world: World = ALONE) -> Iterator[Event]:
    """Train in the folder `out`, going on from what is there. Yields events; the last one names the model folder.

    ValueError, before anything is done, if the pictures lack what the model is told of them.
    """
    _check(settings, material)
    check(settings.diffusion.plan, world)
    if settings.model.first_stage is None:
        return _run(settings, material, out, world, (Pixels(), None))
    given = None if settings.given is None else _given(settings, settings.given)
    run = settings.first_stage
    if run is None:
        assert given is not None
        return _run(settings, material, out, world, (given, None))
    check(run.plan, world)
    run.check(settings.model.resolution, settings.model.first_stage.factor)
    lpips, _ = perceptual(run.losses.perceptual, run.features, side=run.crop or settings.model.resolution)
    return _run(settings, material, out, world, (given, lpips))


def _check(settings: DiffusionTraining, material: Material) -> None:
    """ValueError if the settings do not hold together, or ask for what the pictures have not."""
    model, run = settings.model, settings.diffusion
    run.loss.check(model.schedule.build(), model.prediction, run.times, learned=model.learned)
    if model.first_stage is not None and settings.first_stage is None and settings.given is None:
        raise ValueError("the model has a first stage; say in first_stage how it is trained, or give one")
    if run.buckets and run.encode == "always":
        raise ValueError("buckets take their latents from the cache; leave diffusion.encode=always out")
    if run.buckets and model.maps is not None:
        raise ValueError(
            f"a model that is shown a map of kind '{model.maps}' learns squares; leave diffusion.buckets out"
        )
    check_told(settings, material)


def on(settings: DiffusionTraining, path: Path) -> DiffusionTraining:
    """The settings with the first stage at `path` in the place of one that is trained; ValueError if it is tiny."""
    size, _ = first_stages.opened(path)
    if not isinstance(size, AutoencoderSize):
        raise ValueError(f"{path} is a tiny first stage, which is made for a large one; give that one")
    shown = map_channels(settings.model.maps, size.latent_channels)
    shown = settings.model.unet.map_channels if shown is None else shown
    unet = replace(settings.model.unet, channels=size.latent_channels, map_channels=shown)
    changed: dict[str, object] = {"first_stage": size, "unet": unet}
    if isinstance(settings.model.conditioner, SegmentationConfig):
        stages = round(math.log2(size.factor))
        changed["conditioner"] = settings.model.conditioner.model_copy(update={"stages": stages})
    model = configured(path, **{**dict(settings.model), **changed})
    return settings.model_copy(update={"model": model, "given": model_folder.from_anywhere(str(path))})


def _given(settings: DiffusionTraining, path: str) -> Stage:
    stage = first_stages.loaded(path).stage
    if not isinstance(stage, Stage) or stage.net.size != settings.model.first_stage:
        raise ValueError(f"{path} is not the first stage that model.first_stage describes; begin with --first-stage")
    return stage


def _teller(settings: DiffusionTraining, path: str) -> AnyConditioner:
    """The conditioner of a model that is there; ValueError if it is not the one that the settings describe."""
    found = opening.load(path, precision="float32")
    if found.model.conditioner is None or found.file.config.conditioner != settings.model.conditioner:
        raise ValueError(f"{path} is not told as model.conditioner describes; give a model that has this conditioner")
    return found.model.conditioner


def _run(
    settings: DiffusionTraining,
    material: Material,
    out: Path,
    world: World,
    first: tuple[Stage | Pixels | None, Lpips | None],
) -> Iterator[Event]:
    """`first` is a first stage that is not trained, if there is one, and the perceptual network of one that is."""
    ready, lpips = first
    if settings.diffusion.buckets:
        material = replace(
            material, told=bucketed(material.told, _shapes(settings), least=settings.diffusion.plan.batch)
        )
    material = sound(material)
    if settings.diffusion.flips:
        material = replace(material, told=Mirrored(material.told))
    given = ready if isinstance(ready, Stage) else None
    found = rests_on(material.fingerprint, settings.first_stage and settings.first_stage.features, given)
    teller = None if settings.told_by is None else _teller(settings, settings.told_by)
    if teller is not None:
        found["weights of the conditioner"] = f"sha256 {tensors.digest(teller.state_dict())}"
    yield Ready(found)
    yield from map(Found, material.found)
    first_stage = ready or (yield from _trained(settings, material, out / "first-stage", lpips, world))
    run = settings.diffusion
    kept = None if run.encode == "always" else run.latents or out / "latents"
    measured = _psnr(first_stage.cpu(), material.held_out) if world.first else None
    calibrate = given is None or unsaid(given)
    learnt = yield from _known(first_stage, material.told, material.ways, kept, world, calibrate=calibrate)
    unseen = None
    if material.validation is not None and run.validation != 0:
        unseen = yield from _known(first_stage, material.validation, material.ways, kept, world, calibrate=False)
    torch.manual_seed(settings.diffusion.plan.seed)
    model = LatentDiffusion(settings.model, _vocabulary(settings, learnt))
    if model.conditioner is not None and teller is not None:
        model.conditioner.load_state_dict(teller.state_dict())
        model.conditioner.eval().requires_grad_(False)
    model.first_stage.load_state_dict(first_stage.state_dict())
    provenance = {
        "recipe": settings.model_dump(mode="json", exclude={"model"}),
        "material": material.about,
        "pictures": {
            "first stage": len(material.pictures),
            "diffusion": len(material.told),
            "validation": len(unseen.ways) if unseen else 0,
        },
        "first stage psnr, held out": measured,
        "hardware": hardware(world),
        "sfumato": __version__,
        "torch": torch.__version__,
    }
    learnt = learnt._replace(shown=shown_of(settings, model, material.told))
    if unseen is not None and material.validation is not None:
        unseen = unseen._replace(shown=shown_of(settings, model, material.validation))
    yield from _diffusion(settings, model, learnt, unseen, material.classes, out, world, provenance)


def _vocabulary(settings: DiffusionTraining, learnt: "Known") -> Tokenizer | None:
    """The words of captions and of labels, for a conditioner that reads them."""
    kind = settings.model.conditioner
    if not isinstance(kind, WordsConfig) and not (isinstance(kind, BoxesConfig) and kind.words):
        return None
    return vocabulary(text for picture in learnt.ways for way in picture for text in _texts(way))


def _texts(way: Way) -> Iterator[str]:
    """The caption and the labels that a picture is told in one way."""
    if "caption" in way:
        yield way["caption"]
    yield from (box.label for box in way.get("boxes", ()))


def _shapes(settings: DiffusionTraining) -> list[Shape]:
    """The shapes that pictures may have in training."""
    model = settings.model
    first = 1 if model.first_stage is None else model.first_stage.factor
    return shapes(model.resolution, step=first * 2 ** (len(model.unet.mult) - 1))


class Known(NamedTuple):
    """Pictures as the denoiser sees them: their latents, the ways to say what each shows, and what is shown beside."""

    latents: Latents
    ways: list[tuple[Way, ...]]
    sides: Sequence[tuple[int, ...]] = ()  # of each; a batch is of pictures of one shape
    shown: Shown | None = None

    def batch(
        self, index: Tensor, chosen: list[int], reads: AnyConditioner | None, step: int, at: Address | None = None
    ) -> Batch:
        """What an objective is given of the pictures at `index` (B,), each told in the way that is `chosen`.

        With `at` objects are told in an order that is drawn, to a conditioner to which it matters.
        """
        said = [self.ways[i][k] for i, k in zip(index.tolist(), chosen, strict=True)]
        said = shuffled(said, at) if at is not None and isinstance(reads, LayoutTokens) else said
        told = {} if reads is None else reads.collate(said)
        shown = {} if self.shown is None else self.shown(index, step)
        return {"index": index, **self.latents(index), **shown, **told}


def _known(
    stage: Stage | Pixels,
    images: Dataset,
    ways: Callable[[Sample], tuple[Way, ...]],
    kept: Path | None,
    world: World,
    *,
    calibrate: bool,
) -> Generator[Event, None, Known]:
    stage.to(world.device)
    latents = yield from latents_of(stage, images, kept, world, calibrate=calibrate)
    found = [(ways(sample), tuple(sample["image"].shape)) for sample in map(images.__getitem__, range(len(images)))]
    return Known(latents, [each for each, _ in found], [sides for _, sides in found])


def _psnr(stage: Stage | Pixels, pictures: Dataset | None) -> float | None:
    return None if pictures is None or isinstance(stage, Pixels) else round(mean_psnr(stage, pictures), 2)


def _trained(
    settings: DiffusionTraining, material: Material, home: Path, lpips: Lpips | None, world: World
) -> Generator[Event, None, Stage]:
    assert settings.model.first_stage is not None
    assert settings.first_stage is not None
    torch.manual_seed(settings.first_stage.plan.seed)
    stage = autoencoder_of(settings.model.first_stage)
    learnt = TrainingPictures(material.pictures)
    yield from trained(settings.first_stage, stage, learnt, home, world, lpips, material.held_out)
    return stage


def batches_of(plan: Plan, reads: AnyConditioner | None, known: Known, part: slice = slice(None)) -> Batches:
    """This part of the pictures of a step, told in one of the ways of each, as a function of the step."""

    n = len(known.ways)
    order = Grouped(known.sides, batch=plan.batch, seed=plan.seed) if len({*known.sides}) > 1 else None

    def batches(step: int) -> Batch:
        index = (order(step) if order else indices(step, batch=plan.batch, n=n, seed=plan.seed))[part]
        at = Address.of(plan.seed, index, step)
        which = at.uniform(Stream.CAPTION)[:, 0]
        chosen = [int(u * len(known.ways[i])) for i, u in zip(index.tolist(), which, strict=True)]
        return known.batch(index, chosen, reads, step, at)

    return batches


def _diffusion(
    settings: DiffusionTraining,
    model: LatentDiffusion,
    learnt: Known,
    unseen: Known | None,
    classes: tuple[str, ...],
    out: Path,
    world: World,
    provenance: dict[str, object],
) -> Iterator[Event]:
    """Train the denoiser and the conditioner on latents; write previews and the model folder."""
    run, plan = settings.diffusion, settings.diffusion.plan
    objective = Told(model, run.drop, run.times, run.loss, frozen=settings.told_by is not None)

    state, home = _begun(objective, run, world), out / "diffusion"
    asked, given = asked_of(model, learnt.ways), learnt.shown.examples() if learnt.shown else []

    def hand_over() -> Iterator[Event]:
        copy = averaged(settings, model, state, classes)  # by all processes: each may have a part of the weights
        others = decayed(settings, copy, state)
        if world.first:
            yield Wrote("preview", preview(copy, asked, out / "samples" / f"step-{state.step}.png", given))
            yield delivered(plan, copy, others, state, provenance, out)

    validation = _validation(settings, model, state, objective, learnt, unseen, home, world)
    every = run.snapshots or spacing(plan.steps)
    also = [*filter(None, [validation]), *([Snapshots(home, state, every=every, world=world)] if run.averages else [])]
    source = batches_of(plan, objective.reads, learnt, world.part(plan.batch))
    steps = train(Phase(objective, state), source, home, world, also=also)
    for event in reported("diffusion", steps, state):
        yield event
        if validation and (found := validation.found()):
            yield found
        if isinstance(event, Stepped) and event.progress.every(plan.preview) and state.step < plan.steps:
            yield from hand_over()
    yield from hand_over()  # also where a run was stopped between its last checkpoint and this


def _begun(objective: Told, run: DiffusionRun, world: World) -> State:
    """The state of the training, on its device."""
    objective.to(world.device)
    if objective.teller is not None:
        objective.teller.to(world.device)  # it may be no part of what is trained
    recompute(objective, run.plan)
    shard(objective, world)
    return State(objective, run.plan, averages=averages(objective, run.averages, run.decays))


def _validation(
    settings: DiffusionTraining,
    model: LatentDiffusion,
    state: State,
    objective: Told,
    learnt: Known,
    unseen: Known | None,
    home: Path,
    world: World,
) -> Validation | None:
    """What measures the pictures `unseen`, if there are any."""
    if unseen is None:
        return None
    run, frozen = settings.diffusion, settings.told_by is not None

    def pictures(known: Known) -> Pictures:
        def batch(index: Tensor) -> Batch:
            return known.batch(index, [0] * len(index), objective.reads, LAST)

        return Pictures(batch, len(known.ways), known.sides)

    @contextmanager
    def weights() -> Iterator[Told]:
        if world.sharded:  # no process has all of them, and the network is called in one way alone
            yield Told(averaged(settings, model, state).model, 0.0, "uniform", run.loss, frozen=frozen).to(world.device)
            return
        with state.ema.shown():
            yield Told(model, 0.0, "uniform", run.loss, frozen=frozen)

    every = run.plan.preview if run.validation is None else run.validation
    return Validation(home, state, weights, pictures(unseen), pictures(learnt), every=every, world=world)
