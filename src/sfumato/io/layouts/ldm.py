"""LDM's names (CompVis and Stability AI), which ADM's code has too: U-Nets, autoencoders, text encoders."""

from collections.abc import Sequence
from typing import Literal

from torch import nn

from sfumato.io.layouts.rules import SAME, Fused, Place, Places, Pointwise, Rule, fused, ruled, under
from sfumato.io.layouts.walk import counted
from sfumato.nets.attention import PixelAttention, SpatialTransformer
from sfumato.nets.autoencoder import Autoencoder
from sfumato.nets.blocks import Downsample, ResBlock, Upsample
from sfumato.nets.classifier import Classifier
from sfumato.nets.transformer import TransformerEncoder
from sfumato.nets.unet import Stage, UNet

Order = Literal["by_head", "by_part"]
"""How ADM's attention holds Q, K and V in one matrix: (H, 3, D), its "legacy" order, or (3, H, D), its "new" one."""

ATTENTION = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}
RES = {
    "norm_in": "in_layers.0",
    "conv_in": "in_layers.2",
    "emb": "emb_layers.1",
    "norm_out": "out_layers.0",
    "conv_out": "out_layers.3",
    "skip": "skip_connection",
}
VAE_RES = {"norm_in": "norm1", "conv_in": "conv1", "norm_out": "norm2", "conv_out": "conv2", "skip": "nin_shortcut"}
VAE_ATTENTION = {
    "norm": Place("norm"),
    "to_q": Place("q", Pointwise()),
    "to_k": Place("k", Pointwise()),
    "to_v": Place("v", Pointwise()),
    "to_out": Place("proj_out", Pointwise()),
}
BLOCK = {
    "norm_self": "norm1",
    **{f"self_attention.{a}": f"attn1.{b}" for a, b in ATTENTION.items()},
    "norm_cross": "norm2",
    **{f"cross_attention.{a}": f"attn2.{b}" for a, b in ATTENTION.items()},
    "norm_mlp": "norm3",
    "mlp.proj_in": "ff.net.0.proj",
    "mlp.proj_out": "ff.net.2",
}


def unet(net: UNet, *, linear: bool = True, order: Order = "by_head") -> list[Rule]:
    """UNetModel. `linear`: whether the projections of its transformers are matrices (SD 2), not convolutions (SD 1)."""
    walk = _Walk(linear, order)
    walk.places |= {"time.0": Place("time_embed.0"), "time.2": Place("time_embed.2")}
    walk.places |= {"vector.0": Place("label_emb.0.0"), "vector.2": Place("label_emb.0.2")}
    walk.places |= {"label": Place("label_emb"), "conv_in": Place("input_blocks.0.0")}
    walk.places |= {"norm_out": Place("out.0"), "conv_out": Place("out.2")}
    for i, layer in enumerate(net.down):
        walk.layer(layer, f"down.{i}", f"input_blocks.{i + 1}", 0)
    walk.layer(net.middle[0], "middle.0", "middle_block", 0)
    walk.places |= under(RES, "middle.1.res", "middle_block.2")
    block, parts = -1, 0
    for i, layer in enumerate(net.up):
        if isinstance(layer, Stage):
            block, parts = block + 1, 1 if layer.transformer is None else 2
            walk.layer(layer, f"up.{i}", f"output_blocks.{block}", 0)
        else:  # LDM puts it into the block before
            walk.layer(layer, f"up.{i}", f"output_blocks.{block}", parts)
    return ruled(net, walk.places, walk.extra)


def classifier(net: Classifier, *, order: Order = "by_head") -> list[Rule]:
    """ADM's EncoderUNetModel with attention pooling, whose last attention is always by part."""
    walk = _Walk(linear=True, order=order)
    walk.places |= {
        "time.0": Place("time_embed.0"),
        "time.2": Place("time_embed.2"),
        "conv_in": Place("input_blocks.0.0"),
    }
    walk.places |= {"norm_out": Place("out.0"), "pool.to_out": Place("out.2.c_proj", Pointwise(1))}
    for i, layer in enumerate(net.down):
        walk.layer(layer, f"down.{i}", f"input_blocks.{i + 1}", 0)
    walk.layer(net.middle[0], "middle.0", "middle_block", 0)
    walk.places |= under(RES, "middle.1.res", "middle_block.2")
    walk.extra.append(Rule(("pool.positions",), ("out.2.positional_embedding",)))
    walk.extra += fused([f"pool.{n}" for n in ("to_q", "to_k", "to_v")], "out.2.qkv_proj", Fused(dims=1))
    return ruled(net, walk.places, walk.extra)


class _Walk:
    """The places of the layers so far."""

    def __init__(self, linear: bool, order: Order) -> None:
        self.linear, self.order = linear, order
        self.places: Places = {}
        self.extra: list[Rule] = []

    def layer(self, layer: nn.Module, here: str, there: str, at: int) -> None:
        """One layer here, which begins at the place `at` of a block there."""
        if isinstance(layer, Downsample | Upsample):
            self.places[f"{here}.conv"] = Place(f"{there}.{at}.{'op' if isinstance(layer, Downsample) else 'conv'}")
        elif isinstance(layer, ResBlock):
            self.places |= under(RES, here, f"{there}.{at}")
        elif isinstance(layer, Stage):  # the plain changes of size have no tensors
            self.places |= under(RES, f"{here}.res", f"{there}.{at}")
            self._attention(layer.transformer, f"{here}.transformer", f"{there}.{at + 1}")

    def _attention(self, part: nn.Module | None, here: str, there: str) -> None:
        if isinstance(part, SpatialTransformer):
            form = SAME if self.linear else Pointwise()
            self.places |= under({"norm": "norm"}, here, there)
            self.places |= under({n: Place(n, form) for n in ("proj_in", "proj_out")}, here, there)
            for k in range(len(part.blocks)):
                self.places |= under(BLOCK, f"{here}.blocks.{k}", f"{there}.transformer_blocks.{k}")
        elif isinstance(part, PixelAttention):
            self.places |= under({"norm": "norm", "to_out": Place("proj_out", Pointwise(1))}, here, there)
            form = Fused(part.heads if self.order == "by_head" else None, dims=1)
            self.extra += fused([f"{here}.{n}" for n in ("to_q", "to_k", "to_v")], f"{there}.qkv", form)


