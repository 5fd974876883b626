"""Logistic regression against plain gradient descent, and where there is something to tell apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sfumato.evaluate.logistic import Logistic, fit


def clouds(apart: float, *, n: int = 30, classes: int = 3, dim: int = 4) -> tuple[Tensor, Tensor]:
    """Points about a place for each class."""
    generator = torch.Generator().manual_seed(0)
    places = apart * torch.randn(classes, dim, generator=generator, dtype=torch.float64)
    y = torch.arange(classes).repeat(n)
    return places[y] + torch.randn(len(y), dim, generator=generator, dtype=torch.float64), y


def loss(found: Logistic, x: Tensor, y: Tensor, l2: float) -> Tensor:
    chosen = found.logits(x).log_softmax(1)[torch.arange(len(y)), y]
    return -chosen.mean() + l2 / 2 * found.weight.square().sum()


def by_gradient(x: Tensor, y: Tensor, classes: int, l2: float) -> Logistic:
    """Steps down the slope, as autograd finds it, until it is flat."""
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    for _ in range(20_000):
        slopes = torch.autograd.grad(loss(Logistic(weight, bias), x, y, l2), (weight, bias))
        with torch.no_grad():
            weight -= 0.5 * slopes[0]
            bias -= 0.5 * slopes[1]
        if max(float(slope.abs().max()) for slope in slopes) < 1e-9:
            return Logistic(weight.detach(), bias.detach())
    raise AssertionError("it does not end")


@pytest.mark.parametrize("l2", [1.0, 0.05])
def test_it_is_the_least(l2: float) -> None:
    x, y = clouds(1.0)
    found, slow = fit(x, y, classes=3, l2=l2), by_gradient(x, y, 3, l2)
    torch.testing.assert_close(found.weight, slow.weight, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.bias, slow.bias, rtol=0, atol=1e-5)
    assert found.bias.sum() == pytest.approx(0, abs=1e-12)
    assert float(loss(found, x, y, l2)) <= float(loss(slow, x, y, l2)) + 1e-10


def test_what_is_apart_is_told_apart() -> None:
    x, y = clouds(20.0, classes=5, dim=8)
    found = fit(x.float(), y, classes=5, l2=1e-4)
    assert torch.equal(found.logits(x).argmax(1), y)


def test_it_is_the_same_each_time_and_in_any_order() -> None:
    x, y = clouds(1.0)
    first, again, turned = (
        fit(x, y, classes=3, l2=0.1),
        fit(x, y, classes=3, l2=0.1),
        fit(x.flip(0), y.flip(0), classes=3, l2=0.1),
    )
    assert torch.equal(first.weight, again.weight)
    torch.testing.assert_close(first.weight, turned.weight, rtol=0, atol=1e-6)


def test_without_features_it_knows_how_often() -> None:
    y = torch.tensor([0, 0, 0, 1])
    found = fit(torch.zeros(4, 2), y, classes=3, l2=1.0)
    odds = found.logits(torch.zeros(1, 2)).softmax(1)[0]
    assert odds[:2].tolist() == pytest.approx([0.75, 0.25], abs=1e-3)  # the third never was: its bias goes on falling
    assert torch.equal(found.weight, torch.zeros(3, 2, dtype=torch.float64))
