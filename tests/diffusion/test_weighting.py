"""Weights of the levels: the published forms, the same error in every prediction, and the bound that they come from."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from given import given, middles
from mixture import BLIND, PATHS, f64
from sfumato.cond import Cond
from sfumato.diffusion.denoiser import Denoiser
from sfumato.diffusion.grid import trailing
from sfumato.diffusion.level import Level
from sfumato.diffusion.likelihood import bits, step_bound, variational_bound
from sfumato.diffusion.noise import Address
from sfumato.diffusion.objective import Loss, denoising_loss, times
from sfumato.diffusion.prediction import Prediction
from sfumato.diffusion.reverse import log_variances
from sfumato.diffusion.schedule import Flow, Schedule, Table, cosine, flow, geometric, linear, scaled_linear
from sfumato.diffusion.weighting import Weighting, bound_weight, converted, level_weight

DDPM = linear()
EPS, X0, V, FLOW = Prediction
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
every_weighting = pytest.mark.parametrize("kind", [k for k in get_args(Weighting) if k != "simple"])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def within(path: Schedule, n: int = 50) -> Level:
    """Levels all along the clock, the last one of a table too."""
    low, high = path.span
    t = low + (high - low) * (middles(n) if path.entries is None else torch.linspace(0, 1, n, dtype=torch.float64))
    return path.level(t.round() if path.entries else t)


def snr(at: Level) -> Tensor:
    return (at.alpha / at.sigma) ** 2


def weight(kind: Weighting, path: Schedule, prediction: Prediction, gamma: float | None = None) -> Tensor:
    return level_weight(kind, within(path), path, prediction, gamma=gamma)


# The published forms


@pytest.mark.parametrize("path", [DDPM, scaled_linear(), cosine(terminal_zero=True)], ids=["ddpm", "sd", "to zero"])
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_has_its_three_forms(path: Schedule, gamma: float) -> None:
    ratio = snr(within(path))
    least = ratio.clamp(max=gamma)
    torch.testing.assert_close(weight("min_snr", path, X0, gamma), least)
    torch.testing.assert_close(weight("min_snr", path, V, gamma), least / (ratio + 1))
    expected = torch.where(ratio > 0, least / ratio, 1.0)  # without any signal it is the limit
    torch.testing.assert_close(weight("min_snr", path, EPS, gamma), expected)
    assert (ratio > gamma).any()
    assert (ratio < gamma).any()


@every_path
def test_p2_is_its_formula_in_eps_on_every_path(path: Schedule) -> None:
    ratio = snr(within(path))
    torch.testing.assert_close(weight("p2", path, EPS), 1 / (1 + ratio))
    torch.testing.assert_close(weight("p2", path, EPS, 0.5), 1 / (1 + ratio).sqrt())


def test_p2_of_velocities_where_variance_is_preserved() -> None:
    """1 / (1 + SNR) is sigma^2, and an error in v is 1 / alpha of one in eps."""
    at = within(DDPM)
    torch.testing.assert_close(weight("p2", DDPM, V), at.sigma**2 * at.alpha**2)


@every_path
def test_simple_is_one_in_any_prediction(path: Schedule) -> None:
    for prediction in Prediction:
        assert torch.equal(weight("simple", path, prediction), torch.ones(50, dtype=torch.float64))


def test_the_bound_of_ddpm_is_equation_12_of_ho_et_al() -> None:
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alphas, abar = 1 - betas, (1 - betas).cumprod(0)
    posterior = betas[1:] * (1 - abar[:-1]) / (1 - abar[1:])
    variance = torch.cat([posterior[:1], posterior])  # the step to clean has that of the step before it
    expected = betas**2 / (2 * variance * alphas * (1 - abar))
    t = torch.arange(1000, dtype=torch.float64)
    got = converted(bound_weight(DDPM, t), DDPM.level(t), of=X0, to=EPS)
    torch.testing.assert_close(got, 1000 * expected, rtol=1e-8, atol=0)


@every_path
def test_the_bound_of_a_table_is_the_difference_of_snr(path: Schedule) -> None:
    """Kingma et al. 2021, eq. 14."""
    if path.entries is None:
        pytest.skip("no steps")
    t = torch.arange(1, path.entries, dtype=torch.float64)
    expected = path.entries / 2 * (snr(path.level(t - 1)) - snr(path.level(t)))
    torch.testing.assert_close(bound_weight(path, t), expected, rtol=1e-8, atol=0)


def test_the_bound_without_steps_is_the_slope_of_snr_and_the_limit_of_many() -> None:
    t = f64(0.1, 0.4, 0.5, 0.9)
    torch.testing.assert_close(bound_weight(flow(), t), (1 - t) / t**3)
    with torch.no_grad():
        torch.testing.assert_close(bound_weight(flow(), t), (1 - t) / t**3)
    n = 20_001  # the same path of many steps, in angle and so of preserved variance
    clock = torch.linspace(0.05, 0.95, n, dtype=torch.float64)
    ratio = ((1 - clock) / clock) ** 2
    fine = bound_weight(Table(ratio / (1 + ratio)), ((t.clamp(max=0.8) - 0.05) / 0.9 * (n - 1)).round())
    coarse = 0.9 * (1 - t.clamp(max=0.8)) / t.clamp(max=0.8) ** 3
    torch.testing.assert_close(fine, coarse, rtol=1e-3, atol=0)


class Thousandths(Flow):
    """The flow by a clock of 0 to 1000."""

    span = (0.0, 1000.0)

    def level(self, t: Tensor | float) -> Level:
        t = torch.as_tensor(t, dtype=torch.float64)
        return Level(t, 1 - t / 1000, t / 1000)


def test_the_bound_does_not_depend_on_the_unit_of_the_clock() -> None:
    t = f64(0.1, 0.4, 0.9)
    torch.testing.assert_close(bound_weight(Thousandths(), 1000 * t), bound_weight(flow(), t))


@every_path
def test_the_sigmoid_halves_the_bound_at_its_bias_and_leaves_it_in_the_noise(path: Schedule) -> None:
    at = within(path)
    share = level_weight("sigmoid", at, path, X0, bias=1.5) / bound_weight(path, at.t)
    torch.testing.assert_close(share, 1 / (1 + snr(at) * math.exp(-1.5)))
    middle = Level(*(v[None] for v in path.level(path.time(f64(0.75)[0]).round() if path.entries else f64(0.5)[0])))
    one = level_weight("sigmoid", middle, path, X0, bias=float(snr(middle).log())) / bound_weight(path, middle.t)
    torch.testing.assert_close(one, f64(0.5))


# One error in every prediction


@every_path
@every_weighting
def test_an_error_weighs_the_same_in_whatever_it_is_said(path: Schedule, kind: Weighting) -> None:
    at = within(path)
    if path.level(path.span[1]).alpha == 0:
        at = Level(*(v[:-1] for v in at))  # eps means nothing there
    x0, eps, guess = random(len(at.t)), random(len(at.t), seed=1), random(len(at.t), seed=2)
    x = at.alpha * x0 + at.sigma * eps
    wrong = (x - at.alpha * guess) / at.sigma  # the noise that goes with the guess
    weighed = []
    for prediction in Prediction:
        off = prediction.target(guess, wrong, at) - prediction.target(x0, eps, at)
        weighed.append(level_weight(kind, at, path, prediction) * off.square())
    for other in weighed[1:]:
        torch.testing.assert_close(other, weighed[0], rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", BLIND)
@every_weighting
def test_where_there_is_no_signal_all_but_eps_have_a_finite_weight(name: str, kind: Weighting) -> None:
    path = PATHS[name]
    last = (path.entries or 0) - 1
    at = path.level(f64(last if path.entries else 1.0))
    assert at.alpha == 0
    if path.entries is None and kind in ("bound", "sigmoid"):
        return  # the clock of a flow is never drawn at its end
    found = {p: level_weight(kind, at, path, p) for p in Prediction}
    assert all(found[p].isfinite().all() for p in (X0, V, FLOW))
    if kind in ("min_snr", "p2"):
        assert found[EPS] == 1
        assert found[X0] == found[V] == found[FLOW] == 0
    else:
        assert found[X0] > 0
        assert found[EPS].isinf().all()


@pytest.mark.parametrize("path", [DDPM, cosine(), flow()], ids=["ddpm", "cosine", "flow"])
@pytest.mark.parametrize("kind", ["min_snr", "p2", "sigmoid"])
def test_one_network_has_one_loss_in_all_predictions(path: Schedule, kind: Weighting) -> None:
    """As above through the loss itself, in float32: the answer to each question comes from one clean guess."""
    x0 = random(16, 2, 3, 3).float()
    at = Address.of(0, torch.arange(16))

    def loss(prediction: Prediction) -> Tensor:
        def net(x: Tensor, t: Tensor, *told: Tensor | None) -> Tensor:
            level = Level(*(v.view(-1, 1, 1, 1) for v in path.level(t)))
            guess = 0.3 * x.double().sin()
            return prediction.target(guess, (x - level.alpha * guess) / level.sigma, level)

        return denoising_loss(Denoiser(net, path, prediction), x0, Cond(), at, loss=Loss(weighting=kind))

    for prediction in Prediction:
        if prediction == EPS and kind == "sigmoid" and path.entries is None:
            continue  # refused: eps means nothing at the end of the flow
        torch.testing.assert_close(loss(prediction), loss(V), rtol=2e-4, atol=0)


# The bound is the bound


def of_gaussian(x: Tensor, at: Level) -> Tensor:
    """E[x0 | x] of data N(0.3, 0.6^2)."""
    return 0.3 + at.alpha * 0.36 / (at.alpha**2 * 0.36 + at.sigma**2) * (x - at.alpha * 0.3)


def denoiser_of_gaussian(path: Schedule, prediction: Prediction) -> Denoiser:
    def net(x: Tensor, t: Tensor, *told: Tensor | None) -> Tensor:
        at = Level(*(v.view(-1, *[1] * (x.ndim - 1)) for v in path.level(t)))
        guess = of_gaussian(x, at)
        return prediction.target(guess, (x - at.alpha * guess) / at.sigma, at)

    return Denoiser(net, path, prediction)


@pytest.mark.parametrize("prediction", [X0, V, EPS])
@pytest.mark.parametrize("path", [DDPM, geometric()], ids=["ddpm", "geometric"])
def test_the_loss_at_an_entry_is_its_term_of_the_bound(path: Schedule, prediction: Prediction) -> None:
    entries = path.entries
    assert entries is not None
    t = torch.arange(1, entries, 37)
    x0, eps = random(len(t), 5), random(len(t), 5, seed=1)
    at = given((t + 0.5) / entries, eps)
    loss = denoising_loss(denoiser_of_gaussian(path, prediction), x0, Cond(), at, loss=Loss(weighting="bound"))
    a, b = (Level(*(v[:, None] for v in path.level(u.double()))) for u in (t, t - 1))
    x = a.alpha * x0 + a.sigma * eps
    term = step_bound(x0, x, a, b, of_gaussian(x, a), variance="small", clip=False)
    torch.testing.assert_close(loss.double() / entries, term * math.log(2), rtol=3e-4, atol=0)  # answers are float32


def test_the_mean_loss_is_the_whole_bound_of_the_chain() -> None:
    """With one noise at all steps, and the density of the last one in the place of a bin's mass."""
    x0, eps = random(1, 6).clamp(-1, 1), random(1, 6, seed=1)
    chain = bits(variational_bound(x0, trailing(DDPM, 1000), noise=lambda _: eps, clip=False), of_gaussian)
    loss = denoising_loss(
        denoiser_of_gaussian(DDPM, X0),
        x0.expand(1000, 6),
        Cond(),
        given(middles(1000), eps),
        loss=Loss(weighting="bound"),
    ).double()
    assert float(loss[1:].sum() / 1000) == pytest.approx(float(chain.terms.sum()) * math.log(2), rel=1e-5)
    a, above = DDPM.level(0), DDPM.level(1)
    x = a.alpha * x0 + a.sigma * eps
    log_var = log_variances(a, Level.clean(0.0), above)[0]
    density = torch.distributions.Normal(of_gaussian(x, a), (log_var / 2).exp()).log_prob(x0)
    constant = (log_var + math.log(2 * math.pi)) / 2
    assert float(loss[0] / 1000) == pytest.approx(float(-density.mean() - constant), rel=1e-4)


