"""The names that LDM's code gives to what has other names here."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from sfumato.nets.attention import SpatialTransformer
from sfumato.nets.autoencoder import Autoencoder
from sfumato.nets.blocks import Downsample, ResBlock, Upsample
from sfumato.nets.transformer import TransformerEncoder
from sfumato.nets.unet import Stage, UNet

Places = dict[str, str]
"""Prefixes here -> prefixes there."""

ATTENTION = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}
UNET_RES = {
    "norm_in": "in_layers.0",
    "conv_in": "in_layers.2",
    "emb": "emb_layers.1",
    "norm_out": "out_layers.0",
    "conv_out": "out_layers.3",
    "skip": "skip_connection",
}
VAE_RES = {"norm_in": "norm1", "conv_in": "conv1", "norm_out": "norm2", "conv_out": "conv2", "skip": "nin_shortcut"}
VAE_ATTENTION = {"norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}
BLOCK = {
    "norm_self": "norm1",
    **{f"self_attention.{a}": f"attn1.{b}" for a, b in ATTENTION.items()},
    "norm_cross": "norm2",
    **{f"cross_attention.{a}": f"attn2.{b}" for a, b in ATTENTION.items()},
    "norm_mlp": "norm3",
    "mlp.proj_in": "ff.net.0.proj",
    "mlp.proj_out": "ff.net.2",
}


def unet(net: UNet) -> dict[str, str]:
    """LDM's UNetModel, for a network without `vector_dim`."""
    places = {"time.0": "time_embed.0", "time.2": "time_embed.2", "conv_in": "input_blocks.0.0"}
    places |= {"norm_out": "out.0", "conv_out": "out.2"}
    for i, layer in enumerate(net.down):
        there = f"input_blocks.{i + 1}"
        places |= _stage(layer, f"down.{i}", there) if isinstance(layer, Stage) else {f"down.{i}.conv": f"{there}.0.op"}
    places |= _stage(net.middle[0], "middle.0", "middle_block")
    places |= _under(UNET_RES, "middle.1.res", "middle_block.2")
    block, parts = -1, 0
    for i, layer in enumerate(net.up):
        if isinstance(layer, Stage):
            block, parts = block + 1, 1 if layer.transformer is None else 2
            places |= _stage(layer, f"up.{i}", f"output_blocks.{block}")
        else:  # LDM puts it into the block before
            places[f"up.{i}.conv"] = f"output_blocks.{block}.{parts}.conv"
    return _names(net, places)


def _stage(stage: nn.Module, here: str, there: str) -> Places:
    assert isinstance(stage, Stage)
    places = _under(UNET_RES, f"{here}.res", f"{there}.0")
    if isinstance(stage.transformer, SpatialTransformer):
        here, there = f"{here}.transformer", f"{there}.1"
        places |= _under({n: n for n in ("norm", "proj_in", "proj_out")}, here, there)
        for k in range(len(stage.transformer.blocks)):
            places |= _under(BLOCK, f"{here}.blocks.{k}", f"{there}.transformer_blocks.{k}")
    return places


def autoencoder(net: Autoencoder, *, levels: int) -> dict[str, str]:
    """LDM's AutoencoderKL, for a network without shortcuts."""
    places = {"encoder.quant_conv": "quant_conv", "decoder.post_quant_conv": "post_quant_conv"}
    for half in ("encoder", "decoder"):
        places |= {f"{half}.{n}": f"{half}.{n}" for n in ("conv_in", "norm_out", "conv_out")}
    layers = list(net.encoder.layers)
    places |= _walk(layers[:-3], range(levels), "encoder", "down", first=0)
    places |= _middle("encoder", len(layers) - 3)
    places |= _middle("decoder", 0)
    places |= _walk(list(net.decoder.layers)[3:], reversed(range(levels)), "decoder", "up", first=3)
    return _names(net, places)


def _walk(layers: list[nn.Module], levels: Iterable[int], half: str, way: str, *, first: int) -> Places:
    places: Places = {}
    rest, block = iter(levels), 0
    level = next(rest)
    for i, layer in enumerate(layers, first):
        here, there = f"{half}.layers.{i}", f"{half}.{way}.{level}"
        if isinstance(layer, ResBlock):
            places |= _under(VAE_RES, here, f"{there}.block.{block}")
            block += 1
        else:
            assert isinstance(layer, Downsample | Upsample)
            places[f"{here}.conv"] = f"{there}.{way}sample.conv"
            level, block = next(rest), 0
    return places


def _middle(half: str, first: int) -> Places:
    return (
        _under(VAE_RES, f"{half}.layers.{first}", f"{half}.mid.block_1")
        | _under(VAE_ATTENTION, f"{half}.layers.{first + 1}", f"{half}.mid.attn_1")
        | _under(VAE_RES, f"{half}.layers.{first + 2}", f"{half}.mid.block_2")
    )


def encoder(net: TransformerEncoder) -> dict[str, str]:
    """The TransformerWrapper of LDM's x_transformer.py."""
    places = {"tokens": "token_emb", "positions": "pos_emb.emb", "norm": "norm"}
    for k in range(len(net.layers)):
        first, second = f"attn_layers.layers.{2 * k}", f"attn_layers.layers.{2 * k + 1}"
        inside = {"norm_attention": f"{first}.0", "norm_mlp": f"{second}.0"}
        inside |= {f"attention.{n}": f"{first}.1.{n}" for n in ATTENTION}
        inside |= {"mlp_in": f"{second}.1.net.0.0", "mlp_out": f"{second}.1.net.2"}
        places |= {f"layers.{k}.{a}": b for a, b in inside.items()}
    return _names(net, places)


def _under(places: Places, here: str, there: str) -> Places:
    return {f"{here}.{a}": f"{there}.{b}" for a, b in places.items()}


def _names(net: nn.Module, places: Places) -> dict[str, str]:
    """Whole parameter names from the prefixes of their modules."""
    split = (name.rpartition(".") for name, _ in net.named_parameters())
    return {f"{module}.{leaf}": f"{places[module]}.{leaf}" for module, _, leaf in split}
