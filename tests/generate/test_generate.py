"""The same request makes the same picture, whatever else is made beside it, and every part of it matters."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sfumato
import tiny
from fill import inp
from sfumato.diffusion.grid import SPACINGS
from sfumato.diffusion.samplers import SAMPLERS
from sfumato.generate import Preview, Result, generate, sample
from sfumato.io import opening
from sfumato.io.model_folder import Loaded
from sfumato.request import Request, random_seed

ROUNDING = 1e-5
"""Of one step in float32; pixels are in [-1, 1]."""

INIT = (0.5 * inp("init", 3, 16, 16)).clamp(-1, 1)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return opening.load(tiny.folder(tmp_path_factory.mktemp("generate") / "model"))


@pytest.fixture
def exact(loaded: Loaded) -> Iterator[Loaded]:
    """The model in float64. In float32 a batch of another size takes other paths through convolutions and products,
    and the rounding grows from step to step (to 4e-4 in three steps here), which would hide real differences.
    """
    torch.set_default_dtype(torch.float64)
    yield replace(loaded, model=copy.deepcopy(loaded.model).double())
    torch.set_default_dtype(torch.float32)


EXACT = 1e-9


ABLE = [name for name, entry in SAMPLERS.items() if not entry.needs_spread]


def enough(sampler: str) -> int:
    """Steps that this sampler is content with."""
    return max(3, SAMPLERS[sampler].least)


class Watch:
    """What the network is asked, by a hook."""

    def __init__(self, loaded: Loaded) -> None:
        self.asked: list[Tensor] = []
        self.clock: list[float] = []
        self.handle = loaded.model.denoiser.net.register_forward_pre_hook(self._note)

    def _note(self, _: object, arguments: tuple[Any, ...]) -> None:
        self.asked.append(arguments[0])
        self.clock.append(float(arguments[1][0]))


@pytest.fixture
def watch(loaded: Loaded) -> Iterator[Watch]:
    watch = Watch(loaded)
    yield watch
    watch.handle.remove()


def same(a: Result, b: Result) -> bool:
    return torch.equal(a.images, b.images)


def far(a: Result, b: Result) -> float:
    return (a.images - b.images).abs().max().item()


RED = Request(prompt="a red apple, 3d", seed=7)


# Seeds and batches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ABLE)
def test_the_same_seed_makes_the_same_picture(loaded: Loaded, sampler: str) -> None:
    request = RED.model_copy(update={"sampler": sampler, "steps": enough(sampler)})
    assert same(generate(loaded, request), generate(loaded, request))
    assert far(generate(loaded, request), generate(loaded, request.model_copy(update={"seed": 8}))) > 0.05


@pytest.mark.parametrize("sampler", ABLE)
def test_a_picture_of_a_batch_is_the_picture_of_its_own_seed(exact: Loaded, sampler: str) -> None:
    asked = {"n": 3, "sampler": sampler, "negative": "dogs", "steps": enough(sampler)}
    together = generate(exact, RED.model_copy(update=asked))
    assert [r.seed for r in together.requests] == [7, 8, 9]
    for image, latent, request in zip(together.images, together.latents, together.requests, strict=True):
        assert request.n == 1
        alone = generate(exact, request)
        torch.testing.assert_close(image, alone.images[0], rtol=0, atol=EXACT)
        torch.testing.assert_close(latent, alone.latents[0], rtol=0, atol=EXACT)


def test_different_requests_share_a_batch(exact: Loaded) -> None:
    requests = [
        RED.model_copy(update={"n": 2}),
        Request(prompt="two dogs in the rain in the rain", negative="a pear", seed=2**64 - 1),
        Request(seed=7),
    ]
    together = generate(exact, requests)
    assert len(together.images) == 4
    alone = torch.cat([generate(exact, r).images for r in requests])
    torch.testing.assert_close(together.images, alone, rtol=0, atol=EXACT)
    assert [r.prompt for r in together.requests] == [RED.prompt, RED.prompt, requests[1].prompt, ""]


@pytest.mark.parametrize("change", [{"steps": 4}, {"size": (16, 24)}, {"guidance": 1.0}, {"sampler": "ddim"}])
def test_requests_that_cannot_share_a_batch(loaded: Loaded, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="differ in more than prompt, negative, boxes, label, seeds, variation and n"):
        generate(loaded, [RED, RED.model_copy(update=change)])


def test_seeds_go_round(exact: Loaded) -> None:
    result = generate(exact, Request(seed=2**64 - 1, n=2))
    assert [r.seed for r in result.requests] == [2**64 - 1, 0]
    torch.testing.assert_close(result.images[1:], generate(exact, Request(seed=0)).images, rtol=0, atol=EXACT)


def test_random_seeds_differ() -> None:
    seeds = {random_seed() for _ in range(20)}
    assert len(seeds) == 20
    assert all(0 <= seed < 2**32 for seed in seeds)


# What is asked for ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a green pear, flat"},
        {"negative": "dogs"},
        {"guidance": 5.0},
        {"steps": 4},
        {"sampler": "ddim"},
        {"spacing": "karras"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_part_of_a_request_matters(loaded: Loaded, change: dict[str, Any]) -> None:
    assert far(generate(loaded, RED), generate(loaded, RED.model_copy(update=change))) > 1e-3


def test_what_is_not_said_comes_from_the_model(loaded: Loaded) -> None:
    result = generate(loaded, RED)
    (request,) = result.requests
    assert request == Request(
        prompt=RED.prompt, seed=7, sampler="dpmpp_2m", spacing="trailing", steps=3, guidance=2.0, size=(16, 16)
    )
    assert same(result, generate(loaded, request))
    assert (result.weights, result.tokens, result.dropped) == ("ema", 7, 0)
    assert same(result, generate(loaded, Request.model_validate_json(request.model_dump_json())))


def test_guidance_of_one_asks_for_no_null(loaded: Loaded, watch: Watch) -> None:
    one = generate(loaded, RED.model_copy(update={"guidance": 1.0, "n": 2}))
    assert [len(x) for x in watch.asked] == [2] * one.evaluations
    watch.asked.clear()
    generate(loaded, RED.model_copy(update={"guidance": 1.5, "n": 2}))
    assert [len(x) for x in watch.asked] == [4] * one.evaluations
    assert same(one, generate(loaded, RED.model_copy(update={"guidance": 1.0, "n": 2, "negative": "dogs"})))


@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
def test_guidance_goes_from_the_negative_to_the_prompt(loaded: Loaded, guidance: float) -> None:
    """In one step to clean the picture's latent is the guess: null + scale * (prompt - null)."""
    one_step = RED.model_copy(update={"steps": 1, "sampler": "ddim", "negative": "dogs"})
    prompt = generate(loaded, one_step.model_copy(update={"guidance": 1.0})).latents
    null = generate(loaded, one_step.model_copy(update={"guidance": 1.0, "prompt": "dogs"})).latents
    mixed = generate(loaded, one_step.model_copy(update={"guidance": guidance})).latents
    torch.testing.assert_close(mixed, null + guidance * (prompt - null), rtol=0, atol=1e-4)


