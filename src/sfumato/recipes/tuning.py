"""Fine-tuning: the run that all recipes share that change a model that is there. What they change is a `Change`."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from sfumato import __version__
from sfumato.conditioning.text import Text
from sfumato.io import opening
from sfumato.io.model_folder import Loaded
from sfumato.latents.tiny import TinyFirstStage
from sfumato.models.latent_diffusion import LatentDiffusion
from sfumato.recipes.base import Tuning, loss_of, side_of
from sfumato.recipes.beginning import rests_on
from sfumato.recipes.delivered import asked_of, preview
from sfumato.recipes.diffusion import Known, batches_of
from sfumato.recipes.events import Event, Found, Ready, Stepped, Wrote, reported
from sfumato.recipes.latents import Latents, latents_of
from sfumato.recipes.material import Material, Way, sound
from sfumato.recipes.preserved import Preserving, Prior, beside, painted
from sfumato.recipes.told import Told
from sfumato.request import Request
from sfumato.train.fit import Batch, Batches, Objective, Phase
from sfumato.train.parallel import recompute
from sfumato.train.stage import train
from sfumato.train.state import State
from sfumato.world import CPU, World, hardware

STAGE = "diffusion"
LEARNT = "clip_learnt"  # where a batch of CLIP's has the vectors of learnt words
NAMED = 200  # characters of words that a line names


class Change(Protocol):
    """What a recipe changes of a model."""

    @property
    def learnt(self) -> nn.Module:
        """Its parameters are those that learn, and no others: checkpoints and the average hold these alone."""
        ...

    def objective(self, told: Told) -> Objective:
        """What a batch means, from what it means to the whole model."""
        ...

    def shown(self, state: State) -> AbstractContextManager[object]:
        """In here the model paints with the average of what it learnt."""
        ...

    def written(self, state: State, provenance: dict[str, object], out: Path) -> Wrote:
        """What the run hands over, as it has it so far; called in `shown`."""
        ...


def tuned(
    settings: Tuning,
    loaded: Loaded,
    material: Material,
    change: Change,
    out: Path,
    world: World,
    prior: Prior | None = None,
) -> Iterator[Event]:
    """Train in the folder `out`, going on from what is there. With `prior`, its loss is preserved (`preserved.py`)."""
    if world.size > 1:
        raise ValueError("a model that is there goes on in one process yet; leave torchrun out")
    run, model = settings.diffusion, loaded.model
    stage = model.first_stage
    assert not isinstance(stage, TinyFirstStage)  # which no model has as its own
    material = sound(material)
    yield Ready(rests_on(material.fingerprint, None, base=model))
    ways = [material.ways(material.told[i]) for i in range(len(material.told))]
    yield from _unknown(model, ways)
    kept = None if run.encode == "always" else run.latents or out / "latents"
    told = Told(model, run.drop, run.times, loss_of(run, loaded.file))
    recompute(told, run.plan)
    objective = change.objective(told)
    latents = yield from latents_of(stage, material.told, kept, calibrate=False)
    source = _batches(settings, model, latents, ways)
    side = side_of(settings, loaded.file)
    if prior is not None:
        pictures = yield from painted(loaded, prior, out / "prior", side=side, seed=run.plan.seed)
        theirs = yield from latents_of(stage, pictures, kept, calibrate=False)
        source = beside(source, _batches(settings, model, theirs, [({"caption": prior.prompt},)] * len(pictures)))
        objective = Preserving(objective, prior.weight)
    _move(model, change, world.device)
    state = State(change.learnt, run.plan)
    asked = _asked(settings, model, ways, side)
    provenance = _provenance(settings, loaded, material, world)
    steps = train(Phase(objective, state), source, out / STAGE, world)
    for event in reported(STAGE, steps, state):
        yield event
        if isinstance(event, Stepped) and event.progress.every(run.plan.preview) and state.step < run.plan.steps:
            yield from _handed_over(change, loaded, state, asked, provenance, out)
    yield from _handed_over(change, loaded, state, asked, provenance, out)


def _handed_over(
    change: Change, loaded: Loaded, state: State, asked: list[Request], provenance: dict[str, object], out: Path
) -> Iterator[Event]:
    """A preview, and what the run has so far."""
    events: list[Event] = []
    device = next(change.learnt.parameters()).device
    _move(loaded.model, change, CPU)  # where pictures are painted
    with change.shown(state):
        if asked:
            events.append(Wrote("preview", preview(loaded, asked, out / "samples" / f"step-{state.step}.png")))
        events.append(change.written(state, provenance, out))
    _move(loaded.model, change, device)
    yield from events


def _move(model: LatentDiffusion, change: Change, device: torch.device) -> None:
    for module in (model, change.learnt):
        module.to(device)


def _batches(settings: Tuning, model: LatentDiffusion, latents: Latents, ways: list[tuple[Way, ...]]) -> Batches:
    """As everywhere, but a picture that is in a batch several times has an address of its own each time.

    Learnt words are no part of it: a row of theirs is of no picture, and a `Change` that learns them knows them.
    """
    source = batches_of(settings.diffusion.plan, model.conditioner, Known(latents, ways))

    def batches(step: int) -> Batch:
        batch = source(step)
        seen: dict[int, int] = {}
        index = []
        for i in batch["index"].tolist():
            index.append(i + len(ways) * seen.get(i, 0))
            seen[i] = seen.get(i, 0) + 1
        return {name: x for name, x in batch.items() if name != LEARNT} | {"index": torch.tensor(index)}

    return batches


def _asked(settings: Tuning, model: LatentDiffusion, ways: list[tuple[Way, ...]], side: int) -> list[Request]:
    """What previews are asked for, spread over the pictures."""
    n = settings.previews
    every = asked_of(model, ways)
    return [every[i * len(every) // n].model_copy(update={"size": (side, side), "seed": i}) for i in range(n)]


def _unknown(model: LatentDiffusion, ways: list[tuple[Way, ...]]) -> Iterator[Event]:
    """Words that a model with words of its own was never shown, which it reads letter by letter."""
    said = [way["caption"] for picture in ways for way in picture if "caption" in way]
    if said and isinstance(model.conditioner, Text) and (words := model.conditioner.unknown(said)):
        yield Found(f"words that the model was never shown, and reads by their letters: {', '.join(words)[:NAMED]}")


def _provenance(settings: Tuning, loaded: Loaded, material: Material, world: World) -> dict[str, object]:
    unsaid = {"diffusion": {"plan": {"workers"}}}  # which change no byte of what is written
    return {
        "recipe": settings.model_dump(mode="json", exclude=unsaid),
        "base": {"name": loaded.file.name, "weights": loaded.weights, "sha256": opening.digest(loaded)},
        "material": material.about,
        "pictures": len(material.told),
        "hardware": hardware(world),
        "sfumato": __version__,
        "torch": torch.__version__,
    }
