"""Recipes: whole trainings, as functions over typed settings."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sfumato.models.config import Closed
from sfumato.recipes import diffusion, emoji, first_stage, first_stages, pixels, seen, tiny_decoder
from sfumato.recipes.diffusion import DiffusionTraining, Material
from sfumato.recipes.events import Event
from sfumato.recipes.first_stage import FirstStageTraining
from sfumato.recipes.seen import Seen
from sfumato.recipes.tiny_decoder import TinyDecoderTraining
from sfumato.registry import Registry


@dataclass(frozen=True)
class Recipe:
    """What a training is: settings to begin with, what is learnt from a folder or the bundled pictures, a run."""

    about: str
    settings: Callable[[Path | None], Closed]
    material: Callable[[Path | None, Any], Any]
    run: Callable[[Any, Any, Path], Iterator[Event]]


RECIPES: Registry[Recipe] = Registry("recipe")


def _captioned(data: Path | None, settings: DiffusionTraining) -> Material:
    return emoji.material(data, settings.model.resolution)


def _pictures(data: Path | None, settings: FirstStageTraining | TinyDecoderTraining) -> Seen:
    return seen.seen(data, settings.resolution)


RECIPES.add("emoji", Recipe("text to image, 64 pixels", lambda _data: emoji.settings(), _captioned, diffusion.run))
RECIPES.add(
    "pixels",
    Recipe("tiny pictures, of a class where there are classes", pixels.settings, pixels.material, diffusion.run),
)
for _kind in ("kl", "vq"):
    for _factor in first_stages.LEVELS:
        _settings = partial(first_stages.small, _kind, _factor)
        _about = f"a small first stage ({_kind.upper()}, factor {_factor})"
        RECIPES.add(f"{_kind}-f{_factor}", Recipe(_about, _settings, _pictures, first_stage.run))
for _name in first_stages.PUBLISHED:
    _about = f"LDM's {_name}, as published"
    _settings = partial(lambda name, _data: first_stages.published(name), _name)
    RECIPES.add(f"ldm-{_name}", Recipe(_about, _settings, _pictures, first_stage.run))
RECIPES.add("tiny-decoder", Recipe("previews for a first stage", tiny_decoder.settings, _pictures, tiny_decoder.run))
