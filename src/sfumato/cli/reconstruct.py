"""`sfumato reconstruct FILE ...`: what a first stage gives back of pictures."""

import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from torch import Tensor

from sfumato.cli.first_stages import known
from sfumato.cli.parse import File, Int, parse
from sfumato.evaluate.contact import ROWS, side_by_side
from sfumato.evaluate.first_stage import likeness
from sfumato.evaluate.reconstruction import as_saved, reconstructed
from sfumato.io import atomic, feature_networks, first_stages, model_folder, pictures
from sfumato.latents.tiled import tiled as by_strips


@dataclass
class Reconstruct:
    """Take pictures through a first stage and back: each is written beside its reconstruction and the error, which is
    shown four times as strong."""

    files: Annotated[tyro.conf.Positional[list[Path]], tyro.conf.arg(metavar="FILE ...", help_behavior_hint="")]
    """PNG, JPEG, WebP, GIF or BMP."""
    model: str = model_folder.DEFAULT
    """Name or path of the model whose first stage it is."""
    vae: File = None
    """A first stage instead of a model's."""
    size: Int = None
    """The shorter side in pixels, of which the middle square is kept; as they are if not said."""
    tiled: bool = False
    """By strips of rows, in little memory: for large pictures."""
    out: Path = Path("reconstructions")
    """The folder to write to."""
    json: bool = False
    """Print one JSON object, and nothing else, on standard output."""


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    asked = parse(Reconstruct, arguments, verb="reconstruct")
    if not asked.files:
        raise ValueError("FILE is missing; name the pictures to reconstruct")
    atomic.check_writable(asked.out)
    found = first_stages.loaded(asked.model if asked.vae is None else asked.vae)
    stage = by_strips(found.stage) if asked.tiled else found.stage
    lpips, written, skipped = feature_networks.alexnet(), [], []
    for file in asked.files:
        try:
            image = _cropped(pictures.read(file, size=asked.size), found.stage.factor, file)
        except ValueError as error:
            skipped.append(str(error))
            continue
        again = as_saved(reconstructed(stage, image[None]))
        psnr, ssim, perceptual = (None if x != x else x for x in likeness(again, image[None], lpips)[0].tolist())  # noqa: PLR0124
        facts = {"file": str(file), "first_stage": found.name, "psnr": psnr, "ssim": ssim, "lpips": perceptual}
        path = _saved(side_by_side(image[None], again)[:, 0], asked.out, file, facts)
        written.append({"out": str(path), **facts})
        if not asked.json:
            print(f"{path}  PSNR {known(psnr, '.2f')} dB, SSIM {known(ssim)}, LPIPS {known(perceptual)}")
    if not written:
        raise ValueError(f"none of the {len(skipped)} pictures can be used; the first is {skipped[0]}")
    if skipped:
        print(f"{len(skipped)} pictures were skipped, the first is {skipped[0]}", file=sys.stderr)
    if asked.json:
        print(json.dumps({"pictures": written, "lpips": feature_networks.ALEXNET_NAME}, ensure_ascii=False))
    else:
        print(f"from left to right: {', '.join(ROWS)}")
    return 0


def _cropped(image: Tensor, factor: int, file: Path) -> Tensor:
    """The middle of a picture (3, H, W) of sides that divide by `factor`; ValueError if there is none."""
    height, width = image.shape[1:]
    h, w = height // factor * factor, width // factor * factor
    if not h or not w:
        raise ValueError(f"{file} is {width}x{height}; this first stage needs {factor} pixels each way")
    if (h, w) != (height, width):
        print(f"{file} is {width}x{height}; its middle {w}x{h} is used, which divides by {factor}", file=sys.stderr)
    top, left = (height - h) // 2, (width - w) // 2
    return image[:, top : top + h, left : left + w]


def _saved(images: Tensor, out: Path, file: Path, facts: dict[str, Any]) -> Path:
    """The file that the pictures (3, 3, H, W) are in, side by side, by a name that was free."""
    sheet, parameters = pictures.sheet(images, columns=len(images)), {**facts, "columns": list(ROWS)}
    for k in itertools.count(1):
        path = out / f"{file.stem}{f'_{k}' if k > 1 else ''}.png"
        try:
            pictures.save_png(sheet, path, parameters, new=True)
        except FileExistsError:
            continue
        return path
    raise AssertionError("names do not end")
