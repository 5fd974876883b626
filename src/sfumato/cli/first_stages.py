"""First stages at the command line: which one is meant, what is said of it, and its pictures side by side."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sfumato.cli.watched import counted, watched
from sfumato.data import Dataset, Emoji, Split, opened
from sfumato.data.part import Part
from sfumato.evaluate import features
from sfumato.evaluate.contact import ROWS, contact_sheet
from sfumato.evaluate.fidelity import drawn
from sfumato.evaluate.first_stage import FirstStageScore, Quality, measure
from sfumato.evaluate.reconstruction import at_once
from sfumato.io import atomic, feature_networks, first_stages, pictures

FEW = 8  # channels of which each is named
LARGEST = 4096  # pixels a side, as in the recipes


@dataclass(frozen=True)
class Measured:
    """What is asked of a first stage."""

    model: str
    data: Path | None  # a folder; the pictures of concepts never trained on if not said
    size: int | None  # the model's own if not said
    n: int | None  # all if not said
    seed: int
    features: Path | None  # a file with the Inception network of the FID; the bundled MobileNetV2 if not said
    sheet: Path | None
    out: Path | None
    json: bool


def report(asked: Measured) -> int:
    """Measure a first stage and say what was found; the exit code."""
    check_files(sheet=asked.sheet, out=asked.out)
    if asked.n is not None and asked.n < 2:  # noqa: PLR2004
        raise ValueError(f"n is {asked.n}; at least two pictures are needed")
    found = first_stages.loaded(asked.model)
    size = fitting(found.resolution if asked.size is None else asked.size, found.stage.factor)
    source, skipped = _pictures(asked.data, size)
    chosen = source if asked.n is None else Part(source, drawn(asked.n, of=len(source), seed=asked.seed))
    net = features.opened(asked.features)
    events = measure(found.stage, chosen, features=net, lpips=feature_networks.alexnet(), batch=at_once(size))
    score = watched(events, FirstStageScore, "first stage", counted, total=len(chosen))
    skipped += score.skipped
    if skipped:
        print(f"{len(skipped)} pictures were skipped, the first is {skipped[0]}", file=sys.stderr)
    said = {
        "first_stage": found.name,
        "data": str(asked.data) if asked.data else "emoji, concepts never trained on",
        "size": size,
        "lpips": feature_networks.ALEXNET_NAME,
        **score.as_dict(),
        "skipped": list(skipped),
    }
    text = json.dumps(said, ensure_ascii=False)
    if asked.out is not None:
        atomic.write_bytes(asked.out, text.encode() + b"\n")
    if asked.sheet is not None:
        parameters = {"first_stage": found.name, "rows": list(ROWS)}
        pictures.save_png(contact_sheet(score.inputs, score.outputs), asked.sheet, parameters)
    _say(said, score, text if asked.json else None, asked.sheet)
    return 0


def known(value: float | None, form: str = ".3f") -> str:
    """A number for a table; a dash where there is none."""
    return "-" if value is None else format(value, form)


def check_files(*, sheet: Path | None, out: Path | None = None) -> None:
    """ValueError if a file that is asked for could not be written in the end, or would be a picture of another kind."""
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise ValueError(f"{sheet} does not end in .png; the sheet is a PNG")
    for path in filter(None, (sheet, out)):
        atomic.check_writable(path.parent)
        if path.is_dir():
            raise ValueError(f"{path} is a folder; name a file")


def check_size(size: int) -> None:
    """ValueError if no pictures of so many pixels a side are taken."""
    if not 1 <= size <= LARGEST:
        raise ValueError(f"size {size} is out of range; a side has 1 to {LARGEST} pixels")


def fitting(size: int, factor: int) -> int:
    """The size; ValueError if a first stage of this factor takes no such pictures."""
    if size > LARGEST:
        check_size(size)
    if size < 1 or size % factor:
        near = max(1, round(size / factor)) * factor
        raise ValueError(f"size {size} does not fit this first stage; it must divide by {factor} (near: {near})")
    return size


def _pictures(data: Path | None, size: int) -> tuple[Dataset, tuple[str, ...]]:
    """The pictures, and which were skipped for what their headers say."""
    if data is None:
        return Emoji(split=Split.CONCEPT, size=size), ()
    folder = opened(data, size=size)
    return folder, tuple(f"{path}: {why}" for path, why in folder.skipped)


def _say(said: dict[str, Any], score: FirstStageScore, text: str | None, sheet_: Path | None) -> None:
    if text is not None:
        print(text)
        return
    table = Table("", "PSNR, dB", "SSIM", "LPIPS", f"rFD ({score.features})", box=None)
    for name, q in ((said["first_stage"], score.stage), (f"bicubic, {score.factor}x", score.bicubic)):
        table.add_row(name, *_cells(q))
    Console().print(table)
    print(f"{score.n} pictures of {said['size']}x{said['size']} ({said['data']}); {said['lpips']}")
    print("rFD falls with the number of pictures; compare it on the same ones")
    latent = score.latent
    print(f"latent: mean {latent.overall_mean:.3f}, std {latent.overall_std:.3f}; std of {_channels(latent.std)}")
    if latent.kl is not None:
        print(f"KL: {sum(latent.kl):.2f} nats at a position; {_channels(latent.kl)}")
    if (use := score.codebook) is not None:
        print(f"codebook: {use.used} of {use.entries} entries used ({use.share:.1%}), perplexity {use.perplexity:.1f}")
    if sheet_ is not None:
        print(f"{sheet_}: rows of {', '.join(ROWS)}")


def _cells(q: Quality) -> tuple[str, ...]:
    return f"{q.psnr:.2f} ± {q.psnr_std:.2f}", known(q.ssim), known(q.lpips), known(q.rfd, ".2f")


def _channels(values: tuple[float, ...]) -> str:
    if len(values) <= FEW:
        return "channels " + ", ".join(f"{value:.2f}" for value in values)
    return f"{len(values)} channels {min(values):.2f} to {max(values):.2f}"
