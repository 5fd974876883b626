"""LoRA: every style of keys is the same change, the change is the formula, and what was there comes back to the bit."""

from __future__ import annotations

import copy
import gc
import itertools
import json
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny
from sfumato.io import lora as lora_module
from sfumato.io.layouts import diffusers, ldm
from sfumato.io.lora import Lora, apply, read_lora, write_lora
from sfumato.io.lora_keys import parsed
from sfumato.io.recognise import Origin
from sfumato.io.stored import open_stored
from sfumato.models.config import ClipConfig, ModelConfig
from sfumato.models.latent_diffusion import LatentDiffusion, hollow
from sfumato.nets.transformer import TransformerSize
from sfumato.nets.unet import UNetSize

CONFIG = ModelConfig(
    first_stage=None,
    conditioner=ClipConfig(
        encoder=TransformerSize(dim=24, depth=2, length=12, heads=2, dim_head=12, causal=True, bias=True),
        vocabulary=50,
        pad=0,
    ),
    unet=UNetSize(channels=3, width=16, mult=(1, 2), blocks=1, attention=(1, 2), head_dim=8, context_dim=24),
    resolution=16,
)
SD1, SD2 = Origin(linear=False), Origin(linear=True)
BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
RANKS = {  # layers of all kinds, as diffusers calls them: matrices, pixels, convolutions
    "unet.down_blocks.0.attentions.0.proj_in": 3,
    f"unet.{BLOCK}.attn1.to_q": 4,
    f"unet.{BLOCK}.attn2.to_k": 4,
    f"unet.{BLOCK}.attn2.to_out.0": 2,
    f"unet.{BLOCK}.ff.net.0.proj": 4,
    "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v": 4,
    "unet.up_blocks.0.resnets.1.conv1": 2,
    "unet.up_blocks.0.resnets.1.conv_shortcut": 2,
    "unet.down_blocks.0.downsamplers.0.conv": 1,
    "unet.up_blocks.1.resnets.0.time_emb_proj": 4,
    "text_encoder.text_model.encoder.layers.1.self_attn.q_proj": 4,
    "text_encoder.text_model.encoder.layers.1.self_attn.out_proj": 4,
    "text_encoder.text_model.encoder.layers.0.mlp.fc1": 2,
}
ATTENTION = {name: rank for name, rank in RANKS.items() if ".attn" in name}
Pairs = dict[str, tuple[Tensor, Tensor]]


@pytest.fixture
def model() -> LatentDiffusion:
    return tiny.model(config=CONFIG)


def ours(model: LatentDiffusion, origin: Origin = SD1) -> dict[str, str]:
    """Diffusers' layers -> our weights."""
    names = {}
    for rule in diffusers.unet(model.denoiser.net, linear=origin.linear):
        names["unet." + rule.theirs[0].removesuffix(".weight")] = "denoiser.net." + rule.ours[0]
    for rule in ldm.clip(model.conditioner.encoder):
        names["text_encoder.text_model." + rule.theirs[0].removesuffix(".weight")] = (
            "conditioner.encoder." + rule.ours[0]
        )
    return names


def as_ldm(model: LatentDiffusion) -> dict[str, str]:
    """Diffusers' layers -> LDM's, of the U-Net."""
    back = {mine: theirs for theirs, mine in ours(model).items()}
    rules = ldm.unet(model.denoiser.net, linear=False)
    return {back["denoiser.net." + r.ours[0]]: r.theirs[0].removesuffix(".weight") for r in rules}


def pairs(model: LatentDiffusion, ranks: Mapping[str, int] = RANKS, *, seed: int = 0, linear: bool = False) -> Pairs:
    """down and up of each layer, shaped as trainers shape them."""
    generator, names = torch.Generator().manual_seed(seed), ours(model)
    made = {}
    for name, rank in ranks.items():
        weight = model.get_parameter(names[name])
        sides = weight.shape[2:] or ((1, 1) if name.endswith("proj_in") and not linear else ())
        down = torch.randn(rank, weight.shape[1], *sides, generator=generator)
        up = torch.randn(weight.shape[0], rank, *[1] * len(sides), generator=generator)
        made[name] = (down, up)
    return made


def flat(name: str) -> str:
    return name.replace(".", "_").replace("unet_", "lora_unet_", 1).replace("text_encoder_", "lora_te_", 1)


def kohya(made: Pairs, alpha: float | None = None) -> dict[str, Tensor]:
    out = {}
    for name, (down, up) in made.items():
        out |= {f"{flat(name)}.lora_down.weight": down, f"{flat(name)}.lora_up.weight": up}
        if alpha is not None:
            out[f"{flat(name)}.alpha"] = torch.tensor(alpha)
    return out


