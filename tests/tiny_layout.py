"""A tiny model that is asked with boxes, and captions beside, and not trained; and pictures with boxes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

import tiny
from sfumato.boxes import Box
from sfumato.data.sample import Sample
from sfumato.data.scenes import COLOURS, NAMES, STYLES
from sfumato.io import model_folder
from sfumato.io.model_folder import Defaults, ModelFile
from sfumato.models.config import BoxesConfig, ModelConfig
from sfumato.nets.transformer import TransformerSize

SIDE = 32
WORDS = f"{' '.join(NAMES)}: a an and on background {' '.join(COLOURS)} {' '.join(STYLES)} plain fading striped , :"


def config(*, captions: bool = True) -> ModelConfig:
    """Boxes are painted beside the latent too, so that there are two ways in which they are told."""
    size = TransformerSize(dim=16, depth=1, length=40, heads=2, dim_head=8)
    return tiny.CONFIG.model_copy(
        update={
            "conditioner": BoxesConfig(encoder=size, words=size, captions=captions, most=5, painted=4),
            "unet": replace(tiny.CONFIG.unet, map_channels=4),
            "resolution": SIDE,
            "maps": "boxes",
        }
    )


def folder(path: Path, *, captions: bool = True, words: str = WORDS) -> Path:
    """The model as a folder on disk, and all words that it knows."""
    made = config(captions=captions)
    net = tiny.model((words,), made)
    file = ModelFile(
        name="laid", config=made, defaults=Defaults(steps=2, guidance=2.0), provenance={"material": "nothing"}
    )
    model_folder.save(path, file, {"ema": ("made up", net.state_dict())}, tokenizer=net.conditioner.tokenizer)
    return path


INKS = {"tomato": (1.0, -1.0, -1.0), "carrot": (0.6, 0.2, -1.0), "rose": (1.0, -0.5, 0.6), "frog": (-1.0, 0.6, -1.0)}


class Patches:
    """Pictures of patches of colour, one or two in each, on white; no colour twice in one."""

    fields = frozenset({"image", "caption", "boxes"})

    def __init__(self, n: int, *, first: int = 0) -> None:
        self.n, self.first = n, first

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int, /) -> Sample:
        k = i + self.first
        boxes = [_patch(k, 0)] if k % 3 == 0 else [_patch(k, 0), _patch(k, 1)]
        return {
            "image": drawn(boxes),
            "caption": f"3d: {' and '.join(box.label for box in boxes)} on a white background",
            "boxes": tuple(boxes),
            "key": str(k),
        }


def drawn(boxes: list[Box] | tuple[Box, ...]) -> torch.Tensor:
    """The patches in their boxes."""
    image = torch.ones(3, SIDE, SIDE)
    for box in boxes:
        x0, y0, x1, y1 = (round(side * SIDE) for side in box[1:5])
        image[:, y0:y1, x0:x1] = torch.tensor(INKS[box.label])[:, None, None]
    return image


def _patch(k: int, half: int) -> Box:
    """In the left half or in the right."""
    wide, high = 6 + (k + half) % 7, 6 + k % 11
    x, y = 16 * half + 1 + k % 2, 1 + k % 9
    return Box(list(INKS)[(k + half) % 4], x / SIDE, y / SIDE, (x + wide) / SIDE, (y + high) / SIDE)
