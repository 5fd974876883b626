"""The distances of crops: as many on each side, from other pictures, both ways."""

from __future__ import annotations

import pytest
import torch

from sfumato.evaluate import crop_distance
from sfumato.evaluate.crop_distance import distances
from sfumato.evaluate.frechet import Gaussian, Normal, frechet


def rows(n: int, seed: int, dim: int = 6) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal(x: torch.Tensor) -> Normal:
    gaussian = Gaussian(x.shape[1])
    gaussian.update(x)
    return gaussian.compute()


def test_real_pictures_are_compared_with_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crop_distance, "LEAST", 20)
    picture = torch.arange(45).div(3, rounding_mode="floor")  # three boxes in each of 15: 24 and 21
    real, other = rows(45, 0), 2 * rows(45, 1) + 1
    even, odd = picture % 2 == 0, picture % 2 == 1
    first, second = normal(real[even][:21]), normal(real[odd])
    found = distances({"real": real, "other": other}, picture, real="real")
    assert found is not None
    assert found.n == 21
    assert found.distances["real"] == pytest.approx(frechet(first, second), rel=1e-12)
    both = frechet(first, normal(other[odd])) + frechet(normal(other[even][:21]), second)
    assert found.distances["other"] == pytest.approx(both / 2, rel=1e-12)
    assert found.distances["other"] > found.distances["real"] + 5


def test_of_too_few_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crop_distance, "LEAST", 20)
    picture = torch.arange(40)
    assert distances({"real": rows(40, 0)}, picture, real="real") is not None
    assert distances({"real": rows(39, 0)}, picture[:39], real="real") is None
    assert distances({"real": rows(60, 0)}, torch.zeros(60), real="real") is None  # all of one picture
