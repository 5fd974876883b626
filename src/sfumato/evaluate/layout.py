"""Does a model paint what it is asked for where it is asked for it? A classifier of real crops says, and more.

For each layout of real pictures one picture is painted with its boxes and its prompt, and others of the same seed with
the one, the other or neither of them. All are cut out at the boxes that were asked for. Three things are measured of
each kind of picture, the real ones and what the first stage gives back of them among them: does a classifier that
learnt real crops of other pictures see the label that was asked for (the classification accuracy of Zhao et al. 2019);
how far are the features of the crops from those of real ones; and, before plain backgrounds, how well does the
box about what is found agree with the one that was asked for.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato.boxes import Box, Layout, iou
from sfumato.data.sample import Dataset
from sfumato.evaluate.asked import Asked, readable
from sfumato.evaluate.crop_distance import CropDistances, distances
from sfumato.evaluate.crops import crops
from sfumato.evaluate.features import Features
from sfumato.evaluate.fidelity import drawn
from sfumato.evaluate.found import EVEN, apart, found, ground
from sfumato.evaluate.judge import Judge, Right
from sfumato.evaluate.recogniser import learnt
from sfumato.evaluate.reconstruction import as_saved, at_once, reconstructed
from sfumato.evaluate.share import Share, share
from sfumato.generate import generate
from sfumato.io.model_folder import Loaded
from sfumato.request import requested

BATCH = 16  # pictures painted at once, at most
LEARNT = 2000  # crops that the classifier learns from, and those of the last picture
KEPT = 24  # pictures kept to be looked at
FEWEST = 10  # found boxes, of which a mean says something
HALF = 0.5  # of their union, that a found box and the asked one share
REAL, RECONSTRUCTED = "real", "reconstructed"


class Told(NamedTuple):
    """What of a layout a model is told."""

    boxes: bool
    prompt: bool


class Step(NamedTuple):
    """How far it has come."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class Placed:
    """Agreement of found boxes with asked ones, before plain backgrounds and where boxes are apart."""

    pictures: int  # with a plain background, of those whose real picture has one
    boxes: int  # in them; what is not found agrees by 0
    iou: float | None  # the mean; None of fewer than FEWEST
    half: Share  # of boxes that agree by more than HALF


@dataclass(frozen=True)
class KindScore:
    """How one kind of pictures does."""

    right: Right
    placed: Placed


@dataclass(frozen=True)
class LayoutScore:
    """All of it, by the kind of pictures: real, reconstructed, and by what the model was told."""

    pictures: int
    boxes: int  # that were asked for
    unread: int  # that the model would not have read; they were not asked for
    refused: tuple[str, ...]  # boxes that the model cannot be asked for, and why
    unjudged: int  # boxes whose labels the classifier did not see often enough
    labels: int  # that the classifier tells apart
    learnt: int  # crops that it learnt them from
    commonest: str  # of the labels in judged boxes
    commonest_share: float  # who always says it is right as often
    kinds: dict[str, KindScore]
    features: str  # the network that the classifier and the distances have them from
    crop_distances: CropDistances | None  # None of too few crops
    skipped: tuple[str, ...]  # pictures that could not be read, and why
    layouts: tuple[Layout, ...] = field(repr=False)  # the first KEPT
    real: Tensor = field(repr=False)  # and their pictures (KEPT, 3, H, W)
    painted: Tensor = field(repr=False)  # and what the model painted, told all

    def as_dict(self) -> dict[str, Any]:
        """All but the pictures, for JSON."""
        return {name: value for name, value in asdict(self).items() if name not in ("layouts", "real", "painted")}


def told(prompts: Sequence[str]) -> dict[str, Told]:
    """The ways to ask, by name, all of it first; without any prompt there are two."""
    if not any(prompts):
        return {"boxes": Told(True, False), "nothing": Told(False, False)}
    return {
        "boxes and prompt": Told(True, True),
        "boxes alone": Told(True, False),
        "prompt alone": Told(False, True),
        "nothing": Told(False, False),
    }


def painted(loaded: Loaded, layouts: Sequence[Layout], prompts: Sequence[str], way: Told, *, seed: int) -> Tensor:
    """Pictures (N, 3, H, W) at the model's defaults, told as much of the layouts as `way` says; k has `seed + k`."""
    asked_for = [
        requested(boxes=boxes if way.boxes else None, prompt=prompt if way.prompt else "", seed=(seed + k) % 2**64)
        for k, (boxes, prompt) in enumerate(zip(layouts, prompts, strict=True))
    ]
    return as_saved(generate(loaded, asked_for).images)


