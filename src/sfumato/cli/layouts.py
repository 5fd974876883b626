"""`sfumato evaluate MODEL --layout`: how well a model paints what it is asked for with boxes where it is asked for."""

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sfumato.cli.first_stages import check_files, known
from sfumato.cli.watched import watched
from sfumato.conditioning.boxes import Boxes
from sfumato.conditioning.layout import LayoutTokens
from sfumato.data import Dataset, opened
from sfumato.data.listing import shown
from sfumato.data.scenes import LABELS, Scenes
from sfumato.evaluate import features, layout
from sfumato.evaluate.asked import asked as drawn_from
from sfumato.evaluate.crop_distance import LEAST
from sfumato.evaluate.crops import SIDE
from sfumato.evaluate.layout import HALF, REAL, LayoutScore, Placed, Step, measure
from sfumato.evaluate.share import Share
from sfumato.io import atomic, opening, outlined, pictures
from sfumato.models.config import BoxesConfig, LayoutConfig
from sfumato.recipes.material import held_out

LAYOUTS, SEED = 200, 1
PAIRS, PIXELS = 4, 192  # of a sheet: pairs in a row, and a picture's side


@dataclass(frozen=True)
class Measured:
    """What is asked of a model."""

    model: str
    data: Path | None  # a folder; scenes if not said
    n: int | None  # LAYOUTS if not said
    seed: int | None  # SEED if not said
    sheet: Path | None
    out: Path | None
    json: bool
    part: str | None = None  # of a folder that has several: all of it is measured


def report(asked: Measured) -> int:
    """Measure how a model paints layouts and say what was found; the exit code."""
    check_files(sheet=asked.sheet, out=asked.out)
    n, seed = LAYOUTS if asked.n is None else asked.n, SEED if asked.seed is None else asked.seed
    if n < 1:
        raise ValueError(f"n is {n}; at least one layout is needed")
    if not isinstance(opening.describe(asked.model).config.conditioner, BoxesConfig | LayoutConfig):
        raise ValueError("this model was not trained with boxes, so it has no layouts to be asked for")
    loaded = opening.load(asked.model)
    conditioner = loaded.model.conditioner
    assert isinstance(conditioner, Boxes | LayoutTokens)
    measured, learning, about = _pictures(asked, loaded.file.config.resolution, n, seed, conditioner)
    layouts = drawn_from(measured, n, seed=seed, conditioner=conditioner)
    events = measure(loaded, layouts, learning, features.smaller(SIDE), seed=seed)
    score = watched(events, LayoutScore, "layouts", _done)
    if score.skipped:
        print(f"{len(score.skipped)} pictures were skipped, the first is {score.skipped[0]}", file=sys.stderr)
    said = {"model": loaded.file.name, "data": about, "seed": seed, **score.as_dict()}
    text = json.dumps(said, ensure_ascii=False)
    if asked.out is not None:
        atomic.write_bytes(asked.out, text.encode() + b"\n")
    if asked.sheet is not None:
        parameters = {"model": loaded.file.name, "data": about, "seed": seed, "pairs": [REAL, "painted"]}
        pictures.save_png(sheet(score), asked.sheet, parameters)
    if asked.json:
        print(text)
    else:
        _say(score, about)
    return 0


def sheet(score: LayoutScore) -> Tensor:
    """Real pictures, each beside what was painted of its boxes, with them; (3, ., .)."""
    pairs = [image for pair in zip(score.real, score.painted, strict=True) for image in pair]
    boxes = [layout for layout in score.layouts for _ in range(2)]
    return outlined.outlined_sheet(torch.stack(pairs), boxes, columns=2 * PAIRS, side=PIXELS)


