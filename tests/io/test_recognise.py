"""Every published network, written as a file of its authors' names, is recognised from its shapes alone."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sfumato.conditioning.known_labels import known_labels
from sfumato.conditioning.layout import LayoutTokens
from sfumato.diffusion.prediction import Prediction
from sfumato.io import shapes
from sfumato.io.layouts import ddpm, ldm
from sfumato.io.opening import _predicts_v, predicting_v
from sfumato.io.recognise import COND, FIRST_STAGE, UNET, recognise
from sfumato.io.stored import Entry, Stored
from sfumato.models.config import LayoutConfig
from sfumato.models.latent_diffusion import hollow, hollowed
from sfumato.models.published import ENCODERS, FIRST_STAGES, TRAININGS, UNETS
from sfumato.nets.autoencoder import Autoencoder
from sfumato.nets.transformer import TransformerEncoder
from sfumato.nets.unet import UNet

TWINS = {"sd2-v": "sd2"}  # the same shapes
CONVOLUTIONS = ("sd1", "instruct", "ldm", "rdm")  # in transformers


def linear(name: str) -> bool:
    return not name.startswith(CONVOLUTIONS)


def unet_shapes(name: str) -> dict[str, tuple[int, ...]]:
    size = UNETS[name]
    with hollowed():
        net = UNet(size)
    rules = ddpm.unet(net) if size.lineage == "ddpm" else ldm.unet(net, linear=linear(name))
    return written(net, rules)


def written(net: torch.nn.Module, rules: list[ldm.Rule]) -> dict[str, tuple[int, ...]]:
    own = dict(net.named_parameters())
    out: dict[str, tuple[int, ...]] = {}
    for rule in rules:
        theirs = rule.form.write([own[n] for n in rule.ours])
        out |= {n: tuple(t.shape) for n, t in zip(rule.theirs, theirs, strict=True)}
    return out


@pytest.mark.parametrize("name", UNETS)
def test_every_unet_is_recognised_by_its_shapes(name: str) -> None:
    size = UNETS[name]
    found = shapes.unet(unet_shapes(name), latent=size.channels)
    assert found.published == TWINS.get(name, name)
    same = ("stem", "cross_only", "attention", "upcast")  # what is said in more than one way, or not in shapes
    assert replace(found.size, **{f: getattr(size, f) for f in same}) == size
    if size.attends == "transformer":
        assert found.linear == linear(name)
    with hollowed():
        again = UNet(found.size)
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in UNet_of(size)}


def UNet_of(size: object) -> list[tuple[str, torch.nn.Parameter]]:
    with hollowed():
        return list(UNet(size).named_parameters())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_every_first_stage_is_recognised_by_its_shapes(name: str) -> None:
    size = FIRST_STAGES[name]
    with hollowed():
        net = Autoencoder(size)
    assert shapes.autoencoder(written(net, ldm.autoencoder(net, levels=len(size.mult)))) == size


@pytest.mark.parametrize("name", ENCODERS)
def test_every_text_encoder_is_recognised_by_its_shapes(name: str) -> None:
    words, size = ENCODERS[name]
    with hollowed():
        net = TransformerEncoder(words, size)
    for names, rules in (("clip", ldm.clip), ("openclip", ldm.openclip)) if size.causal else (("bert", ldm.bert),):
        assert shapes.encoder(written(net, rules(net)), names) == (words, size)


def stored(tensors: dict[str, tuple[int, ...]], **metadata: str) -> Stored:
    """A file that has names and shapes, and numbers only where they are asked for."""
    entries = {n: Entry(s, torch.float32, 0, ()) for n, s in tensors.items()}
    return Stored(Path("made-up.safetensors"), entries, metadata, mmap.mmap(-1, 1))


def whole(name: str, encoder: str) -> dict[str, tuple[int, ...]]:
    """A model of Stable Diffusion, whole."""
    words, size = ENCODERS[encoder]
    with hollowed():
        first, text = Autoencoder(FIRST_STAGES["kl-f8"]), TransformerEncoder(words, size)
    prefix, rules = ("transformer.text_model.", ldm.clip) if name.startswith("sd1") else ("model.", ldm.openclip)
    return {
        **{UNET + n: s for n, s in unet_shapes(name).items()},
        **{FIRST_STAGE + n: s for n, s in written(first, ldm.autoencoder(first, levels=4)).items()},
        **{COND + prefix + n: s for n, s in written(text, rules(text)).items()},
    }


def sd2() -> dict[str, tuple[int, ...]]:
    return whole("sd2", "openclip-vit-h-14")


def test_what_a_network_predicts_is_taken_from_the_first_that_says_it() -> None:
    found = recognise(stored(sd2()))
    assert not found.sure
    for given, prediction in (
        (stored(sd2(), **{"modelspec.prediction_type": "v"}), Prediction.V),
        (stored(sd2(), **{"modelspec.prediction_type": "epsilon"}), Prediction.EPS),
        (stored(sd2(), **{"modelspec.architecture": "stable-diffusion-v2-768-v"}), Prediction.V),
        (stored({**sd2(), "v_pred": (0,)}), Prediction.V),
        (stored(whole("sd1", "clip-vit-l-14")), Prediction.EPS),
    ):
        found = recognise(given)
        assert found.sure
        assert found.config.prediction is prediction
        assert found.config.unet.upcast == (prediction is Prediction.V)
    assert recognise(stored({**sd2(), "v_pred": (0,)})).config.resolution == 768


@pytest.mark.parametrize(("answer", "v"), [(lambda x: x, False), (lambda x: 0.4 * x, False), (lambda x: x - 2, True)])
def test_a_network_that_answers_with_less_than_it_is_shown_predicts_v(
    answer: Callable[[torch.Tensor], torch.Tensor], v: bool
) -> None:
    def net(x: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        assert x.shape == (1, 4, 8, 8)
        assert (t, tokens.shape) == (torch.tensor([999.0]), (1, 2, 1024))
        return answer(x)

    model = SimpleNamespace(denoiser=SimpleNamespace(net=net), config=SimpleNamespace(unet=UNETS["sd2"]))
    assert _predicts_v(model) is v  # pyright: ignore[reportArgumentType]


def test_asked_sd2_is_the_same_network_at_768() -> None:
    found = recognise(stored(sd2()))
    config = predicting_v(found.config)
    assert (config.prediction, config.resolution, config.unet.upcast) == (Prediction.V, 768, True)
    assert replace(config.unet, upcast=False) == found.config.unet


def layout_model(**of_encoder: int) -> dict[str, tuple[int, ...]]:
    """LDM's layout2img-openimages256, with another table or other positions if that is said."""
    words, size = ENCODERS["ldm-layout"]
    with hollowed():
        first = Autoencoder(FIRST_STAGES["vq-f4"])
        text = TransformerEncoder(of_encoder.pop("words", words), replace(size, **of_encoder))
    return {
        **{UNET + n: s for n, s in unet_shapes("ldm-layout2img").items()},
        **{FIRST_STAGE + n: s for n, s in written(first, ldm.autoencoder(first, levels=3)).items()},
        **{COND + "transformer." + n: s for n, s in written(text, ldm.bert(text)).items()},
    }


