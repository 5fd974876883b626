"""`sfumato evaluate MODEL`: how well a model paints what it is asked for."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from sfumato.cli import first_stages, layouts
from sfumato.cli.boxes import takes_boxes
from sfumato.cli.first_stages import check_files
from sfumato.cli.parse import File, Folder, Int, Name, parse
from sfumato.cli.watched import counted, watched
from sfumato.data import Emoji, Split, concrete_ids
from sfumato.evaluate.fidelity import Fidelity, Gallery, drawn, fidelity
from sfumato.evaluate.reconstruction import mean_psnr
from sfumato.io import feature_networks, model_folder, opening, pictures
from sfumato.recipes.emoji import STYLES

CAPTIONS = 200


@dataclass
class Evaluate:
    """Measure a model of the emoji world against the real pictures, by pooled MobileNetV2 features.

    For captions drawn from those it was trained on, then for those in a style withheld from it: is the real picture
    that the caption names the nearest one of its style, among the nearest five, is the nearest of the right group?
    The ceiling is the same for the first stage's reconstructions of the real pictures.

    With --first-stage: PSNR, SSIM, LPIPS and the distance of features between pictures and what the model's first stage
    gives back of them, beside those of bicubic scaling; the spread of its latents; the use of its codebook.

    With --layout: of a model that is asked with boxes, whether what it paints in them is what was asked for, and
    whether it is there (docs/layouts.md), beside real pictures of the same layouts and pictures it paints without them.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")] = model_folder.DEFAULT
    """Name or path of the model."""
    first_stage: bool = False
    """Measure the first stage alone."""
    layout: bool = False
    """Measure how it paints layouts."""
    data: Folder = None
    """The pictures to measure it on; if not said, those of concepts never trained on. With --layout pictures with
    boxes, of which one in twenty is measured, as training holds it out; if not said, scenes of the labels it knows."""
    part: Name = None
    """With --layout, the part of --data that is measured, val or test, where it has several; all of it."""
    size: Int = None
    """Their side in pixels; the model's own if not said."""
    n: Int = None
    """Captions or layouts, 200 if not said; with --first-stage pictures, all if not said."""
    seed: Int = None
    """Which captions or pictures are drawn, and the seed of the first picture made; 0 if not said. With --layout also
    that of the scenes; 1 if not said, for those of 0 are learnt from."""
    features: File = None
    """With --first-stage, a .safetensors or .ckpt file with the Inception network of the FID, under the names of
    pytorch-fid; MobileNetV2 if not said."""
    sheet: File = None
    """A PNG to write the first 64 pictures to; with --first-stage 16, above their reconstructions and the errors; with
    --layout 24, beside the real ones, with their boxes."""
    out: File = None
    """With --first-stage or --layout, a file for the JSON object."""
    json: bool = False
    """Print one JSON object, and nothing else, on standard output."""


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    asked = parse(Evaluate, arguments, verb="evaluate")
    seed = 0 if asked.seed is None else asked.seed
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}; it must be 0 to 2^64 - 1")
    if asked.first_stage and asked.layout:
        raise ValueError("--first-stage and --layout measure two things; ask for one after the other")
    if asked.first_stage:
        _only(asked, "part", needs="--layout; give both or neither")
        what = (asked.model, asked.data, asked.size, asked.n, seed)
        return first_stages.report(first_stages.Measured(*what, asked.features, asked.sheet, asked.out, asked.json))
    if asked.layout:
        _only(asked, "size", "features", needs="--first-stage; give both or neither")
        what = (asked.model, asked.data, asked.n, asked.seed)
        return layouts.report(layouts.Measured(*what, asked.sheet, asked.out, asked.json, asked.part))
    _only(asked, "part", needs="--layout; give both or neither")
    return _fidelity(asked, seed)


def _fidelity(asked: Evaluate, seed: int) -> int:
    """Measure a model of the emoji world; the exit code."""
    n = _captions(asked, seed)
    if takes_boxes(opening.describe(asked.model).config.conditioner):
        raise ValueError("this model is asked with boxes; --layout measures how it paints them")
    loaded = opening.load(asked.model)
    concepts = concrete_ids()
    known = Emoji(split=Split.TRAIN, styles=STYLES, concepts=concepts)
    withheld = Emoji(split=Split.STYLE, styles=STYLES, concepts=concepts)
    net = feature_networks.mobilenet()
    gallery = Gallery(Emoji(split="all", styles=STYLES, concepts=known.ids), net)

    results: dict[str, Fidelity] = {}
    for name, pictures_of in (("trained on", known), ("style withheld", withheld)):
        chosen = drawn(n, of=len(pictures_of), seed=seed)
        run_ = fidelity(loaded, chosen, pictures_of, gallery, net, seed=seed)
        results[name] = watched(run_, Fidelity, name, counted, total=len(chosen))
    unseen = Emoji(split=Split.CONCEPT)
    quality = mean_psnr(loaded.model.first_stage, unseen)
    if asked.sheet is not None:
        first = results["trained on"]
        sheet = pictures.sheet(first.images[:64], columns=8)
        pictures.save_png(sheet, asked.sheet, {"captions": list(first.captions[:64])})
    _say(asked, results, (quality, len(unseen)), len(known.ids))
    return 0


def _captions(asked: Evaluate, seed: int) -> int:
    """How many; ValueError if what is asked for makes no sense."""
    _only(asked, "size", "features", needs="--first-stage; give both or neither")
    _only(asked, "data", "out", needs="--first-stage or --layout; give one of them")
    n = CAPTIONS if asked.n is None else asked.n
    if n < 1:
        raise ValueError(f"n is {n}; at least one caption is needed")
    if seed + n > 2**64:
        raise ValueError(f"seed is {seed}; that of the last of {n} pictures would not be below 2^64")
    check_files(sheet=asked.sheet)
    return n


def _only(asked: Evaluate, *flags: str, needs: str) -> None:
    """ValueError for a flag that says nothing here."""
    for flag in flags:
        if getattr(asked, flag) is not None:
            raise ValueError(f"--{flag} says nothing without {needs}")


def _say(asked: Evaluate, results: dict[str, Fidelity], first_stage: tuple[float, int], concepts: int) -> None:
    quality, n = first_stage
    if asked.json:
        scores = {k: {"model": asdict(f.model), "ceiling": asdict(f.ceiling)} for k, f in results.items()}
        world = {"concepts": concepts, "styles": STYLES, "features": "MobileNetV2"}
        print(json.dumps({"fidelity": scores, "first_stage_psnr": {"db": quality, "n": n}, **world}))
        return
    table = Table("captions", "n", "", "top-1", "top-5", "group", box=None)
    for name, f in results.items():
        for who, s in (("model", f.model), ("ceiling", f.ceiling)):
            table.add_row(name, str(s.n), who, f"{s.top1:.1%}", f"{s.top5:.1%}", f"{s.group:.1%}")
        if f.ceiling.top1:
            table.add_row(name, "", "model / ceiling", f"{f.model.top1 / f.ceiling.top1:.2f}", "", "")
    Console().print(table)
    print(f"first stage: PSNR {quality:.2f} dB on {n} pictures of concepts never trained on")
