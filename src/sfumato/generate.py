"""From a request to pictures: prompt -> condition -> guide -> grid -> sampler -> latent -> picture."""

import math
import re
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor

from sfumato.boxes import Box
from sfumato.cond import Cond
from sfumato.conditioning.bert import Bert
from sfumato.conditioning.boxes import Boxes
from sfumato.conditioning.clip import Clip
from sfumato.conditioning.conditioner import Heard
from sfumato.conditioning.label import Labels, TableRow, checked
from sfumato.conditioning.layout import LayoutTokens
from sfumato.conditioning.segmentation import Segmentation
from sfumato.conditioning.text import Text
from sfumato.diffusion import drive
from sfumato.diffusion.denoiser import Denoiser, Guide
from sfumato.diffusion.grid import SPACINGS, Grid
from sfumato.diffusion.guidance import classifier_guided, conditional, guided, inpainted
from sfumato.diffusion.interpolate import slerp
from sfumato.diffusion.noise import Noise, seeded
from sfumato.diffusion.samplers import SAMPLERS, Entry, start
from sfumato.io import opening, pictures
from sfumato.io.classifier_folder import LoadedClassifier
from sfumato.io.model_folder import Loaded, ModelFile
from sfumato.latents.canvas import Canvas
from sfumato.latents.first_stage import FirstStage
from sfumato.latents.maps import maps
from sfumato.latents.tiled import spared
from sfumato.latents.tiled import tiled as by_strips
from sfumato.models.config import LabelsConfig, ModelConfig, TableConfig
from sfumato.models.latent_diffusion import LatentDiffusion
from sfumato.nets.seamless import seamless
from sfumato.registry import unknown
from sfumato.request import LARGEST, Request, requested

Spoken = Text | Clip | Bert | Labels | TableRow | Segmentation
"""Conditioners that are not asked with boxes."""


@dataclass(frozen=True)
class Preview:
    """One network evaluation done: how many of how many, and the clean guess as latents (n, C, h, w)."""

    done: int
    total: int | None  # None if the sampler chooses its own steps
    x0: Tensor = field(repr=False)


@dataclass(frozen=True)
class Result:
    """Finished pictures."""

    images: Tensor = field(repr=False)  # (n, 3, H, W) in [-1, 1]
    latents: Tensor = field(repr=False)  # (n, C, h, w)
    requests: tuple[Request, ...]  # one a picture, each of which makes that picture again
    weights: str  # the weight set that was used
    evaluations: int
    tokens: int  # of the longest prompt that were read
    dropped: int  # of it that were over the model's length
    unknown: tuple[str, ...]  # words of the prompts that the model was never shown
    seconds: float
    boxes_dropped: int = 0  # of the request with the most, over what the model reads: the smallest

    def pil(self) -> list[Image]:
        """The pictures for Pillow."""
        return [pictures.to_pil(image) for image in self.images]


class Given(NamedTuple):
    """What is given beside a request: pictures, and a network that guides."""

    init: Tensor | None = None  # (3, H, W) in [-1, 1], a picture to begin from, or to paint larger
    mask: Tensor | None = None  # (H, W), 1 where it is painted anew
    map: Tensor | None = None  # (H, W) uint8, a class for each pixel; 255 where nothing is said
    classifier: LoadedClassifier | None = None  # of noisy pictures


@dataclass(frozen=True)
class Model:
    """A loaded model as most people use it: `load("emoji").generate(prompt="a red apple, 3d")`."""

    loaded: Loaded

    def sample(self, *, tiled: bool = False, **asked: Any) -> Iterator[Preview | Result]:
        """`sample` for the fields of a Request, and of what is Given, by name."""
        given = Given(**{name: asked.pop(name) for name in Given._fields if name in asked})
        return sample(self.loaded, requested(**asked), **given._asdict(), tiled=tiled)

    def generate(self, *, tiled: bool = False, **asked: Any) -> Result:
        """The Result for the fields of a Request, and of what is Given, by name."""
        *_, result = self.sample(tiled=tiled, **asked)
        assert isinstance(result, Result)
        return result


def load(name_or_path: str | Path, *, weights: str | None = None, precision: opening.Precision = "auto") -> Model:
    """A model by name, or by the path of a model folder, a single file or a folder of diffusers.

    `weights` chooses a weight set; see `io.opening.load` for `precision`. ValueError if there is no such model.
    """
    return Model(opening.load(name_or_path, weights=weights, precision=precision))