def suffixed(made: Pairs, down: str, up: str, prefix: str = "", strip: str = "") -> dict[str, Tensor]:
    out = {}
    for name, (a, b) in made.items():
        out |= {f"{prefix}{name.removeprefix(strip)}{down}": a, f"{prefix}{name.removeprefix(strip)}{up}": b}
    return out


def written(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata)
    return path


def formula(
    model: LatentDiffusion, made: Pairs, scale: Callable[[int], float], names: dict[str, str] | None = None
) -> dict[str, Tensor]:
    """W + scale up @ down, in single precision."""
    out = {}
    for name, (down, up) in made.items():
        weight = model.get_parameter((names or ours(model))[name])
        change = (up.flatten(1).float() @ down.flatten(1).float()) * scale(down.shape[0])
        out[ours(model)[name]] = (weight.float() + change.reshape(weight.shape)).to(weight.dtype)
    return out


def same(model: LatentDiffusion, expected: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> None:
    """The model's weights are `expected`, and those `before` where nothing is said."""
    for name, tensor in model.named_parameters():
        assert torch.equal(tensor, expected.get(name, before[name])), name


def snapshot(model: LatentDiffusion) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert type(error.value) is ValueError
    assert "\n" not in str(error.value)
    return str(error.value)


# The formula ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [1.0, 0.7, -0.4])
@pytest.mark.parametrize("origin", [SD1, SD2], ids=["SD 1", "SD 2"])
def test_the_change_is_the_formula(tmp_path: Path, model: LatentDiffusion, weight: float, origin: Origin) -> None:
    made = pairs(model, linear=origin.linear)
    before, expected = snapshot(model), formula(model, made, lambda rank: weight * 2.5 / rank)
    assert len(expected) == len(RANKS)
    apply(model, read_lora(written(tmp_path / "a.safetensors", kohya(made, 2.5))), weight=weight, origin=origin)
    same(model, expected, before)


def test_a_convolution_with_a_change_is_the_convolutions_in_a_row(tmp_path: Path, model: LatentDiffusion) -> None:
    """As LoCon is trained: what down sees in its window goes through up, beside the layer."""
    name = "unet.up_blocks.0.resnets.1.conv1"
    made = pairs(model, {name: 2})
    down, up = (part.double() for part in made[name])
    model.double()  # in single precision the two orders of summing differ by the machine
    layer = model.get_submodule(ours(model)[name].removesuffix(".weight"))
    x = torch.randn(2, down.shape[1], 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inner = torch.nn.functional.conv2d(x, down, padding=1)
    expected = layer(x) + 0.5 * torch.nn.functional.conv2d(inner, up)
    apply(model, read_lora(written(tmp_path / "a.safetensors", kohya(made))), weight=0.5, origin=SD1)
    layer = model.get_submodule(ours(model)[name].removesuffix(".weight"))
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(
    tmp_path: Path, model: LatentDiffusion, dtype: torch.dtype, stored: torch.dtype
) -> None:
    model.to(dtype)
    made = {name: (a.to(stored), b.to(stored)) for name, (a, b) in pairs(model).items()}
    before, expected = snapshot(model), formula(model, made, lambda rank: 0.3 * 2 / rank)
    apply(model, read_lora(written(tmp_path / "a.safetensors", kohya(made, 2))), weight=0.3, origin=SD1)
    assert {p.dtype for p in model.parameters()} == {dtype}
    same(model, expected, before)


def test_two_at_once_are_summed_before_they_are_rounded(tmp_path: Path, model: LatentDiffusion) -> None:
    model.to(torch.bfloat16)
    name = f"unet.{BLOCK}.attn2.to_k"
    sets = [pairs(model, {name: 4}, seed=seed) for seed in (1, 2)]
    total = model.get_parameter(ours(model)[name]).float()
    for i, made in enumerate(sets):
        down, up = made[name]
        total = total + 0.1 * (up @ down)
        apply(model, read_lora(written(tmp_path / f"{i}.safetensors", kohya(made))), weight=0.1, origin=SD1)
    assert torch.equal(model.get_parameter(ours(model)[name]), total.to(torch.bfloat16))


@pytest.mark.parametrize("order", ["by_head", "by_part"])
def test_one_layer_there_is_three_here(tmp_path: Path, order: Any) -> None:
    """ADM's plain attention has Q, K and V as one layer in LDM's names, in one of two orders."""
    size = UNetSize(channels=3, width=16, mult=(1,), blocks=1, attention=(1,), attends="plain", head_dim=8)
    model = tiny.model(config=ModelConfig(first_stage=None, conditioner=None, unet=size))
    rules = ldm.unet(model.denoiser.net, linear=False, order=order)
    rule = next(r for r in rules if r.theirs == ("middle_block.1.qkv.weight",))
    names = ["denoiser.net." + name for name in rule.ours]
    down, up = torch.randn(2, 16), torch.randn(48, 2)
    whole = rule.form.write([model.get_parameter(name) for name in names])[0] + (up @ down)[..., None]
    tensors = {"lora_unet_middle_block_1_qkv.lora_down.weight": down, "lora_unet_middle_block_1_qkv.lora_up.weight": up}
    before = snapshot(model)
    lora = read_lora(written(tmp_path / "a.safetensors", tensors))
    applied = apply(model, lora, origin=Origin(order=order))
    same(model, dict(zip(names, rule.form.read([whole]), strict=True)), before)
    assert applied.names == set(names)
    applied.remove()
    same(model, {}, before)


# Styles ---------------------------------------------------------------------------------------------------


def styles(model: LatentDiffusion, made: Pairs) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The same LoRA in every style, without alphas."""
    yield "kohya", kohya(made)
    there = {name: "unet." + new for name, new in as_ldm(model).items()}
    yield "kohya, LDM's names", kohya({there.get(name, name): pair for name, pair in made.items()})
    yield "diffusers", suffixed(made, ".lora_A.weight", ".lora_B.weight")
    yield "an adapter's name", suffixed(made, ".lora_A.default.weight", ".lora_B.default.weight")
    yield "diffusers of 2023", suffixed(made, ".lora.down.weight", ".lora.up.weight")
    yield "its text encoder", suffixed(made, ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")
    short = {name.replace(".text_model", ""): pair for name, pair in made.items()}
    yield "a text encoder of one name less", suffixed(short, ".lora_A.weight", ".lora_B.weight")
    for style in ("unet.", "text_encoder."):
        yield (
            f"PEFT, without {style}",
            suffixed(made, ".lora_A.weight", ".lora_B.weight", prefix="base_model.model.", strip=style),
        )
    unet = {there[name].removeprefix("unet."): pair for name, pair in made.items() if name in there}
    text = {name: pair for name, pair in made.items() if name not in there}
    whole = suffixed(unet, ".lora_A.weight", ".lora_B.weight", prefix="diffusion_model.")
    yield "LDM's names with dots", whole | suffixed(text, ".lora_A.weight", ".lora_B.weight")


def test_every_style_is_the_same_change(tmp_path: Path, model: LatentDiffusion) -> None:
    made = pairs(model)
    before, expected = snapshot(model), formula(model, made, lambda rank: 1.0)
    seen = 0
    for style, tensors in styles(model, made):
        path = written(tmp_path / f"{style}.safetensors", tensors)
        applied = apply(model, read_lora(path), origin=SD1)
        same(model, expected, before)
        applied.remove()
        same(model, {}, before)
        seen += 1
    assert seen == 10


def test_the_style_of_attention_processors(tmp_path: Path, model: LatentDiffusion) -> None:
    made = pairs(model, ATTENTION | {"text_encoder.text_model.encoder.layers.1.self_attn.out_proj": 4})
    before, expected = snapshot(model), formula(model, made, lambda rank: 1.0)
    tensors = {}
    for name, (down, up) in made.items():
        above, _, leaf = name.removesuffix(".0").rpartition(".")
        old = f"{above}.{'processor.' if '.attn' in name else ''}{leaf.replace('out_proj', 'to_out')}_lora"
        tensors |= {f"{old}.down.weight": down, f"{old}.up.weight": up}
    apply(model, read_lora(written(tmp_path / "a.safetensors", tensors)), origin=SD1)
    same(model, expected, before)
    bare = {key.removeprefix("unet."): t for key, t in tensors.items() if key.startswith("unet.")}
    read = read_lora(written(tmp_path / "b.safetensors", bare))  # as `save_attn_procs` of 2023 left it
    assert {p.layer for p in read.patches} == {name.removeprefix("unet.").replace(".", "_") for name in ATTENTION}


def test_a_checkpoint_of_torch_is_read_too(tmp_path: Path, model: LatentDiffusion) -> None:
    made = pairs(model)
    before, expected = snapshot(model), formula(model, made, lambda rank: 3 / rank)
    torch.save(kohya(made, 3), tmp_path / "a.pt")
    apply(model, read_lora(tmp_path / "a.pt"), origin=SD1)
    same(model, expected, before)


# Scales ---------------------------------------------------------------------------------------------------

NAME = f"unet.{BLOCK}.attn2.to_k"


def scale_of(path: Path) -> dict[str, float]:
    return {patch.layer: patch.alpha / patch.rank for patch in read_lora(path).patches}


@pytest.mark.parametrize(
    ("said", "scale"),
    [
        ({"lora_alpha": 8, "r": 4}, 2.0),
        ({"lora_alpha": 8, "r": 4, "use_rslora": True}, 4.0),
        ({"lora_alpha": 8, "alpha_pattern": {"attn2.to_k": 1}}, 0.25),
        ({"lora_alpha": 8, "alpha_pattern": {"to_k": 1}}, 0.25),
        ({"lora_alpha": 8, "alpha_pattern": {f"^{BLOCK}.attn2.to_k": 1}}, 0.25),
        ({"lora_alpha": 8, "alpha_pattern": {"^attn2.to_k": 1, "_k": 1, "attn1.to_k": 1}}, 2.0),
        ({"r": 4}, 1.0),
    ],
)
def test_pefts_settings(tmp_path: Path, model: LatentDiffusion, said: dict[str, Any], scale: float) -> None:
    made = pairs(model, {NAME: 4})
    layer = NAME.removeprefix("unet.").replace(".", "_")
    tensors = suffixed(made, ".lora_A.weight", ".lora_B.weight", prefix="base_model.model.", strip="unet.")
    path = written(tmp_path / "adapter_model.safetensors", tensors)
    assert scale_of(path) == {layer: 1.0}
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **said}))
    assert scale_of(path) == {layer: scale}
    other = written(tmp_path / "other.safetensors", suffixed(made, ".lora_A.weight", ".lora_B.weight"))
    assert scale_of(other) == {layer: 1.0}  # whose neighbour is none of its business
    packed = {f"unet.{key}": value for key, value in said.items()} | {"text_encoder.lora_alpha": 100}
    written(other, load_file(other), {"lora_adapter_metadata": json.dumps(packed)})
    assert scale_of(other) == {layer: scale}
    down_up = suffixed(made, ".lora.down.weight", ".lora.up.weight")  # which diffusers writes beside the same metadata
    written(other, down_up, {"lora_adapter_metadata": json.dumps(packed)})
    assert scale_of(other) == {layer: scale}


def test_metadata_can_have_the_alpha_alone(tmp_path: Path, model: LatentDiffusion) -> None:
    tensors = suffixed(pairs(model, {NAME: 4}), ".lora_A.weight", ".lora_B.weight")
    path = written(tmp_path / "a.safetensors", tensors, {"lora_alpha": "2", "r": "4"})
    assert set(scale_of(path).values()) == {0.5}


def test_an_alpha_beside_its_layer_goes_before_settings(tmp_path: Path, model: LatentDiffusion) -> None:
    tensors = suffixed(pairs(model, {NAME: 4}), ".lora_A.weight", ".lora_B.weight")
    tensors[f"{NAME}.alpha"] = torch.tensor([1.0], dtype=torch.float16)
    path = written(tmp_path / "a.safetensors", tensors, {"lora_alpha": "8"})
    assert set(scale_of(path).values()) == {0.25}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "no JSON object"),
        ('{"lora_alpha": "much"}', "lora_alpha is 'much'"),
        ('{"lora_alpha": 1e999}', "lora_alpha is 'inf'"),
        ('{"lora_alpha": null}', "lora_alpha is 'None'"),
        ('{"alpha_pattern": [1]}', "alpha_pattern is no JSON object"),
        ('{"alpha_pattern": {"(a|b)": 1}}', "by the pattern '(a|b)'"),
        ('{"alpha_pattern": {"": 1}}', "by the pattern ''"),
        ('{"use_dora": true}', "is a DoRA"),
        ('{"peft_type": "LOHA"}', "kind 'LOHA'"),
        (" " * 1_000_001, "more than 1,000,000 bytes"),
    ],
)
def test_settings_that_cannot_be_used(tmp_path: Path, model: LatentDiffusion, text: str, words: str) -> None:
    tensors = suffixed(
        pairs(model, {NAME: 4}), ".lora_A.weight", ".lora_B.weight", prefix="base_model.model.", strip="unet."
    )
    path = written(tmp_path / "adapter_model.safetensors", tensors)
    (tmp_path / "adapter_config.json").write_text(text)
    message = refused(lambda: read_lora(path))
    assert message.startswith(f"{path} ")
    assert words in message


# On and off -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_several_come_off_in_any_order(tmp_path: Path, order: tuple[int, ...]) -> None:
    model = tiny.model(config=CONFIG)
    originals = dict(model.named_parameters())
    before = snapshot(model)
    names = list(RANKS)
    sets = [names, names[4:], names[:8]]
    loras = []
    for i, chosen in enumerate(sets):
        made = pairs(model, {name: RANKS[name] for name in chosen}, seed=i)
        loras.append(read_lora(written(tmp_path / f"{i}.safetensors", kohya(made, 2))))
    on = [apply(model, lora, weight=0.5 + i, origin=SD1) for i, lora in enumerate(loras)]
    for k, gone in enumerate(order):
        on[gone].remove()
        left = [i for i in range(3) if i not in order[: k + 1]]
        fresh = tiny.model(config=CONFIG)
        for i in left:
            apply(fresh, loras[i], weight=0.5 + i, origin=SD1)
        same(model, {}, snapshot(fresh))
        changed = {name for i in left for name in on[i].names}
        assert all((p is originals[n]) == (n not in changed) for n, p in model.named_parameters())
    same(model, {}, before)
    assert "is not on this model any more" in refused(on[0].remove)


def test_the_file_of_the_model_is_never_written_to(tmp_path: Path, model: LatentDiffusion) -> None:
    """Weights that are windows on a file stay so, and are the same windows afterwards."""
    path = written(tmp_path / "model.safetensors", model.state_dict())
    content, stored, mapped = path.read_bytes(), open_stored(path), hollow(CONFIG)
    mapped.load_state_dict({name: stored.tensor(name) for name in stored.entries}, assign=True)
    mapped.requires_grad_(False)
    name = ours(model)[NAME]
    at = mapped.get_parameter(name).data_ptr()
    lora = read_lora(written(tmp_path / "a.safetensors", kohya(pairs(model))))
    applied = apply(mapped, lora, origin=SD1)
    assert mapped.get_parameter(name).data_ptr() != at
    assert not any(p.requires_grad for p in mapped.parameters())
    assert torch.equal(stored.tensor(name), model.get_parameter(name))
    applied.remove()
    assert mapped.get_parameter(name).data_ptr() == at
    assert path.read_bytes() == content
    assert not mapped.get_parameter(name).requires_grad


def test_merged_is_part_of_the_model(tmp_path: Path, model: LatentDiffusion) -> None:
    one, two = (read_lora(written(tmp_path / f"{i}.safetensors", kohya(pairs(model, seed=i)))) for i in range(2))
    plain = tiny.model(config=CONFIG)
    apply(plain, one, weight=0.5, origin=SD1)
    alone = snapshot(plain)
    first, second = apply(model, one, weight=0.5, origin=SD1), apply(model, two, origin=SD1)
    both = snapshot(model)
    first.merge()
    same(model, {}, both)
    second.remove()
    same(model, {}, alone)
    for gone in (first.remove, first.merge, second.merge):
        assert "is not on this model any more" in refused(gone)
    apply(model, two, origin=SD1).remove()
    same(model, {}, alone)


def test_weights_that_nothing_changes_any_more_are_let_go(tmp_path: Path, model: LatentDiffusion) -> None:
    """A model that is filled anew is what its LoRAs are put on from then on."""
    lora = read_lora(written(tmp_path / "a.safetensors", kohya(pairs(model))))
    apply(model, lora, origin=SD1).remove()
    other = tiny.model(config=CONFIG, seed=1)
    model.load_state_dict({name: t.clone() for name, t in other.state_dict().items()}, assign=True)
    applied = apply(model, lora, origin=SD1)
    apply(other, lora, origin=SD1)
    same(model, {}, snapshot(other))
    applied.remove()
    same(model, {}, snapshot(tiny.model(config=CONFIG, seed=1)))


def test_off_after_the_model_changed_its_type(tmp_path: Path, model: LatentDiffusion) -> None:
    lora = read_lora(written(tmp_path / "a.safetensors", kohya(pairs(model))))
    expected = {name: tensor.bfloat16() for name, tensor in snapshot(model).items()}
    applied = apply(model, lora, origin=SD1)
    model.to(torch.bfloat16)
    applied.remove()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    same(model, {}, expected)


def test_a_model_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    model = tiny.model(config=CONFIG)
    lora = read_lora(written(tmp_path / "a.safetensors", kohya(pairs(model))))
    apply(model, lora, origin=SD1)
    seen = weakref.ref(model)
    del model
    gc.collect()
    assert seen() is None


def test_a_copy_of_a_model_has_no_lora_to_take_off(tmp_path: Path, model: LatentDiffusion) -> None:
    """It has the sum as its weights; the model's own comes off without it."""
    applied = apply(model, read_lora(written(tmp_path / "a.safetensors", kohya(pairs(model)))), origin=SD1)
    sum_ = snapshot(model)
    twin = copy.deepcopy(model)
    applied.remove()
    same(twin, {}, sum_)
    assert twin not in lora_module._worn


# Writing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_written_and_read_it_is_the_same(tmp_path: Path, model: LatentDiffusion, dtype: torch.dtype) -> None:
    made = {name: (a.to(dtype), b.to(dtype)) for name, (a, b) in pairs(model).items()}
    for i, (_, tensors) in enumerate(styles(model, made)):
        told = {"lora_alpha": "3", "sshs_model_hash": "stale", "ss_tag_frequency": "{}"}
        one = read_lora(written(tmp_path / f"{i}.safetensors", tensors, told))
        write_lora(tmp_path / f"{i}-again.safetensors", one)
        two = read_lora(tmp_path / f"{i}-again.safetensors")
        key = {(p.part, p.layer): p for p in two.patches}
        assert len(key) == len(one.patches) == len(RANKS)
        for p in one.patches:
            q = key[p.part, p.layer]
            assert (q.alpha, q.rank, q.down.dtype) == (p.alpha, p.rank, dtype)
            assert torch.equal(q.down, p.down)
            assert torch.equal(q.up, p.up)
        kept = {k: v for k, v in two.metadata.items() if k in told}
        assert kept == {"ss_tag_frequency": "{}"}


def test_what_a_written_file_says_of_itself(tmp_path: Path, model: LatentDiffusion) -> None:
    path = tmp_path / "my style.safetensors"
    made = {name: (a[:1].repeat(4, *[1] * (a.ndim - 1)), b[:, :1].repeat(1, 4, *[1] * (b.ndim - 2)))
            for name, (a, b) in pairs(model).items()}  # fmt: skip
    write_lora(path, read_lora(written(tmp_path / "a.safetensors", kohya(made, 2.0))))
    with safe_open(path, "pt") as file:
        assert file.metadata() == {
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.architecture": "latent-diffusion/lora",
            "modelspec.implementation": "https://github.com/CompVis/latent-diffusion",
            "modelspec.title": "my style",
            "modelspec.resolution": "512x512",
            "ss_network_module": "networks.lora",
            "ss_network_dim": "4",
            "ss_network_alpha": "2",
        }
        assert f"{flat(NAME)}.alpha" in file.keys()  # noqa: SIM118
    write_lora(path, read_lora(written(tmp_path / "b.safetensors", kohya(pairs(model)))))
    assert read_lora(path).metadata["ss_network_dim"] == "Dynamic"


@pytest.mark.parametrize(("width", "kind", "base"), [(768, "v1", "sd_v1"), (1024, "v2-512", "sd_v2")])
def test_the_model_is_told_by_the_width_of_its_text(tmp_path: Path, width: int, kind: str, base: str) -> None:
    made = {NAME: (torch.ones(2, width), torch.ones(8, 2))}
    write_lora(tmp_path / "b.safetensors", read_lora(written(tmp_path / "a.safetensors", kohya(made))))
    said = read_lora(tmp_path / "b.safetensors").metadata
    assert said["modelspec.architecture"] == f"stable-diffusion-{kind}/lora"
    assert said["ss_base_model_version"] == base


# Refusals -------------------------------------------------------------------------------------------------

AT = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
GOOD = {f"{AT}.lora_down.weight": torch.ones(4, 24), f"{AT}.lora_up.weight": torch.ones(32, 4)}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({f"{AT}.hada_w1_a": torch.ones(2, 2)}, "is a LoHa"),
        ({f"{AT}.lokr_w1": torch.ones(2, 2)}, "is a LoKr"),
        ({**GOOD, f"{AT}.dora_scale": torch.ones(1, 24)}, "is a DoRA"),
        ({"unet.a.lora_magnitude_vector": torch.ones(2)}, "is a DoRA"),
        ({**GOOD, f"{AT}.lora_mid.weight": torch.ones(4, 4, 3, 3)}, "is a LoCon with a core"),
        ({f"{AT}.diff": torch.ones(2, 2)}, "is a whole difference"),
        ({f"{AT}.diff_b": torch.ones(2)}, "is a whole difference"),
        ({f"{AT}.oft_blocks": torch.ones(2)}, "is an OFT"),
        ({"model.diffusion_model.out.2.bias": torch.ones(2)}, "is a whole model"),
        ({"lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": torch.ones(())}, "is a LoRA for SDXL"),
        ({"transformer.blocks.0.lora_A.weight": torch.ones(2, 2)}, "is a LoRA for a diffusion transformer"),
        ({"emb_params": torch.ones(2, 2)}, "has the key 'emb_params', which is none of a LoRA"),
        ({f"{AT}.lora_down.bias": torch.ones(2)}, "which is none of a LoRA"),
        ({f"{AT}.lora_down.weight": torch.ones(4, 24)}, "lora_down.weight' and nothing that goes up beside"),
        ({f"{AT}.lora_up.weight": torch.ones(4, 24)}, "lora_up.weight' and nothing that goes down beside"),
        ({**GOOD, "lora_unet_x.alpha": torch.ones(())}, "'lora_unet_x.alpha' and nothing that goes down"),
        ({**GOOD, f"{AT}.alpha": torch.ones(2)}, "that is not one number"),
        ({**GOOD, f"{AT}.alpha": torch.tensor(float("nan"))}, "that is not one number"),
        ({**GOOD, f"{AT}.lora_up.weight": torch.ones(32, 3)}, "4x24 and 32x3, which cannot be multiplied"),
        ({**GOOD, f"{AT}.lora_up.weight": torch.ones(32, 4, 3, 3)}, "cannot be multiplied"),
        ({**GOOD, f"{AT}.lora_up.weight": torch.ones(())}, "4x24 and one number, which"),
        ({f"{AT}.lora_down.weight": torch.ones(0, 24), f"{AT}.lora_up.weight": torch.ones(32, 0)}, "0x24 and 32x0"),
        ({**GOOD, f"{AT}.lora_up.weight": torch.ones(32, 4, dtype=torch.int8)}, "as whole numbers"),
        ({**GOOD, f"unet.{BLOCK}.attn2.to_k.lora_A.weight": torch.ones(4, 24)}, "which are for one layer"),
        (
            {"unet.a.lora_A.x.weight": torch.ones(2, 2), "unet.a.lora_A.y.weight": torch.ones(2, 2)},
            "which are for one layer",
        ),
    ],
)
def test_what_is_no_lora(tmp_path: Path, tensors: dict[str, Tensor], words: str) -> None:
    path = written(tmp_path / "a.safetensors", tensors)
    message = refused(lambda: read_lora(path))
    assert message.startswith(f"{path} ")
    assert words in message