def _pictures(
    asked: Measured, size: int, n: int, seed: int, conditioner: Boxes | LayoutTokens
) -> tuple[Dataset, Dataset, str]:
    """Pictures whose layouts are asked for, others for the classifier, and what they are called."""
    data = asked.data
    if data is None:
        if asked.part is not None:
            raise ValueError("--part says which part of a folder is measured, and there is no --data")
        labels = _askable(conditioner)
        others = Scenes(layout.LEARNT, seed=(seed + 1) % 2**64, side=size, labels=labels)
        few = "" if len(labels) == len(LABELS) else f" with the {len(labels)} labels that the model knows"
        return Scenes(n, seed=seed, side=size, labels=labels), others, f"scenes of seed {seed}{few}"
    whole = opened(data, size=size)
    if "boxes" not in whole.fields:
        missing = whole.unboxed
        of = f"in {len(missing):,} of {len(whole):,} pictures, first {shown(missing[0])}"
        raise ValueError(f"{data} says nothing of where things are {of}; layouts need boxes")
    if asked.part is not None:
        part = opened(data, size=size, part=asked.part)
        if not set(part.names).isdisjoint(whole.names):
            raise ValueError(f"the part {asked.part!r} of {data} is what training learns from; name another, or none")
        return part, whole, f"{data}, {asked.part}"
    rest, unseen = held_out(whole)
    if unseen is None:
        raise ValueError(f"{data} has {len(whole)} pictures; some are measured, others learnt from: it takes 40")
    return unseen, rest, f"{data}, one picture in twenty"


def _askable(conditioner: Boxes | LayoutTokens) -> list[str]:
    """The labels of scenes that a model knows; ValueError if they are too few to tell apart."""
    known_ones = []
    for label in LABELS:
        with contextlib.suppress(ValueError):
            conditioner.check(label)
            known_ones.append(label)
    if len(known_ones) < 2:  # noqa: PLR2004
        knows = f"this model knows {len(known_ones)} of the {len(LABELS)} labels of scenes"
        raise ValueError(f"{knows}; say in --data which pictures with boxes it is measured with")
    return known_ones


def _done(event: Step) -> dict[str, Any]:
    """How far it has come with what."""
    return {"description": event.what, "completed": event.done, "total": event.total}


def _say(score: LayoutScore, about: str) -> None:
    shares = ("right", "95 %", "small", "medium", "large", "hidden")
    table = Table("pictures", *shares, "IoU", f"> {HALF:g}", "distance", box=None, padding=(0, 1, 0, 0))
    for name, kind in score.kinds.items():
        right, far = kind.right, score.crop_distances
        parts = [known(one.share, ".0%") for one in (*right.by_size.values(), right.hidden)]
        shown = (known(right.all.share, ".1%"), _interval(right.all), *parts, *_placed(kind.placed))
        table.add_row(name, *shown, known(None if far is None else far.distances[name], ".1f"))
    Console().print(table)
    for line in _remarks(score, about):
        print(line)


def _placed(placed: Placed) -> tuple[str, str]:
    return known(placed.iou, ".2f"), known(None if placed.iou is None else placed.half.share, ".0%")


def _interval(share: Share) -> str:
    return "-" if share.low is None or share.high is None else f"{share.low * 100:.0f}-{share.high:.0%}"


def _remarks(score: LayoutScore, about: str) -> Iterator[str]:
    """What the numbers are of."""
    real = score.kinds[REAL]
    sizes = ", ".join(f"{share.n} {size}" for size, share in real.right.by_size.items())
    hidden = f"{real.right.hidden.n} of them hidden by others"
    yield f"{score.pictures} layouts ({about}), {score.boxes} boxes; judged: {sizes}, {hidden}"
    if score.unread:
        yield f"{score.unread} boxes were not asked for: they are over what the model reads"
    if score.refused:
        yield f"{len(score.refused)} boxes were not asked for, the first: {score.refused[0]}"
    if score.unjudged:
        yield f"{score.unjudged} boxes are not judged: the classifier saw their labels too seldom"
    yield f"right: as read by a classifier of {score.learnt} real crops of other pictures ({score.features})"
    chance = f"one of {score.labels} labels is {1 / score.labels:.1%}"
    yield f"by chance: {chance}; always '{score.commonest}' is {score.commonest_share:.1%}"
    if real.placed.iou is None:
        yield "IoU: not measured: no plain backgrounds"
    else:
        counts = ", ".join(f"{kind.placed.boxes} {name}" for name, kind in score.kinds.items())
        yield f"IoU: of boxes apart from others on plain backgrounds: {counts}"
    if score.crop_distances is None:
        yield f"distance: not measured: it takes {2 * LEAST} crops"
    else:
        n = score.crop_distances.n
        yield f"distance: Fréchet, of features ({score.features}) of {n} crops; that of real ones is the floor"