@torch.no_grad()
def sample(
    loaded: Loaded,
    request: Request | Sequence[Request],
    *,
    init: Tensor | None = None,
    mask: Tensor | None = None,
    map: Tensor | None = None,
    classifier: LoadedClassifier | None = None,
    tiled: bool = False,
) -> Iterator[Preview | Result]:
    """Generate, yielding a Preview after each evaluation and the Result last. Closing it stops the run.

    Several requests make one batch if they differ in prompt, negative, boxes, label, seeds, variation and n alone.
    Picture k of a request has its `seed + k` (a variation: its `variation_seed + k`) and does not depend on its batch
    mates.
    `init` (3, H, W) in [-1, 1] is a picture to begin from; its size is the size of the result. Where `mask` (H, W) is 1
    it is painted anew, where it is 0 its pixels stay as they are. A model of super-resolution paints all of `init`,
    some times as large. `map` (H, W) uint8 has a class for each pixel, for models that are asked with one. A
    `classifier` of noisy pictures pulls to the label, `classifier_scale` times. With `tiled` the first stage runs by
    strips of rows, in little memory (`latents.tiled`), as it does by itself after it ran out of memory: the same
    picture, up to rounding. ValueError for what the model cannot do.
    """
    began = time.perf_counter()
    given = [request] if isinstance(request, Request) else request
    canvas = _canvas(given, init, mask)
    requests = _each(loaded, given, canvas, map, classifier)
    if map is not None and not isinstance(loaded.model.conditioner, Segmentation):
        raise ValueError("this model is not asked with a map of classes; leave it out")
    common = requests[0]
    assert common.size is not None and common.steps is not None and common.guidance is not None  # noqa: PT018
    assert common.sampler is not None and common.spacing is not None  # noqa: PT018
    model, entry = loaded.model, SAMPLERS[common.sampler]
    options = _options(common, entry, model)
    noise = seeded([r.seed for r in requests])
    denoiser, first_stage = model.denoiser, model.first_stage
    if common.tiling:
        denoiser, first_stage = seamless(denoiser), seamless(first_stage)
    if tiled:
        first_stage = by_strips(first_stage)
    run = _Run(model, entry, options, noise, denoiser, first_stage, map, classifier)
    shape = model.latent_shape(*common.size)
    told = _told(run, requests, canvas)
    grid = SPACINGS[common.spacing](model.denoiser.schedule, common.steps)
    fresh = _varied(noise(torch.empty(len(requests), *shape)), requests)
    guide = guided(told.cond, told.null, scale=common.guidance, rescale=common.rescale)
    guide = _pulled(guide, run, requests)
    if canvas is None or common.strength is None:
        first = grid.levels[0]
        spread = (first.alpha.square() + first.sigma.square()).sqrt()  # of noisy latents, whose own variance is 1
        begun = _Begun(spread * fresh, grid, guide)
    else:
        begun = yield from _begin(run, canvas, requests, grid, fresh, guide)
    run.expect((entry, begun.grid))
    latents = (yield from run.walk(begun.x, begun.grid, begun.guide)) / begun.scale
    images = spared(run.first_stage, lambda stage: stage.decode(latents))
    if not (latents.isfinite().all() and images.isfinite().all()):
        raise FloatingPointError(
            "the picture holds numbers that are none (nan, inf): the weights are damaged, or guidance is far too strong"
        )
    images = images.clamp(-1, 1)
    images = images if canvas is None else canvas.pasted(images, common.feather)
    seconds = time.perf_counter() - began
    yield Result(images, latents, requests, loaded.weights, run.done, *told.heard, seconds, told.boxes_dropped)


def generate(
    loaded: Loaded,
    request: Request | Sequence[Request],
    *,
    init: Tensor | None = None,
    mask: Tensor | None = None,
    map: Tensor | None = None,
    classifier: LoadedClassifier | None = None,
    tiled: bool = False,
) -> Result:
    """The Result of `sample`."""
    *_, result = sample(loaded, request, init=init, mask=mask, map=map, classifier=classifier, tiled=tiled)
    assert isinstance(result, Result)
    return result


