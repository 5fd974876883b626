"""Recipes: whole trainings, as functions over typed settings."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sfumato.models.config import Closed
from sfumato.recipes import (
    base,
    classes,
    classifier,
    diffusion,
    dreambooth,
    emoji,
    finetune,
    first_stage,
    first_stages,
    layout,
    lora,
    pixels,
    published,
    seen,
    small,
    textual_inversion,
    tiny_decoder,
    translated,
)
from sfumato.recipes.events import Event
from sfumato.recipes.first_stage import FirstStageTraining
from sfumato.recipes.material import Material
from sfumato.recipes.seen import Seen
from sfumato.recipes.settings import DiffusionTraining
from sfumato.recipes.tiny_decoder import TinyDecoderTraining
from sfumato.registry import Registry
from sfumato.world import World


@dataclass(frozen=True)
class Recipe:
    """What a training is: settings to begin with, what is learnt from a folder or the bundled pictures, a run."""

    about: str
    settings: Callable[[Path | None], Closed]
    material: Callable[[Path | None, Any], Any]
    run: Callable[[Any, Any, Path, World], Iterator[Event]]
    on: Callable[[str], Closed] | None = None  # settings for a model that it goes on from, where it goes on from one


RECIPES: Registry[Recipe] = Registry("recipe")


def _captioned(data: Path | None, settings: DiffusionTraining) -> Material:
    return emoji.material(data, settings.model.resolution, hold=settings.diffusion.validation != 0)


def _pictures(data: Path | None, settings: FirstStageTraining | TinyDecoderTraining) -> Seen:
    return seen.seen(data, settings.resolution)


RECIPES.add("emoji", Recipe("text to image, 64 pixels", lambda _data: emoji.settings(), _captioned, diffusion.run))
RECIPES.add(
    "pixels",
    Recipe("tiny pictures, of a class where there are classes", pixels.settings, pixels.material, diffusion.run),
)
for _name, _about, _settings, _material in (
    ("super-resolution", "a picture four times as large", translated.super_resolution, small.pictures),
    ("inpainting", "what was in a hole of a picture", translated.inpainting, small.pictures),
    ("semantic", "a picture of a map of classes", translated.semantic, translated.mapped),
    ("class-to-image", "a picture of a class, 64 pixels", classes.class_to_image, classes.classed),
    ("unconditional", "a picture of nothing said, 64 pixels", classes.unconditional, small.pictures),
):
    RECIPES.add(_name, Recipe(_about, _settings, _material, diffusion.run))
for _name, _about, _settings in (
    ("layout", "boxes to image, 96 pixels", layout.settings),
    ("layout-perceiver", "boxes to image through a Perceiver", layout.perceiver),
    ("layout-tokens", "boxes to image through LDM's tokens", layout.tokens),
):
    RECIPES.add(_name, Recipe(_about, _settings, layout.material, diffusion.run))
RECIPES.add(
    "classifier",
    Recipe("what pulls a model's pictures to a class", classifier.settings, classifier.material, classifier.run),
)
for _name, _model in published.MODELS.items():
    _settings = partial(lambda name, data: published.MODELS[name].settings(name, data), _name)
    RECIPES.add(_name, Recipe(f"{_model.about}, as published", _settings, _model.material, diffusion.run))
for _name, _side in published.READERS.items():
    _settings = partial(lambda name, _data: published.reader(name), _name)
    _about = f"ADM's classifier of {_side} pixels, as published"
    RECIPES.add(_name, Recipe(_about, _settings, classifier.material, classifier.run))
for _kind in ("kl", "vq"):
    for _factor in first_stages.LEVELS:
        _settings = partial(first_stages.small, _kind, _factor)
        _about = f"a small first stage ({_kind.upper()}, factor {_factor})"
        RECIPES.add(f"{_kind}-f{_factor}", Recipe(_about, _settings, _pictures, first_stage.run))
for _name in first_stages.PUBLISHED:
    _about = f"LDM's {_name}, as published"
    _settings = partial(lambda name, _data: first_stages.published(name), _name)
    RECIPES.add(f"ldm-{_name}", Recipe(_about, _settings, _pictures, first_stage.run))
for _name, _about, _recipe, _material in (
    ("finetune", "all weights of a model that is there", finetune, base.material),
    ("lora", "a low-rank change of a model that is there", lora, base.material),
    ("textual-inversion", "a new word for a model that is there", textual_inversion, textual_inversion.material),
    ("dreambooth", "one thing, by a few pictures, for a model that is there", dreambooth, dreambooth.material),
):
    _settings = partial(lambda recipe, _data: recipe.settings(), _recipe)
    RECIPES.add(_name, Recipe(_about, _settings, _material, _recipe.run, _recipe.settings))
RECIPES.add("tiny-decoder", Recipe("previews for a first stage", tiny_decoder.settings, _pictures, tiny_decoder.run))
