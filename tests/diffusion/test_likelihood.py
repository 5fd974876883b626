"""Likelihoods: the published numbers, closed forms of Gaussians, and the exact density of a mixture."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from fill import inp
from mixture import PATHS, THREE, between, f64, row_by_row
from sfumato.cond import Cond
from sfumato.diffusion.denoiser import Denoise, Denoiser, Estimate
from sfumato.diffusion.grid import Grid, trailing
from sfumato.diffusion.level import Level
from sfumato.diffusion.likelihood import (
    bits,
    bits_per_dim,
    discretised_gaussian,
    flow_log_density,
    prior_bound,
    step_bound,
    variational_bound,
)
from sfumato.diffusion.noise import seeded
from sfumato.diffusion.prediction import Prediction
from sfumato.diffusion.reverse import Variance, posterior_mean, reverse
from sfumato.diffusion.schedule import Schedule, cosine, flow, linear, scaled_linear

DDPM = linear()
GREY = torch.arange(256, dtype=torch.float64) / 127.5 - 1
CLEAN = Level.clean(0.0)
three_paths = pytest.mark.parametrize(
    "path", [scaled_linear(), cosine(), flow()], ids=["scaled_linear", "cosine", "flow"]
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def stacked(*levels: Level) -> Level:
    """A level for each sample of a batch of pictures."""
    return Level(*(torch.stack(v).reshape(-1, 1, 1, 1) for v in zip(*levels, strict=True)))


def stretch(path: Schedule, lam: tuple[float, float] = (-2.5, 2.0)) -> tuple[Level, Level]:
    a, b = (path.level(path.time(f64(v)[0])) for v in lam)
    return a, b


def then_clean(grid: Grid) -> Grid:
    return Grid(grid.schedule, (*grid.levels, CLEAN))


def snr(at: Level) -> Tensor:
    return (at.alpha / at.sigma) ** 2


def of_gaussian(mean: float, std: float) -> Denoise:
    """E[x0 | x] if every number of the data is N(mean, std^2)."""

    def denoise(x: Tensor, at: Level) -> Tensor:
        gain = at.alpha * std**2 / (at.alpha**2 * std**2 + at.sigma**2)
        return mean + gain * (x - at.alpha * mean)

    return denoise


# The discretised Gaussian


@pytest.mark.parametrize(("x", "mean", "log_p"), [(0, 0, -3.46472736), (-1, -0.9, -1.78096872), (1, 0.9, -1.78096872)])
def test_a_bin_has_the_published_probability(x: float, mean: float, log_p: float) -> None:
    got = discretised_gaussian(f64(x), f64(mean), f64(0.1).log())
    torch.testing.assert_close(got, f64(log_p), rtol=0, atol=1e-8)


@pytest.mark.parametrize(("mean", "std"), [(0.3, 0.1), (-0.97, 0.5), (1.4, 0.03), (0.1, 1e-3)])
@pytest.mark.parametrize("bins", [256, 32])
def test_the_bins_have_the_masses_of_the_normal_and_sum_to_one(mean: float, std: float, bins: int) -> None:
    half = 1 / (bins - 1)
    x = torch.linspace(-1, 1, bins, dtype=torch.float64)
    p = discretised_gaussian(x, f64(mean), f64(std).log(), half=half).exp()
    assert float(p.sum()) == pytest.approx(1, abs=1e-9)  # the floor adds 1e-12 a bin
    edges = torch.cat([f64(-math.inf), (x[1:] + x[:-1]) / 2, f64(math.inf)])
    torch.testing.assert_close(p, torch.special.ndtr((edges - mean) / std).diff(), rtol=0, atol=5e-4)


def test_a_bin_out_of_reach_has_the_least_probability_and_not_none() -> None:
    got = discretised_gaussian(f64(0.9), f64(-0.9), f64(0.01).log())
    assert float(got) == pytest.approx(math.log(1e-12))


# One step


def published() -> tuple[Tensor, Denoiser]:
    """The clean pictures and the network of the published numbers."""

    def network(
        x: Tensor,
        t: Tensor,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        vector: Tensor | None = None,
        maps: Tensor | None = None,
    ) -> Tensor:
        return inp("mo", 2, 6, 4, 4)

    return inp("x0", 2, 3, 4, 4).clamp(-1, 1), Denoiser(network, DDPM, Prediction.EPS, learned=True)


def test_the_hybrid_loss_of_improved_ddpm_has_the_published_bound() -> None:
    x0, denoiser = published()
    a, b = stacked(DDPM.level(0), DDPM.level(500)), stacked(CLEAN, DDPM.level(499))
    x = a.alpha * x0 + a.sigma * inp("noise", 2, 3, 4, 4)
    above = stacked(DDPM.level(1), DDPM.level(501))
    got = step_bound(x0, x, a, b, denoiser.estimate(x, a, Cond()), variance="learned", clip=False, above=above)
    torch.testing.assert_close(got, f64(2.3931307792663574, 0.014496203511953354), rtol=3e-6, atol=0)


def test_a_learned_step_of_a_respaced_chain_is_the_published_one() -> None:
    x, denoiser = published()
    a, b = stacked(DDPM.level(999), DDPM.level(0)), stacked(DDPM.level(888), CLEAN)
    above = stacked(DDPM.level(999), DDPM.level(111))  # of the first it is not used
    mean, log_var = reverse(x, a, b, denoiser.estimate(x, a, Cond()), variance="learned", above=above)
    mean, log_var = mean.flatten(), log_var.flatten()
    expected = f64(-0.3627341687679291, 0.15200690925121307, -0.20466114580631256, 0.09524071216583252)
    torch.testing.assert_close(mean[:4], expected, rtol=0, atol=3e-7)
    expected = f64(0.8580141067504883, -0.8350984454154968, 0.15703032910823822, -0.11317939311265945)
    torch.testing.assert_close(mean[-4:], expected, rtol=0, atol=3e-7)
    expected = f64(-0.12809361517429352, -0.12847527861595154, -0.12837108969688416, -0.12802664935588837)
    torch.testing.assert_close(log_var[:4], expected, rtol=0, atol=3e-7)
    expected = f64(-9.210467338562012, -9.211037635803223, -9.211017608642578, -9.210806846618652)
    torch.testing.assert_close(log_var[-4:], expected, rtol=0, atol=2e-6)


@three_paths
@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_a_term_is_the_divergence_of_the_two_normals(path: Schedule, variance: Variance) -> None:
    a, b = stretch(path, (-1.0, 0.5))
    x0, guess, push = random(3, 5), random(3, 5, seed=1), 0.3 * random(3, 5, seed=2)
    spread = torch.sigmoid(random(3, 5, seed=3))
    x = a.alpha * x0 + a.sigma * random(3, 5, seed=4)
    ratio = a.alpha / b.alpha
    beta = a.sigma**2 - ratio**2 * b.sigma**2
    precision = 1 / b.sigma**2 + ratio**2 / beta  # Bayes: q(x_b | x0) q(x_a | x_b)

    def bayes(clean: Tensor) -> Tensor:
        return (b.alpha * clean / b.sigma**2 + ratio * x / beta) / precision

    var = {"small": 1 / precision, "large": beta, "learned": beta**spread * precision ** (spread - 1)}[variance]
    model = Normal(bayes(guess) + var * push, var.sqrt() * torch.ones_like(x))
    truth = Normal(bayes(x0), (1 / precision).sqrt() * torch.ones_like(x))
    got = step_bound(x0, x, a, b, Estimate(guess, spread, push), variance=variance, clip=False)
    torch.testing.assert_close(got, kl_divergence(truth, model).mean(1) / math.log(2))


def test_the_loss_has_the_slope_of_its_differences_also_where_some_samples_end_clean() -> None:
    a, b = stacked(DDPM.level(0), DDPM.level(300)), stacked(CLEAN, DDPM.level(299))
    above = stacked(DDPM.level(1), DDPM.level(301))
    x0 = random(2, 1, 2, 2).clamp(-0.9, 0.9)
    x = a.alpha * x0 + a.sigma * random(2, 1, 2, 2, seed=1)

    def loss(off: Tensor, spread: Tensor) -> Tensor:
        guess = Estimate(x0 + a.sigma / a.alpha * off, spread)
        return step_bound(x0, x, a, b, guess, variance="learned", clip=False, above=above)

    spread = torch.sigmoid(random(2, 1, 2, 2, seed=2))
    assert torch.autograd.gradcheck(loss, (random(2, 1, 2, 2, seed=3).requires_grad_(), spread.requires_grad_()))


def test_clip_holds_the_guess_and_nothing_else_in_the_range_of_pictures() -> None:
    a, b = stretch(DDPM, (-1.0, 0.5))
    x = f64(2.5, -3.0, 0.2)[None]
    wild, held = f64(3.0, -1.5, 0.4)[None], f64(1.0, -1.0, 0.4)[None]
    assert torch.equal(reverse(x, a, b, wild)[0], posterior_mean(held, x, a, b))
    assert torch.equal(reverse(x, a, b, wild, clip=False)[0], posterior_mean(wild, x, a, b))


# The prior


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_the_prior_is_the_divergence_from_a_normal_of_the_size_of_the_level(path: Schedule) -> None:
    for at in (path.level(path.span[1]), stretch(path)[0]):
        x0 = random(3, 4)
        q = Normal(at.alpha * x0, at.sigma.expand(3, 4))
        p = Normal(torch.zeros(3, 4, dtype=torch.float64), torch.hypot(at.alpha, at.sigma).expand(3, 4))
        expected = kl_divergence(q, p).mean(1) / math.log(2)
        torch.testing.assert_close(prior_bound(x0, at), expected, rtol=1e-7, atol=1e-15)


def test_the_prior_of_ddpm_is_the_published_one() -> None:
    nats = prior_bound(f64(1.0, -1.0)[None], DDPM.level(999)) * math.log(2)
    assert float(nats) == pytest.approx(2.018e-5, abs=1e-8)


# The whole bound

SQUARE = f64(1, 1, -1, -1)[:, None], f64(1, -1, 1, -1)[:, None]
"""Four points with the means and the second moments of two independent standard normals."""


def mean_bound(grid: Grid, mean: float, std: float) -> tuple[Tensor, Tensor]:
    """The expected prior and terms, in nats, of data N(mean, std^2) with the exact guess.

    They are quadratic in the data and the noise, so that the four points give the expectation exactly.
    """
    z, eps = SQUARE
    got = bits(variational_bound(mean + std * z, grid, noise=lambda _: eps, clip=False), of_gaussian(mean, std))
    return got.prior.mean() * math.log(2), got.terms.mean(0) * math.log(2)


@three_paths
@pytest.mark.parametrize("n", [2, 10])
def test_terms_of_a_gaussian_are_the_difference_of_snr_times_the_least_error(path: Schedule, n: int) -> None:
    """Kingma et al. 2021, eq. 14: (SNR_b - SNR_a) / 2 * E |x0 - guess|^2."""
    grid = then_clean(between(path, *stretch(path), n, even_in="lam"))
    _, terms = mean_bound(grid, 0.3, 0.6)
    levels = grid.levels[:-1]
    expected = [(snr(b) - snr(a)) / 2 * 0.36 / (1 + 0.36 * snr(a)) for a, b in zip(levels, levels[1:], strict=False)]
    torch.testing.assert_close(terms, torch.stack(expected))


@three_paths
def test_many_steps_tell_the_information_of_the_last_noisy_level(path: Schedule) -> None:
    """Of data N(0, 1), I(x0; x) is log(1 + SNR) / 2. Twice the steps, half the excess."""
    a, b = stretch(path)

    def excess(n: int) -> float:
        prior, terms = mean_bound(then_clean(between(path, a, b, n, even_in="lam")), 0.0, 1.0)
        return float(prior + terms.sum() - torch.log1p(snr(b)) / 2)

    few, many = excess(200), excess(400)
    assert 0 < many < 0.02
    assert few / many == pytest.approx(2, abs=0.02)


def test_the_bound_of_8_bit_data_is_above_its_entropy_and_near_it() -> None:
    mean, std = 0.2, 0.25
    edges = torch.cat([f64(-math.inf), (GREY[1:] + GREY[:-1]) / 2, f64(math.inf)])
    p = torch.special.ndtr((edges - mean) / std).diff().clamp_min(1e-300)
    entropy = float(-(p * p.log2()).sum())
    x0 = GREY[:, None].expand(256, 8)
    guess, grid = of_gaussian(mean, std), trailing(DDPM, 1000)
    got = bits(variational_bound(x0, grid, noise=seeded(range(256)), variance="large"), guess)
    assert entropy < float(p @ got.total) < entropy + 0.1
    torch.testing.assert_close(got.total, got.prior + got.terms.sum(1) + got.decoder)
    assert got.terms.shape == (256, 999)


def test_a_perfect_guess_costs_nothing_until_the_last_step() -> None:
    x0 = GREY[[3, 200, 77, 128]].reshape(2, 2)
    grid = trailing(DDPM, 1000)
    for end in (trailing(DDPM, 50), Grid(DDPM, grid.levels[-50:])):
        got = bits(variational_bound(x0, end, noise=seeded([1, 2])), lambda x, at: x0)
        assert torch.equal(got.terms, torch.zeros(2, len(end) - 1, dtype=torch.float64))
    std = math.exp(-9.816725 / 2)  # the published log-variance of DDPM's last step
    mass = 2 * torch.special.ndtr(f64(1 / 255 / std)) - 1
    torch.testing.assert_close(got.decoder, -mass.log2().expand(2), rtol=0, atol=1e-3)


@pytest.mark.parametrize("path", [DDPM, flow()], ids=["linear", "flow"])
def test_a_learned_variance_goes_from_the_small_to_the_large(path: Schedule) -> None:
    grid = trailing(path, 12)
    x0 = GREY[[5, 90, 130, 250]].reshape(2, 2)
    guess = of_gaussian(0.1, 0.4)

    def bound(variance: Variance, spread: float | None) -> tuple[Tensor, Tensor]:
        def denoise(x: Tensor, at: Level) -> Tensor | Estimate:
            return guess(x, at) if spread is None else Estimate(guess(x, at), torch.full_like(x, spread))

        got = bits(variational_bound(x0, grid, noise=seeded([1, 2]), variance=variance), denoise)
        return got.terms, got.decoder

    small, large, low, high = bound("small", None), bound("large", None), bound("learned", 0), bound("learned", 1)
    torch.testing.assert_close(low, small)
    torch.testing.assert_close(high[0], large[0])
    assert float((large[0] - small[0]).abs().max()) > 1
    torch.testing.assert_close(large[1], small[1])  # both with the variance of the step before
    last = grid.levels[-2]
    noise = seeded([1, 2])
    *_, eps = (noise(x0) for _ in range(12))
    mean = guess(last.alpha * x0 + last.sigma * eps, last).clamp(-1, 1)
    expected = -discretised_gaussian(x0, mean, last.sigma.log()).mean(1) / math.log(2)  # its own beta is sigma^2
    torch.testing.assert_close(high[1], expected)


def test_the_bound_of_a_sample_does_not_depend_on_its_batch_mates() -> None:
    x0 = THREE.draw(4, seed=1).clamp(-1, 1)
    grid = trailing(DDPM, 20)
    together = bits(variational_bound(x0, grid, noise=seeded([4, 5, 6, 7])), row_by_row(THREE.x0))
    alone = bits(variational_bound(x0[2:3], grid, noise=seeded([6])), row_by_row(THREE.x0))
    for many, one in zip(together, alone, strict=True):
        torch.testing.assert_close(many[2:3], one, rtol=1e-14, atol=1e-15)


def test_the_bound_asks_once_at_each_noisy_level_with_noise_of_its_own() -> None:
    x0, grid, asked = random(2, 3), trailing(flow(), 5), list[tuple[Tensor, Level]]()

    def denoise(x: Tensor, at: Level) -> Tensor:
        asked.append((x, at))
        return x

    bits(variational_bound(x0, grid, noise=seeded([1, 2])), denoise)
    assert [at for _, at in asked] == list(grid.levels[:-1])
    noise = seeded([1, 2])
    for x, at in asked:
        torch.testing.assert_close((x - at.alpha * x0) / at.sigma, noise(x0))


def test_a_failing_network_closes_the_bound() -> None:
    bound = variational_bound(random(1, 3), trailing(DDPM, 5), noise=seeded([1]))

    def broken(x: Tensor, at: Level) -> Tensor:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        bits(bound, broken)
    assert inspect.getgeneratorstate(bound) == inspect.GEN_CLOSED


@pytest.mark.parametrize(
    ("grid", "variance", "message"),
    [
        (between(DDPM, *stretch(DDPM), 4, even_in="lam"), "small", "does not end clean"),
        (trailing(DDPM, 1), "small", "2 steps"),
        (trailing(DDPM, 4), "learned", "did not learn its variance"),
        (trailing(DDPM, 4), "medium", "'medium' is unknown"),
    ],
)
def test_a_bound_that_cannot_be_had_is_refused(grid: Grid, variance: Variance, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bits(variational_bound(random(1, 3), grid, noise=seeded([1]), variance=variance), THREE.x0)


def test_a_step_to_clean_wants_the_level_above() -> None:
    with pytest.raises(ValueError, match="which level is above"):
        reverse(random(1, 3), DDPM.level(0), CLEAN, random(1, 3))


# The density along the flow


def log_density(x: Tensor, at: Level) -> Tensor:
    """Of the mixture THREE at a level, exactly."""
    var = at.alpha**2 * THREE.spreads**2 + at.sigma**2  # (K,)
    far = (x[:, None, :] - at.alpha * THREE.means).square().sum(-1)  # (B, K)
    dim = x.shape[1]
    each = THREE.weights.log() - far / (2 * var) - dim / 2 * (2 * math.pi * var).log()
    return torch.logsumexp(each, dim=1)


def at_level(at: Level, n: int = 5) -> Tensor:
    return at.alpha * THREE.draw(n, seed=3) + at.sigma * random(n, 3, seed=4)


def exactly_at(at: Level) -> Callable[[Tensor], Tensor]:
    return lambda x: log_density(x, at)


@three_paths
@pytest.mark.parametrize("even_in", ["lam", "time"])
def test_the_density_converges_with_order_four(path: Schedule, even_in: str) -> None:
    a, b = stretch(path)
    x = at_level(b)

    def error(n: int) -> float:
        grid = between(path, a, b, n, even_in=even_in)
        return float((flow_log_density(x, grid, THREE.x0, prior=exactly_at(a)) - log_density(x, b)).abs().mean())

    few, many = error(24), error(48)
    assert many < 1e-3
    assert math.log2(few / many) > 3.5


@pytest.mark.parametrize("path", [flow(), cosine(terminal_zero=True)], ids=["flow", "cosine to zero"])
def test_from_nothing_but_noise_the_standard_normal_is_the_exact_prior(path: Schedule) -> None:
    _, b = stretch(path)
    grid = between(path, path.level(path.span[1]), b, 60, even_in="time")
    assert grid.levels[0].alpha == 0
    x = at_level(b)
    got = flow_log_density(x, then_clean(grid), THREE.x0)  # and the clean end changes nothing
    torch.testing.assert_close(got, log_density(x, b), rtol=0, atol=1e-4)


def test_the_default_prior_has_the_size_of_the_level() -> None:
    """Of data N(0, 1) it is exact anywhere, and the density is that of N(0, alpha^2 + sigma^2)."""
    path = flow()
    a, b = stretch(path)
    x = random(3, 2, 2)
    got = flow_log_density(x, between(path, a, b, 20, even_in="lam"), of_gaussian(0.0, 1.0))
    expected = Normal(0.0, torch.hypot(b.alpha, b.sigma)).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("signs", [True, False])
def test_hutchinsons_estimate_is_unbiased(signs: bool) -> None:
    path, n = flow(), 3000
    a, b = stretch(path)
    grid = between(path, a, b, 5, even_in="lam")
    x = at_level(b, 1)
    exact = flow_log_density(x, grid, THREE.x0)
    many = flow_log_density(x.expand(n, 3), grid, THREE.x0, noise=seeded(range(n)), signs=signs)
    error = float(many.std()) / math.sqrt(n)
    assert error > 1e-4
    assert abs(float(many.mean() - exact)) < 4 * error


def test_random_signs_are_exact_where_the_numbers_do_not_touch_and_normal_probes_are_not() -> None:
    path = scaled_linear()
    grid, guess = between(path, *stretch(path), 6, even_in="lam"), of_gaussian(0.2, 0.5)
    x = random(4, 6)
    exact = flow_log_density(x, grid, guess)
    torch.testing.assert_close(flow_log_density(x, grid, guess, noise=seeded(range(4))), exact)
    rough = flow_log_density(x, grid, guess, noise=seeded(range(4)), signs=False)
    assert float((rough - exact).abs().min()) > 1e-2


@pytest.mark.parametrize("estimated", [False, True])
def test_the_density_of_a_sample_does_not_depend_on_its_batch_mates(estimated: bool) -> None:
    path = flow()
    a, b = stretch(path)
    grid, x = between(path, a, b, 4, even_in="lam"), at_level(b, 4)
    many, one = (seeded([4, 5, 6, 7]), seeded([6])) if estimated else (None, None)
    together = flow_log_density(x, grid, row_by_row(THREE.x0), noise=many)
    alone = flow_log_density(x[2:3], grid, row_by_row(THREE.x0), noise=one)
    torch.testing.assert_close(together[2:3], alone, rtol=1e-14, atol=0)


def test_the_density_is_had_without_gradients_of_the_network_and_in_its_type() -> None:
    path = flow()
    a, b = stretch(path)
    grid, x = between(path, a, b, 12, even_in="lam"), at_level(b)
    gain = torch.nn.Parameter(torch.ones(()))
    with torch.no_grad():
        got = flow_log_density(x.float(), grid, lambda x, at: gain * THREE.x0(x, at))
    assert not got.requires_grad
    assert gain.grad is None
    torch.testing.assert_close(got, flow_log_density(x, grid, THREE.x0), rtol=0, atol=1e-4)


def test_a_density_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(ValueError, match="two levels with noise"):
        flow_log_density(random(1, 3), trailing(DDPM, 1), THREE.x0)
    with pytest.raises(ValueError, match="no_grad"):
        flow_log_density(random(1, 3), trailing(DDPM, 3), torch.no_grad()(THREE.x0))


def test_bits_of_dequantised_grey_bound_those_of_the_bins_from_above() -> None:
    mean, std = 0.1, 0.05
    edges = (torch.arange(257, dtype=torch.float64)) / 127.5 - 1
    p = torch.special.ndtr((edges - mean) / std).diff().clamp_min(1e-300)
    u = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    x = (torch.arange(256, dtype=torch.float64)[:, None] + u) / 127.5 - 1  # (256, 64)
    each = bits_per_dim(Normal(mean, std).log_prob(torch.stack([x, x])).sum(0), 2).mean(1)
    entropy = float(-(p * p.log2()).sum())
    assert entropy < float(p @ each) < entropy + 2e-3