@dataclass
class _Run:
    """The evaluations of one call of `sample`: how they are made, and how many of how many are done."""

    model: LatentDiffusion
    entry: Entry
    options: dict[str, float]
    noise: Noise
    denoiser: Denoiser
    first_stage: FirstStage
    map: Tensor | None = None
    classifier: LoadedClassifier | None = None
    done: int = 0
    total: int | None = None

    def expect(self, *walks: tuple[Entry, Grid]) -> None:
        """These walks are still to come, all of them."""
        counts = [entry.evaluations(grid) for entry, grid in walks]
        if self.total is None and None not in counts:
            self.total = sum(count or 0 for count in counts)

    def walk(self, x: Tensor, grid: Grid, guide: Guide, entry: Entry | None = None) -> Generator[Preview, None, Tensor]:
        """The sample of the sampler, or of another that takes no options."""
        options = {} if entry else self.options
        sampler = start(entry or self.entry, x, grid, self.noise, **options)
        for event in drive.steps(sampler, self.denoiser.bind(guide)):
            if isinstance(event, Tensor):
                return event
            self.done += 1
            yield Preview(self.done, self.total, event.x0)
        raise AssertionError("a sampler ends with its sample")


class _Begun(NamedTuple):
    """Where a walk begins, and what its end is divided by."""

    x: Tensor
    grid: Grid
    guide: Guide
    scale: float = 1.0


def _begin(
    run: _Run, canvas: Canvas, requests: Sequence[Request], grid: Grid, fresh: Tensor, guide: Guide
) -> Generator[Preview, None, _Begun]:
    """At a given picture with part of the noise, or with the noise that paints it."""
    request = requests[0]
    assert request.strength is not None
    whole, grid, first_stage = len(grid), grid.part(request.strength), run.first_stage
    if 0 < len(grid) < run.entry.least:
        left = f"strength {request.strength} leaves {len(grid)} of {whole}"
        raise ValueError(f"sampler '{run.entry.name}' needs at least {run.entry.least} steps, and {left}")
    z = spared(first_stage, lambda stage: stage.encode(canvas.picture[None])).expand_as(fresh)
    hole = canvas.latent_hole(first_stage.factor)
    guide = guide if hole is None or run.model.config.maps not in (None, "boxes") else inpainted(guide, z, 1 - hole)
    if request.inversion:
        source = conditional(_said(run, requests, canvas))
        up = grid.upward()
        down, scale = up.reversed(), float(up.levels[0].alpha)
        if grid.levels[0].blind:  # where samplers begin with a plain move; x is all noise there and just below
            down = replace(down, levels=(grid.levels[0], *down.levels[1:]))
        finder = run.entry if run.entry.invertible else SAMPLERS["dpmpp_2m"]  # the flow is the same whoever walks it
        run.expect((finder, up), (run.entry, down))
        return _Begun((yield from run.walk(scale * z, up, source, finder)), down, guide, scale)
    begin = z if hole is None or request.strength < 1 else (1 - hole) * z
    return _Begun(grid.levels[0].alpha * begin + grid.levels[0].sigma * fresh, grid, guide)


class _Told(NamedTuple):
    """What the network is told, what it is told for the other side of guidance, and what was read of the prompts."""

    cond: Cond
    null: Cond
    heard: Heard
    boxes_dropped: int = 0


def _told(run: "_Run", requests: Sequence[Request], canvas: Canvas | None) -> _Told:
    """The conditions of some requests; ValueError if the model is not asked in this way."""
    model = run.model
    kind, n = model.conditioner, len(requests)
    placed, labelled = isinstance(kind, Boxes | LayoutTokens), isinstance(kind, Labels | TableRow)
    if not placed and any(r.boxes is not None for r in requests):
        raise ValueError("this model was not trained with boxes; leave them out, or ask one that was")
    if not labelled and run.classifier is None and any(r.label is not None for r in requests):
        what = "boxes" if placed else "a prompt"
        raise ValueError(f"this model is asked with {what}, not with a label" if kind else "this model takes no label")
    told = _laid(kind, run, requests) if isinstance(kind, Boxes | LayoutTokens) else _spoken(kind, run, requests)
    _check_heard(model.config, told.cond)
    shown = _shown(run, canvas, n)
    return told._replace(cond=told.cond | shown, null=told.null | shown)