def test_the_size_is_width_and_height(loaded: Loaded) -> None:
    assert generate(loaded, RED.model_copy(update={"size": (24, 16)})).images.shape == (1, 3, 16, 24)
    with pytest.raises(ValueError, match=r"^size 24x17 does not fit this model; both sides must divide by 8"):
        generate(loaded, RED.model_copy(update={"size": (24, 17)}))


def test_tokens_over_the_length_are_counted(loaded: Loaded) -> None:
    result = generate(loaded, Request(prompt="red " * 20))
    assert (result.tokens, result.dropped) == (10, 12)
    assert same(result, generate(loaded, Request(prompt="red " * 30)))


def test_pictures_are_within_bounds_and_for_pillow(loaded: Loaded) -> None:
    result = generate(loaded, RED.model_copy(update={"n": 2, "guidance": 50.0}))
    assert result.images.abs().max() <= 1
    for picture, image in zip(result.pil(), result.images, strict=True):
        level = ((image[:, 3, 5] + 1) * 127.5).round().int().tolist()
        assert list(picture.getpixel((5, 3))) == level


# The run as a stream --------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("sampler", ABLE)
def test_evaluations_are_those_the_sampler_declares(loaded: Loaded, watch: Watch, sampler: str, spacing: str) -> None:
    entry = SAMPLERS[sampler]
    count = enough(sampler) + 2
    request = RED.model_copy(update={"sampler": sampler, "spacing": spacing, "steps": count})
    *previews, result = sample(loaded, request)
    assert isinstance(result, Result)
    expected = entry.evaluations(SPACINGS[spacing](loaded.model.denoiser.schedule, count))
    assert result.evaluations == len(watch.asked) == (expected or result.evaluations)
    assert (expected is None) == entry.adaptive
    assert [(p.done, p.total) for p in previews if isinstance(p, Preview)] == [
        (k + 1, expected) for k in range(result.evaluations)
    ]