UP = "lora_unet_up_blocks_0_resnets_1_conv1"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (
            {f"{AT}.lora_down.weight": torch.ones(4, 1024), f"{AT}.lora_up.weight": torch.ones(32, 4)},
            f"'{AT}.lora_down.weight' is for another kind of model: its to_k reads 1024 channels, this model's 24",
        ),
        (
            {f"{AT}.lora_down.weight": torch.ones(4, 24), f"{AT}.lora_up.weight": torch.ones(64, 4)},
            "its to_k gives 64 channels, this model's 32",
        ),
        (
            {f"{UP}.lora_down.weight": torch.ones(4, 64), f"{UP}.lora_up.weight": torch.ones(32, 4)},
            "its conv1 reads 64 channels, this model's 48",
        ),
        (
            {f"{UP}.lora_down.weight": torch.ones(4, 48), f"{UP}.lora_up.weight": torch.ones(32, 4)},
            "its conv1 looks at 1x1 pixels, this model's at 3x3",
        ),
        (
            {f"{AT}.lora_down.weight": torch.ones(4, 24, 3, 3), f"{AT}.lora_up.weight": torch.ones(32, 4, 1, 1)},
            "its to_k looks at 3x3 pixels, this model's at 1x1",
        ),
        (
            {"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": torch.ones(4, 4),
             "lora_unet_double_blocks_0_img_attn_proj.lora_up.weight": torch.ones(4, 4)},
            "fits no layer of this model's U-Net",
        ),
        (
            {"lora_te_text_model_encoder_layers_9_mlp_fc1.lora_down.weight": torch.ones(4, 4),
             "lora_te_text_model_encoder_layers_9_mlp_fc1.lora_up.weight": torch.ones(4, 4)},
            "fits no layer of this model's text tower",
        ),
        (
            {"lora_te_text_model_embeddings_token_embedding.lora_down.weight": torch.ones(4, 24),
             "lora_te_text_model_embeddings_token_embedding.lora_up.weight": torch.ones(50, 4)},
            "fits no layer",
        ),
        (
            {f"{BLOCK}.attn2.to_v.lora_A.weight": torch.ones(4, 24),
             f"{BLOCK}.attn2.to_v.lora_B.weight": torch.ones(32, 4),
             "input_blocks.3.1.transformer_blocks.0.attn2.to_v.lora_A.weight": torch.ones(4, 24),
             "input_blocks.3.1.transformer_blocks.0.attn2.to_v.lora_B.weight": torch.ones(32, 4)},
            "for a layer that has another key too",
        ),
    ],
)  # fmt: skip
def test_what_fits_no_layer_changes_nothing(
    tmp_path: Path, model: LatentDiffusion, tensors: dict[str, Tensor], words: str
) -> None:
    before, originals = snapshot(model), dict(model.named_parameters())
    lora = read_lora(written(tmp_path / "a.safetensors", kohya(pairs(model, {"unet.conv_in": 2})) | tensors))
    message = refused(lambda: apply(model, lora, origin=SD1))
    assert message.startswith(f"{lora.path}: ")
    assert words in message
    same(model, {}, before)
    assert all(p is originals[name] for name, p in model.named_parameters())