def _spoken(kind: Spoken | None, run: "_Run", requests: Sequence[Request]) -> _Told:
    """What prompts, a label or a map say."""
    prompts, negatives, n = [r.prompt for r in requests], [r.negative for r in requests], len(requests)
    worded, scale = any((*prompts, *negatives)), requests[0].guidance
    match kind:
        case Labels() | TableRow():
            labels = [r.label for r in requests]
            if worded or any(label is None for label in labels):
                raise ValueError(f"this model is asked with a label alone, from {kind.known}")
            cond = kind(kind.collate([{"label": label} for label in labels]))
            return _Told(cond, cond if scale == 1 else kind.null(n), Heard(0))
        case Segmentation():
            return _Told(*_mapped(kind, run, n, alone=not worded), Heard(0))
        case None:
            if worded or scale != 1:
                raise ValueError("this model is not asked with anything; leave the prompt out, and guidance at 1")
            return _Told(Cond(), Cond(), Heard(0))
        case _:
            return _Told(kind.of(prompts), kind.of(negatives), kind.heard(prompts))


def _laid(kind: Boxes | LayoutTokens, run: "_Run", requests: Sequence[Request]) -> _Told:
    """What boxes and prompts say, and what the negative prompts do; ValueError for what the model does not read."""
    prompts, negatives = [r.prompt for r in requests], [r.negative for r in requests]
    if not kind.captions and any((*prompts, *negatives)):
        raise ValueError("this model is asked with boxes alone; leave the prompts out")
    layouts = [r.boxes or () for r in requests]
    check_boxes(kind, ((f"boxes[{i}]", box) for layout in layouts for i, box in enumerate(layout)))
    cells = _cells(run, requests)
    cond = kind.laid(prompts, layouts, cells)
    null = kind.laid(negatives, [()] * len(requests), cells)
    dropped = max(0, max(map(len, layouts)) - kind.most)
    return _Told(cond, null, kind.heard(prompts), dropped)


def check_boxes(kind: Boxes | LayoutTokens, placed: Iterable[tuple[str, Box]]) -> None:
    """ValueError of one line if the model does not know the label or the modifiers of a box; it begins with the place
    of the first such one, which stands before each box."""
    first: dict[tuple[str, int], str] = {}
    for place, box in placed:
        first.setdefault((box.label, box.modifiers), place)
    for (label, modifiers), place in first.items():
        try:
            kind.check(label)
            if isinstance(kind, LayoutTokens) and modifiers & ~kind.modifiers:
                raise ValueError(
                    f"the box of '{label}' has modifiers that this model has no numbers for; leave them out"
                )
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None


def _cells(run: "_Run", requests: Sequence[Request]) -> tuple[int, int]:
    """Rows and columns of the latents of some requests."""
    assert requests[0].size is not None
    _, rows, columns = run.model.latent_shape(*requests[0].size)
    return rows, columns


def _mapped(kind: Segmentation, run: "_Run", n: int, *, alone: bool) -> tuple[Cond, Cond]:
    """What a map of classes says, and one that says nothing; ValueError if there is none, or if words are there too."""
    if run.map is None or not alone:
        raise ValueError("this model paints what a map of classes says, and nothing else; give it as map")
    cond = kind(kind.collate([{"map": run.map}] * n))
    assert cond.maps is not None
    return cond, Cond(maps=torch.zeros_like(cond.maps))


def _check_heard(config: ModelConfig, cond: Cond) -> None:
    """ValueError if the network listens to what cannot be said here."""
    unheard = config.unet.vector_dim is not None and cond.vector is None
    if unheard or (config.unet.context_dim is not None and cond.tokens is None):
        raise ValueError("this model is told an embedding of a picture, which cannot be made here yet")
    if config.unet.classes is not None and cond.label is None:
        raise ValueError("this model is told how much noise the given picture has, which cannot be said here yet")


