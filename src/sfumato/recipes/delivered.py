"""What a training of a model hands over while it goes on and at its end: previews, and the folder of the model."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer

from sfumato.boxes import Box, boxed, largest
from sfumato.conditioning.boxes import Boxes
from sfumato.conditioning.clip import Clip
from sfumato.conditioning.clip_tokens import clip_tokenizer
from sfumato.conditioning.label import Labels, TableRow
from sfumato.conditioning.layout import LayoutTokens
from sfumato.conditioning.segmentation import Segmentation
from sfumato.conditioning.text import Text
from sfumato.generate import Given, generate
from sfumato.io import model_folder, pictures
from sfumato.io.model_folder import Loaded, ModelFile
from sfumato.io.outlined import outlined
from sfumato.models.latent_diffusion import LatentDiffusion
from sfumato.recipes.events import Wrote
from sfumato.recipes.material import Way
from sfumato.recipes.settings import DiffusionTraining
from sfumato.recipes.shown import drawn
from sfumato.recipes.told import Told
from sfumato.request import MOST_BOXES, Request
from sfumato.train.plan import Plan
from sfumato.train.snapshots import decay_name
from sfumato.train.state import State
from sfumato.world import whole

WeightSet = tuple[str, Mapping[str, torch.Tensor]]
"""What a set of weights is, in words, and its tensors by the names of the model's."""
PREVIEWS = 16
TRAINED = "sfumato.trained"  # metadata of a file that is no whole model: where it comes from, as JSON
VISIBLE = 64  # pixels a side that a picture of a preview has at least


def asked_of(model: LatentDiffusion, ways: list[tuple[Way, ...]]) -> list[Request]:
    """What previews are asked for: captions far apart, or one class after the other."""
    match model.conditioner:
        case Labels() | TableRow():
            none = model.conditioner.none if isinstance(model.conditioner, Labels) else None
            labels = [label for label in range(model.conditioner.classes) if label != none]
            return [Request(label=labels[i % len(labels)], seed=i) for i in range(PREVIEWS)]
        case None | Segmentation():
            return [Request(seed=i) for i in range(PREVIEWS)]
        case Boxes() | LayoutTokens():
            return [_placed(model.conditioner, way, seed=i) for i, way in enumerate(_spread(ways))]
        case _:
            return [Request(prompt=way.get("caption", ""), seed=i) for i, way in enumerate(_spread(ways))]


def _spread(ways: list[tuple[Way, ...]]) -> list[Way]:
    """The first way of pictures far apart."""
    return [ways[i * len(ways) // PREVIEWS][0] for i in range(PREVIEWS)]


def _placed(kind: Boxes | LayoutTokens, way: Way, *, seed: int) -> Request:
    """What a picture is told, as somebody would ask for it: boxes that nobody could ask for are left out."""
    boxes: list[Box] = []
    for said in largest(way.get("boxes", ()), kind.most):
        box = kind.sayable(said) if isinstance(kind, LayoutTokens) else said
        with contextlib.suppress(ValueError):  # thin ones at a border, words that are too rare for the vocabulary
            kind.check(box.label)
            boxes.append(boxed(box.label, box[1:5], box.modifiers))
    prompt = way.get("caption", "") if kind.captions else ""
    return Request(prompt=prompt, boxes=largest(boxes, MOST_BOXES), seed=seed)


def seen(plan: Plan, state: State) -> dict[str, object]:
    """How far a run has come."""
    return {"steps": state.step, "images": state.step * plan.batch, "skipped": state.skipped}


def delivered(
    plan: Plan,
    copy: Loaded,
    others: Mapping[str, WeightSet],
    state: State,
    provenance: Mapping[str, object],
    out: Path,
) -> Wrote:
    """The model folder, as the run has it so far, with other weight sets too."""
    warmup = "with" if plan.ema_warmup else "without"
    about = f"average of the weights, decay {plan.ema} {warmup} warm-up, {state.ema.updates} updates"
    model_folder.save(
        out / "model",
        copy.file.model_copy(update={"provenance": {**provenance, **seen(plan, state)}}),
        {"ema": (about, copy.model.state_dict()), **others},
        tokenizer=_tokenizer(copy.model),
    )
    return Wrote("model", out / "model")


def decayed(settings: DiffusionTraining, copy: Loaded, state: State) -> dict[str, WeightSet]:
    """The weight sets of other decays; all processes must ask alike."""
    sets = {}
    for decay in settings.diffusion.decays:
        average = state.averages[decay_name(decay)]
        about = f"average of the weights, decay {decay} with warm-up, {average.updates} updates"
        sets[decay_name(decay)] = about, {**copy.model.state_dict(), **{k: whole(v) for k, v in average.shadow.items()}}
    return sets


@torch.no_grad()
def averaged(
    settings: DiffusionTraining, model: LatentDiffusion, state: State, classes: tuple[str, ...] = ()
) -> Loaded:
    """A model of its own with the averaged weights."""
    copy = LatentDiffusion(settings.model, _tokenizer(model))
    copy.load_state_dict({name: whole(v) for name, v in model.state_dict().items()})
    state.ema.copy_to(Told(copy, 0.0, "uniform", frozen=settings.told_by is not None))
    file = ModelFile(name=settings.name, config=settings.model, defaults=settings.defaults, classes=classes or None)
    return Loaded(copy.eval().requires_grad_(False), file, Path(), "ema")


def _tokenizer(model: LatentDiffusion) -> Tokenizer | None:
    """What the model's folder must have; CLIP's own ships with the package."""
    match model.conditioner:
        case Text(tokenizer=own) | Boxes(tokenizer=own):
            return own
        case Clip(tokenizer=own) if own is not clip_tokenizer():
            return own
        case _:
            return None


def preview(loaded: Loaded, asked: list[Request], path: Path, given: Sequence[Given] = ()) -> Path:
    """One picture a request, in a sheet, with the boxes that it was asked with over it; tiny ones larger.

    Where something is given, it is above what it became.
    """
    if given:
        asked = asked[: len(given)]
        images = torch.cat([generate(loaded, r, **g._asdict()).images for r, g in zip(asked, given, strict=True)])
        images = torch.cat([torch.stack([drawn(g, images.shape[-1]) for g in given]), images])
    else:
        images = generate(loaded, asked).images
    larger = max(1, VISIBLE // images.shape[-1])
    images = images.repeat_interleave(larger, dim=2).repeat_interleave(larger, dim=3)
    if any(r.boxes for r in asked):
        layouts = [*([()] * len(given)), *(r.boxes or () for r in asked)]
        images = torch.stack([outlined(image, boxes) for image, boxes in zip(images, layouts, strict=True)])
    told = [r.prompt if r.label is None else r.label for r in asked]
    pictures.save_png(pictures.sheet(images, columns=len(given) or 8), path, {"captions": told})
    return path
