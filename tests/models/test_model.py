"""A model's description says all that is needed, refuses what cannot be built, and knows the sizes it can paint."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

import tiny
from sfumato.diffusion.schedule import SCHEDULES
from sfumato.models.config import ModelConfig, ScheduleConfig, within_bounds
from sfumato.models.latent_diffusion import LatentDiffusion, hollowed
from sfumato.models.published import FIRST_STAGES
from sfumato.nets.autoencoder import Autoencoder, AutoencoderSize
from sfumato.nets.patchgan import PatchGan, PatchGanSize
from sfumato.nets.tiny import TinyAutoencoder, TinySize


def test_a_description_survives_json() -> None:
    assert ModelConfig.model_validate_json(tiny.CONFIG.model_dump_json()) == tiny.CONFIG


def put(tree: dict[str, Any], path: str, value: Any) -> None:
    *above, key = path.split(".")
    for step in above:
        tree = tree[step]
    tree[key] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("first_stage.chanels", 8),
        ("unet.kind", "sfumato.nets.unet.UNet"),
        ("schedule.betas", [0.1]),
        ("teacher", None),
        ("prediction", "score"),
        ("schedule.kind", "exponential"),
        ("unet.mult", ["wide"]),
        ("unet.modulation", "film"),
        ("resolution", 4),
        ("schedule.start", 0),
        ("schedule.end", float("nan")),
        ("schedule.steps", 1),
        ("conditioner.encoder.dim", None),
    ],
)
def test_what_it_does_not_know_is_an_error(path: str, value: Any) -> None:
    tree = tiny.CONFIG.model_dump(mode="json")
    put(tree, path, value)
    with pytest.raises(ValidationError):
        ModelConfig.model_validate(tree)


@pytest.mark.parametrize("kind", list(SCHEDULES))
def test_every_schedule_can_be_described(kind: str) -> None:
    built = ScheduleConfig.model_validate({"kind": kind}).build()
    assert built.span == SCHEDULES[kind]().span


def test_numbers_of_a_schedule() -> None:
    config = ScheduleConfig(kind="scaled_linear", start=0.0015, end=0.0195, steps=500, terminal_zero=True)
    built = config.build()
    assert built.entries == 500
    assert built.level(499.0).alpha.item() == 0
    assert built.level(0.0).alpha.square().item() == pytest.approx(1 - 0.0015)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"kind": "cosine", "start": 0.1}, "schedule 'cosine' does not take start; it takes steps, terminal_zero"),
        ({"kind": "flow", "end": 0.1, "steps": 9}, "schedule 'flow' does not take end, steps; it takes no numbers"),
    ],
)
def test_numbers_that_a_schedule_does_not_take(numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        ScheduleConfig.model_validate(numbers).build()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("unet.channels", 3, "unet.channels must be 4"),
        ("unet.context_dim", None, "unet.context_dim must be 16"),
        ("unet.vector_dim", 8, "unet.vector_dim must be 16, as conditioner.encoder.dim, or none"),
        ("unet.map_channels", 1, "unet.map_channels must be 0"),
        ("unet.mult", [], "unet.mult is (); it must be positive"),
        ("unet.mult", [1, 2, 4, 8], "resolution must divide by 32"),
        ("unet.time_scale", float("nan"), "unet.time_scale is nan; it must be positive"),
        ("first_stage.channels", -8, "first_stage.channels is -8; it must be positive"),
        ("conditioner.encoder.heads", 0, "conditioner.encoder.heads is 0; it must be positive"),
        ("first_stage.image_channels", 1, "first_stage.image_channels is 1; pictures have 3"),
        ("first_stage.latent_channels", 49, "latent_channels is 49; a linear shortcut at factor 4 gives at most 48"),
        ("first_stage.channels", 10**7, "first_stage has a layer of 3,600,000,000,000,000 weights; at most 100,000,0"),
        ("first_stage.z_channels", 10**7, "first_stage has a layer of 2,880,000,000 weights; at most 100,000,000 can"),
        ("first_stage.patch", 10**4, "first_stage has a layer of 21,600,000,000 weights; at most 100,000,000 can be"),
        ("schedule.kind", "flow", "schedule 'flow' does not take steps"),
        ("resolution", 12, "resolution must divide by 8"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_they_are_built(path: str, value: Any, message: str) -> None:
    config = tiny.CONFIG.model_copy(update={"schedule": ScheduleConfig(kind="cosine", steps=500)})
    tree = config.model_dump()
    put(tree, path, value)
    with pytest.raises(ValidationError) as caught:
        ModelConfig.model_validate(tree)
    assert message in caught.value.errors()[0]["msg"]


def test_a_linear_shortcut_has_all_components_at_most() -> None:
    """48 numbers are in a square of 4x4 pixels; 49 channels are no trouble without the shortcut."""
    at = {"channels": 8, "mult": (1, 2), "blocks": 1, "patch": 2}
    within_bounds("size", AutoencoderSize(latent_channels=48, shortcut="linear", **at))
    within_bounds("size", AutoencoderSize(latent_channels=49, **at))
    with pytest.raises(ValueError, match=r"^size\.latent_channels is 49; .* at factor 4 gives at most 48$"):
        within_bounds("size", AutoencoderSize(latent_channels=49, shortcut="linear", **at))


LAYERS = {
    "of a level": AutoencoderSize(channels=8, mult=(1, 3), blocks=1),
    "the first": AutoencoderSize(channels=8, mult=(1,), blocks=1, patch=4),
    "the last of the encoder": AutoencoderSize(channels=8, mult=(1, 1), blocks=1, latent_channels=50),
    "the last of a codebook's": AutoencoderSize(channels=8, mult=(1, 2), blocks=1, z_channels=40, codebook=8),
    "the last of a narrow level": AutoencoderSize(channels=8, mult=(4, 1), blocks=1, z_channels=70),
    "of the moments": AutoencoderSize(channels=1, mult=(1,), blocks=1, latent_channels=30),
    "of a narrow latent": AutoencoderSize(channels=2, mult=(1,), blocks=1, latent_channels=30),
    "the shortcut": AutoencoderSize(channels=4, mult=(1, 1, 1), blocks=1, latent_channels=20, shortcut="linear"),
    "the codebook": AutoencoderSize(channels=4, mult=(1, 1), blocks=1, latent_channels=2, codebook=1000),
    **{f"published {name}": FIRST_STAGES[name] for name in FIRST_STAGES},
    "tiny": TinySize(),
    "tiny, of a wide latent": TinySize(width=8, latent_channels=16),
    "tiny, of one channel": TinySize(width=1, latent_channels=1),
    **{f"critic of {n} layers": PatchGanSize(width=4, layers=n) for n in (1, 2, 3, 5)},
    "critic of many channels": PatchGanSize(width=1, layers=1, channels=40),
}


@pytest.mark.parametrize("size", LAYERS.values(), ids=LAYERS)
def test_the_largest_layer_is_known_before_it_is_built(size: AutoencoderSize | TinySize | PatchGanSize) -> None:
    with hollowed():
        match size:
            case PatchGanSize():
                net = PatchGan(size)
            case TinySize():
                net = TinyAutoencoder(size)
            case AutoencoderSize():
                net = Autoencoder(size)
    assert size.largest == max(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (TinySize(width=10**7), "size has a layer of 900,000,000,000,000 weights; at most 100,000,000 can be built"),
        (TinySize(levels=10**7), "size.levels is 10000000; at most 16 can be built"),
        (PatchGanSize(width=10**7), "size has a layer of 51,200,000,000,000,000 weights; at most 100,000,000 can be"),
    ],
    ids=["tiny", "tiny, levels", "critic"],
)
def test_what_there_is_no_memory_for_is_a_line(size: TinySize | PatchGanSize, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        within_bounds("size", size)


def test_a_model_without_a_vector_can_be_built() -> None:
    tree = tiny.CONFIG.model_dump()
    put(tree, "unet.vector_dim", None)
    assert tiny.model(config=ModelConfig.model_validate(tree)).latent_shape(16, 16) == (4, 4, 4)


# Sizes ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return tiny.model()


def test_the_latent_of_a_picture(model: LatentDiffusion) -> None:
    """Two levels of the first stage over patches of 2, and two of the U-Net: sides divide by 8."""
    assert model.factor == 8
    assert model.latent_shape(24, 16) == (4, 4, 6)


@pytest.mark.parametrize(
    ("size", "near"), [((20, 16), "16x16"), ((16, 21), "16x24"), ((0, 16), "8x16"), ((3, 3), "8x8")]
)
def test_sizes_that_do_not_fit(model: LatentDiffusion, size: tuple[int, int], near: str) -> None:
    with pytest.raises(ValueError, match="must divide by 8") as caught:
        model.latent_shape(*size)
    assert f"near: {near})" in str(caught.value)
    assert "\n" not in str(caught.value)
