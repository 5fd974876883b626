"""What a loss can be: distances, offset noise, score matching, and the hybrid one of a learned variance."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fill import inp
from given import given, middles
from mixture import PATHS, THREE, f64
from sfumato.cond import Cond
from sfumato.diffusion.denoiser import Denoiser, Estimate
from sfumato.diffusion.grid import trailing
from sfumato.diffusion.level import Level
from sfumato.diffusion.likelihood import bits, variational_bound
from sfumato.diffusion.noise import Address, Stream
from sfumato.diffusion.objective import Loss, Times, denoising_loss, noised, times
from sfumato.diffusion.prediction import Prediction
from sfumato.diffusion.reverse import log_variances
from sfumato.diffusion.schedule import Schedule, cosine, flow, geometric, linear, scaled_linear
from sfumato.diffusion.weighting import Weighting

DDPM, SD, NONE = linear(), scaled_linear(), Cond()
EPS, X0, V, FLOW = Prediction
HYBRID = Loss(hybrid=0.001)


def address(n: int, seed: int = 0) -> Address:
    return Address.of(seed, torch.arange(n))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def beside(level: Level, x: Tensor) -> Level:
    return Level(*(v.view(-1, *[1] * (x.ndim - 1)) for v in level))


def as_answer(prediction: Prediction, guess: Tensor, x: Tensor, at: Level) -> Tensor:
    return prediction.target(guess, (x - at.alpha * guess) / at.sigma, at)


def near_zero(values: Tensor, errors: float = 4) -> bool:
    """Whether the mean is within so many standard errors of nothing."""
    return abs(float(values.mean())) < errors * float(values.std()) / math.sqrt(len(values))


# By default nothing has changed


class Affine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.3))
        self.slope = nn.Parameter(torch.tensor(1e-4))

    def forward(self, x: Tensor, t: Tensor, *told: Tensor | None) -> Tensor:
        return self.gain * x + (self.slope * t.view(-1, 1, 1, 1)).to(x.dtype)


@pytest.mark.parametrize("law", ["uniform", "stratified", "logit_normal"])
@pytest.mark.parametrize("prediction", list(Prediction))
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_the_default_is_bit_for_bit_the_mean_square(path: Schedule, prediction: Prediction, law: Times) -> None:
    net, x0, at = Affine(), random(8, 2, 4, 4).float(), address(8)
    x, eps, level = noised(path, x0, at, kind=law)
    out = net(x, level.t.float().reshape(-1))
    plain = (out.float() - prediction.target(x0, eps, level)).square().flatten(1).mean(1)
    expected = torch.autograd.grad(plain.mean(), list(net.parameters()))
    loss = denoising_loss(Denoiser(net, path, prediction), x0, NONE, at, kind=law)
    assert torch.equal(loss, plain)
    assert all(map(torch.equal, torch.autograd.grad(loss.mean(), list(net.parameters())), expected))
    named = denoising_loss(Denoiser(net, path, prediction), x0, NONE, at, kind=law, loss=Loss())
    assert torch.equal(named, plain)


# Distances


def test_huber_is_squares_near_and_absolute_values_far_away() -> None:
    off = torch.tensor([-3.0, -0.2, 0.0, 1e-6, 0.7, 40.0], dtype=torch.float64)
    got = Loss(distance="huber", huber=0.1).measure(off)
    torch.testing.assert_close(got, 0.2 * ((off**2 + 0.01).sqrt() - 0.1), rtol=1e-5, atol=1e-18)
    torch.testing.assert_close(Loss(distance="huber", huber=1e5).measure(off), off**2, rtol=1e-6, atol=0)
    torch.testing.assert_close(Loss(distance="huber", huber=1e-9).measure(off) / 2e-9, off.abs(), rtol=2e-3, atol=0)
    assert torch.equal(Loss(distance="huber").measure(off), got)  # 0.1 if not said


def test_huber_pulls_no_more_than_twice_its_constant() -> None:
    off = torch.linspace(-50, 50, 1001, dtype=torch.float64, requires_grad=True)
    (pull,) = torch.autograd.grad(Loss(distance="huber", huber=0.3).measure(off).sum(), off)
    torch.testing.assert_close(pull, 2 * off * 0.3 / (off**2 + 0.09).sqrt())
    assert 0.599 < float(pull.abs().max()) < 0.6


def test_a_small_error_is_not_lost_in_float32() -> None:
    off = torch.tensor([1e-5])
    torch.testing.assert_close(Loss(distance="huber", huber=1.0).measure(off), torch.tensor([1e-10]), rtol=1e-5, atol=0)


SPREAD = 0.6


def best_of_gaussian(path: Schedule, prediction: Prediction) -> Denoiser:
    """Of data N(0, 0.6^2): mean and median at once."""

    def net(x: Tensor, t: Tensor, *told: Tensor | None) -> Tensor:
        at = beside(path.level(t), x)
        guess = at.alpha * SPREAD**2 / (at.alpha**2 * SPREAD**2 + at.sigma**2) * x
        return as_answer(prediction, guess, x, at)

    return Denoiser(net, path, prediction)


@pytest.mark.parametrize("prediction", list(Prediction))
def test_the_least_absolute_error_of_a_gaussian_is_known(prediction: Prediction) -> None:
    """sqrt(2 / pi) deviations of what is left; the square root of the least square."""
    x0, at = SPREAD * random(4000, 2, 3, 3), address(4000)
    level = SD.level(times("uniform", at, SD))
    left = (level.alpha**2 * SPREAD**2 + level.sigma**2).rsqrt() * SPREAD  # the deviation of v, if variance is kept
    left = left * {EPS: level.alpha, X0: level.sigma, V: 1.0, FLOW: level.alpha + level.sigma}[prediction]
    loss = denoising_loss(best_of_gaussian(SD, prediction), x0, NONE, at, loss=Loss(distance="l1")).double()
    assert near_zero(loss - math.sqrt(2 / math.pi) * left)


def two_points(answer: str) -> Denoiser:
    """Data of +1 (three times in four) and -1 at one noise: guesses the mean or the median of what is possible."""

    def net(x: Tensor, t: Tensor, *told: Tensor | None) -> Tensor:
        at = beside(SD.level(t), x)
        log_odds = math.log(3) + 2 * at.alpha * x / at.sigma**2
        return torch.tanh(log_odds / 2) if answer == "mean" else log_odds.sign()

    return Denoiser(net, SD, X0)


def test_squares_want_the_mean_absolute_values_the_median_and_huber_something_between() -> None:
    u = address(20_000).uniform(Stream.ORDER)[:, :1]
    x0 = torch.where(u < 0.75, 1.0, -1.0).double()
    at = given(torch.full((20_000,), 0.5), address(20_000).normal(x0, Stream.NOISE))

    def mean(answer: str, loss: Loss) -> float:
        return float(denoising_loss(two_points(answer), x0, NONE, at, loss=loss).mean())

    assert mean("mean", Loss()) < mean("median", Loss())
    assert mean("median", Loss(distance="l1")) < mean("mean", Loss(distance="l1"))
    assert mean("mean", Loss(distance="huber", huber=10)) < mean("median", Loss(distance="huber", huber=10))
    assert mean("median", Loss(distance="huber", huber=0.01)) < mean("mean", Loss(distance="huber", huber=0.01))


# Offset noise


@pytest.mark.parametrize("shape", [(6, 3, 4, 4), (6, 3, 5), (6, 3)])
def test_the_offset_is_one_normal_number_for_a_channel_of_a_sample(shape: tuple[int, ...]) -> None:
    x0, at = random(*shape), address(6)
    _, plain, level = noised(SD, x0, at)
    x, eps, _ = noised(SD, x0, at, offset=0.1)
    shared = (eps - plain) / 0.1
    numbers = at.normal(torch.zeros(6, 3, dtype=torch.float64), Stream.OFFSET).reshape(6, 3, *[1] * (len(shape) - 2))
    torch.testing.assert_close(shared, numbers.expand(shape), rtol=0, atol=1e-12)
    torch.testing.assert_close(x, level.alpha * x0 + level.sigma * eps)


def test_offsets_are_normal_and_unlike_the_noise_that_they_are_added_to() -> None:
    x0, at = torch.zeros(2000, 4, 1, 1, dtype=torch.float64), address(2000)
    _, plain, _ = noised(SD, x0, at)
    numbers = noised(SD, x0, at, offset=1.0)[1] - plain
    ordered = torch.special.ndtr(numbers.flatten().sort().values)
    even = (torch.arange(8000, dtype=torch.float64) + 0.5) / 8000
    assert float((ordered - even).abs().max()) * math.sqrt(8000) < 1.628
    assert near_zero((numbers * plain).flatten())
    assert near_zero((numbers[:, 0] * numbers[:, 1]).flatten())


@pytest.mark.parametrize("prediction", list(Prediction))
def test_the_network_is_to_see_the_offset_as_noise(prediction: Prediction) -> None:
    x0, at = random(16, 2, 3, 3).float(), address(16)
    _, eps, _ = noised(SD, x0, at, offset=0.3)

    def net(x: Tensor, t: Tensor, *told: Tensor | None) -> Tensor:
        return prediction.target(x0, eps, beside(SD.level(t), x))

    loss = denoising_loss(Denoiser(net, SD, prediction), x0, NONE, at, loss=Loss(offset=0.3))
    assert float(loss.max()) < 1e-10
    plain = denoising_loss(Denoiser(net, SD, prediction), x0, NONE, at)
    assert prediction == X0 or float(plain.min()) > 1e-5


# Denoising score matching


SMLD = geometric(start=0.05, end=4.0, steps=12)


def score(x: Tensor, sigma: Tensor) -> Tensor:
    """Of the mixture THREE in noise of this size, as the gradient of its log-density."""
    x = x.detach().requires_grad_()
    var = THREE.spreads**2 + sigma**2  # (B, K)
    far = (x[:, None, :] - THREE.means).square().sum(-1)
    log_p = torch.logsumexp(THREE.weights.log() - far / (2 * var) - 1.5 * var.log(), dim=1)
    return torch.autograd.grad(log_p.sum(), x)[0]


def wrong_score(x: Tensor, sigma: Tensor) -> Tensor:
    return 0.8 * score(x, sigma) + 0.2 * (x / sigma).cos() / sigma


def scorer(function: Any) -> Denoiser:
    def net(x: Tensor, t: Tensor, *told: Tensor | None) -> Tensor:
        sigma = SMLD.level(t).sigma[:, None]
        return -sigma * function(x, sigma)

    return Denoiser(net, SMLD, EPS)


def test_eps_on_geometric_sigmas_is_denoising_score_matching() -> None:
    """Song & Ermon 2019, eq. 6: sigma^2 / 2 |s(x) + (x - x0) / sigma^2|^2."""
    x0, at = THREE.draw(64, seed=1), address(64)
    loss = denoising_loss(scorer(wrong_score), x0, NONE, at).double()
    sigma = SMLD.level(times("uniform", at, SMLD)).sigma[:, None]
    x = x0 + sigma * at.normal(x0, Stream.NOISE)
    matching = (sigma**2 / 2 * (wrong_score(x, sigma) + (x - x0) / sigma**2).square()).sum(1)
    torch.testing.assert_close(3 / 2 * loss, matching, rtol=1e-5, atol=0)


def test_its_minimiser_is_the_score_and_what_it_exceeds_the_least_is_the_distance_from_it() -> None:
    """Vincent 2011: matching noise is matching the score, but for a constant."""
    x0, at = THREE.draw(20_000, seed=2), address(20_000)
    sigma = SMLD.level(times("uniform", at, SMLD)).sigma[:, None]
    x = x0 + sigma * at.normal(x0, Stream.NOISE)
    torch.testing.assert_close(score(x, sigma), (THREE.x0(x, Level(sigma, f64(1.0), sigma)) - x) / sigma**2)
    least, more = (denoising_loss(scorer(f), x0, NONE, at).double() for f in (score, wrong_score))
    apart = (sigma**2 * (score(x, sigma) - wrong_score(x, sigma)).square()).mean(1)
    assert near_zero(more - least - apart)
    assert float(apart.mean()) > 0.02
    assert not near_zero(more - least)


@pytest.mark.parametrize("weighting", ["simple", "min_snr", "p2", "bound", "sigmoid"])
@pytest.mark.parametrize("prediction", list(Prediction))
def test_with_any_weights_and_prediction_the_best_answer_is_the_exact_denoiser(
    prediction: Prediction, weighting: Weighting
) -> None:
    """The gradient of the expected loss at it is nothing, and a step away from it costs the square of the step."""
    x0, at, path = THREE.draw(20_000, seed=3), address(20_000), SD

    def net(way: float) -> Denoiser:
        def answer(x: Tensor, t: Tensor, *told: Tensor | None) -> Tensor:
            level = beside(path.level(t), x)
            return as_answer(prediction, THREE.x0(x, level), x, level) + way * torch.cos(2 * x)

        return Denoiser(answer, path, prediction)

    def loss(way: float) -> Tensor:
        return denoising_loss(net(way), x0, NONE, at, loss=Loss(weighting=weighting)).double()

    up, here, down = loss(0.5), loss(0.0), loss(-0.5)
    assert near_zero(up - down)
    curvature = up + down - 2 * here
    assert float(curvature.mean()) > 0
    assert abs(float((up - down).mean())) < 0.1 * float(curvature.mean())


# A learned variance


class Halves(nn.Module):
    """A network whose two answers share no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.spread = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, *told: Tensor | None) -> Tensor:
        return torch.cat([self.mean(x), self.spread(x)], dim=1)

    def mean_alone(self, x: Tensor, t: Tensor, *told: Tensor | None) -> Tensor:
        return self.mean(x)


