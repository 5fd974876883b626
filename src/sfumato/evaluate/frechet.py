"""The Fréchet distance of two sets of pictures: how far the Gaussians of their features are apart (Heusel et al. 2017).

|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of means and covariances is FID where the features are those of one
certain Inception network. Of other features it is another number, and is called after their network.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.evaluate.measure import Deviations


class Normal(NamedTuple):
    """Of `n` rows the mean (D,) and the covariance (D, D), float64, divided by n - 1."""

    n: int
    mean: Tensor
    covariance: Tensor


class Gaussian(Deviations):
    """The mean and the covariance of features of `dim` numbers."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, dim)

    def compute(self) -> Normal:
        """The Gaussian so far; ValueError of fewer than two rows."""
        if self.n < 2:  # noqa: PLR2004
            raise ValueError(f"a Fréchet distance needs at least 2 pictures, and there are {self.n}")
        return Normal(self.n, self.mean, self.scatter / (self.n - 1))

    def _squared(self, deviations: Tensor) -> Tensor:
        return deviations.T @ deviations


def frechet(a: Normal, b: Normal) -> float:
    """The squared Fréchet (2-Wasserstein) distance of two Gaussians (Dowson & Landau 1982).

    The eigenvalues of C1 C2 are those of the symmetric R1 C2 R1^T where C1 = R1^T R1, so the trace of the root is
    the sum of the singular values of R1 R2^T, in which nothing was squared: it is exact to rounding where C1 = C2, and
    of n < D pictures it takes n - 1 directions.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {len(a.mean)} and of {len(b.mean)} numbers cannot be compared")
    root = torch.linalg.svdvals(_root(a.covariance) @ _root(b.covariance).T).sum()
    spread = a.covariance.trace() + b.covariance.trace() - 2 * root
    return max(0.0, float((a.mean - b.mean).square().sum() + spread))


def _root(covariance: Tensor) -> Tensor:
    """R (r, D) with R^T R = C, by Cholesky's steps in the order of what is left: one for each direction of spread."""
    left, root = covariance.diagonal().clone(), torch.zeros_like(covariance)
    nothing = left.max() * len(left) * torch.finfo(left.dtype).eps
    for k in range(len(left)):
        most = left.argmax()
        if left[most] <= nothing:
            return root[:k]
        root[k] = (covariance[most] - root[:k, most] @ root[:k]) / left[most].sqrt()
        left -= root[k].square()
        left[most] = 0
    return root
