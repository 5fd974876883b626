"""From a given picture: kept pixels, larger canvases, inversion, tiles, and variations of a seed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import sfumato
import tiny
from fill import inp
from sfumato.diffusion.interpolate import slerp
from sfumato.diffusion.noise import seeded
from sfumato.diffusion.samplers import SAMPLERS
from sfumato.generate import Preview, Result, generate, sample
from sfumato.io import opening, pictures
from sfumato.io.model_folder import Loaded
from sfumato.request import Request

PICTURE = (0.5 * inp("init", 3, 24, 16)).clamp(-1, 1)
HOLE = torch.zeros(24, 16)
HOLE[5:14, 3:9] = 1
RED = Request(prompt="a red apple, 3d", seed=7, steps=5)
ABLE = [name for name, entry in SAMPLERS.items() if not entry.needs_spread]
INVERTIBLE = [name for name in ABLE if not SAMPLERS[name].stochastic]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return opening.load(tiny.folder(tmp_path_factory.mktemp("given") / "model"))


def asked(**changes: Any) -> Request:
    return Request.model_validate(RED.model_dump(exclude_none=True) | changes)


def enough(sampler: str) -> int:
    return max(5, SAMPLERS[sampler].least)


def levels(images: Tensor) -> Tensor:
    """As they are written to a file, 0 to 255."""
    return torch.stack([((pictures.from_pil(pictures.to_pil(image)) + 1) * 127.5).round() for image in images])


# Inpainting -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ABLE)
def test_outside_the_mask_every_sampler_leaves_the_pixels_as_they_are(loaded: Loaded, sampler: str) -> None:
    picture = levels(PICTURE[None])[0] / 127.5 - 1
    result = generate(loaded, asked(sampler=sampler, steps=enough(sampler)), init=picture, mask=HOLE)
    kept = (HOLE == 0).expand(1, 3, -1, -1)
    assert torch.equal(result.images[kept], picture[None][kept])
    assert torch.equal(levels(result.images)[kept], levels(picture[None])[kept])
    assert (result.images - picture)[:, :, 8, 5].abs().max() > 1e-3


def test_the_latents_that_are_kept_end_as_the_pictures_own(loaded: Loaded) -> None:
    result = generate(loaded, RED, init=PICTURE, mask=HOLE)
    z = loaded.model.first_stage.encode(PICTURE[None])
    hole = torch.nn.functional.max_pool2d(HOLE[None, None], loaded.model.first_stage.factor).expand_as(z) > 0
    torch.testing.assert_close(result.latents[~hole], z[~hole], rtol=0, atol=1e-5)
    assert (result.latents[hole] - z[hole]).abs().min() > 1e-6


def test_at_full_strength_nothing_of_what_was_in_the_hole_is_left(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    hole = torch.zeros(24, 16)
    hole[8:] = 1
    first, less = (generate(loaded, asked(strength=s), init=PICTURE, mask=hole) for s in (None, 0.8))
    assert first.requests[0].strength == 1.0
    encode = loaded.model.first_stage.encode
    inside = torch.nn.functional.max_pool2d(hole[None, None], loaded.model.first_stage.factor)
    monkeypatch.setattr(loaded.model.first_stage, "encode", lambda image: encode(image) + 3 * inside)
    second, other = (generate(loaded, asked(strength=s), init=PICTURE, mask=hole) for s in (None, 0.8))
    torch.testing.assert_close(first.latents, second.latents, rtol=0, atol=1e-6)
    assert (less.latents - other.latents).abs().max() > 0.1


def test_a_mask_of_nothing_gives_the_picture_back_and_one_of_all_paints_freely(loaded: Loaded) -> None:
    nothing = generate(loaded, RED, init=PICTURE, mask=torch.zeros_like(HOLE))
    assert torch.equal(nothing.images, PICTURE[None])
    everything = generate(loaded, RED, init=PICTURE, mask=torch.ones_like(HOLE))
    free = generate(loaded, asked(size=(16, 24)))
    torch.testing.assert_close(everything.images, free.images, rtol=0, atol=1e-5)


def test_strength_nought_gives_the_picture_through_the_first_stage(loaded: Loaded) -> None:
    result = generate(loaded, asked(strength=0), init=PICTURE)
    first_stage = loaded.model.first_stage
    assert result.evaluations == 0
    torch.testing.assert_close(result.images, first_stage.decode(first_stage.encode(PICTURE[None])).clamp(-1, 1))


def test_outpainting_keeps_the_picture_and_paints_around_it(loaded: Loaded) -> None:
    result = generate(loaded, asked(extend=(8, 0, 0, 8)), init=PICTURE)
    assert result.images.shape == (1, 3, 32, 24)
    assert result.requests[0].size == (24, 32)
    assert torch.equal(result.images[0, :, :24, 8:], PICTURE)
    painted = result.images[0, :, :24, :8]
    assert painted.std() > 1e-3
    again = generate(loaded, result.requests[0], init=PICTURE)  # as `reproduce` asks
    assert torch.equal(again.images, result.images)


@pytest.mark.parametrize(
    ("change", "given", "message"),
    [
        ({"strength": 0.5}, {}, "strength says how much of a given picture may change, and there is none"),
        ({}, {"mask": HOLE}, "a mask says what of a given picture is painted anew, and there is none; give it as init"),
        ({}, {"init": "photo.png"}, "init must be a tensor; sfumato.io.pictures has read"),
        ({"extend": (8, 0, 0, 0)}, {}, "extend paints around a given picture, and there is none; give it as init"),
        ({"inversion": True}, {}, "inversion begins from the noise that paints a given picture, and there is none"),
        ({}, {"init": PICTURE, "mask": HOLE.T}, "the mask is 24x16 and the picture is 16x24"),
        ({"inversion": True, "sampler": "euler_a"}, {"init": PICTURE}, "sampler 'euler_a' adds fresh noise, so it"),
        ({"extend": (3, 0, 0, 0)}, {"init": PICTURE}, "size 19x24 does not fit this model"),
        (
            {"extend": (0, 0, 2040, 0)},
            {"init": PICTURE},
            "the picture would be 2056x24; each side has",
        ),
        ({"inversion": True, "n": 2}, {"init": PICTURE}, "inversion begins from one noise"),
        ({"inversion": True, "sampler": "ddim", "eta": 1.0}, {"init": PICTURE}, "sampler 'ddim' adds fresh noise"),
        ({"inversion": True, "sampler": "heun", "churn": 9.0}, {"init": PICTURE}, "sampler 'heun' adds fresh noise"),
        (
            {"sampler": "pndm", "steps": 20, "strength": 0.1},
            {"init": PICTURE},
            "sampler 'pndm' needs at least 4 steps, and strength 0.1 leaves 2 of 20",
        ),
    ],
)
def test_what_a_given_picture_cannot_do(
    loaded: Loaded, change: dict[str, Any], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        generate(loaded, asked(**change), **given)


# Inversion ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", INVERTIBLE)
def test_inversion_and_sampling_with_the_same_words_come_back_near_the_picture(loaded: Loaded, sampler: str) -> None:
    z = loaded.model.first_stage.encode(PICTURE[None])
    words = {"source": RED.prompt, "guidance": 1.0, "strength": 0.5, "sampler": sampler}
    *previews, result = sample(loaded, asked(steps=40, inversion=True, **words), init=PICTURE)
    assert isinstance(result, Result)
    noised = generate(loaded, asked(steps=40, **words), init=PICTURE)
    back, astray = ((r.latents - z).square().mean().sqrt() for r in (result, noised))
    assert back < 0.35 * astray
    total = {p.total for p in previews if isinstance(p, Preview)}
    assert total == ({None} if SAMPLERS[sampler].adaptive else {result.evaluations})


# Tiles ----------------------------------------------------------------------------------------------------


def test_a_tile_is_painted_on_a_torus(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first noise shifted around the torus brings the picture shifted: no place of it is at a border."""
    plain, tile = generate(loaded, RED), generate(loaded, asked(tiling=True))
    assert (plain.images - tile.images).abs().max() > 1e-3
    cell = loaded.model.factor // loaded.model.first_stage.factor
    draw = seeded([RED.seed])

    def shifted(like: Tensor) -> Tensor:
        return torch.roll(draw(like), (cell, 0), (2, 3))

    monkeypatch.setattr("sfumato.generate.seeded", lambda seeds: shifted)
    moved = generate(loaded, asked(tiling=True))
    expected = torch.roll(tile.images, (loaded.model.factor, 0), (2, 3))
    torch.testing.assert_close(moved.images, expected, rtol=0, atol=2e-4)
    monkeypatch.undo()
    assert torch.equal(generate(loaded, RED).images, plain.images)  # the model is as it was