def published(x: Tensor, t: Tensor, *told: Tensor | None) -> Tensor:
    return inp("mo", 2, 6, 4, 4)


def test_the_hybrid_loss_of_improved_ddpm_is_the_published_one() -> None:
    x0, at = inp("x0", 2, 3, 4, 4).clamp(-1, 1), given(f64(0.0005, 0.5005), inp("noise", 2, 3, 4, 4))
    assert times("uniform", at, DDPM).tolist() == [0, 500]
    loss = denoising_loss(Denoiser(published, DDPM, EPS, learned=True), x0, NONE, at, loss=HYBRID)
    torch.testing.assert_close(loss.double(), f64(*KNOWN["loss"]), rtol=3e-6, atol=0)
    twice = denoising_loss(Denoiser(published, DDPM, EPS, learned=True), x0, NONE, at, loss=Loss(hybrid=0.002))
    torch.testing.assert_close((twice - loss).double(), f64(*KNOWN["vb"]), rtol=1e-5, atol=0)
    torch.testing.assert_close((2 * loss - twice).double(), f64(*KNOWN["mse"]), rtol=3e-6, atol=0)


KNOWN = {
    "vb": [2.3931307792663574, 0.014496203511953354],
    "mse": [1.5613197088241577, 1.8226817846298218],
    "loss": [3.9544506072998047, 1.8371779918670654],
}