# One expectation under any times


def density(path: Schedule, t: Tensor) -> Tensor:
    """How much more often "logit_normal" draws a time than "uniform" does."""
    if path.entries is None:
        return torch.distributions.Normal(0.0, 1.0).log_prob(t.logit()).exp() / (t * (1 - t))
    edges = torch.special.ndtr((torch.arange(path.entries + 1, dtype=torch.float64) / path.entries).logit())
    return edges.diff()[t.long()] * path.entries


@pytest.mark.parametrize("path", [scaled_linear(), flow()], ids=["table", "flow"])
@pytest.mark.parametrize("kind", ["simple", "min_snr", "p2", "sigmoid"])
@pytest.mark.parametrize("prediction", [V, X0])
def test_the_expected_loss_is_the_same_under_any_times(path: Schedule, kind: Weighting, prediction: Prediction) -> None:
    """Of a sample and its noise, by the rule of the middles over the clock: often as it is, or seldom with a weight."""
    n = 20_000
    at, x0 = given(middles(n), random(1, 2, seed=1)), random(1, 2).expand(n, 2)
    denoiser, loss = denoiser_of_gaussian(path, prediction), Loss(weighting=kind)

    def ratio(level: Level) -> Tensor:
        return density(path, level.t)

    often = denoising_loss(denoiser, x0, Cond(), at, kind="logit_normal", loss=loss).mean()
    weighed = denoising_loss(denoiser, x0, Cond(), at, kind="uniform", weight=ratio, loss=loss).mean()
    bare = denoising_loss(denoiser, x0, Cond(), at, kind="uniform", loss=loss).mean()
    assert float(weighed) == pytest.approx(float(often), rel=1e-3)
    assert abs(float(bare) / float(often) - 1) > 0.02


