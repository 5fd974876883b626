"""Recipes: whole trainings, as functions over typed settings."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sfumato.recipes import emoji
from sfumato.recipes.text_to_image import Material, TextToImage
from sfumato.registry import Registry


@dataclass(frozen=True)
class Recipe:
    """Settings to begin with, and what is learnt from: (a folder or None, pixels) -> material."""

    settings: Callable[[], TextToImage]
    material: Callable[[Path | None, int], Material]


RECIPES: Registry[Recipe] = Registry("recipe")
RECIPES.add("emoji", Recipe(emoji.settings, emoji.material))