@pytest.mark.parametrize("prediction", list(Prediction))
@pytest.mark.parametrize("path", [DDPM, cosine(), geometric()], ids=["ddpm", "cosine", "geometric"])
def test_the_bound_moves_the_variance_and_not_the_mean(path: Schedule, prediction: Prediction) -> None:
    net, at = Halves(), given(middles(6), inp("noise", 6, 3, 4, 4))  # a step to clean and the noisiest are among them
    x0 = inp("x0", 6, 3, 4, 4).clamp(-1, 1)
    hybrid = denoising_loss(Denoiser(net, path, prediction, learned=True), x0, NONE, at, loss=HYBRID)
    simple = denoising_loss(Denoiser(net.mean_alone, path, prediction), x0, NONE, at)
    mean, spread = list(net.mean.parameters()), list(net.spread.parameters())
    got = torch.autograd.grad(hybrid.mean(), mean, retain_graph=True)
    assert all(map(torch.equal, got, torch.autograd.grad(simple.mean(), mean)))
    moved = torch.autograd.grad(hybrid.mean(), spread)
    assert all(bool(g.isfinite().all()) and float(g.abs().max()) > 0 for g in moved)


def test_its_mean_over_all_steps_is_the_bound_of_the_chain() -> None:
    """The terms and the last step of the published bound; the prior has nothing to learn."""
    x0, eps = random(1, 2, 3, 3).clamp(-1, 1), random(1, 2, 3, 3, seed=1)

    def net(x: Tensor, t: Tensor, *told: Tensor | None) -> Tensor:
        return torch.cat([0.5 * x, torch.tanh(x + t.view(-1, 1, 1, 1) / 1000)], dim=1)

    denoiser = Denoiser(net, DDPM, EPS, learned=True)
    chain = variational_bound(x0, trailing(DDPM, 1000), noise=lambda _: eps, variance="learned", clip=False)
    whole = bits(chain, lambda x, at: denoiser.estimate(x, at, NONE))
    one, two = (
        denoising_loss(denoiser, x0.expand(1000, -1, -1, -1), NONE, given(middles(1000), eps), loss=Loss(hybrid=h))
        for h in (1.0, 2.0)
    )
    assert float((two - one).double().mean()) == pytest.approx(float(whole.total - whole.prior), rel=1e-5)