def _pulled(guide: Guide, run: "_Run", requests: Sequence[Request]) -> Guide:
    """The guide, pulled to the labels if there is a classifier; ValueError if that was trained for other models."""
    classifier = run.classifier
    if classifier is None:
        if requests[0].classifier_scale is not None:
            raise ValueError("classifier_scale says how far a classifier pulls, and there is none; give one")
        return guide
    labels, scale = [r.label for r in requests], requests[0].classifier_scale
    scale = 1.0 if scale is None else scale
    if any(label is None for label in labels):
        raise ValueError("a classifier pulls to a class; give its label")
    assert requests[0].size is not None
    classifier.check(run.model.config, requests[0].size)
    log_prob = classifier.log_prob(checked([label for label in labels if isinstance(label, int)], classifier.classes))
    return classifier_guided(guide, log_prob, scale=scale)


def _said(run: "_Run", requests: Sequence[Request], canvas: Canvas) -> Cond:
    """What the given picture shows: the words of `source`, and what is asked for in boxes is there already."""
    kind, sources = run.model.conditioner, [r.source for r in requests]
    if kind is None or isinstance(kind, Labels | TableRow | Segmentation):
        raise ValueError("this model is not asked with prompts, so there is nothing to say of the picture")
    if not isinstance(kind, Boxes | LayoutTokens):
        return kind.of(sources) | _shown(run, canvas, len(requests))
    if not kind.captions and any(sources):
        raise ValueError("this model is asked with boxes alone; leave source out")
    layouts = [r.boxes or () for r in requests]
    return kind.laid(sources, layouts, _cells(run, requests)) | _shown(run, canvas, len(requests))


def _shown(run: "_Run", canvas: Canvas | None, n: int) -> Cond:
    """What is shown beside the latent, n times; ValueError if it is not given, or cannot be made here yet."""
    kind = run.model.config.maps
    if kind in (None, "boxes") or isinstance(run.model.conditioner, Segmentation):
        return Cond()  # what is shown is what the conditioner says
    if kind in ("depth", "segmentation", "other"):
        raise ValueError(f"this model is shown a map of kind '{kind}', which cannot be made here yet")
    if canvas is None:
        does = "paints a given picture larger" if kind == "low_resolution" else "changes a given picture"
        raise ValueError(f"this model {does}; give it as init")
    shown = spared(run.first_stage, lambda stage: maps(kind, stage, canvas, larger=run.model.config.larger))
    return Cond(maps=shown.expand(n, -1, -1, -1))


def _canvas(requests: Sequence[Request], init: Tensor | None, mask: Tensor | None) -> Canvas | None:
    """The picture to begin from; ValueError for what asks for one that is not there."""
    extend = requests[0].extend
    for name, given in (("init", init), ("mask", mask)):
        if given is not None and not isinstance(given, Tensor):
            raise ValueError(
                f"{name} must be a tensor; sfumato.io.pictures has read and read_mask for files, from_pil for Pillow"
            )
    if init is not None:
        canvas = Canvas.of(init, mask, extend)
        if max(canvas.picture.shape) > LARGEST:
            height, width = canvas.picture.shape[1:]
            raise ValueError(f"the picture would be {width}x{height}; each side has 1 to {LARGEST} pixels")
        return canvas
    for wrong, what in (
        (mask is not None, "a mask says what of a given picture is painted anew"),
        (extend is not None, "extend paints around a given picture"),
        (requests[0].inversion, "inversion begins from the noise that paints a given picture"),
    ):
        if wrong:
            raise ValueError(f"{what}, and there is none; give it as init")
    return None


def _each(
    loaded: Loaded,
    requests: Sequence[Request],
    canvas: Canvas | None,
    map: Tensor | None,
    classifier: LoadedClassifier | None,
) -> tuple[Request, ...]:
    """One complete request for each picture; ValueError if they cannot share a batch."""
    each = []
    named = classifier.file.classes if classifier is not None and loaded.file.classes is None else loaded.file.classes
    for request in (_numbered(request, loaded.file, named or ()) for request in requests):
        whole = request.completed(loaded.file.defaults, loaded.file.config.resolution)
        if request.inversion and (request.n > 1 or request.variation_strength > 0):
            raise ValueError("inversion begins from one noise, the given picture's; n and variations say nothing there")
        if canvas is None and request.strength is not None:
            raise ValueError("strength says how much of a given picture may change, and there is none; give it as init")
        if canvas is not None:
            strength = _strength(whole, canvas, loaded.file.config.maps)
            size = _size(canvas.picture, loaded.file.config, loaded.model)
            whole = whole.model_copy(update={"size": size, "strength": strength})
        elif map is not None and isinstance(loaded.model.conditioner, Segmentation):
            whole = whole.model_copy(update={"size": _size(map, loaded.file.config, loaded.model)})
        counted = "variation_seed" if whole.variation_strength > 0 else "seed"
        for k in range(whole.n):
            each.append(whole.model_copy(update={"n": 1, counted: (getattr(whole, counted) + k) % 2**64}))
    own = {
        "prompt": "",
        "negative": "",
        "boxes": None,
        "label": None,
        "seed": 0,
        "variation_seed": 0,
        "variation_strength": 0.0,
    }
    if len({r.model_copy(update=own) for r in each}) != 1:
        raise ValueError(
            "requests in one batch differ in more than prompt, negative, boxes, label, seeds, variation and n; "
            "ask for each alone"
        )
    return tuple(each)


