"""`sfumato reconstruct FILE ...`: what a first stage gives back of pictures."""

import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from sfumato.cli.first_stages import check_size, known
from sfumato.cli.parse import File, Int, parse
from sfumato.data.listing import shown
from sfumato.evaluate.contact import ROWS, side_by_side
from sfumato.evaluate.first_stage import MEASURES, likeness_of_one
from sfumato.evaluate.reconstruction import Operations, as_saved, operations, reconstructed
from sfumato.io import atomic, feature_networks, first_stages, model_folder, pictures
from sfumato.latents.first_stage import FirstStage
from sfumato.latents.tiled import out_of_memory
from sfumato.latents.tiled import tiled as by_strips
from sfumato.nets.lpips import Lpips

LONG = 5e11  # operations of a picture that takes a while: 7 to 25 seconds of one core, by the first stage
QUICKER = (2048, 1024, 512, 256, 128, 64)  # sizes of which the largest that takes less is named


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
    _check(asked)
    found = first_stages.loaded(asked.model if asked.vae is None else asked.vae)
    stage = by_strips(found.stage) if asked.tiled else found.stage
    work, lpips, written, skipped = operations(found.stage), feature_networks.alexnet(), [], []
    for k, file in enumerate(asked.files):
        try:
            image = _cropped(pictures.read(file, size=asked.size), found.stage.factor, file)
        except ValueError as error:
            skipped.append(str(error))
            continue
        _warn(file, image, work, found.stage.factor)
        facts = {"file": shown(file), "first_stage": found.name, **dict.fromkeys(MEASURES)}
        with _bar(asked.files, k):
            written.append(_made(stage, image, asked.out, facts, lpips))
        if not asked.json:
            print(_row(written[-1]))
    if not written:
        raise ValueError(f"none of the {len(skipped)} pictures can be used; the first is {skipped[0]}")
    if skipped:
        print(f"{len(skipped)} pictures were skipped, the first is {skipped[0]}", file=sys.stderr)
    if asked.json:
        print(json.dumps({"pictures": written, "lpips": feature_networks.ALEXNET_NAME}, ensure_ascii=False))
    else:
        print(f"from left to right: {', '.join(ROWS)}")
    return 0


def _check(asked: Reconstruct) -> None:
    if not asked.files:
        raise ValueError("FILE is missing; name the pictures to reconstruct")
    if asked.size is not None:
        check_size(asked.size)
    atomic.check_writable(asked.out)


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


def _warn(file: Path, image: Tensor, work: Operations, factor: int) -> None:
    """Say of a picture that it takes a while, and a size that does not."""
    if work.of(*image.shape[1:]) > LONG:
        less = (size for size in QUICKER if size % factor == 0 and work.of(size, size) <= LONG)
        hint = next((f"; --size {size} is quicker" for size in less), "")
        print(f"{file} at {_sides(image)} takes a while{hint}", file=sys.stderr)


def _bar(files: Sequence[Path], k: int) -> Progress:
    """Which file is on, on standard error, where there are several and a person is watching."""
    hidden = len(files) == 1 or not sys.stderr.isatty()
    bar = Progress(console=Console(stderr=True), transient=True, disable=hidden)
    bar.add_task(str(files[k]), completed=k, total=len(files))
    return bar


def _made(stage: FirstStage, image: Tensor, out: Path, facts: dict[str, Any], lpips: Lpips) -> dict[str, Any]:
    """The facts of a picture (3, H, W) that was taken there and back, measured, and its file.

    The file is written before anything is measured, which may take more memory than there is.
    """
    try:
        again = as_saved(reconstructed(stage, image[None]))
        path = _saved(image, again, out, facts)
        measured, missing = likeness_of_one(again, image[None], lpips)
        _save(image, again, path, {**facts, **measured}, new=False)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        less = f"there is not enough memory for {facts['file']} at {_sides(image)}; a smaller --size needs less"
        raise MemoryError(less) from None
    if missing:
        names = " and ".join(name.upper() for name in missing)
        print(f"{facts['file']}: there is not enough memory for {names}; {path} is written without", file=sys.stderr)
    return {"out": shown(path), **facts, **measured}


def _saved(image: Tensor, again: Tensor, out: Path, facts: dict[str, Any]) -> Path:
    """The file that a picture, its reconstruction and the error are in, by a name that was free."""
    for k in itertools.count(1):
        path = out / f"{Path(facts['file']).stem}{f'_{k}' if k > 1 else ''}.png"
        try:
            _save(image, again, path, facts, new=True)
        except FileExistsError:
            continue
        return path
    raise AssertionError("names do not end")


def _save(image: Tensor, again: Tensor, path: Path, facts: dict[str, Any], *, new: bool) -> None:
    sheet = pictures.sheet(side_by_side(image[None], again)[:, 0], columns=len(ROWS))
    pictures.save_png(sheet, path, {**facts, "columns": list(ROWS)}, new=new)


def _row(facts: dict[str, Any]) -> str:
    psnr, ssim, lpips = known(facts["psnr"], ".2f"), known(facts["ssim"]), known(facts["lpips"])
    return f"{facts['out']}  PSNR {psnr} dB, SSIM {ssim}, LPIPS {lpips}"


def _sides(image: Tensor) -> str:
    return f"{image.shape[2]}x{image.shape[1]}"
