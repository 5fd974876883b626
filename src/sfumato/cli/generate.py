"""`sfumato generate PROMPT ... [flags]`: pictures from prompts, each with its parameters inside."""

import contextlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from torch import Tensor

from sfumato.cli.additions import Embeddings, Loras, added, pulled
from sfumato.cli.boxes import Laid, drawn, laid, takes_boxes
from sfumato.cli.parse import File, Folder, Int, Name, Number, parse
from sfumato.cli.watched import watched
from sfumato.diffusion.samplers import SAMPLERS
from sfumato.generate import Given, Preview, Result, sample
from sfumato.io import atomic, classifier_folder, infotext, opening, pictures
from sfumato.io.model_folder import DEFAULT, Loaded
from sfumato.models.config import Conditioning, ModelConfig
from sfumato.request import Request, random_seed, requested

WORDLESS = (None, "labels", "table", "segmentation")  # kinds of models that are not asked with words
FEW, BEST_FOR_FEW = 10, ("trailing", "linspace")


@dataclass
class Generate:
    """Make pictures from prompts. What is not said is taken from the model's own defaults."""

    prompts: Annotated[tyro.conf.Positional[list[str]], tyro.conf.arg(metavar="PROMPT ...", help_behavior_hint="")] = (
        field(default_factory=list)
    )
    """What the pictures show, for instance "a red apple, 3d"."""
    from_file: File = None
    """A text file with a prompt a line, besides or instead; empty lines are passed over."""
    model: str = DEFAULT
    """A bundled model's name (see: sfumato models), or the path of a run, of a model folder, of a .safetensors or .ckpt
    file, of a folder of diffusers."""
    weights: Name = None
    """Which of the model's weight sets; ema, the average, where there is one."""
    vae: File = None
    """Another first stage than the model's own: the run of one (runs/kl-f4), a file of LDM's names, a `vae` folder of
    diffusers, another model's, or a tiny one (runs/tiny-decoder, a TAESD file), which decodes in a fraction of the
    time."""
    lora: Loras = field(default_factory=list)
    """A LoRA to put on the model, with its weight, as style.safetensors:0.8; may be given several times."""
    embedding: Embeddings = field(default_factory=list)
    """A textual inversion; its word is the file's name, or what the file says. May be given several times."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the network is computed in: auto is bfloat16, in half the memory and about half the time, for other
    programs' models where the processor has it, else float32."""
    tiled: bool = False
    """Decode and encode pictures by strips of rows, in little memory: for large ones. The result is the same up to
    rounding; what does not fit goes to a file meanwhile. (--tiling makes a picture that can be laid as a tile.)"""
    negative: str = ""
    """What they should not show."""
    boxes: File = None
    """What is to be where, for models that are asked with boxes, with a prompt or without. JSON, as
    [{"label": "dog", "box": [0.1, 0.2, 0.6, 0.9]}]: left, top, right, bottom in parts of the picture, or with
    "unit": "px" in pixels; also one picture's part of a COCO file, or a .bbox sidecar. Labels are those that
    sfumato inspect MODEL says."""
    draw_boxes: bool = False
    """Write NAME-boxes.png beside each picture: the same, larger, with its boxes and their labels over it."""
    label: Name = None
    """The class, by its name or its number, for models that are asked with one."""
    classifier: Folder = None
    """A classifier of noisy pictures (the run of one), which pulls to --label beside guidance or without."""
    classifier_scale: Number = None
    """How far it pulls; 1 if not said."""
    sampler: Name = None
    """See: sfumato samplers. The names of other tools are understood, "DPM++ 2M Karras" too."""
    spacing: Name = None
    """How the steps are spaced: trailing, linspace, karras, exponential and more; an unknown name lists them all."""
    steps: Int = None
    """Sampling steps, up to 1000."""
    guidance: Number = None
    """Scale of classifier-free guidance; 1 is none, above 8 colours burn."""
    rescale: Number = None
    """Takes back, from 0 to 1, the spread that guidance adds."""
    eta: Number = None
    """Share of fresh noise, from 0 to 1, for samplers that add it: 0 is none."""
    churn: Number = None
    """S_churn of euler, heun and dpm2: how much noise goes back in before the steps; 0 if not said."""
    seed: int = -1
    """Seed of the first picture, the next ones count on; -1 draws one, which is printed."""
    variation_strength: Number = None
    """How far, from 0 to 1, the first noise goes from that of the seed to that of --variation-seed."""
    variation_seed: Int = None
    """Of the first variation, the next ones count on while the seed stays; 0 if not said."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1
    """Pictures for each prompt, up to 64."""
    size: Annotated[str | None, tyro.conf.arg(metavar="WxH", help_behavior_hint="")] = None
    """Width and height in pixels, as 64x64: multiples of 32 for emoji, which paints best at 64x64."""
    tiling: bool = False
    """The picture continues on its opposite side, so that it can be laid as a tile."""
    init: File = None
    """A picture to begin from; for a model of super-resolution, the one that it paints larger."""
    strength: Number = None
    """How much of it may change, from 0 to 1; 0.6 if not said, and 1 with --mask or --extend."""
    mask: File = None
    """A picture of the same size as --init: where it is white that is painted anew, where it is black it stays."""
    map: File = None
    """A map of classes, for models that are asked with one: 8-bit PNG, grey or with a palette, a class a pixel."""
    extend: Annotated[str | None, tyro.conf.arg(metavar="L,T,R,B", help_behavior_hint="")] = None
    """Paint around --init: pixels more on the left, top, right and bottom, as 0,0,32,0."""
    feather: Int = None
    """Pixels in which what is painted fades into what stays; 2 if not said."""
    inversion: bool = False
    """Begin from the noise that paints --init, found by walking the flow backwards."""
    source: str = ""
    """What --init shows, for --inversion: then the prompt changes it and keeps what they share."""
    out: Path = Path("pictures")
    """The folder to write to."""
    json: bool = False
    """Print one JSON object about the pictures, and nothing else, on standard output."""


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    asked = parse(Generate, arguments, verb="generate")
    atomic.check_writable(asked.out)
    seed = random_seed() if asked.seed == -1 else asked.seed
    config = opening.describe(asked.model).config
    layout = None if asked.boxes is None else laid(asked.boxes, _painted(asked, config), config.conditioner)
    prompts = _prompts(asked, config.conditioner, layout)
    requests = [_request(asked, prompt, seed, layout) for prompt in prompts]
    loaded = opening.load(asked.model, weights=asked.weights, precision=asked.precision)
    if layout is not None:
        layout.check(loaded)
    given = _given(asked, loaded.file.config)
    additions = {**added(loaded, asked.lora, asked.embedding, asked.vae), **pulled(asked.classifier)}
    identity: dict[str, Any] = {}
    written: list[dict[str, Any]] = []
    console = Console(stderr=True, highlight=False)
    for request in requests:
        events = sample(loaded, request, **given._asdict(), tiled=asked.tiled)
        result = watched(events, Result, request.prompt[:40] or "no prompt", _evaluated)
        identity = identity or {**opening.identity(loaded), **additions}  # hashes the file, which takes seconds
        dropped = result.boxes_dropped + (layout.left_out if layout else 0)
        for remark in _remarks(result, loaded.file.config, dropped):
            console.print(remark, markup=False)
        told = {**_told(asked, given), **_told_boxes(layout, dropped)}
        heard = {"tokens": result.tokens, "tokens_dropped": result.dropped, "words_unknown": result.unknown}
        for image, one in zip(result.images, result.requests, strict=True):
            described = one.model_dump(mode="json", exclude_none=True)
            parameters = {"format": 1, "model": identity, "request": described, **told}
            path = _saved(image, asked.out, one, parameters, loaded.file.name)
            over = _drawn(image, path, one, loaded) if asked.draw_boxes else {}
            written.append({"file": str(path), **over, **heard, "boxes_dropped": dropped, **parameters})
            if not asked.json:
                varied = f", variation {one.variation_seed}" if one.variation_strength else ""
                print("\n".join([f"{path}  (seed {one.seed}{varied})", *over.values()]))
    if asked.json:
        print(json.dumps({"pictures": written, "weights": loaded.weights}, ensure_ascii=False))
    return 0


def _told(asked: Generate, given: Given) -> dict[str, Any]:
    """Which pictures were given, by name and content."""
    paths = {name: getattr(asked, name) for name in ("init", "mask", "map")}
    return {
        name: {"file": path.name, "sha256": pictures.digest(getattr(given, name))}
        for name, path in paths.items()
        if path is not None
    }


def _told_boxes(layout: Laid | None, dropped: int) -> dict[str, Any]:
    """Where the boxes of the request are from, and how many were dropped."""
    return {} if layout is None else {"boxes": {"file": layout.path.name, "dropped": dropped}}


def _remarks(result: Result, config: ModelConfig, dropped: int) -> Iterator[str]:
    """What a person should know of how the request was taken."""
    if result.dropped:
        yield f"the last {result.dropped} tokens of the prompt were not read; the model reads {result.tokens}"
    if result.unknown:
        yield f"words that the model was never shown: {', '.join(result.unknown)[:200]}"
    asked = result.requests[0]
    if dropped:
        read = len(asked.boxes or ()) - result.boxes_dropped
        yield f"{dropped:,} of {read + dropped:,} boxes were dropped, the smallest; the model reads {read:,}"
    if (asked.steps or 0) < FEW and asked.spacing not in BEST_FOR_FEW:
        yield f"with less than {FEW} steps, {' and '.join(BEST_FOR_FEW)} paint best; the spacing is {asked.spacing}"
    if SAMPLERS[result.requests[0].sampler or ""].consistent:
        yield "this sampler is made for models that answer where the flow ends; of others its pictures are too smooth"
    width, height, resolution = result.images.shape[3], result.images.shape[2], config.resolution
    if (width, height) != (resolution, resolution) and config.maps != "low_resolution":
        yield f"the model was trained at {resolution}x{resolution}; at {width}x{height} it paints worse"


def _prompts(asked: Generate, conditioner: Conditioning | None, layout: Laid | None) -> list[str]:
    """What is said, or what the layout file says where nothing else is."""
    prompts = list(asked.prompts)
    if asked.from_file is not None:
        try:
            if asked.from_file.exists() and not asked.from_file.is_file():
                raise ValueError(f"{asked.from_file} is a folder, a pipe or a device; give a file")
            text = asked.from_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{asked.from_file} cannot be read as text ({error})") from None
        prompts += [row.strip() for row in text.splitlines() if row.strip()]
    if not prompts and layout is not None and layout.said.prompt:
        if not getattr(conditioner, "captions", False):
            what = "it has a 'prompt', and this model is asked with boxes alone"
            raise ValueError(f'{layout.path}: {what}; leave it out, or say "" as the prompt')
        return [layout.said.prompt]
    if not prompts and (takes_boxes(conditioner) or getattr(conditioner, "kind", None) in WORDLESS):
        return [""]  # such models need no words
    if not prompts:
        raise ValueError('there is no prompt; say what to paint, for instance: sfumato generate "a red apple, 3d"')
    return prompts


def _request(asked: Generate, prompt: str, seed: int, layout: Laid | None) -> Request:
    if asked.init is None:
        for flag, given, what in (
            ("strength", asked.strength is not None, "says how much of --init may change"),
            ("mask", asked.mask is not None, "says what of --init is painted anew"),
            ("extend", asked.extend is not None, "paints around --init"),
            ("inversion", asked.inversion, "begins from the noise that paints --init"),
        ):
            if given:
                raise ValueError(f"--{flag} {what}, and there is no --init")
    for flag, given, needs, there in (
        ("feather", asked.feather is not None, "--mask or --extend", asked.mask or asked.extend),
        ("source", bool(asked.source), "--inversion", asked.inversion),
        ("classifier-scale", asked.classifier_scale is not None, "--classifier", asked.classifier),
        ("draw-boxes", asked.draw_boxes, "--boxes", asked.boxes),
        ("variation-seed", asked.variation_seed is not None, "--variation-strength", asked.variation_strength),
    ):
        if given and not there:
            raise ValueError(f"--{flag} says nothing without {needs}; give both or neither")
    shared = set(Request.model_fields) - {"prompt", "seed", "size", "extend", "boxes"}
    given = {name: getattr(asked, name) for name in shared if getattr(asked, name) is not None}
    own = {"size": _size(asked.size), "extend": _extend(asked.extend), "boxes": layout.boxes if layout else None}
    return requested(prompt=prompt, seed=seed, **own, **given)


def _extend(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    if re.fullmatch(r"\s*\d{1,5}\s*(,\s*\d{1,5}\s*){3}", text) is None:
        raise ValueError(f"extend '{text}' is not understood; write pixels for left,top,right,bottom, as 0,0,32,0")
    return tuple(int(part) for part in text.split(","))


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", text.strip())
    if match is None:
        raise ValueError(f"size '{text}' is not understood; write width x height, as 64x64")
    return int(match[1]), int(match[2])


def _painted(asked: Generate, config: ModelConfig) -> tuple[int, int]:
    """Width and height of the picture that is asked for."""
    width, height = _size(asked.size) or (config.resolution, config.resolution)
    left, top, right, bottom = _extend(asked.extend) or (0, 0, 0, 0)
    return width + left + right, height + top + bottom


def _given(asked: Generate, config: ModelConfig) -> Given:
    """The picture to begin from, cut to the asked size, its mask, and a map: one side is given as is, else the model's.

    A picture that is painted larger is taken whole.
    """
    classifier = None if asked.classifier is None else classifier_folder.load(asked.classifier)
    if asked.init is not None and config.maps == "low_resolution":
        if asked.size is not None:
            raise ValueError(f"this model paints {config.larger} times as large as --init; leave --size out")
        init = pictures.read(asked.init)
        if asked.map is not None:
            raise ValueError("this model is not asked with a map of classes; leave --map out")
        mask = None if asked.mask is None else pictures.read_mask(asked.mask, of=asked.init)
        return Given(init, mask, classifier=classifier)
    width, height = _size(asked.size) or (config.resolution, config.resolution)
    if width != height and (asked.init or asked.map):
        what = "init" if asked.init else "map"
        raise ValueError(f"--{what} is cut to a square, and --size {asked.size} is none; ask for equal sides")
    return Given(
        None if asked.init is None else pictures.read(asked.init, size=width),
        None if asked.init is None or asked.mask is None else pictures.read_mask(asked.mask, of=asked.init, size=width),
        None if asked.map is None else pictures.read_map(asked.map, size=width),
        classifier,
    )


def _evaluated(event: Preview) -> dict[str, Any]:
    """How many evaluations are done, of how many."""
    return {"completed": event.done, "total": event.total}


def _saved(image: Tensor, out: Path, request: Request, parameters: dict[str, Any], model: str) -> Path:
    """The file that the picture is in, by a name that was free."""
    words = re.sub(r"[\W_]+", "-", request.prompt.lower()).strip("-")[:40] or "picture"
    line = infotext.write(request, model)
    return _free(
        out / f"{words}-{request.seed}", lambda path: pictures.save_png(image, path, parameters, line, new=True)
    )


def _drawn(image: Tensor, path: Path, request: Request, loaded: Loaded) -> dict[str, str]:
    """The file of the picture with its boxes over it."""
    over = drawn(image, request.boxes or (), loaded)
    name = path.with_name(f"{path.stem}-boxes")
    return {"drawn": str(_free(name, lambda free: pictures.save_png(over, free, {}, new=True)))}


def _free(name: Path, write: Callable[[Path], None]) -> Path:
    """The PNG that was written, by the name or, if that is taken, with a number behind it."""
    for k in itertools.count(1):
        path = name.with_name(f"{name.name}{f'_{k}' if k > 1 else ''}.png")
        if path.exists():
            continue
        with contextlib.suppress(FileExistsError):  # another process was faster
            write(path)
            return path
    raise AssertionError("names do not end")