def _numbered(request: Request, file: ModelFile, names: Sequence[str]) -> Request:
    """The request with the label's number, if it has the name of one; ValueError, listing the names, for no such."""
    if names and request.label is None and isinstance(file.config.conditioner, LabelsConfig | TableConfig):
        raise ValueError(f"this model is asked with a label: {', '.join(names)}")
    if not isinstance(request.label, str):
        return request
    if request.label in names:
        return request.model_copy(update={"label": names.index(request.label)})
    if re.fullmatch(r"\d{1,7}", request.label):
        return request.model_copy(update={"label": int(request.label)})
    if not names:
        raise ValueError(f"label '{request.label}' is not a whole number, and this model knows no names of classes")
    raise ValueError(unknown("label", request.label, names))


def _size(given: Tensor, config: ModelConfig, model: LatentDiffusion) -> tuple[int, int]:
    """Width and height of what is painted of a picture or a map (..., H, W); ValueError if the model cannot."""
    larger, (height, width) = config.larger, given.shape[-2:]
    size = (width * larger, height * larger)
    if max(size) > LARGEST:
        raise ValueError(f"the picture would be {size[0]}x{size[1]}; each side has 1 to {LARGEST} pixels")
    if larger > 1 and any(side % model.factor for side in size):
        step = model.factor // math.gcd(model.factor, larger)
        raise ValueError(
            f"init is {width}x{height}, to be painted {larger} times as large; both its sides must divide by {step}"
        )
    return size


def _strength(request: Request, canvas: Canvas, shown: str | None) -> float | None:
    """How much of the picture may change; None if the network is only shown it. ValueError for what cannot be."""
    if shown in ("picture", "low_resolution"):
        if canvas.hole is not None or request.inversion or request.strength is not None:
            raise ValueError("this model is shown the whole picture; it takes no mask, no inversion and no strength")
        return None
    return (0.6 if canvas.hole is None else 1.0) if request.strength is None else request.strength


def _options(request: Request, entry: Entry, model: LatentDiffusion) -> dict[str, float]:
    """What the sampler is told beside its grid; ValueError if it cannot do what is asked for."""
    assert request.steps is not None
    if request.steps < entry.least:
        raise ValueError(
            f"sampler '{entry.name}' needs at least {entry.least} steps, and {request.steps} are asked for"
        )
    if entry.needs_spread and not model.denoiser.learned:
        raise ValueError(f"sampler '{entry.name}' needs a network that learnt its variance, which this one did not")
    if request.inversion and (entry.stochastic or request.eta or request.churn):
        raise ValueError(
            f"sampler '{entry.name}' adds fresh noise, so it cannot be run backwards; try ddim or dpmpp_2m as they are"
        )
    options = {name: getattr(request, name) for name in ("eta", "churn") if getattr(request, name) is not None}
    for name in options:
        if not entry.takes(name):
            able = ", ".join(e.name for e in SAMPLERS.values() if e.takes(name))
            raise ValueError(f"sampler '{entry.name}' takes no {name}; those that do: {able}")
    return options


def _varied(noise: Tensor, requests: Sequence[Request]) -> Tensor:
    """The first noise (n, C, h, w), part of the way to that of the variation seeds."""
    part = torch.tensor([r.variation_strength for r in requests], dtype=torch.float64)
    if not part.any():
        return noise
    mixed = slerp(noise, seeded([r.variation_seed for r in requests])(noise), part)
    return torch.where(part.view(-1, 1, 1, 1) > 0, mixed, noise)