# Variations -----------------------------------------------------------------------------------------------


def test_variations_go_from_one_seed_to_the_next(loaded: Loaded) -> None:
    ends = {s: generate(loaded, asked(seed=s)).images for s in (7, 9)}
    for strength, seed in ((0.0, 7), (1.0, 9)):
        result = generate(loaded, asked(variation_seed=9, variation_strength=strength))
        torch.testing.assert_close(result.images, ends[seed], rtol=0, atol=1e-5)


def test_a_variation_begins_on_the_arc_between_the_noises(loaded: Loaded) -> None:
    one_step = asked(steps=1, sampler="ddim")
    x: list[Tensor] = []
    handle = loaded.model.denoiser.net.register_forward_pre_hook(lambda _, inputs: x.append(inputs[0][:1]))
    generate(loaded, one_step.model_copy(update={"variation_seed": 9, "variation_strength": 0.3}))
    handle.remove()
    like = torch.empty(1, *loaded.model.latent_shape(16, 16))
    sigma = loaded.model.denoiser.schedule.level(loaded.model.denoiser.schedule.span[1]).sigma
    expected = sigma * slerp(seeded([7])(like), seeded([9])(like), 0.3)
    torch.testing.assert_close(x[0], expected.float(), rtol=0, atol=1e-5)