@pytest.mark.parametrize("prediction", [EPS, V])
def test_the_best_variance_is_what_the_data_leaves(prediction: Prediction) -> None:
    """Of Gaussian data a step down is a Gaussian of known variance: there the bound has no slope, beside it it has.

    At the entries 1 to 8, where both ends of what can be learnt lie far apart.
    """
    n = 4000
    x0, t = SPREAD * random(n, 1, 4, 4), torch.arange(n, dtype=torch.float64) % 8 + 1
    at = given((t + 0.5) / 1000, address(n).normal(x0, Stream.NOISE))
    assert torch.equal(times("uniform", at, DDPM), t)
    a, b = DDPM.level(t), DDPM.level(t - 1)
    low, high = log_variances(a, b, None)
    left = SPREAD**2 * a.sigma**2 / (a.alpha**2 * SPREAD**2 + a.sigma**2)  # Var[x0 | x]
    gain = b.alpha * (1 - (a.alpha / b.alpha) ** 2 * b.sigma**2 / a.sigma**2)
    best = ((low.exp() + gain**2 * left).log() - low) / (high - low)
    assert 0 <= float(best.min()) <= float(best.max()) <= 1

    def slope(off: float) -> Tensor:
        shift = torch.full((n, 1, 1, 1), off, dtype=torch.float64, requires_grad=True)

        def net(x: Tensor, clock: Tensor, *told: Tensor | None) -> Tensor:
            mean = best_of_gaussian(DDPM, prediction).net(x, clock)
            return torch.cat([mean, ((2 * best - 1).view(-1, 1, 1, 1) + shift).expand_as(x)], dim=1)

        loss = denoising_loss(Denoiser(net, DDPM, prediction, learned=True), x0, NONE, at, loss=Loss(hybrid=1.0))
        return torch.autograd.grad(loss.sum(), shift)[0].flatten()

    assert near_zero(slope(0.0))
    assert float(slope(0.2).mean()) > 0 > float(slope(-0.2).mean())
    assert not near_zero(slope(0.2), errors=8)
    assert not near_zero(slope(-0.2), errors=8)


