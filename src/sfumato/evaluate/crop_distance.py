"""How far the crops of painted pictures are from those of real ones, by the Fréchet distance of their features.

Sylvain et al. (2021) call it SceneFID where the features are those of the FID's network; here it is called after the
network that made them. The distance of few crops from others is far above 0 even where both are real, and the more so
the fewer they are. So all distances are of as many crops: those of every other picture, real, against those of the
pictures between, painted or real, both ways, and the mean of the two. Real against real is the floor.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from sfumato.evaluate.frechet import Gaussian, Normal, frechet

LEAST = 100  # crops on a side: of fewer a distance is all floor


@dataclass(frozen=True)
class CropDistances:
    """Distances of `n` crops of each kind from `n` real ones of other pictures; that of real ones is the floor."""

    n: int
    distances: dict[str, float]


def distances(features: Mapping[str, Tensor], picture: Tensor, *, real: str) -> CropDistances | None:
    """Of the features (boxes, D) of some kinds of pictures, where `picture` (boxes) says of which; None of too few."""
    halves = [(picture % 2 == part).nonzero()[:, 0] for part in (0, 1)]
    n = min(map(len, halves))
    if n < LEAST:
        return None
    normals = {name: [_normal(rows[half[:n]]) for half in halves] for name, rows in features.items()}
    first, second = normals[real]
    found = {name: (frechet(first, other) + frechet(one, second)) / 2 for name, (one, other) in normals.items()}
    return CropDistances(n, found)


def _normal(rows: Tensor) -> Normal:
    gaussian = Gaussian(rows.shape[1])
    gaussian.update(rows)
    return gaussian.compute()
