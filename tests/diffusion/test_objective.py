"""The training loss: what it is for predictors whose loss is known in closed form, and the times it trains at."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mixture import PATHS, f64
from sfumato.cond import Cond
from sfumato.diffusion.denoiser import Denoiser
from sfumato.diffusion.level import Level
from sfumato.diffusion.noise import Address, Stream
from sfumato.diffusion.objective import Times, denoising_loss, times
from sfumato.diffusion.prediction import Prediction
from sfumato.diffusion.schedule import Schedule, flow, scaled_linear

SD = scaled_linear()
NONE = Cond()
every_kind = pytest.mark.parametrize("kind", list(Prediction))
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
every_law = pytest.mark.parametrize("law", get_args(Times))


def address(n: int, seed: int = 0) -> Address:
    return Address.of(seed, torch.arange(n))


def data(n: int) -> Tensor:
    return torch.randn(n, 2, 3, 3, generator=torch.Generator().manual_seed(4))


def perfect(path: Schedule, kind: Prediction, x0: Tensor, at: Address, *, off: float = 0.0) -> Denoiser:
    """Knows the clean picture and the noise of each sample; its answers are wrong by `off`."""
    eps = at.normal(x0, Stream.NOISE)

    def net(x: Tensor, t: Tensor, *told: Tensor | None) -> Tensor:
        level = Level(*(v.to(x0.dtype).view(-1, 1, 1, 1) for v in path.level(t)))
        torch.testing.assert_close(x, level.alpha * x0 + level.sigma * eps)  # it sees the state of that very level
        return kind.target(x0, eps, level) + off

    return Denoiser(net, path, kind)


@every_path
@every_kind
def test_the_loss_of_a_perfect_predictor_is_zero(path: Schedule, kind: Prediction) -> None:
    x0, at = data(16), address(16)
    loss = denoising_loss(perfect(path, kind, x0, at), x0, NONE, at)
    # on the flow the clock goes to the network in float32, so its own alpha and sigma are off by a rounding
    torch.testing.assert_close(loss, torch.zeros(16), rtol=0, atol=0 if path.entries else 1e-12)


@every_path
@every_kind
def test_the_loss_of_a_predictor_that_is_off_by_a_constant_is_its_square(path: Schedule, kind: Prediction) -> None:
    x0, at = data(16), address(16)
    loss = denoising_loss(perfect(path, kind, x0, at, off=0.5), x0, NONE, at)
    torch.testing.assert_close(loss, torch.full((16,), 0.25), rtol=1e-5, atol=0)


def silent(x: Tensor, t: Tensor, *told: Tensor | None) -> Tensor:
    return torch.zeros_like(x)


def test_the_loss_of_silence_is_the_mean_square_of_the_target_of_each_sample() -> None:
    x0, at = data(16), address(16)
    eps = at.normal(x0, Stream.NOISE)
    level = SD.level(times("uniform", at, SD).view(-1, 1, 1, 1))
    for kind in Prediction:
        loss = denoising_loss(Denoiser(silent, SD, kind), x0, NONE, at)
        expected = kind.target(x0.double(), eps.double(), level).square().mean((1, 2, 3))
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


SPREAD = 0.6
CLOSED: dict[Prediction, Callable[[Level], Tensor]] = {
    # x0 ~ N(0, s^2) and a linear predictor: the best one leaves the variance of the target given x
    Prediction.EPS: lambda at: at.alpha**2 * SPREAD**2 / (at.alpha**2 * SPREAD**2 + at.sigma**2),
    Prediction.X0: lambda at: at.sigma**2 * SPREAD**2 / (at.alpha**2 * SPREAD**2 + at.sigma**2),
    Prediction.V: lambda at: SPREAD**2 / (at.alpha**2 * SPREAD**2 + at.sigma**2),  # where alpha^2 + sigma^2 = 1
}


@pytest.mark.parametrize("kind", CLOSED)
def test_the_expected_loss_of_the_best_predictor_is_the_variance_that_is_left(kind: Prediction) -> None:
    """Within four standard errors of 4000 samples of 18 numbers."""
    n = 4000
    x0 = SPREAD * torch.randn(n, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def net(x: Tensor, t: Tensor, *told: Tensor | None) -> Tensor:
        at = Level(*(v.view(-1, 1, 1, 1) for v in SD.level(t)))
        best = at.alpha * SPREAD**2 / (at.alpha**2 * SPREAD**2 + at.sigma**2) * x
        return kind.target(best, (x - at.alpha * best) / at.sigma, at)

    denoiser, at = Denoiser(net, SD, kind), address(n)
    off = denoising_loss(denoiser, x0, NONE, at).double() - CLOSED[kind](
        SD.level(times("uniform", at, denoiser.schedule))
    )
    assert abs(float(off.mean())) < 4 * float(off.std()) / math.sqrt(n)


@every_law
def test_the_weight_multiplies_the_loss_of_each_sample_at_its_own_level(law: Times) -> None:
    x0, at = data(16), address(16)
    denoiser = Denoiser(silent, SD, Prediction.V)
    plain = denoising_loss(denoiser, x0, NONE, at, kind=law)
    weighed = denoising_loss(denoiser, x0, NONE, at, kind=law, weight=lambda level: level.sigma**2 + 1)
    level = SD.level(times(law, at, denoiser.schedule))
    torch.testing.assert_close(weighed.double(), plain.double() * (level.sigma**2 + 1), rtol=1e-5, atol=0)


def test_a_sample_is_trained_the_same_alone_and_among_others() -> None:
    x0, at = data(8), Address.of(3, torch.arange(100, 108), 5)

    def net(x: Tensor, t: Tensor, tokens: None, mask: None, vector: Tensor, maps: None) -> Tensor:
        return x * (t[:, None, None, None] / 1000) + vector[..., None, None]

    cond = Cond(vector=torch.arange(16.0).view(8, 2))
    denoiser = Denoiser(net, SD, Prediction.EPS)
    together = denoising_loss(denoiser, x0, cond, at, kind="logit_normal")
    for i in range(8):
        one = slice(i, i + 1)
        mine = Address(at.seed[one], at.index[one], at.step)
        alone = denoising_loss(denoiser, x0[one], cond.rows(one), mine, kind="logit_normal")
        torch.testing.assert_close(alone, together[one], rtol=1e-6, atol=0)


def test_the_gradient_is_that_of_the_squared_error() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(0.3))

        def forward(self, x: Tensor, *told: Tensor | None) -> Tensor:
            return self.weight * x

    x0, at = data(4), address(4)
    net = Scale()
    denoiser = Denoiser(net, SD, Prediction.EPS)
    denoising_loss(denoiser, x0, NONE, at).mean().backward()
    eps = at.normal(x0, Stream.NOISE)
    level = SD.level(times("uniform", at, denoiser.schedule).view(-1, 1, 1, 1))
    x = level.alpha * x0 + level.sigma * eps
    assert net.weight.grad is not None
    assert float(net.weight.grad) == pytest.approx(float((2 * (0.3 * x - eps) * x).mean()), rel=1e-5)


def test_the_network_is_told_the_clock_unrounded_whatever_the_type_of_the_latents() -> None:
    clocks: list[Tensor] = []

    def net(x: Tensor, t: Tensor, *told: Tensor | None) -> Tensor:
        clocks.append(t)
        return torch.zeros_like(x)

    denoiser, at = Denoiser(net, SD, Prediction.EPS), address(64)
    loss = denoising_loss(denoiser, data(64).bfloat16(), NONE, at)
    assert torch.equal(clocks[0].double(), times("uniform", at, denoiser.schedule))
    assert loss.dtype == torch.float32


@every_path
@every_law
@settings(max_examples=20)
@given(seed=st.integers(0, 2**64 - 1), n=st.integers(1, 40))
def test_times_lie_on_the_clock_and_are_whole_where_it_is_a_table(
    path: Schedule, law: Times, seed: int, n: int
) -> None:
    t = times(law, address(n, seed), path)
    low, high = path.span
    assert t.shape == (n,)
    assert (t >= low).all()
    assert (t <= high).all()
    if path.entries:
        assert torch.equal(t, t.round())


def law_of(law: Times, path: Schedule, n: int = 20_000) -> Tensor:
    return times(law, address(n, 3), path)


def distance(values: Tensor, cdf: Tensor) -> float:
    """Kolmogorov and Smirnov's, times the root of the number; a true sample exceeds 1.628 once in a hundred times."""
    steps = torch.arange(len(values) + 1, dtype=torch.float64) / len(values)
    return math.sqrt(len(values)) * float(torch.maximum((cdf - steps[:-1]).abs(), (cdf - steps[1:]).abs()).max())


