"""Boxes drawn over a picture, each in the colour of its label and, if there is room, with its name, for people."""

import hashlib
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sfumato.boxes import Box
from sfumato.io import pictures

COLOURS = (
    *((214, 39, 40), (31, 119, 180), (44, 160, 44), (148, 103, 189), (227, 119, 194), (140, 86, 75)),
    *((23, 130, 150), (188, 120, 0), (80, 80, 200), (200, 60, 120), (90, 110, 20), (60, 60, 60)),
)
LETTERS = 11  # pixels high
NAMED = 128  # pixels of the longer side of a picture on which names are written
LONGEST = 30  # letters of a name that are


def outlined(image: Tensor, boxes: Sequence[Box], *, side: int | None = None) -> Tensor:
    """The picture (3, H, W) in [-1, 1] with its boxes, (3, h, w): its longer side `side` pixels if that is said."""
    picture = pictures.to_pil(image)
    if side is not None:
        scale = side / max(picture.size)
        sizes = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(sizes, Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.BICUBIC)  # noqa: PLR2004
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(LETTERS)
    for box in boxes:
        x0, y0, x1, y1 = (
            box.x0 * picture.width,
            box.y0 * picture.height,
            box.x1 * picture.width,
            box.y1 * picture.height,
        )
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colour(box.label))
    for box in boxes if max(picture.size) >= NAMED else ():  # names lie above all outlines
        name = box.label if len(box.label) <= LONGEST else f"{box.label[:LONGEST]}..."
        left, top, right, bottom = draw.textbbox((0, 0), name, font=font)
        x = max(1 - left, min(box.x0 * picture.width + 2, picture.width - right - 2))  # all of it within the picture
        y = max(1 - top, min(box.y0 * picture.height + 1, picture.height - bottom - 2))
        draw.rectangle((x + left - 1, y + top - 1, x + right + 1, y + bottom + 1), fill=colour(box.label))
        draw.text((x, y), name, fill=(255, 255, 255), font=font)
    return pictures.from_pil(picture)


def outlined_sheet(images: Tensor, layouts: Sequence[Sequence[Box]], *, columns: int, side: int) -> Tensor:
    """Pictures (N, 3, H, W) of one size with their boxes, in one (3, ., .)."""
    drawn = [outlined(image, boxes, side=side) for image, boxes in zip(images, layouts, strict=True)]
    return pictures.sheet(torch.stack(drawn), columns=columns)


def colour(label: str) -> tuple[int, int, int]:
    """Of a label: the same in all pictures."""
    return COLOURS[hashlib.sha256(label.encode("utf-8", "replace")).digest()[0] % len(COLOURS)]
