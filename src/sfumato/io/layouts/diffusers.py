"""The names of diffusers' networks: UNet2DConditionModel, UNet2DModel, AutoencoderKL and VQModel."""

from collections.abc import Iterable

from torch import nn

from sfumato.io.layouts.ldm import BLOCK
from sfumato.io.layouts.rules import SAME, Place, Places, Pointwise, Rule, ruled, under
from sfumato.io.layouts.walk import counted
from sfumato.nets.attention import PixelAttention, SpatialTransformer
from sfumato.nets.autoencoder import Autoencoder
from sfumato.nets.blocks import ResBlock
from sfumato.nets.unet import Stage, UNet

RES = {
    "norm_in": "norm1",
    "conv_in": "conv1",
    "emb": "time_emb_proj",
    "norm_out": "norm2",
    "conv_out": "conv2",
    "skip": "conv_shortcut",
}
ATTENTION = {"norm": "group_norm", "to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}
OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""What attention over pixels was called once -> what it is called now."""


def unet(net: UNet, *, linear: bool = True) -> list[Rule]:
    """A network that changes sizes by convolutions. `linear`: as `use_linear_projection` in its configuration."""
    places = {"time.0": Place("time_embedding.linear_1"), "time.2": Place("time_embedding.linear_2")}
    places |= {"vector.0": Place("class_embedding.linear_1"), "vector.2": Place("class_embedding.linear_2")}
    places |= {"label": Place("class_embedding"), "conv_in": Place("conv_in")}
    places |= {"norm_out": Place("conv_norm_out"), "conv_out": Place("conv_out")}
    places |= _ways(net.down, "down", linear) | _ways(net.up, "up", linear)
    places |= _stage(net.middle[0], "middle.0", "mid_block", 0, linear) | under(
        RES, "middle.1.res", "mid_block.resnets.1"
    )
    return ruled(net, places)


def _ways(layers: Iterable[nn.Module], way: str, linear: bool) -> Places:
    places: Places = {}
    for i, layer, level, block in counted(layers):
        there = f"{way}_blocks.{level}"
        if isinstance(layer, Stage):
            places |= _stage(layer, f"{way}.{i}", there, block, linear)
        else:
            places[f"{way}.{i}.conv"] = Place(f"{there}.{way}samplers.0.conv")
    return places


def _stage(stage: nn.Module, here: str, there: str, block: int, linear: bool) -> Places:
    assert isinstance(stage, Stage)
    places = under(RES, f"{here}.res", f"{there}.resnets.{block}")
    here, there = f"{here}.transformer", f"{there}.attentions.{block}"
    if isinstance(stage.transformer, SpatialTransformer):
        form = SAME if linear else Pointwise()
        places |= under({"norm": Place("norm"), "proj_in": Place("proj_in", form)}, here, there)
        places |= under({"proj_out": Place("proj_out", form)}, here, there)
        for k in range(len(stage.transformer.blocks)):
            places |= under(BLOCK, f"{here}.blocks.{k}", f"{there}.transformer_blocks.{k}")
    elif isinstance(stage.transformer, PixelAttention):
        places |= under(ATTENTION, here, there)
    return places


def autoencoder(net: Autoencoder) -> list[Rule]:
    """For a network without shortcuts. The up blocks count from the smallest pictures, unlike LDM's."""
    places = {"encoder.quant_conv": Place("quant_conv"), "decoder.post_quant_conv": Place("post_quant_conv")}
    places |= {"codebook": Place("quantize.embedding")}
    for half in ("encoder", "decoder"):
        places |= under({"conv_in": "conv_in", "norm_out": "conv_norm_out", "conv_out": "conv_out"}, half, half)
    down, up = list(net.encoder.layers), list(net.decoder.layers)
    middle = 3 if isinstance(up[1], PixelAttention) else 2
    places |= _pyramid(down[:-middle], "encoder", "down", first=0)
    places |= _middle("encoder", len(down) - middle, middle) | _middle("decoder", 0, middle)
    places |= _pyramid(up[middle:], "decoder", "up", first=middle)
    return ruled(net, places)


def _pyramid(layers: list[nn.Module], half: str, way: str, *, first: int) -> Places:
    places: Places = {}
    for i, layer, level, block in counted(layers, first):
        here, there = f"{half}.layers.{i}", f"{half}.{way}_blocks.{level}"
        if isinstance(layer, ResBlock):
            places |= under(RES, here, f"{there}.resnets.{block}")
        elif isinstance(layer, PixelAttention):
            places |= under(ATTENTION, here, f"{there}.attentions.{block}")
        else:
            places[f"{here}.conv"] = Place(f"{there}.{way}samplers.0.conv")
    return places


def _middle(half: str, first: int, parts: int) -> Places:
    here, there = f"{half}.layers.", f"{half}.mid_block"
    places = under(RES, f"{here}{first}", f"{there}.resnets.0")
    if parts == 3:  # noqa: PLR2004
        places |= under(ATTENTION, f"{here}{first + 1}", f"{there}.attentions.0")
    return places | under(RES, f"{here}{first + parts - 1}", f"{there}.resnets.1")
