"""Multinomial logistic regression: the linear classifier of features whose labels are the likeliest.

Minimised over weights W (K, D) and biases b (K) is the mean of -log softmax(W x + b)[y] plus l2 / 2 |W|^2, which is
convex and has one least place in W (Bishop 2006, sec. 4.3.4); b begins at 0 and keeps the sum 0. By L-BFGS (Liu &
Nocedal 1989) in float64: no chance in it.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

STEPS = 500  # at most; some 50 are needed
SMALL = 1e-7  # the largest part of the gradient where it ends


class Logistic(NamedTuple):
    """Weights (K, D) and biases (K), float64."""

    weight: Tensor
    bias: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """Features (N, D) of any type to logits (N, K), float64."""
        return F.linear(x.double(), self.weight, self.bias)


def fit(x: Tensor, y: Tensor, *, classes: int, l2: float) -> Logistic:
    """The classifier of features `x` (N, D) with labels `y` (N) from 0 to classes - 1."""
    x = x.detach().double()
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64)
    bias = torch.zeros(classes, dtype=torch.float64)
    search = torch.optim.LBFGS(
        [weight, bias], max_iter=STEPS, tolerance_grad=SMALL, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def loss() -> float:
        logits = F.linear(x, weight, bias)
        weight.grad, bias.grad = _gradient(logits, x, y)
        weight.grad += l2 * weight
        return float(F.cross_entropy(logits, y) + l2 / 2 * weight.square().sum())

    search.step(loss)
    return Logistic(weight, bias)


def _gradient(logits: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Of the mean cross entropy, to weights and biases."""
    wrong = (logits.softmax(1) - F.one_hot(y, logits.shape[1])) / len(y)  # (N, K)
    return wrong.T @ x, wrong.sum(0)