def autoencoder(net: Autoencoder, *, levels: int) -> list[Rule]:
    """AutoencoderKL and VQModel, for a network without shortcuts."""
    places = {"encoder.quant_conv": Place("quant_conv"), "decoder.post_quant_conv": Place("post_quant_conv")}
    places |= {"codebook": Place("quantize.embedding")}
    for half in ("encoder", "decoder"):
        places |= under({n: n for n in ("conv_in", "norm_out", "conv_out")}, half, half)
    down, up = list(net.encoder.layers), list(net.decoder.layers)
    middle = 3 if isinstance(up[1], PixelAttention) else 2
    places |= _pyramid(down[:-middle], range(levels), "encoder", "down", first=0)
    places |= _middle("encoder", len(down) - middle, middle)
    places |= _middle("decoder", 0, middle)
    places |= _pyramid(up[middle:], range(levels)[::-1], "decoder", "up", first=middle)
    return ruled(net, places)


def _pyramid(layers: list[nn.Module], levels: Sequence[int], half: str, way: str, *, first: int) -> Places:
    """The places of blocks, attention and changes of size on one way."""
    places: Places = {}
    for i, layer, level, block in counted(layers, first):
        here, there = f"{half}.layers.{i}", f"{half}.{way}.{levels[level]}"
        if isinstance(layer, ResBlock):
            places |= under(VAE_RES, here, f"{there}.block.{block}")
        elif isinstance(layer, PixelAttention):
            places |= under(VAE_ATTENTION, here, f"{there}.attn.{block}")
        else:
            places[f"{here}.conv"] = Place(f"{there}.{way}sample.conv")
    return places


def _middle(half: str, first: int, parts: int) -> Places:
    names = ("block_1", "attn_1", "block_2") if parts == 3 else ("block_1", "block_2")  # noqa: PLR2004
    places: Places = {}
    for i, name in enumerate(names, first):
        here, there = f"{half}.layers.{i}", f"{half}.mid.{name}"
        places |= under(VAE_ATTENTION, here, there) if name == "attn_1" else under(VAE_RES, here, there)
    return places


def bert(net: TransformerEncoder) -> list[Rule]:
    """The TransformerWrapper of LDM's x_transformer.py."""
    places = {"tokens": Place("token_emb"), "positions": Place("pos_emb.emb"), "norm": Place("norm")}
    places |= {"logits": Place("to_logits")}
    for k in range(len(net.layers)):
        first, second = f"attn_layers.layers.{2 * k}", f"attn_layers.layers.{2 * k + 1}"
        inside = {"norm_attention": f"{first}.0", "norm_mlp": f"{second}.0"}
        inside |= {f"attention.{n}": f"{first}.1.{n}" for n in ATTENTION}
        inside |= {"mlp_in": f"{second}.1.net.0.0", "mlp_out": f"{second}.1.net.2"}
        places |= {f"layers.{k}.{a}": Place(b) for a, b in inside.items()}
    return ruled(net, places)


def clip(net: TransformerEncoder) -> list[Rule]:
    """The text tower as the transformers library names it, below `text_model.`."""
    places = {"tokens": Place("embeddings.token_embedding"), "positions": Place("embeddings.position_embedding")}
    places["norm"] = Place("final_layer_norm")
    for k in range(len(net.layers)):
        inside = {"norm_attention": "layer_norm1", "norm_mlp": "layer_norm2", "mlp_in": "mlp.fc1", "mlp_out": "mlp.fc2"}
        inside |= {f"attention.to_{n}": f"self_attn.{n}_proj" for n in ("q", "k", "v", "out")}
        places |= under(inside, f"layers.{k}", f"encoder.layers.{k}")
    return ruled(net, places)


def openclip(net: TransformerEncoder) -> list[Rule]:
    """The text tower as OpenAI's CLIP and OpenCLIP name it."""
    places = {"tokens": Place("token_embedding"), "norm": Place("ln_final")}
    extra = [Rule(("positions.weight",), ("positional_embedding",))]
    for k in range(len(net.layers)):
        here, there = f"layers.{k}", f"transformer.resblocks.{k}"
        inside = {"norm_attention": "ln_1", "norm_mlp": "ln_2", "mlp_in": "mlp.c_fc", "mlp_out": "mlp.c_proj"}
        places |= under({**inside, "attention.to_out": "attn.out_proj"}, here, there)
        for leaf in ("weight", "bias"):
            ours = tuple(f"{here}.attention.to_{n}.{leaf}" for n in ("q", "k", "v"))
            extra.append(Rule(ours, (f"{there}.attn.in_proj_{leaf}",), Fused()))
    return ruled(net, places, extra)
