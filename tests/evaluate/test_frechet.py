"""The Fréchet distance of Gaussians whose distance is known in closed form, and of rows against another way to it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sfumato.evaluate.frechet import Gaussian, Normal, frechet


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(n: int, dim: int, seed: int) -> Tensor:
    """Correlated, of unequal spread, off zero."""
    mix = torch.randn(dim, dim, dtype=torch.float64, generator=generator(seed))
    return torch.randn(n, dim, dtype=torch.float64, generator=generator(seed + 1)) @ mix + mix[0]


def rotation(dim: int, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=generator(seed)))[0]


def normal(mean: Tensor, covariance: Tensor) -> Normal:
    return Normal(100, mean.double(), covariance.double())


def seen(x: Tensor) -> Normal:
    gaussian = Gaussian(x.shape[1])
    gaussian.update(x)
    return gaussian.compute()


@given(
    a=st.lists(st.floats(0, 100), min_size=5, max_size=5),
    b=st.lists(st.floats(0, 100), min_size=5, max_size=5),
    seed=st.integers(0, 1000),
)
def test_commuting_covariances(a: list[float], b: list[float], seed: int) -> None:
    """|m1 - m2|^2 + sum of (sqrt a - sqrt b)^2 in the axes that both share, diagonal or rotated."""
    u, v = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    mean = torch.arange(5.0, dtype=torch.float64)
    expected = float(mean.square().sum() + (u.sqrt() - v.sqrt()).square().sum())
    for q in (torch.eye(5, dtype=torch.float64), rotation(5, seed)):
        one, other = normal(0 * mean, q @ u.diag() @ q.T), normal(q @ mean, q @ v.diag() @ q.T)
        assert frechet(one, other) == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert frechet(other, one) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(seed=st.integers(0, 1000))
def test_covariances_of_two_numbers_that_do_not_commute(seed: int) -> None:
    """The eigenvalues p, q of C1 C2 have p + q = tr and p q = det, so tr of the root is sqrt(tr + 2 sqrt(det))."""
    a, b = (rows(2, 2, seed + k) for k in (0, 10))
    c, d = a.T @ a, b.T @ b
    product = c @ d
    root = (product.trace() + 2 * torch.linalg.det(product).clamp_min(0).sqrt()).sqrt()
    expected = float(c.trace() + d.trace() - 2 * root)
    zero = torch.zeros(2)
    scale = float(c.trace() + d.trace())
    assert frechet(normal(zero, c), normal(zero, d)) == pytest.approx(expected, abs=1e-7 * scale)


@pytest.mark.parametrize(("n", "m", "dim"), [(60, 50, 8), (9, 7, 30), (2, 40, 30), (31, 31, 30)])
def test_of_rows_it_is_what_the_rows_say(n: int, m: int, dim: int) -> None:
    """The singular values of X Y^T of centred rows are those of the product of the roots: no covariance is needed."""
    x, y = rows(n, dim, 3), rows(m, dim, 5)
    u, v = ((r - r.mean(0)) / (len(r) - 1) ** 0.5 for r in (x, y))
    cross = torch.linalg.svdvals(u @ v.T).sum()
    expected = (x.mean(0) - y.mean(0)).square().sum() + u.square().sum() + v.square().sum() - 2 * cross
    assert frechet(seen(x), seen(y)) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("n", [3, 200])
def test_it_is_a_distance_that_turning_does_not_change(n: int) -> None:
    x, y = rows(n, 20, 7), rows(n, 20, 9)
    q = rotation(20, 11)
    there = frechet(seen(x), seen(y))
    assert there > 1
    assert frechet(seen(y), seen(x)) == pytest.approx(there, rel=1e-12)
    assert frechet(seen(x @ q + 5), seen(y @ q + 5)) == pytest.approx(there, rel=1e-9)
    assert frechet(seen(3 * x), seen(3 * y)) == pytest.approx(9 * there, rel=1e-9)
    assert frechet(seen(x), seen(x)) == pytest.approx(0, abs=1e-9)
    assert frechet(seen(x), seen(x + 0.5)) == pytest.approx(20 * 0.25, rel=1e-9)


def test_the_covariance_is_the_unbiased_one() -> None:
    x = rows(12, 5, 1)
    found = seen(x)
    assert found.n == 12
    torch.testing.assert_close(found.mean, x.mean(0))
    torch.testing.assert_close(found.covariance, torch.cov(x.T, correction=1))


def test_too_few_pictures_and_other_features_are_refused() -> None:
    gaussian = Gaussian(3)
    for n in (0, 1):
        with pytest.raises(ValueError, match=rf"needs at least 2 pictures, and there are {n}$"):
            gaussian.compute()
        gaussian.update(torch.ones(1, 3))
    gaussian.compute()
    with pytest.raises(ValueError, match="features of 3 and of 4 numbers cannot be compared"):
        frechet(seen(rows(5, 3, 0)), seen(rows(5, 4, 0)))