def test_the_published_layout_model_is_asked_with_the_labels_of_its_data() -> None:
    found = recognise(stored(layout_model()))
    kind = found.config.conditioner
    assert isinstance(kind, LayoutConfig)
    assert (kind.names, kind.window, kind.vocabulary) == (known_labels("open-images"), True, 8192)
    assert kind.encoder == ENCODERS["ldm-layout"][1]
    assert found.config.unet == UNETS["ldm-layout2img"]
    assert (found.config.schedule.start, found.config.schedule.end) == (0.0015, 0.0205)
    assert (found.config.resolution, found.config.prediction, found.scale) == (256, Prediction.EPS, 1.0)
    assert any("340 of Open Images" in line and "no file says it" in line for line in found.why)


@pytest.mark.parametrize(
    ("of_encoder", "window", "most"),
    [({"length": 90}, False, 30), ({"length": 62}, True, 20), ({"words": 400}, True, 30)],
)
def test_other_layout_models_are_asked_with_numbers(of_encoder: dict[str, int], window: bool, most: int) -> None:
    found = recognise(stored(layout_model(**of_encoder)))
    kind = found.config.conditioner
    assert isinstance(kind, LayoutConfig)
    assert (kind.names, kind.window) == ((), window)
    assert not any("label" in line for line in found.why)
    model = hollow(found.config).conditioner
    assert isinstance(model, LayoutTokens)
    assert model.most == most
    assert len(model.sequence([])) == kind.encoder.length


def test_a_unet_alone_is_said_to_be_one() -> None:
    with pytest.raises(ValueError, match="holds a U-Net alone, without the first stage"):
        recognise(stored({UNET + n: s for n, s in unet_shapes("sd1").items()}))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "is a LoRA"),
        ("string_to_param.*", "is an embedding"),
        ("encoder.conv_in.weight", "is a first stage alone"),
        ("text_model.encoder.layers.0.mlp.fc1.weight", "is a text encoder alone"),
        ("down_blocks.0.resnets.0.conv1.weight", "is a part of a diffusers folder"),
        ("transformer.h.0.attn.weight", "holds no diffusion model that is known here"),
    ],
)
def test_what_is_no_model_is_said_to_be_what_it_is(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        recognise(stored({name: (1, 1)}))


def test_every_published_unet_has_its_training() -> None:
    assert {*UNETS} == TRAININGS.keys()
    for name, training in TRAININGS.items():
        assert (UNETS[name].map_channels > 0) == (training.maps is not None), name
