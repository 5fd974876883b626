"""Guides: what is asked, and what is made of the answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mixture import PATHS, THREE, Mixture, f64
from sfumato.cond import Cond
from sfumato.diffusion.denoiser import Denoise, Denoiser, Estimate, Guess, Guide, Query
from sfumato.diffusion.drive import Asked, Job, answer, answer_all, steps
from sfumato.diffusion.grid import Grid, karras, trailing
from sfumato.diffusion.guidance import autoguided, classifier_guided, conditional, guided, inpainted, thresholded
from sfumato.diffusion.level import BLIND, Level
from sfumato.diffusion.move import move
from sfumato.diffusion.noise import seeded
from sfumato.diffusion.prediction import Prediction
from sfumato.diffusion.samplers import SAMPLERS, Entry, Sampler, ddim
from sfumato.diffusion.samplers import start as started
from sfumato.diffusion.schedule import scaled_linear

SD = scaled_linear()
AT = SD.level(500.0)
RED, BLUE, NONE = (Cond(vector=torch.full((2, 3), v, dtype=torch.float64)) for v in (0.75, -0.5, 0.0))
every_sampler = pytest.mark.parametrize("entry", SAMPLERS.values(), ids=SAMPLERS.keys())


def net(x: Tensor, t: Tensor, tokens: Any = None, mask: Any = None, vector: Any = None, maps: Any = None) -> Tensor:
    """A clean guess that hears the condition in a way that is not linear."""
    told = vector[..., None, None]
    return (0.25 + 0.5 * told) * x + told * (1 + told)


DENOISER = Denoiser(net, SD, Prediction.X0)


def picture(seed: int = 0, n: int = 2) -> Tensor:
    return torch.randn(n, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def settle(guide: Guide, x: Tensor, at: Level = AT, of: Denoiser = DENOISER) -> tuple[Any, list[list[Cond]]]:
    """The guess, and the conditions asked for in each round."""
    asked: list[list[Cond]] = []
    guess = guide(x, at)
    try:
        queries: Sequence[Query] = next(guess)
        while True:
            asked.append([q.cond for q in queries])
            queries = guess.send(of.ask(queries))
    except StopIteration as done:
        return done.value, asked


def plain(x: Tensor, cond: Cond) -> Tensor:
    return DENOISER(x, AT, cond)


def test_conditional_asks_once_and_passes_the_answer_on() -> None:
    x0, asked = settle(conditional(RED), picture())
    assert asked == [[RED]]
    assert torch.equal(x0, plain(picture(), RED))


@given(scale=st.floats(-3, 9).filter(lambda s: s != 1))
def test_guided_goes_on_from_the_unconditional_through_the_conditional_guess(scale: float) -> None:
    x0, asked = settle(guided(RED, NONE, scale=scale), picture())
    assert asked == [[NONE, RED]]
    u, c = plain(picture(), NONE), plain(picture(), RED)
    torch.testing.assert_close(x0, u + scale * (c - u), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", list(Prediction))
def test_guiding_the_clean_guess_is_guiding_the_answer_of_the_network(kind: Prediction) -> None:
    """Classifier-free guidance is the same in eps, v, flow and x0: each is affine in the clean guess."""
    x, scale = picture(), 4.0
    u, c = (kind.target(plain(x, cond), (x - AT.alpha * plain(x, cond)) / AT.sigma, AT) for cond in (NONE, RED))
    expected = kind.x0(u + scale * (c - u), x, AT)
    torch.testing.assert_close(settle(guided(RED, NONE, scale=scale), x)[0], expected, rtol=1e-10, atol=1e-10)


def test_at_scale_one_guided_is_conditional_and_asks_for_one_answer_only() -> None:
    x0, asked = settle(guided(RED, NONE, scale=1.0), picture())
    assert asked == [[RED]]
    assert torch.equal(x0, plain(picture(), RED))


def test_at_scale_zero_guided_is_unconditional() -> None:
    torch.testing.assert_close(settle(guided(RED, NONE, scale=0.0), picture())[0], plain(picture(), NONE))


def test_a_scale_for_each_picture_guides_each_with_its_own() -> None:
    scales = torch.tensor([1.0, 7.5], dtype=torch.float64).view(-1, 1, 1, 1)
    together, _ = settle(guided(RED, BLUE, scale=scales), picture())
    for i, scale in enumerate((1.0, 7.5)):
        one = settle(guided(RED.rows(slice(i, i + 1)), BLUE.rows(slice(i, i + 1)), scale=scale), picture()[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], one[0], rtol=1e-12, atol=1e-12)


def test_a_scale_in_float32_does_not_promote_a_coarser_picture() -> None:
    scale = torch.full((2, 1, 1, 1), 3.0)
    x = picture().bfloat16()
    guide = guided(RED.to("cpu", torch.bfloat16), NONE.to("cpu", torch.bfloat16), scale=scale)
    assert settle(guide, x)[0].dtype == torch.bfloat16


def test_rescale_moves_the_spread_of_each_picture_back_to_that_of_the_conditional_guess() -> None:
    x = picture()
    c = plain(x, RED).flatten(1).std(1)
    bare, half, full = (
        settle(guided(RED, NONE, scale=6.0, rescale=r), x)[0].flatten(1).std(1) for r in (0.0, 0.5, 1.0)
    )
    assert ((bare - c).abs() > 0.1).all()
    torch.testing.assert_close(full, c, rtol=1e-12, atol=0)
    torch.testing.assert_close(half, (bare + c) / 2, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("below", "above", "inside"),
    [
        (-0.01, 0.01, True),
        (0.0, 0.0, True),
        (0.01, math.inf, False),
        (-math.inf, -0.01, False),
        (-math.inf, math.inf, True),
    ],
)
def test_outside_its_interval_guided_asks_for_the_conditional_guess_only(
    below: float, above: float, inside: bool
) -> None:
    lam = float(AT.lam)
    guess, asked = settle(guided(RED, NONE, scale=3.0, interval=(lam + below, lam + above)), picture())
    assert asked == ([[NONE, RED]] if inside else [[RED]])
    assert torch.equal(guess, plain(picture(), RED)) is not inside


@pytest.mark.parametrize("name", ["flow", "scaled_linear to zero"])
def test_the_open_interval_takes_in_nothing_but_noise(name: str) -> None:
    noise = PATHS[name].level(PATHS[name].span[1])
    assert noise.lam == -math.inf
    _, asked = settle(guided(RED, NONE, scale=3.0), picture(), noise)
    assert asked == [[NONE, RED]]


def test_guides_wrap_guides() -> None:
    x, known = picture(), torch.full((2, 3, 2, 2), 5.0, dtype=torch.float64)
    mask = torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    mask[:, :, 0] = 1
    guide = thresholded(inpainted(guided(RED, NONE, scale=3.0), known, mask), quantile=1.0)
    x0, asked = settle(guide, x)
    inner, _ = settle(guided(RED, NONE, scale=3.0), x)
    filled = torch.where(mask.bool(), known, inner)
    assert asked == [[NONE, RED]]
    torch.testing.assert_close(x0, filled / filled.flatten(1).abs().amax(1).view(-1, 1, 1, 1), rtol=1e-6, atol=1e-6)


def test_thresholded_leaves_a_guess_within_the_limit_as_it_is() -> None:
    x = picture().clamp(-1, 1) * 0.5
    x0, _ = settle(thresholded(conditional(NONE)), x)
    assert torch.equal(x0, plain(x, NONE))


def test_thresholded_clamps_to_the_quantile_of_each_picture_and_divides_by_it() -> None:
    guess = torch.linspace(-4, 4, 81, dtype=torch.float64).view(1, 1, 9, 9)
    guess = torch.cat([guess, guess / 8])

    def known(x: Tensor, at: Level) -> Guess:
        yield [Query(x, at, NONE)]
        return guess

    x0, _ = settle(thresholded(known, quantile=0.5), picture())
    torch.testing.assert_close(x0[:1], guess[:1].clamp(-2, 2) / 2)  # the median of |guess| is 2
    assert torch.equal(x0[1:], guess[1:])  # its median is below the limit
    assert float(settle(thresholded(known, quantile=0.5, limit=1.5), picture())[0].abs().max()) == pytest.approx(1.5)


@every_sampler
@pytest.mark.parametrize("name", ["scaled_linear", "cosine to zero", "flow"])
def test_known_pixels_come_out_identical(entry: Entry, name: str) -> None:
    grid = trailing(PATHS[name], 12)
    known, mask = picture(1), (picture(2) > 0).double()

    def net(x: Tensor, t: Tensor, *told: Any, **named: Any) -> Tensor:
        at = PATHS[name].level(t.double().view(-1, 1))
        rows = x.movedim(1, -1).reshape(-1, 3)  # every pixel is a draw from the mixture
        at = Level(*(v.repeat_interleave(4, 0) for v in at))
        guess = THREE.x0(rows, at).reshape(len(x), 2, 2, 3).movedim(-1, 1)
        return torch.cat([guess, x.tanh()], dim=1)  # with a learnt spread

    guide = inpainted(conditional(Cond()), known, mask)
    denoise = Denoiser(net, PATHS[name], Prediction.X0, learned=True).bind(guide)
    sample = answer(started(entry, picture(3), grid, seeded([1, 2])), denoise)
    where = mask.bool()  # a mean of noise guesses, as in PLMS and Heun, means the known pixel up to rounding
    torch.testing.assert_close(sample[where], known[where], rtol=0, atol=1e-12)
    assert float((sample - known)[~where].abs().median()) > 0.1


def test_samples_at_scale_one_are_those_of_the_plain_condition() -> None:
    grid, x = trailing(SD, 8), picture()
    for entry in SAMPLERS.values():
        one, two = (
            answer(started(entry, x, grid, seeded([1, 2])), LEARNED.bind(guide))
            for guide in (
                guided(RED, NONE, scale=1.0),
                conditional(RED),
            )
        )
        assert torch.equal(one, two)


def test_inpainting_takes_a_boolean_mask_and_keeps_the_type_of_the_guess() -> None:
    x, at = torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16), Level.clean(0.0)
    known = torch.full((1, 1, 2, 2), 0.3, dtype=torch.float64)
    mask = torch.tensor([[True, False], [False, True]]).expand(1, 1, 2, 2)

    def nothing(x: Tensor, at: Level) -> Guess:
        yield []
        return torch.ones_like(x)

    guess = inpainted(nothing, known, mask)(x, at)
    next(guess)
    with pytest.raises(StopIteration) as done:
        guess.send([])
    out = done.value.value
    assert out.dtype == x.dtype
    assert torch.equal(out[mask], known[mask].to(x.dtype))
    assert torch.equal(out[~mask], torch.ones(2, dtype=x.dtype))


# A network that learnt its variance, and a level for each sample.


def learned_net(x: Tensor, t: Tensor, *told: Any, **named: Any) -> Tensor:
    return torch.cat([net(x, t, *told), (x + told[2][..., None, None]).tanh()], dim=1)


LEARNED = Denoiser(learned_net, SD, Prediction.X0, learned=True)
BATCH = SD.level(f64(200.0, 500.0, 800.0).view(-1, 1, 1, 1))
THREE_REDS, THREE_BLUES = (Cond(vector=torch.full((3, 3), v, dtype=torch.float64)) for v in (0.75, -0.5))


def same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a, b)


def rows(at: Level, i: int) -> Level:
    return Level(*(v[i : i + 1] for v in at))


def test_a_conditional_guess_with_spread_is_the_estimate_of_the_network() -> None:
    guess, asked = settle(conditional(RED), picture(), of=LEARNED)
    assert asked == [[RED]]
    right = LEARNED.estimate(picture(), AT, RED)
    assert torch.equal(guess.x0, right.x0)
    assert guess.spread is not None
    assert same(guess.spread, right.spread)
    assert guess.push is None


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_guided_with_spread_guides_x0_and_keeps_the_spread_of_the_conditional_answer(scale: float) -> None:
    guess, asked = settle(guided(RED, NONE, scale=scale, rescale=0.5), picture(), of=LEARNED)
    red, none = LEARNED.ask([Query(picture(), AT, cond) for cond in (RED, NONE)])
    assert asked == ([[RED]] if scale == 1 else [[NONE, RED]])
    further = none.x0 + scale * (red.x0 - none.x0)
    deviation = [x.std(dim=(1, 2, 3), keepdim=True) for x in (red.x0, further)]
    expected = red.x0 if scale == 1 else further * (0.5 + 0.5 * deviation[0] / deviation[1])
    torch.testing.assert_close(guess.x0, expected, rtol=1e-12, atol=1e-12)
    assert same(guess.spread, red.spread)
    assert not same(guess.spread, none.spread)


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("rescale", [0.0, 0.6])
@pytest.mark.parametrize("scale", [3.0, f64(2.0, 1.0, 5.0).view(-1, 1, 1, 1)], ids=["one scale", "a scale each"])
@pytest.mark.parametrize(
    ("low", "high", "both"), [(-9, 9, True), (-1, 0.2, True), (-math.inf, -1.2, True), (0.2, 9, True), (2, 9, False)]
)
def test_each_sample_is_guided_in_the_interval_as_it_is_alone(
    low: float, high: float, both: bool, scale: float | Tensor, rescale: float, spread: bool
) -> None:
    x = picture(n=3)

    def of(cond: Cond, null: Cond, scale: float | Tensor) -> Guide:
        return guided(cond, null, scale=scale, rescale=rescale, interval=(low, high))

    network = LEARNED if spread else DENOISER
    guess, asked = settle(of(THREE_REDS, THREE_BLUES, scale), x, BATCH, network)
    assert asked == [[THREE_BLUES, THREE_REDS] if both else [THREE_REDS]]
    together = Estimate.of(guess)
    moved = [not torch.equal(a, b) for a, b in zip(together.x0, network(x, BATCH, THREE_REDS), strict=True)]
    own = scale.flatten().tolist() if isinstance(scale, Tensor) else [scale] * 3
    lams = BATCH.lam.flatten().tolist()
    assert moved == [low <= lam <= high and s != 1 for lam, s in zip(lams, own, strict=True)]
    for i in range(3):
        one = slice(i, i + 1)
        guide = of(THREE_REDS.rows(one), THREE_BLUES.rows(one), own[i])
        for at in (rows(BATCH, i), SD.level(float(BATCH.t[i]))):
            alone = Estimate.of(settle(guide, x[one], at, network)[0])
            if rescale == 0:  # a deviation is summed in another order in a batch
                assert torch.equal(alone.x0, together.x0[one])
            torch.testing.assert_close(alone.x0, together.x0[one], rtol=1e-14, atol=1e-14)
            assert (together.spread is None) is not spread
            assert same(alone.spread, None if together.spread is None else together.spread[one])


# On the mixture, where the right answers are known.

CLASSES = {1.0: (0, 2), 2.0: (1, 3)}  # the components of each class, by the number that names it
EVERY, ONE, TWO = 0.0, 1.0, 2.0
PLACES = ["scaled_linear", "cosine", "flow"]
on_paths = pytest.mark.parametrize("name", PLACES)


def only(*components: int) -> Mixture:
    weights = THREE.weights[list(components)]
    return Mixture(weights / weights.sum(), THREE.means[list(components)], THREE.spreads[list(components)])


PARTS = {EVERY: THREE} | {label: only(*components) for label, components in CLASSES.items()}


def exact(mixture: Mixture, *, spread: bool = False) -> Guide:
    """A guide that needs no network: the exact guess."""

    def guide(x: Tensor, at: Level) -> Guess:
        yield []
        x0 = mixture.x0(x, at)
        return Estimate(x0, torch.full_like(x0, 0.25)) if spread else x0

    return guide


def log_class(label: float) -> Callable[[Tensor, Level], Tensor]:
    """log p(class | x_t) of the mixture."""

    def log_prob(x: Tensor, at: Level) -> Tensor:
        alpha, sigma = (v.double().reshape(-1, 1, 1) for v in (at.alpha, at.sigma))
        var = alpha**2 * THREE.spreads[:, None] ** 2 + sigma**2
        off = x.double().flatten(1)[:, None, :] - alpha * THREE.means
        log_p = -0.5 * (off**2 / var).sum(-1) - 1.5 * var[..., 0].log() + THREE.weights.log()
        return log_p[:, list(CLASSES[label])].logsumexp(1) - log_p.logsumexp(1)

    return log_prob


def gradient(label: float, x: Tensor, at: Level) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(log_class(label)(x, at).sum(), x)[0]


def colours(seed: int = 0, n: int = 40, at: Level = AT) -> Tensor:
    """Noisy draws (n, 3, 1, 1) at a level."""
    x0 = THREE.draw(n, seed=seed)[..., None, None]
    eps = torch.randn(x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    return at.alpha * x0 + at.sigma * eps


def levels(name: str) -> list[Level]:
    """From almost clean to the last that shows something."""
    low, high = PATHS[name].span
    lams = [float(PATHS[name].level(low + p * (high - low)).lam) for p in (0.02, 0.2, 0.5, 0.75, 0.9, 1.0)]
    return [PATHS[name].level(PATHS[name].time(f64(max(lam, BLIND + 0.01))[0])) for lam in lams]


def told(label: float, n: int) -> Cond:
    return Cond(vector=torch.full((n, 1), label, dtype=torch.float64))


def classes_net(name: str) -> Denoiser:
    """A network that knows the mixture, and hears which class is meant."""

    def net(x: Tensor, t: Tensor, *told: Any, **named: Any) -> Tensor:
        vector, at = told[2], PATHS[name].level(t.double().view(-1, 1, 1, 1))
        guesses = [torch.where(vector[..., None, None] == k, m.x0(x, at), 0.0) for k, m in PARTS.items()]
        return torch.stack(guesses).sum(0)

    return Denoiser(net, PATHS[name], Prediction.X0)


@on_paths
def test_classifier_free_guidance_is_a_line_through_the_two_exact_guesses(name: str) -> None:
    at, of = PATHS[name].level(0.5 * PATHS[name].span[1]), classes_net(name)
    x, n = colours(at=at), 40
    one, two, every = (of(x, at, told(k, n)) for k in (ONE, TWO, EVERY))
    torch.testing.assert_close(one, PARTS[ONE].x0(x, at), rtol=1e-5, atol=1e-6)  # the clock is float32

    def at_scale(scale: float, null: float) -> Tensor:
        return settle(guided(told(ONE, n), told(null, n), scale=scale), x, at, of)[0]

    for null, start in ((EVERY, every), (TWO, two)):  # from the unconditional guess, or from a negative prompt's
        torch.testing.assert_close(at_scale(0.0, null), start)
        torch.testing.assert_close(at_scale(3.0, null) - at_scale(1.5, null), 1.5 * (one - start))
        torch.testing.assert_close(at_scale(-2.0, null), 3 * start - 2 * one)
        guess, asked = settle(guided(told(ONE, n), told(null, n), scale=1.0), x, at, of)
        assert torch.equal(guess, one)
        assert len(asked[0]) == 1
    p = log_class(ONE)(x, at).exp().view(-1, 1, 1, 1)  # the law of total probability
    torch.testing.assert_close(every, p * one + (1 - p) * two, rtol=1e-5, atol=1e-5)


# Autoguidance.


def test_a_model_guides_itself_nowhere() -> None:
    denoise = DENOISER.bind(conditional(RED))
    for scale in (-3.0, 0.0, 1.0, 2.5, 40.0, f64(0.5, 7.0).view(-1, 1, 1, 1)):
        guess, asked = settle(autoguided(conditional(RED), denoise, scale=scale), picture())
        assert torch.equal(guess, plain(picture(), RED))
        assert asked == [[RED]]


@pytest.mark.parametrize("scale", [0.0, 2.0, f64(3.0, 1.0).view(-1, 1, 1, 1)], ids=["0", "2", "each"])
def test_autoguidance_goes_on_from_the_worse_guess_through_the_better(scale: float | Tensor) -> None:
    bad, good = plain(picture(), BLUE), plain(picture(), RED)
    guide = autoguided(conditional(RED), DENOISER.bind(conditional(BLUE)), scale=scale)
    torch.testing.assert_close(settle(guide, picture())[0], bad + scale * (good - bad))


def test_at_scale_one_the_worse_model_is_not_asked() -> None:
    def never(x: Tensor, at: Level) -> Tensor:
        raise AssertionError("asked")

    assert torch.equal(settle(autoguided(conditional(RED), never, scale=1.0), picture())[0], plain(picture(), RED))
    with pytest.raises(AssertionError, match="asked"):
        settle(autoguided(conditional(RED), never, scale=1.5), picture())


def test_autoguidance_changes_the_x0_of_an_estimate_and_takes_one_from_the_worse_model() -> None:
    good, bad = LEARNED.estimate(picture(), AT, RED), LEARNED.estimate(picture(), AT, BLUE)
    for worse in (DENOISER.bind(conditional(BLUE)), LEARNED.bind(conditional(BLUE))):
        guess, _ = settle(autoguided(conditional(RED), worse, scale=3.0), picture(), of=LEARNED)
        torch.testing.assert_close(guess.x0, 3 * good.x0 - 2 * bad.x0)
        assert same(guess.spread, good.spread)


def test_autoguidance_undoes_an_error_that_both_models_share() -> None:
    """Where the worse is off twice as far as the better, scale 2 is right."""
    x, right = colours(), THREE.x0(colours(), AT)

    def off(by: float) -> Denoise:
        return lambda x, at: THREE.x0(x, at) + by * x

    def good(x: Tensor, at: Level) -> Guess:
        yield []
        return off(0.1)(x, at)

    torch.testing.assert_close(settle(autoguided(good, off(0.2), scale=2.0), x)[0], right)


# Classifier guidance.


@on_paths
@pytest.mark.parametrize("label", CLASSES)
def test_classifier_guidance_is_the_rule_of_bayes(name: str, label: float) -> None:
    guide = classifier_guided(exact(THREE), log_class(label), scale=1.0)
    for at in levels(name):
        x = colours(at=at)
        guess, _ = settle(guide, x, at)
        assert float((guess - THREE.x0(x, at)).abs().max()) > 1e-3
        torch.testing.assert_close(guess, PARTS[label].x0(x, at), rtol=1e-10, atol=1e-10)


@on_paths
def test_each_row_of_a_batch_of_levels_obeys_bayes(name: str) -> None:
    each = levels(name)
    at = Level(*(torch.stack(v).view(-1, 1, 1, 1) for v in zip(*each, strict=True)))
    x = torch.cat([colours(i, 1, level) for i, level in enumerate(each)])
    guess, _ = settle(classifier_guided(exact(THREE), log_class(ONE), scale=1.0), x, at)
    torch.testing.assert_close(guess, PARTS[ONE].x0(x, at), rtol=1e-10, atol=1e-10)


@on_paths
def test_in_the_noise_the_classifier_takes_away_scale_sigma_gradient(name: str) -> None:
    for at in levels(name):
        x = colours(at=at)
        guess, _ = settle(classifier_guided(exact(THREE), log_class(TWO), scale=2.5), x, at)
        eps, before = ((x - at.alpha * x0) / at.sigma for x0 in (guess, THREE.x0(x, at)))
        torch.testing.assert_close(eps, before - 2.5 * at.sigma * gradient(TWO, x, at), rtol=1e-9, atol=1e-9)


@on_paths
def test_classifier_free_guidance_is_guidance_by_the_classifier_that_its_two_guesses_imply(name: str) -> None:
    """Ho & Salimans 2022, sec. 3.2."""
    for at in levels(name):
        x = colours(at=at)
        one, every = (PARTS[k].x0(x, at) for k in (ONE, EVERY))
        scale = f64(*torch.linspace(-2, 8, 40).tolist()).view(-1, 1, 1, 1)
        guess, _ = settle(classifier_guided(exact(THREE), log_class(ONE), scale=scale), x, at)
        torch.testing.assert_close(guess, every + scale * (one - every), rtol=1e-9, atol=1e-9)


def test_two_classifiers_one_on_the_other_add_up() -> None:
    x = colours()
    for form in ("score", "mean"):
        once = classifier_guided(exact(THREE), log_class(ONE), scale=3.0, form=form)
        twice = classifier_guided(
            classifier_guided(exact(THREE), log_class(ONE), scale=1.0, form=form), log_class(ONE), scale=2.0, form=form
        )
        a, b = (Estimate.of(settle(guide, x)[0]) for guide in (once, twice))
        torch.testing.assert_close(a.x0, b.x0)
        if form == "mean":
            torch.testing.assert_close(a.push, b.push)
        else:
            assert a.push is b.push is None


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("scale", [4.0, f64(*range(40)).view(-1, 1, 1, 1)], ids=["one scale", "a scale each"])
def test_in_the_form_of_the_mean_the_push_is_scale_times_the_gradient_and_x0_stays(
    spread: bool, scale: float | Tensor
) -> None:
    guide = classifier_guided(exact(THREE, spread=spread), log_class(ONE), scale=scale, form="mean")
    for at in (AT, PATHS["flow"].level(0.7), PATHS["flow"].level(1.0)):
        x = colours(at=at)
        guess, _ = settle(guide, x, at)
        assert torch.equal(guess.x0, THREE.x0(x, at))
        torch.testing.assert_close(guess.push, scale * gradient(ONE, x, at))
        assert torch.isfinite(guess.push).all()
        assert (guess.spread == 0.25).all() if spread else guess.spread is None


def test_variance_times_push_moves_the_mean_of_a_small_step_to_that_of_the_class() -> None:
    """Dhariwal & Nichol 2021, sec. 4.1: to first order in the step, the two forms are one."""
    errors = []
    for step in (8.0, 2.0):
        a, b = SD.level(500.0), SD.level(500.0 - step)
        x = colours(at=a)
        guess, _ = settle(classifier_guided(exact(THREE), log_class(ONE), scale=1.0, form="mean"), x, a)
        added = a.sigma**2 - (a.alpha / b.alpha) ** 2 * b.sigma**2
        variance = b.sigma**2 / a.sigma**2 * added

        def mean(x0: Tensor) -> Tensor:
            eps = (x - a.alpha * x0) / a.sigma  # noqa: B023
            return b.alpha * x0 + (b.sigma**2 - variance).sqrt() * eps  # noqa: B023

        right = mean(PARTS[ONE].x0(x, a)) - mean(guess.x0)
        errors.append(float((variance * guess.push - right).norm() / right.norm()))
    assert errors[0] < 0.05
    assert errors[1] < errors[0] / 3


@pytest.mark.parametrize("name", ["flow", "scaled_linear to zero"])
def test_where_there_is_nothing_but_noise_the_classifier_is_not_asked(name: str) -> None:
    def never(x: Tensor, at: Level) -> Tensor:
        raise AssertionError("asked")

    at = PATHS[name].level(PATHS[name].span[1])
    assert at.alpha == 0
    guess, _ = settle(classifier_guided(exact(THREE), never, scale=9.0), colours(at=at), at)
    assert torch.equal(guess, THREE.x0(colours(at=at), at))
    assert torch.isfinite(guess).all()


def test_a_blind_row_is_left_as_it_is_and_the_others_are_guided_as_alone() -> None:
    path = PATHS["flow"]
    ts = [1.0, 0.5, float(path.time(f64(BLIND - 0.01))), float(path.time(f64(BLIND + 0.01))), 0.9]
    at = path.level(f64(*ts).view(-1, 1, 1, 1))
    x = colours(n=5, at=at)

    def nowhere_at_zero(x: Tensor, at: Level) -> Tensor:  # as a classifier that divides by alpha
        return log_class(ONE)(x, at) + 0 * (x / at.alpha).flatten(1).sum(1)

    guess, _ = settle(classifier_guided(exact(THREE), nowhere_at_zero, scale=2.0), x, at)
    assert torch.isfinite(guess).all()
    for i, t in enumerate(ts):
        guide = classifier_guided(exact(THREE), log_class(ONE), scale=2.0)
        alone, _ = settle(guide, x[i : i + 1], path.level(t))
        torch.testing.assert_close(guess[i : i + 1], alone, rtol=1e-10, atol=1e-10)
        assert torch.equal(alone, THREE.x0(x[i : i + 1], path.level(t))) is (i in (0, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("form", ["score", "mean"])
def test_the_classifier_keeps_the_type_of_the_guess(dtype: torch.dtype, form: str) -> None:
    scale = torch.full((40, 1, 1, 1), 2.0)
    x = colours().to(dtype)
    right = Estimate.of(settle(classifier_guided(exact(THREE), log_class(ONE), scale=2.0, form=form), x.double())[0])
    each = Level(*(v.expand(40, 1, 1, 1) for v in AT))
    for at in (AT, each):
        guide = classifier_guided(exact(THREE), log_class(ONE), scale=scale, form=form)
        guess = Estimate.of(settle(guide, x, at)[0])
        for a, b in ((guess.x0, right.x0), (guess.push, right.push)):
            assert (a is None) is (b is None)
            if a is not None and b is not None:
                assert a.dtype == dtype
                torch.testing.assert_close(a.double(), b, rtol=2 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


def test_a_level_for_each_sample_is_not_rounded_to_the_type_of_a_coarse_picture() -> None:
    at, x = SD.level(900.0), colours(at=SD.level(900.0)).bfloat16()
    guide = classifier_guided(exact(THREE), log_class(ONE), scale=2.0)
    each = Level(*(v.expand(40, 1, 1, 1) for v in at))
    assert torch.equal(settle(guide, x, each)[0], settle(guide, x, at)[0])


def test_the_classifier_needs_no_gradients_around_it_and_leaves_none_behind() -> None:
    guide = classifier_guided(exact(THREE), log_class(ONE), scale=2.0)
    x = colours()
    free, _ = settle(guide, x)
    with torch.no_grad():
        bare, _ = settle(guide, x)
        assert not torch.is_grad_enabled()
    assert torch.equal(free, bare)
    assert not free.requires_grad
    assert not x.requires_grad
    with torch.inference_mode(), pytest.raises(ValueError, match=r"torch\.no_grad"):
        settle(guide, x)


def test_an_unknown_form_of_classifier_guidance_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no form 'noise'; it is 'score' or 'mean'"):
        classifier_guided(exact(THREE), log_class(ONE), scale=1.0, form="noise")


@on_paths
def test_sampling_under_the_classifier_is_sampling_from_the_class(name: str) -> None:
    n, grid = 4000, karras(PATHS[name], 150)
    first = grid.levels[0]
    x = first.alpha * THREE.draw(n, seed=2)[..., None, None]
    x = x + first.sigma * torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    denoise = DENOISER.bind(classifier_guided(exact(THREE), log_class(TWO), scale=1.0))
    sample = answer(ddim(x, grid), denoise)
    right = answer(ddim(x, grid), lambda x, at: PARTS[EVERY if at.blind else TWO].x0(x, at))
    torch.testing.assert_close(sample, right, rtol=1e-7, atol=1e-7)
    off = sample.flatten(1) - PARTS[TWO].mean
    products = off[:, :, None] * off[:, None, :]
    assert (off.mean(0).abs() < 4 * off.std(0) / math.sqrt(n)).all()
    assert ((products.mean(0) - PARTS[TWO].cov).abs() < 4 * products.std(0) / math.sqrt(n)).all()


# Guides on guides.


def falling(x: Tensor, at: Level) -> Tensor:
    """A log-probability that each sample has alone, to the bit."""
    return -torch.stack([(row * row).sum() + row[0].sum().cos() for row in x])


def test_composed_guides_change_x0_and_keep_spread_and_push() -> None:
    x, mask = picture(), (picture(2) > 0).double()
    cfg = guided(RED, NONE, scale=3.0)
    led = classifier_guided(classifier_guided(cfg, falling, scale=0.5), falling, scale=2.0, form="mean")
    guess, asked = settle(thresholded(inpainted(led, picture(1), mask), quantile=0.9), x, of=LEARNED)
    assert asked == [[NONE, RED]]
    bare = settle(guided(RED, NONE, scale=3.0), x, of=LEARNED)[0].x0
    score = settle(classifier_guided(guided(RED, NONE, scale=3.0), falling, scale=0.5), x, of=LEARNED)[0].x0
    assert float((score - bare).abs().min()) > 1e-4
    expected, _ = settle(thresholded(lambda x, at: mixed(score, picture(1), mask), quantile=0.9), x)
    assert torch.equal(guess.x0, expected)
    assert same(guess.spread, LEARNED.estimate(x, AT, RED).spread)
    y = x.clone().requires_grad_()
    torch.testing.assert_close(guess.push, 2 * torch.autograd.grad(falling(y, AT).sum(), y)[0])


def mixed(x0: Tensor, known: Tensor, mask: Tensor) -> Guess:
    yield []
    return mask * known + (1 - mask) * x0


def reads(x: Tensor, grid: Grid) -> Sampler:
    """A sampler that hears all of an Estimate, and does something with it."""
    for a, b in grid.steps():
        x0, spread, push = Estimate.of((yield x, a))
        x = move(x, a, b, x0=x0)
        for extra in (spread, push):
            x = x if extra is None else x + 0.01 * b.sigma * extra
    return x


def kinds() -> dict[str, Guide]:
    bad = DENOISER.bind(conditional(BLUE))
    mask = (picture(2) > 0).double()
    cfg = guided(RED, BLUE, scale=3.0, rescale=0.5, interval=(-1.5, 0.5))
    return {
        "plain": conditional(RED),
        "with spread": conditional(RED),
        "guided": guided(RED, NONE, scale=f64(1.0, 4.0).view(-1, 1, 1, 1)),
        "in an interval": cfg,
        "autoguided": autoguided(cfg, bad, scale=1.5),
        "score": classifier_guided(conditional(RED), falling, scale=0.1),
        "mean": classifier_guided(cfg, falling, scale=0.1, form="mean"),
        "all": thresholded(inpainted(classifier_guided(cfg, falling, scale=0.1, form="mean"), picture(1), mask)),
        "exact": exact(replace(THREE, means=torch.zeros(4, 12, dtype=torch.float64))),
    }


def test_strangers_with_guides_of_all_kinds_get_what_each_gets_alone() -> None:
    def jobs() -> dict[str, Job]:
        return {
            kind: Job(reads(picture(i), trailing(SD, 4 + i % 3)), guide)
            for i, (kind, guide) in enumerate(kinds().items())
        }

    with torch.no_grad():
        together = list(answer_all(jobs(), LEARNED))
        for kind, job in jobs().items():
            alone = list(steps(job.sampler, LEARNED.bind(job.guide)))
            got = [a.sample if a.asked is None else a.asked.x0 for a in together if a.id == kind]
            assert len(got) == len(alone)
            for a, b in zip(got, alone, strict=True):
                assert a is not None
                assert torch.equal(a, b.x0 if isinstance(b, Asked) else b)


def test_strangers_at_levels_of_their_own_get_in_one_batch_what_each_gets_alone() -> None:
    """As an adaptive sampler asks: one (x, level) with a level for each sample."""
    x = picture(n=3)

    def of(index: slice) -> Guide:
        red, blue = THREE_REDS.rows(index), THREE_BLUES.rows(index)
        cfg = guided(red, blue, scale=3.0, interval=(-1.5, 0.5))
        worse = LEARNED.bind(conditional(blue))
        led = classifier_guided(classifier_guided(cfg, falling, scale=0.1), falling, scale=0.5, form="mean")
        return inpainted(autoguided(led, worse, scale=1.5), picture(4, 3)[index], (picture(5, 3) > 0).double()[index])

    together, _ = settle(of(slice(None)), x, BATCH, LEARNED)
    for i in range(3):
        one = slice(i, i + 1)
        alone, _ = settle(of(one), x[one], SD.level(float(BATCH.t[i])), LEARNED)
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[one], b, rtol=1e-13, atol=1e-13)
