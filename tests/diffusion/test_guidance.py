"""Guides: what is asked, and what is made of the answers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mixture import PATHS, THREE
from sfumato.cond import Cond
from sfumato.diffusion.denoiser import Denoiser, Guess, Guide, Query
from sfumato.diffusion.drive import answer
from sfumato.diffusion.grid import trailing
from sfumato.diffusion.guidance import conditional, guided, inpainted, thresholded
from sfumato.diffusion.level import Level
from sfumato.diffusion.noise import seeded
from sfumato.diffusion.prediction import Prediction
from sfumato.diffusion.samplers import SAMPLERS, Entry
from sfumato.diffusion.samplers import start as started
from sfumato.diffusion.schedule import scaled_linear

SD = scaled_linear()
AT = SD.level(500.0)
RED, BLUE, NONE = (Cond(vector=torch.full((2, 3), v, dtype=torch.float64)) for v in (0.75, -0.5, 0.0))
every_sampler = pytest.mark.parametrize("entry", SAMPLERS.values(), ids=SAMPLERS.keys())


def net(x: Tensor, t: Tensor, tokens: None, mask: None, vector: Tensor, maps: None) -> Tensor:
    """A clean guess that hears the condition in a way that is not linear."""
    told = vector[..., None, None]
    return (0.25 + 0.5 * told) * x + told * (1 + told)


DENOISER = Denoiser(net, SD, Prediction.X0)


def picture(seed: int = 0, n: int = 2) -> Tensor:
    return torch.randn(n, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def settle(guide: Guide, x: Tensor, at: Level = AT) -> tuple[Tensor, list[list[Cond]]]:
    """The guess, and the conditions asked for in each round."""
    asked: list[list[Cond]] = []
    guess = guide(x, at)
    try:
        queries: Sequence[Query] = next(guess)
        while True:
            asked.append([q.cond for q in queries])
            queries = guess.send(DENOISER.ask(queries))
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

    def net(x: Tensor, t: Tensor, *told: Tensor | None) -> Tensor:
        at = PATHS[name].level(t.double().view(-1, 1))
        rows = x.movedim(1, -1).reshape(-1, 3)  # every pixel is a draw from the mixture
        at = Level(*(v.repeat_interleave(4, 0) for v in at))
        return THREE.x0(rows, at).reshape(len(x), 2, 2, 3).movedim(-1, 1)

    denoise = Denoiser(net, PATHS[name], Prediction.X0).bind(inpainted(conditional(Cond()), known, mask))
    sample = answer(started(entry, picture(3), grid, seeded([1, 2])), denoise)
    where = mask.bool()  # a mean of noise guesses, as in PLMS and Heun, means the known pixel up to rounding
    torch.testing.assert_close(sample[where], known[where], rtol=0, atol=1e-12)
    assert float((sample - known)[~where].abs().min()) > 1e-3


def test_samples_at_scale_one_are_those_of_the_plain_condition() -> None:
    grid, x = trailing(SD, 8), picture()
    for entry in SAMPLERS.values():
        one, two = (
            answer(started(entry, x, grid, seeded([1, 2])), DENOISER.bind(guide))
            for guide in (guided(RED, NONE, scale=1.0), conditional(RED))
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