def test_uniform_times_are_uniform() -> None:
    t = law_of("uniform", flow()).sort().values
    assert distance(t, t) < 1.628


def test_every_entry_of_a_table_is_trained_equally_often() -> None:
    """Chi squared with 999 degrees of freedom: mean 999, deviation 45."""
    counts = law_of("uniform", SD).long().bincount(minlength=1000).double()
    assert len(counts) == 1000
    assert abs(float(((counts - 20) ** 2 / 20).sum()) - 999) < 4 * 45


def test_logit_normal_times_are_a_standard_normal_through_a_sigmoid() -> None:
    t = law_of("logit_normal", flow()).sort().values
    assert distance(t, torch.special.ndtr(t.logit())) < 1.628


@pytest.mark.parametrize("n", [1, 7, 64])
def test_stratified_times_fall_one_into_each_part_of_the_clock(n: int) -> None:
    t = times("stratified", address(n, 9), flow())
    assert (t * n).floor().tolist() == list(range(n))
    offsets = (t * n).frac()
    assert len(set(offsets.tolist())) == n


def test_stratified_times_of_a_table_are_as_even_as_they_can_be() -> None:
    t = times("stratified", address(500, 9), SD)
    assert (t / 2).floor().tolist() == list(range(500))


def test_times_do_not_reuse_the_numbers_of_the_noise() -> None:
    at = address(1)
    assert float(at.uniform(Stream.TIME)) != float(at.uniform(Stream.NOISE))
    t = times("uniform", at, flow())
    assert torch.equal(t, f64(float(at.uniform(Stream.TIME, 2)[0, 0])))