def test_logit_normal_times_of_a_table_have_the_mass_of_each_entry() -> None:
    """Chi squared of the entries that are expected at least five times."""
    n = 40_000
    counts = times("logit_normal", Address.of(3, torch.arange(n)), DDPM).long().bincount(minlength=1000).double()
    expected = density(DDPM, torch.arange(1000)) * n / 1000
    often = expected >= 5
    chi2 = float(((counts - expected) ** 2 / expected)[often].sum())
    degrees = int(often.sum()) - 1
    assert degrees > 800
    assert abs(chi2 - degrees) < 4 * math.sqrt(2 * degrees)
    assert abs(float(counts[~often].sum() - expected[~often].sum())) < 4 * math.sqrt(float(expected[~often].sum()))


@pytest.mark.parametrize("path", [DDPM, flow()], ids=["table", "flow"])
def test_stratified_times_are_uniform_in_each_part_and_so_altogether(path: Schedule) -> None:
    """Kolmogorov and Smirnov's distance of where in their parts 500 steps of 40 samples fall."""
    n, steps = 40, 500
    t = torch.stack([times("stratified", Address.of(5, torch.arange(n), step), path) for step in range(steps)])
    parts = t / (path.entries or 1) + (0 if path.entries is None else 0.5 / path.entries)  # the middle of an entry
    offset = (parts * n - torch.arange(n)).flatten().sort().values
    assert float(offset.min()) >= 0
    assert float(offset.max()) <= 1
    even = (torch.arange(len(offset), dtype=torch.float64) + 0.5) / len(offset)
    grain = 0 if path.entries is None else n / path.entries / 2
    assert float((offset - even).abs().max()) < 1.628 / math.sqrt(len(offset)) + grain
