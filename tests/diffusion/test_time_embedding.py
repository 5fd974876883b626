"""The two sinusoidal embeddings against the published numbers. They are not each other."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sfumato.nets.embed import sinusoid, sinusoid_ddpm

DIGITS = 6e-8  # half a unit of the seventh digit, and a bit


def embed(f: Callable[[Tensor, int], Tensor], t: float, dim: int) -> Tensor:
    return f(torch.tensor([t]), dim)[0].double()


def near(values: Tensor, published: list[float], atol: float) -> None:
    torch.testing.assert_close(values, torch.tensor(published, dtype=torch.float64), rtol=0, atol=atol)


def test_adm_embedding_at_one_is_the_published_one() -> None:
    e = embed(sinusoid, 1, 320)
    near(e[:4], [0.5403023, 0.5865038, 0.6284394, 0.6664233], 2 * DIGITS)
    near(e[160:164], [0.8414710, 0.8099465, 0.7778585, 0.7455736], 2 * DIGITS)


def test_adm_embedding_at_981_is_the_published_one() -> None:
    e = embed(sinusoid, 981, 320)
    near(e[:4], [0.6799572, -0.7984292, 0.5780641, -0.6747004], 1e-4)  # float32 angles near 981 are 6e-5 apart
    near(e[160:164], [0.7332518, 0.6020887, 0.8159913, 0.7380916], 1e-4)
    near(e[[159, 319]], [0.9946059, 0.1037259], 2 * DIGITS)


def test_adm_frequencies_are_the_published_ones() -> None:
    small = 1e-3  # where the sine is its angle
    angle = embed(sinusoid, small, 320)[160:] / small
    assert float(angle[1]) == pytest.approx(0.94406088, rel=1e-6)
    assert float(angle[159]) == pytest.approx(1.0592537e-4, rel=1e-6)


def test_ddpm_embedding_at_500_is_the_published_one() -> None:
    e = embed(sinusoid_ddpm, 500, 128)
    near(e[:3], [-0.46777181, -0.99968162, 0.57410067], 3e-5)  # float32 angles near 500 are 3e-5 apart
    near(e[[63, 127]], [0.04997917, 0.99875026], DIGITS)
    near(e[64:66], [-0.88384927, 0.0252322], 3e-5)


@given(t=st.floats(0, 999, width=32))
def test_fractional_times_are_embedded_as_they_are(t: float) -> None:
    half = 8
    for f, order, divisor in ((sinusoid, (0, 1), half), (sinusoid_ddpm, (1, 0), half - 1)):
        angle = [t * math.exp(-math.log(10_000) * i / divisor) for i in range(half)]
        waves = [[math.cos(a) for a in angle], [math.sin(a) for a in angle]]
        near(embed(f, t, 2 * half), waves[order[0]] + waves[order[1]], 2e-4)


@pytest.mark.parametrize("f", [sinusoid, sinusoid_ddpm])
def test_an_odd_width_gets_one_zero_column_at_the_end(f: Callable[[Tensor, int], Tensor]) -> None:
    t = torch.tensor([3.25, 500.0])
    odd = f(t, 17)
    assert torch.equal(odd[:, :16], f(t, 16))
    assert torch.equal(odd[:, 16], torch.zeros(2))


@pytest.mark.parametrize("f", [sinusoid, sinusoid_ddpm])
def test_each_row_is_the_embedding_of_its_own_time(f: Callable[[Tensor, int], Tensor]) -> None:
    t = torch.tensor([0.0, 0.5, 981.0, 12.75])
    assert torch.equal(f(t, 64), torch.cat([f(s[None], 64) for s in t]))
    assert torch.equal(f(t.double(), 64), f(t, 64))