def test_other_models_and_weights(tmp_path: Path, model: LatentDiffusion) -> None:
    lora = read_lora(written(tmp_path / "a.safetensors", kohya(pairs(model))))
    for weight in (float("nan"), float("inf")):
        assert "it must be a number" in refused(lambda w=weight: apply(model, lora, weight=w, origin=SD1))
    text = Lora(lora.path, tuple(p for p in lora.patches if p.part == "text"), {})
    assert "is for another kind of model: its fc1 reads 24 channels" in refused(
        lambda: apply(tiny.model(), text, origin=SD1)  # whose words go through a tower of their own
    )
    ddpm = ModelConfig(
        first_stage=None,
        conditioner=None,
        unet=UNetSize(channels=3, width=8, mult=(1,), lineage="ddpm", attends="plain"),
    )
    assert "this model's is another" in refused(lambda: apply(LatentDiffusion(ddpm), lora, origin=SD1))


def attempt(call: Callable[[], Any]) -> tuple[str | None, Any]:
    """What is wrong, or what came of it."""
    try:
        return None, call()
    except ValueError as error:
        return str(error), None


# Keys -----------------------------------------------------------------------------------------------------

LUMPS = ["lora_unet_", "lora_te_", "unet.", "text_encoder.", "base_model.model.", "text_model.", "a.b", "_", ".", "\n"]
LUMPS += [".lora_A", ".lora_B.x", ".lora_down", ".lora.up", ".weight", ".alpha", ".processor", ".to_q_lora.down", "é"]
KEYS = st.one_of(st.text(max_size=30), st.lists(st.sampled_from(LUMPS), max_size=8).map("".join))