def test_n_variations_are_of_one_seed_and_each_is_as_if_alone(loaded: Loaded) -> None:
    together = generate(loaded, asked(n=3, variation_seed=2**64 - 1, variation_strength=0.2))
    assert [(r.seed, r.variation_seed) for r in together.requests] == [(7, 2**64 - 1), (7, 0), (7, 1)]
    for image, request in zip(together.images, together.requests, strict=True):
        torch.testing.assert_close(image, generate(loaded, request).images[0], rtol=0, atol=5e-4)


def test_a_walk_between_two_seeds_is_one_batch(loaded: Loaded) -> None:
    walk = [asked(variation_seed=9, variation_strength=k / 4) for k in range(5)]
    images = generate(loaded, walk).images
    steps = (images[1:] - images[:-1]).square().mean((1, 2, 3)).sqrt()
    assert steps.max() < (images[4] - images[0]).square().mean().sqrt()
    assert steps.min() > 0


# Names of other tools -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "sampler", "spacing"),
    [
        ("DPM++ 2M Karras", "dpmpp_2m", "karras"),
        ("k_dpmpp_2m", "dpmpp_2m", None),
        ("dpmpp-2m-karras", "dpmpp_2m", "karras"),
        ("DPM++ 2M  Karras ", "dpmpp_2m", "karras"),
        ("DPM++ 3M SDE Exponential", "dpmpp_3m_sde", "exponential"),
        ("Euler a", "euler_a", None),
        ("DPMSolverMultistepScheduler", "dpmpp_2m", None),
        ("uni_pc", "unipc", None),
    ],
)
def test_the_names_of_other_tools_are_understood(said: str, sampler: str, spacing: str | None) -> None:
    request = Request.model_validate({"sampler": said})
    assert (request.sampler, request.spacing) == (sampler, spacing)


@pytest.fixture
def exact(loaded: Loaded) -> Iterator[Loaded]:
    """The model in float64: in float32 how far two formulas of one step part depends on the machine."""
    torch.set_default_dtype(torch.float64)
    yield replace(loaded, model=copy.deepcopy(loaded.model).double())
    torch.set_default_dtype(torch.float32)


def test_eta_is_the_noise_of_ddpm(exact: Loaded) -> None:
    ancestral = generate(exact, asked(sampler="ddim", eta=1.0))
    torch.testing.assert_close(ancestral.images, generate(exact, asked(sampler="ddpm")).images, rtol=0, atol=1e-9)


def test_eta_and_churn_reach_the_sampler(loaded: Loaded) -> None:
    plain = generate(loaded, asked(sampler="ddim"))
    assert torch.equal(plain.images, generate(loaded, asked(sampler="ddim", eta=0.0)).images)
    quiet, churned = (generate(loaded, asked(sampler="heun", churn=c)) for c in (0.0, 2.0))
    assert torch.equal(quiet.images, generate(loaded, asked(sampler="heun")).images)
    assert (quiet.images - churned.images).abs().max() > 1e-3


def test_a_batch_is_its_singles_with_the_bundled_model() -> None:
    """The promise of a seed, with a real network in float32: within one level of 255."""
    model = sfumato.load("emoji")
    wanted = {"prompt": "a red apple, 3d", "steps": 8}
    for sampler in ("dpmpp_2m", "euler_a"):
        eight = model.generate(seed=7, n=8, sampler=sampler, **wanted)
        for k in (0, 3, 7):
            alone = model.generate(seed=7 + k, sampler=sampler, **wanted)
            assert (levels(eight.images[k : k + 1]) - levels(alone.images)).abs().max() <= 1
