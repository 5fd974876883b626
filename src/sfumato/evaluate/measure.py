"""A measure is fed part by part; measures of two halves of the data, merged, are the measure of the whole."""

from typing import NamedTuple, ParamSpec, Protocol, Self, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)


class Measure(Protocol[P, R_co]):
    """Sums over what was seen: of a size that does not grow, the same in any order but for rounding."""

    def update(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """See more."""
        ...

    def merge(self, other: Self) -> None:
        """See all that another has seen."""
        ...

    def compute(self) -> R_co:
        """The result so far."""
        ...


class Spread(NamedTuple):
    """Of `n` rows: the mean (D,) and the variance (D,), float64, divided by n."""

    n: int
    mean: Tensor
    variance: Tensor

    @property
    def std(self) -> Tensor:
        """Standard deviations (D,)."""
        return self.variance.sqrt()


class Deviations:
    """Mean and squared deviations of rows (N, D), in float64, joined so that no sums cancel (Chan et al. 1979)."""

    def __init__(self, dim: int, *shape: int) -> None:
        """`shape` is that of the squares that a kind sums."""
        self.n = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.scatter = torch.zeros(shape, dtype=torch.float64)

    def update(self, rows: Tensor) -> None:
        """`rows` (N, D) of any type."""
        rows = rows.detach().cpu().double()
        if len(rows):
            mean = rows.mean(0)
            self._add(len(rows), mean, self._squared(rows - mean))

    def merge(self, other: Self) -> None:
        """See the rows of another."""
        if other.n:
            self._add(other.n, other.mean, other.scatter)

    def _squared(self, deviations: Tensor) -> Tensor:
        """The sum over rows (N, D) of their squares."""
        raise NotImplementedError

    def _add(self, n: int, mean: Tensor, scatter: Tensor) -> None:
        total, apart = self.n + n, mean - self.mean
        self.mean = self.mean + apart * (n / total)
        self.scatter = self.scatter + scatter + self._squared(apart[None]) * (self.n * n / total)
        self.n = total


class Moments(Deviations):
    """The mean and the variance of each of `dim` numbers."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim)

    def compute(self) -> Spread:
        """The spread so far; ValueError of no rows."""
        if not self.n:
            raise ValueError("there is nothing to measure; at least one picture is needed")
        return Spread(self.n, self.mean, self.scatter / self.n)

    def _squared(self, deviations: Tensor) -> Tensor:
        return deviations.square().sum(0)