def test_the_mean_of_a_learned_network_is_read_as_sampling_reads_it() -> None:
    """Zero loss of squares where its clean guess is the picture, whatever it says of the spread."""
    x0, at = random(8, 2, 3, 3).clamp(-1, 1).float(), address(8)
    eps = at.normal(x0, Stream.NOISE)

    def net(x: Tensor, t: Tensor, *told: Tensor | None) -> Tensor:
        return torch.cat([V.target(x0, eps, beside(SD.level(t), x)).float(), torch.full_like(x, 0.4)], dim=1)

    denoiser = Denoiser(net, SD, V, learned=True)
    one, two = (denoising_loss(denoiser, x0, NONE, at, loss=Loss(hybrid=h)) for h in (0.001, 0.002))
    assert float((2 * one - two).abs().max()) < 1e-5
    guess = denoiser.estimate(*noised(SD, x0, at)[::2], NONE)
    assert isinstance(guess, Estimate)
    torch.testing.assert_close(guess.x0, x0, rtol=0, atol=1e-4)


# What cannot be


@pytest.mark.parametrize(
    ("path", "prediction", "learned", "law", "loss", "message"),
    [
        (SD, V, True, "uniform", Loss(), "learns its variance, which the bound alone trains; set hybrid=0.001"),
        (SD, V, False, "uniform", HYBRID, "hybrid is for a network that learns its variance"),
        (flow(), FLOW, True, "uniform", HYBRID, "this schedule has none; take no hybrid"),
        (flow(), FLOW, False, "uniform", Loss(weighting="bound"), "no weighting 'bound'"),
        (SD, V, True, "uniform", Loss(hybrid=0.001, offset=0.1), "either it or an offset"),
        (SD, V, False, "uniform", Loss(weighting="bound", offset=0.1), "either it or an offset"),
        (SD, V, False, "uniform", Loss(weighting="bound", distance="l1"), "take distance 'l2', not 'l1'"),
        (SD, V, False, "logit_normal", Loss(weighting="bound"), "take 'uniform' or 'stratified'"),
        (scaled_linear(terminal_zero=True), EPS, True, "uniform", HYBRID, "eps means no picture; take prediction 'v'"),
        (scaled_linear(terminal_zero=True), EPS, False, "uniform", Loss(weighting="bound"), "take prediction 'v'"),
        (flow(), EPS, False, "uniform", Loss(weighting="sigmoid"), "take prediction 'v'"),
    ],
)
def test_a_loss_that_this_network_cannot_be_trained_by_is_refused(
    path: Schedule, prediction: Prediction, learned: bool, law: Times, loss: Loss, message: str
) -> None:
    net = Denoiser(Halves() if learned else Halves().mean_alone, path, prediction, learned=learned)
    with pytest.raises(ValueError, match=message) as caught:
        denoising_loss(net, random(2, 3, 4, 4).float(), NONE, address(2), kind=law, loss=loss)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=message):
        loss.check(path, prediction, law, learned=learned)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"distance": "huber", "huber": 0.0}, "huber is 0.0; it must be positive"),
        ({"huber": 0.1}, "huber is of distance 'huber' alone"),
        ({"gamma": 5.0}, "gamma is of weightings 'min_snr' and 'p2' alone"),
        ({"weighting": "min_snr", "gamma": -1.0}, "gamma is -1.0; it must be positive"),
        ({"weighting": "bound", "gamma": 1.0}, "gamma is of"),
        ({"weighting": "p2", "bias": 1.0}, "bias is of weighting 'sigmoid' alone"),
        ({"weighting": "sigmoid", "bias": math.inf}, "bias is inf; it must be finite"),
        ({"offset": -0.1}, "offset is -0.1; it must be at least 0"),
        ({"hybrid": math.nan}, "hybrid is nan; it must be at least 0"),
    ],
)
def test_a_loss_that_is_none_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Loss(**fields)
    assert "\n" not in str(caught.value)
