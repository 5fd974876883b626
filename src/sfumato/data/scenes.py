"""Scenes: pictures of the emoji world put together by seed, each object with its box. A data set without an end.

A scene has a background, 1 to 6 objects, and one style. Every object is one of `LABELS`; those that come later lie in
front. The box of an object is that of its own picture, covered or not.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sfumato.boxes import Box, Layout
from sfumato.data.emoji import Emoji, article
from sfumato.data.fingerprint import Fingerprint
from sfumato.data.sample import Sample
from sfumato.diffusion.noise import Address, Stream
from sfumato.io import pictures
from sfumato.registry import unknown

SIDE = 96
STYLES = ("3d", "flat")
MOST = 6  # objects
LEAST_SIZE, LARGEST_SIZE = 0.26, 0.66  # the longer side of an object, of the picture's
COVERED = 0.3  # the largest part of an object that another may hide
TOGETHER = 256  # scenes whose numbers are drawn at once
TRIES = 8  # places that are tried for an object; in none of them, it is left out
SEEN = 16  # alpha, of 255, from which a pixel belongs to an object
NAMES = (
    *("hot dog", "hamburger", "pizza", "bread", "french fries", "popcorn", "pancakes", "croissant"),
    *("eggplant", "avocado", "carrot", "broccoli", "ear of corn", "tomato", "grapes", "watermelon"),
    *("lemon", "banana", "pineapple", "red apple", "strawberry", "cherries", "blueberries", "doughnut"),
    *("cookie", "ice cream", "birthday cake", "cupcake", "evergreen tree", "palm tree", "cactus", "mushroom"),
    *("rose", "sunflower", "tulip", "guitar", "drum", "violin", "trumpet", "rocket"),
    *("helicopter", "sailboat", "cat face", "dog face", "mouse face", "rabbit face", "tiger face", "cow face"),
    *("pig face", "monkey face", "fox", "bear", "panda", "lion", "frog", "penguin"),
    *("owl", "butterfly", "honeybee", "lady beetle", "octopus", "crab", "tropical fish", "turtle"),
)
LABELS = tuple(name.removesuffix(" face") for name in NAMES)
"""What the objects are called, by the number of their class."""
COLOURS = {
    "white": (255, 255, 255),
    "grey": (176, 180, 186),
    "blue": (150, 196, 240),
    "green": (168, 214, 150),
    "yellow": (250, 226, 140),
    "pink": (246, 186, 204),
    "purple": (190, 170, 230),
    "brown": (190, 156, 126),
}
PATTERNS = ("plain", "fading", "striped")  # what half of the scenes have, and a quarter each
STRIPE = 1 / 6  # of the side
DARKER = 0.86


class Background(NamedTuple):
    """What is behind the objects."""

    colour: str
    pattern: str

    @property
    def words(self) -> str:
        """ "a blue background", "a striped blue background"."""
        return (
            f"a {self.colour} background" if self.pattern == "plain" else f"a {self.pattern} {self.colour} background"
        )


class Plan(NamedTuple):
    """What a scene is made of."""

    style: str
    background: Background
    boxes: Layout  # from back to front


class Scenes:
    """`n` scenes, `side` x `side`, of a seed: the i-th is the same whatever n is, and those of two seeds differ.

    Of `labels` alone, in whatever order, or of all; ValueError if one is none of `LABELS`, or there are none.
    """

    fields = frozenset({"image", "caption", "boxes"})

    def __init__(self, n: int, *, seed: int = 0, side: int = SIDE, labels: Sequence[str] = LABELS) -> None:
        if not 1 <= n < 2**32:
            raise ValueError(f"{n} scenes cannot be made; ask for 1 to 2^32 - 1")
        if strange := [label for label in labels if label not in LABELS]:
            raise ValueError(unknown("label", strange[0], LABELS))
        if not labels:
            raise ValueError("scenes of no labels cannot be made; name some")
        self.n, self.seed, self.side = n, seed, side
        self.classes = tuple(label for label in LABELS if label in labels)
        self._names = tuple(NAMES[LABELS.index(label)] for label in self.classes)

    @property
    def fingerprint(self) -> Fingerprint:
        """By what they are made from."""
        return Fingerprint.of([("scenes", self.n, self.seed, self.side, self.classes)])

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int, /) -> Sample:
        """The scene; IndexError past the last."""
        if not 0 <= i < self.n:
            raise IndexError(f"there are {self.n} scenes, and no {i}")
        plan, picture = self.painted(i)
        return {
            "image": pictures.from_pil(picture),
            "caption": caption(plan),
            "captions": (caption(plan),),
            "boxes": plan.boxes,
            "key": f"{self.seed}-{i}",
            "meta": {"style": plan.style, "background": plan.background.words},
        }

    def painted(self, i: int) -> tuple[Plan, Image.Image]:
        """What the scene is made of, and its picture."""
        draw = iter(_numbers(self.seed, i // TOGETHER)[i % TOGETHER].tolist())
        style = _one(STYLES, next(draw))
        background = Background(_one(tuple(COLOURS), next(draw)), _one((PATTERNS[0], *PATTERNS), next(draw)))
        canvas = _ground(background, self.side).copy()
        boxes: list[Box] = []
        for _ in range(1 + int(next(draw) * MOST)):
            name = _one(self._names, next(draw))
            size = LEAST_SIZE * (LARGEST_SIZE / LEAST_SIZE) ** next(draw)
            sprite = _sprite(name, style, max(1, round(size * self.side)))
            places = [(next(draw), next(draw)) for _ in range(TRIES)]
            for x, y in places:
                left, top = (int(u * (self.side - extent + 1)) for u, extent in ((x, sprite.width), (y, sprite.height)))
                box = _box(LABELS[NAMES.index(name)], left, top, sprite, self.side)
                if all(_free(box, other) for other in boxes):
                    canvas.alpha_composite(sprite, (left, top))
                    boxes.append(box)
                    break
        return Plan(style, background, tuple(boxes)), canvas.convert("RGB")


def caption(plan: Plan) -> str:
    """ "3d: a cat, a cat and a red apple on a blue background"."""
    names = [article(box.label) for box in plan.boxes]
    things = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{plan.style}: {things} on {plan.background.words}"


def _free(box: Box, other: Box) -> bool:
    """Whether neither hides too much of the other."""
    wide, high = min(box.x1, other.x1) - max(box.x0, other.x0), min(box.y1, other.y1) - max(box.y0, other.y0)
    return wide <= 0 or high <= 0 or wide * high <= COVERED * min(box.area, other.area)


def _box(label: str, left: int, top: int, sprite: Image.Image, side: int) -> Box:
    return Box(label, left / side, top / side, (left + sprite.width) / side, (top + sprite.height) / side)


@lru_cache(maxsize=64)
def _numbers(seed: int, block: int) -> Tensor:
    """What `TOGETHER` scenes, one after the other, are made of: (TOGETHER, n); drawn at once, for that is faster."""
    index = torch.arange(block * TOGETHER, (block + 1) * TOGETHER)
    return Address.of(seed, index).uniform(Stream.SCENE, 6 + 2 * MOST * (1 + TRIES))


def _one(among: Sequence[str], u: float) -> str:
    return among[int(u * len(among))]


@lru_cache(maxsize=64)
def _ground(background: Background, side: int) -> Image.Image:
    """The background alone."""
    colour = np.array(COLOURS[background.colour], dtype=np.float64)
    down = (np.arange(side) + 0.5) / side
    match background.pattern:
        case "fading":
            rows = colour + down[:, None] * 0.8 * (255 - colour) if background.colour != "white" else _greyer(down)
            pixels = np.repeat(rows[:, None], side, axis=1)
        case "striped":
            dark = np.floor((down[:, None] + down[None]) / STRIPE) % 2
            pixels = colour * np.where(dark[..., None] > 0, DARKER, 1.0)
        case _:
            pixels = np.broadcast_to(colour, (side, side, 3))
    return Image.fromarray(pixels.round().astype(np.uint8)).convert("RGBA")


def _greyer(down: np.ndarray) -> np.ndarray:
    return np.repeat((255 - down * 60)[:, None], 3, axis=1)


@lru_cache(maxsize=1)
def _cut_out() -> dict[tuple[str, str], Image.Image]:
    """The picture of each name in each style without its clear border, by name and style."""
    world = Emoji(styles=STYLES, split="all")
    found: dict[tuple[str, str], Image.Image] = {}
    for i in range(len(world)):
        meta = world.meta(i)
        name = str(meta["name"])
        if name in NAMES:
            with Image.open(io.BytesIO(world.raw(i))) as picture:
                clear = picture.convert("RGBA")
            found[name, str(meta["style"])] = clear.crop(clear.getchannel("A").point(_seen).getbbox())
    assert len(found) == len(NAMES) * len(STYLES)
    return found


def _seen(alpha: int) -> int:
    return 255 if alpha >= SEEN else 0


@lru_cache(maxsize=8192)
def _sprite(name: str, style: str, longer: int) -> Image.Image:
    """The picture with its longer side so many pixels, cut to what can be seen of it."""
    picture = _cut_out()[name, style]
    scale = longer / max(picture.size)
    width, height = (max(1, math.floor(scale * n + 0.5)) for n in picture.size)
    small = picture.resize((width, height), Image.Resampling.LANCZOS)
    return small.crop(small.getchannel("A").point(_seen).getbbox())
