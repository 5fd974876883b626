"""LoRA against diffusers: the layers that its modules are called after, and with PEFT its own loading and fusing."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

pytest.importorskip("diffusers")
warnings.filterwarnings("ignore", module="diffusers")

from sfumato.io import opening
from sfumato.io.lora import apply, read_lora
from sfumato.nets.lora import Targets
from sfumato.recipes import lora
from sfumato.recipes.lora import Low, LowRankChange
from sfumato.train.state import State

TOLERANCE = 1e-4
WEIGHT, ALPHA, RANK = 0.7, 2.0, 4
pytestmark = pytest.mark.filterwarnings("ignore")
INSIDE = ("attentions", "resnets", "downsamplers", "upsamplers", "self_attn", "mlp")
Pairs = dict[str, tuple[Tensor, Tensor]]


def pairs(part: nn.Module, *, convolutions: bool) -> Pairs:
    """down and up for each layer in a block, as trainers make them."""
    generator, made = torch.Generator().manual_seed(5), {}
    for name, module in part.named_modules():
        if not any(block in name.split(".") for block in INSIDE):
            continue
        if isinstance(module, nn.Linear):
            shapes = (RANK, module.in_features), (module.out_features, RANK)
        elif isinstance(module, nn.Conv2d) and (convolutions or module.kernel_size == (1, 1)):
            shapes = (RANK, module.in_channels, *module.kernel_size), (module.out_channels, RANK, 1, 1)
        else:
            continue
        down, up = (torch.randn(shape, generator=generator) * 0.05 for shape in shapes)
        made[name] = (down, up)
    return made


def kohya(unet: Pairs, text: Pairs) -> dict[str, Tensor]:
    out = {}
    for prefix, made in (("lora_unet_", unet), ("lora_te_", text)):
        for name, (down, up) in made.items():
            key = prefix + name.replace(".", "_")
            out |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(ALPHA)}
    return out


@torch.no_grad()
def fused(part: nn.Module, made: Pairs) -> nn.Module:
    """A copy with the formula added to the modules by their own names."""
    part = copy.deepcopy(part)
    for name, (down, up) in made.items():
        weight = part.get_submodule(name).weight
        assert isinstance(weight, nn.Parameter)
        weight += (WEIGHT * ALPHA / RANK * (up.flatten(1) @ down.flatten(1))).reshape(weight.shape)
    return part


def ours(folder: Path, tensors: dict[str, Tensor], file: Path) -> opening.Loaded:
    save_file(tensors, file)
    loaded = opening.load(folder, precision="float32")
    apply(loaded.model, read_lora(file), weight=WEIGHT, origin=loaded.file.origin)
    return loaded


@torch.no_grad()
def agree(loaded: opening.Loaded, unet: nn.Module, text: nn.Module, plain: Any) -> None:
    """Both networks give the same numbers, and others than without the LoRA."""
    generator = torch.Generator().manual_seed(3)
    x, t = torch.randn(2, 4, 16, 16, generator=generator), torch.tensor([1.0, 981.0])
    tokens = torch.randn(2, 77, 64, generator=generator)
    theirs, without = unet(x, t, tokens).sample, plain.unet(x, t, tokens).sample
    torch.testing.assert_close(loaded.model.denoiser.net(x, t, tokens), theirs, rtol=0, atol=TOLERANCE)
    assert (theirs - without).abs().mean() > 0.01
    ids = plain.tokenizer("a cat", padding="max_length", max_length=77, return_tensors="pt").input_ids
    theirs, without = text(ids)[0], plain.text_encoder(ids)[0]
    torch.testing.assert_close(loaded.model.conditioner.of(["a cat"]).tokens, theirs, rtol=0, atol=TOLERANCE)
    assert (theirs - without).abs().mean() > 0.01


def test_layers_by_the_names_of_diffusers_modules(pipe: tuple[Any, Path], tmp_path: Path) -> None:
    made, folder = pipe
    unet, text = pairs(made.unet, convolutions=True), pairs(made.text_encoder, convolutions=True)
    assert len(unet) > 200
    assert len(text) == 3 * 6
    loaded = ours(folder, kohya(unet, text), tmp_path / "a.safetensors")
    agree(loaded, fused(made.unet, unet), fused(made.text_encoder, text), made)


def test_ldms_names_as_diffusers_reads_them(pipe: tuple[Any, Path], tmp_path: Path) -> None:
    """The same file through its own maps of names, which know transformers alone."""
    from diffusers.loaders import lora_conversion_utils as peer

    from sfumato.io.layouts import diffusers, ldm

    made, folder = pipe
    net = opening.load(folder, precision="float32").model.denoiser.net
    there = {rule.ours[0]: rule.theirs[0].removesuffix(".weight") for rule in diffusers.unet(net)}
    unet = {name: pair for name, pair in pairs(made.unet, convolutions=False).items() if ".attn" in name}
    sgm = {there[rule.ours[0]]: rule.theirs[0].removesuffix(".weight") for rule in ldm.unet(net)}
    tensors = kohya({sgm[name]: pair for name, pair in unet.items()}, {})
    mapped = peer._maybe_map_sgm_blocks_to_diffusers(dict(tensors), made.unet.config)
    converted, _ = peer._convert_non_diffusers_lora_to_diffusers(mapped)
    expected, _ = peer._convert_non_diffusers_lora_to_diffusers(kohya(unet, {}))
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[key], tensor) for key, tensor in expected.items())
    loaded = ours(folder, tensors, tmp_path / "a.safetensors")
    x, tokens = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 64)
    with torch.no_grad():
        theirs = fused(made.unet, unet)(x, 500, tokens).sample
        found = loaded.model.denoiser.net(x, torch.tensor([500.0]), tokens)
    torch.testing.assert_close(found, theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("style", ["kohya", "diffusers"])
def test_load_lora_weights_and_fuse(pipe: tuple[Any, Path], tmp_path: Path, style: str) -> None:
    pytest.importorskip("peft")
    made, folder = pipe
    convolutions = style == "diffusers"
    unet = pairs(made.unet, convolutions=convolutions)
    text = pairs(made.text_encoder, convolutions=convolutions)
    if style == "kohya":
        tensors = kohya(unet, text)
    else:
        tensors = {}
        for prefix, part in (("unet", unet), ("text_encoder", text)):
            for name, (down, up) in part.items():
                tensors |= {f"{prefix}.{name}.lora_A.weight": down, f"{prefix}.{name}.lora_B.weight": up}
    loaded = ours(folder, tensors, tmp_path / "a.safetensors")
    theirs = copy.deepcopy(made)
    theirs.load_lora_weights(str(tmp_path), weight_name="a.safetensors")
    theirs.fuse_lora(lora_scale=WEIGHT)
    agree(loaded, theirs.unet, theirs.text_encoder, made)


def test_saved_by_diffusers_with_its_scales(pipe: tuple[Any, Path], tmp_path: Path) -> None:
    """PEFT's settings, which diffusers writes into the metadata: alphas of parts and of layers."""
    peft = pytest.importorskip("peft")
    from diffusers.utils import convert_state_dict_to_diffusers

    made, folder = pipe
    theirs, layers, settings = copy.deepcopy(made), {}, {}
    torch.manual_seed(2)
    for name, targets in (("unet", ["to_k", "to_q", "proj_in"]), ("text_encoder", ["q_proj", "out_proj"])):
        part = getattr(theirs, name)
        config = peft.LoraConfig(
            r=4, lora_alpha=6, target_modules=targets, init_lora_weights=False, alpha_pattern={"attn2.to_k": 1}
        )
        peft.inject_adapter_in_model(config, part)
        layers[name] = convert_state_dict_to_diffusers(peft.get_peft_model_state_dict(part))
        settings[name] = config.to_dict()
    theirs.save_lora_weights(
        str(tmp_path),
        unet_lora_layers=layers["unet"],
        text_encoder_lora_layers=layers["text_encoder"],
        unet_lora_adapter_metadata=settings["unet"],
        text_encoder_lora_adapter_metadata=settings["text_encoder"],
    )
    loaded = opening.load(folder, precision="float32")
    read = read_lora(tmp_path / "pytorch_lora_weights.safetensors")
    assert {p.alpha for p in read.patches} == {1.0, 6.0}
    apply(loaded.model, read, origin=loaded.file.origin)
    agree(loaded, theirs.unet, theirs.text_encoder, made)