def test_the_last_preview_of_ddim_is_the_result(loaded: Loaded) -> None:
    *previews, result = sample(loaded, RED.model_copy(update={"sampler": "ddim"}))
    assert isinstance(result, Result)
    last = previews[-1]
    assert isinstance(last, Preview)
    torch.testing.assert_close(last.x0, result.latents, rtol=0, atol=ROUNDING)
    assert torch.equal(loaded.model.first_stage.decode(result.latents).clamp(-1, 1), result.images)


def test_closing_stops_the_run(loaded: Loaded, watch: Watch) -> None:
    run = sample(loaded, RED.model_copy(update={"steps": 5}))
    for _ in range(2):
        assert isinstance(next(run), Preview)
    run.close()
    assert len(watch.asked) == 2
    with pytest.raises(StopIteration):
        next(run)
    assert same(generate(loaded, RED), generate(loaded, RED))


# A picture to begin from ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("strength", "evaluations"), [(0.2, 2), (0.59, 5), (1.0, 10), (0.01, 1), (0, 0)])
def test_strength_is_a_share_of_the_steps(loaded: Loaded, watch: Watch, strength: float, evaluations: int) -> None:
    request = RED.model_copy(update={"steps": 10, "strength": strength, "sampler": "ddim"})
    assert generate(loaded, request, init=INIT).evaluations == evaluations
    whole = SPACINGS["trailing"](loaded.model.denoiser.schedule, 10)
    assert watch.clock == [float(level.t) for level in whole.levels[-evaluations - 1 : -1]]


def test_a_run_begins_at_the_picture_with_noise(loaded: Loaded, watch: Watch) -> None:
    """x = alpha z + sigma eps: two pictures with one seed differ by alpha times their latents' difference."""
    request = RED.model_copy(update={"steps": 10, "strength": 0.4})
    other = INIT.flip(2)
    for init in (INIT, other):
        generate(loaded, request, init=init)
    first, second = watch.asked[0][:1], watch.asked[4][:1]
    level = SPACINGS["trailing"](loaded.model.denoiser.schedule, 10).part(0.4).levels[0]
    encode = loaded.model.first_stage.encode
    expected = level.alpha.float() * (encode(INIT[None]) - encode(other[None]))
    torch.testing.assert_close(first - second, expected, rtol=0, atol=ROUNDING)
    noise = (first - level.alpha.float() * encode(INIT[None])) / level.sigma.float()
    assert 0.6 < noise.std().item() < 1.4


def test_a_picture_gives_its_size_and_its_batch_is_its_singles(exact: Loaded) -> None:
    wide = (0.5 * inp("wide", 3, 16, 24)).clamp(-1, 1).double()
    together = generate(exact, RED.model_copy(update={"n": 2, "sampler": "ddpm"}), init=wide)
    assert together.images.shape == (2, 3, 16, 24)
    assert [r.size for r in together.requests] == [(24, 16)] * 2
    alone = generate(exact, together.requests[1], init=wide)
    torch.testing.assert_close(together.images[1], alone.images[0], rtol=0, atol=EXACT)
    with pytest.raises(ValueError, match="size 20x16 does not fit"):
        generate(exact, RED, init=torch.zeros(3, 16, 20))


# As most people use it ------------------------------------------------------------------------------------


def test_the_front_door(loaded: Loaded) -> None:
    model = sfumato.load(loaded.path)
    assert same(model.generate(prompt=RED.prompt, seed=7), generate(loaded, RED))
    *_, last = model.sample(prompt=RED.prompt, seed=7)
    assert isinstance(last, sfumato.Result)
    assert same(last, generate(loaded, RED))
    assert same(model.generate(prompt=RED.prompt, seed=7, init=INIT), generate(loaded, RED, init=INIT))


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"steps": 1001},
        {"guidance": float("nan")},
        {"guidance": -1},
        {"guidance": float("inf")},
        {"seed": -1},
        {"seed": 2**64},
        {"n": 0},
        {"n": 65},
        {"strength": -0.1},
        {"strength": 1.01},
        {"prompt": "x" * 8001},
        {"sampler": "eulor"},
        {"sampler": "dpmpp_2m karras", "spacing": "trailing"},
        {"eta": 2},
        {"churn": -1},
        {"extend": (0, 0, 0, 0)},
        {"extend": (0, -1, 0, 0)},
        {"feather": -1},
        {"variation_strength": 1.5},
        {"spacing": "even"},
        {"size": (16,)},
        {"colour": "red"},
    ],
    ids=str,
)
def test_what_cannot_be_asked_for(loaded: Loaded, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        sfumato.Model(loaded).generate(**wrong)


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown model"):
        sfumato.load(tmp_path / "nothing")
