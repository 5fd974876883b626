"""Whether the crops of one kind of pictures show what was asked for: in all, and by what the boxes are like."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sfumato.boxes import Box, Layout
from sfumato.evaluate.hidden import hidden
from sfumato.evaluate.recogniser import Recogniser
from sfumato.evaluate.share import Share, share

SMALL, MEDIUM = 1 / 3, 1 / 2  # of a picture's side, where boxes end that are so called: the root of their area
SIZES = ("small", "medium", "large")
HIDDEN = 0.3  # of a box, behind those in front of it


@dataclass(frozen=True)
class Right:
    """Shares of boxes in which the classifier reads the label that was asked for."""

    all: Share
    by_size: dict[str, Share]
    hidden: Share  # of those of which the boxes in front hide more than HIDDEN


class Judge:
    """Of the boxes of some layouts, from back to front; those are judged whose labels the classifier knows."""

    def __init__(self, layouts: Sequence[Layout], recogniser: Recogniser) -> None:
        self._recogniser = recogniser
        self._boxes = [box for layout in layouts for box in layout]
        self.judged = [i for i, box in enumerate(self._boxes) if box.label in recogniser.labels]
        self._sizes = {size: [i for i in self.judged if size_of(self._boxes[i]) == size] for size in SIZES}
        behind = [hidden(box, layout[k + 1 :]) > HIDDEN for layout in layouts for k, box in enumerate(layout)]
        self._hidden = [i for i in self.judged if behind[i]]
        if not self.judged:
            raise ValueError(f"no label that is asked for is among those to learn, as '{self._boxes[0].label}'")

    @property
    def unjudged(self) -> int:
        """How many boxes are not judged."""
        return len(self._boxes) - len(self.judged)

    @property
    def commonest(self) -> tuple[str, float]:
        """The label that most judged boxes have, and the share of those: as often is right who always says it."""
        label, n = Counter(self._boxes[i].label for i in self.judged).most_common(1)[0]
        return label, n / len(self.judged)

    def right(self, features: Tensor) -> Right:
        """By the features (boxes, D) of the crops of all boxes."""
        hits = [box.label == read for box, read in zip(self._boxes, self._recogniser.read(features), strict=True)]
        by_size = {size: _share(hits, which) for size, which in self._sizes.items()}
        return Right(_share(hits, self.judged), by_size, _share(hits, self._hidden))


def size_of(box: Box) -> str:
    """One of SIZES."""
    side = box.area**0.5
    return "small" if side < SMALL else "medium" if side < MEDIUM else "large"


def _share(hits: Sequence[bool], which: Sequence[int]) -> Share:
    return share(sum(hits[i] for i in which), len(which))