@given(KEYS)
@example("lora_unet_.lora_down.weight")
@example(".lora_A.weight")
@example("a\n.alpha")
def test_any_key_is_understood_or_refused(key: str) -> None:
    message, found = attempt(lambda: parsed(key))
    if message is None:
        assert key.endswith((".weight", ".alpha"))
        assert "." not in found.layer
    else:
        assert "\n" not in message
        assert message.startswith(("is ", "has "))


@given(
    st.dictionaries(
        KEYS.filter(lambda key: key != "__metadata__"),
        st.sampled_from([(), (2,), (2, 2), (2, 2, 1, 1)]),
        min_size=1,
        max_size=4,
    )
)
@example({"lora_unet_conv_in.lora_down.weight": (2, 2), "lora_unet_conv_in.lora_up.weight": (2, 2)})
def test_a_file_of_any_keys_is_refused(
    tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, tuple[int, ...]]
) -> None:
    """No layer of the model is so small."""
    path = written(tmp_path_factory.mktemp("any") / "a", {name: torch.ones(shape) for name, shape in shapes.items()})
    assert refused(lambda: apply(SHARED, read_lora(path), origin=SD1)).startswith(str(path))


SHARED = tiny.model(config=CONFIG)


@pytest.mark.parametrize(
    "key", ["lora_unet_" + "a" * 200_000, "a." * 100_000, ".lora_A" * 30_000, ".to_q_lora" * 20_000]
)
def test_long_keys_take_no_time(key: str) -> None:
    message = refused(lambda: parsed(key))
    assert len(message) < 300