def measure(
    loaded: Loaded, asked: Asked, learning: Dataset, features: Features, *, seed: int
) -> Iterator[Step | LayoutScore]:
    """One picture a layout and a way to ask; `learning` are other pictures, with boxes, for the classifier.

    Yields how far it is, and the score last. ValueError if the classifier finds too little to learn.
    """
    skipped = list(asked.skipped)
    rows, labels = yield from _learning(learning, features, skipped, seed)
    recogniser = learnt(rows, labels)
    judge = Judge(asked.layouts, recogniser)
    ways = told(asked.prompts)
    seen = {name: _Seen(features) for name in (REAL, RECONSTRUCTED, *ways)}
    batch = min(BATCH, at_once(loaded.file.config.resolution))
    for begin in range(0, len(asked), batch):
        end = min(begin + batch, len(asked))
        layouts, real = asked.layouts[begin:end], asked.real(begin, end)
        where = [_measurable(image, boxes) for image, boxes in zip(real, layouts, strict=True)]
        seen[REAL].update(real, layouts, where)
        seen[RECONSTRUCTED].update(as_saved(reconstructed(loaded.model.first_stage, real)), layouts, where)
        for turn, (name, way) in enumerate(ways.items()):
            pictures = painted(loaded, layouts, asked.prompts[begin:end], way, seed=seed + begin)
            seen[name].update(pictures, layouts, where)
            yield Step("pictures", begin * len(ways) + (end - begin) * (turn + 1), len(asked) * len(ways))
    shown = {name: torch.cat(one.features) for name, one in seen.items()}
    commonest, share_of_it = judge.commonest
    yield LayoutScore(
        pictures=len(asked),
        boxes=sum(map(len, asked.layouts)),
        unread=asked.unread,
        refused=asked.refused,
        unjudged=judge.unjudged,
        labels=len(recogniser.labels),
        learnt=len(rows),
        commonest=commonest,
        commonest_share=share_of_it,
        kinds={name: KindScore(judge.right(shown[name]), one.placed()) for name, one in seen.items()},
        features=features.name,
        crop_distances=distances(shown, asked.owners(), real=REAL),
        skipped=tuple(skipped),
        layouts=asked.layouts[:KEPT],
        real=torch.stack(seen[REAL].kept),
        painted=torch.stack(seen[next(iter(ways))].kept),
    )


@dataclass
class _Seen:
    """What was seen of one kind of pictures."""

    net: Features
    features: list[Tensor] = field(default_factory=list)
    agreement: list[float] = field(default_factory=list)
    plain: int = 0
    kept: list[Tensor] = field(default_factory=list)

    def update(self, images: Tensor, layouts: Sequence[Layout], where: Sequence[Sequence[int]]) -> None:
        """Pictures (N, 3, H, W), what was asked for, and which of the boxes can be found."""
        self.features.append(self.net(crops(images, layouts)))
        for image, boxes, chosen in zip(images, layouts, where, strict=True):
            colour = ground(image, boxes) if chosen else None
            if colour is not None:
                self.plain += 1
                places = found(image, boxes, colour)
                self.agreement += [_agreement(boxes[i], places[i]) for i in chosen]
        self.kept += images[: KEPT - len(self.kept)]

    def placed(self) -> Placed:
        """How found boxes agree with asked ones."""
        n = len(self.agreement)
        mean = sum(self.agreement) / n if n >= FEWEST else None
        return Placed(self.plain, n, mean, share(sum(value > HALF for value in self.agreement), n))


def _learning(
    learning: Dataset, net: Features, skipped: list[str], seed: int
) -> Generator[Step, None, tuple[Tensor, list[str]]]:
    """The features of real crops, and their labels."""
    rows, labels = [], []
    for _, sample in readable(learning, drawn(len(learning), of=len(learning), seed=seed), skipped):
        boxes = sample["boxes"]
        if len(labels) >= LEARNT:
            break
        if boxes:
            rows.append(net(crops(sample["image"][None], [boxes])))
            labels += [box.label for box in boxes]
            yield Step("crops to learn from", min(len(labels), LEARNT), LEARNT)
    return torch.cat(rows) if rows else torch.zeros(0, net.dim), labels


def _measurable(image: Tensor, boxes: Layout) -> list[int]:
    """Which boxes can be found in a real picture, and so perhaps in one that is painted like it."""
    return [] if ground(image, boxes, within=EVEN) is None else apart(boxes)


def _agreement(box: Box, place: Box | None) -> float:
    return 0.0 if place is None else iou(box, place)