def test_saved_by_peft_alone(pipe: tuple[Any, Path], tmp_path: Path) -> None:
    """A folder of PEFT's own, with adapter_config.json."""
    peft = pytest.importorskip("peft")
    made, folder = pipe
    torch.manual_seed(2)
    config = peft.LoraConfig(r=4, lora_alpha=3, target_modules=["to_v", "to_out.0", "conv1"], init_lora_weights=False)
    theirs = peft.get_peft_model(copy.deepcopy(made.unet), config)
    theirs.save_pretrained(str(tmp_path))
    loaded = opening.load(folder, precision="float32")
    apply(loaded.model, read_lora(tmp_path / "adapter_model.safetensors"), origin=loaded.file.origin)
    x, tokens = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 64)
    with torch.no_grad():
        expected, without = theirs(x, 500, tokens).sample, made.unet(x, 500, tokens).sample
        found = loaded.model.denoiser.net(x, torch.tensor([500.0]), tokens)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
    assert (expected - without).abs().mean() > 0.01


@pytest.mark.parametrize("targets", ["transformer", "all"])
def test_diffusers_reads_what_was_trained_here(pipe: tuple[Any, Path], tmp_path: Path, targets: Targets) -> None:
    """The file of the recipe: diffusers finds a place for every key, and fused it gives our numbers."""
    pytest.importorskip("peft")
    made, folder = pipe
    loaded = opening.load(folder, precision="float32")
    settings = lora.settings(str(folder))
    low = Low(rank=RANK, alpha=ALPHA, targets=targets, conditioner=True)
    change = LowRankChange(settings, loaded, low)
    with torch.no_grad():
        for p in change.learnt.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.1)
    change.written(State(change.learnt, settings.diffusion.plan), {}, tmp_path)
    theirs = copy.deepcopy(made)
    theirs.load_lora_weights(str(tmp_path / "model"), weight_name="lora.safetensors")
    keys = [*theirs.unet.state_dict(), *theirs.text_encoder.state_dict()]
    assert sum("lora_A" in key for key in keys) == len(change.adapters.changes)
    theirs.fuse_lora()
    agree(loaded, theirs.unet, theirs.text_encoder, made)
