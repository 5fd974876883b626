"""The sizes of networks, read from the names and shapes of their tensors."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal

from sfumato.io.layouts import taesd
from sfumato.models.published import UNETS
from sfumato.nets.autoencoder import AutoencoderSize
from sfumato.nets.tiny import TinySize
from sfumato.nets.transformer import TransformerSize
from sfumato.nets.unet import UNetSize

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class FoundUNet:
    """A U-Net in a file: its size, how its tensors are shaped there, and the published one that it is, if it is one."""

    size: UNetSize
    linear: bool  # whether the projections of its transformers are matrices
    published: str | None
    why: tuple[str, ...]


def below(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}


def unet(shapes: Shapes, *, latent: int | None) -> FoundUNet:
    """The U-Net with these tensors (LDM's, ADM's or DDPM's names). `latent`: the channels of the latent, if known.

    How attention is split into heads is in no shape: it is taken from the published network of the same shapes, else
    assumed, and `why` says so. ValueError if a tensor that every U-Net has is not there.
    """
    try:
        size, linear, why = _ddpm(shapes) if "temb.dense.0.weight" in shapes else _ldm(shapes, latent)
    except (KeyError, IndexError, ZeroDivisionError):
        raise ValueError("its U-Net is not whole: tensors that every U-Net has are missing") from None
    same = [name for name in UNETS if _bare(UNETS[name]) == _bare(size)]
    if not same:
        heads = size.heads or (8 if not linear and size.context_dim else None)
        said = f"{heads} head{'s' if heads > 1 else ''}" if heads else "64 channels a head"
        return FoundUNet(replace(size, heads=heads), linear, None, (*why, f"no published network; {said} are assumed"))
    like = UNETS[same[0]]
    size = replace(size, heads=like.heads, head_dim=like.head_dim, dropout=like.dropout)
    heads = f"{like.heads} heads" if like.heads else f"{like.head_dim} channels a head"
    return FoundUNet(size, linear, same[0], (*why, f"shapes of {' or '.join(same)}: {heads}"))


def _bare(size: UNetSize) -> UNetSize:
    """What shapes can tell of a size."""
    levels = [2**i for i in range(len(size.mult))]
    reached = tuple(sorted(f for f in size.attention if f in levels))
    crossing = tuple(f for f in size.cross_only if f in reached)
    return replace(
        size, heads=None, head_dim=64, dropout=0.0, upcast=False, attention=reached, cross_only=crossing, stem=None
    )


def _ldm(shapes: Shapes, latent: int | None) -> tuple[UNetSize, bool, tuple[str, ...]]:
    width = shapes["time_embed.0.weight"][1]
    stem, inputs = shapes["input_blocks.0.0.weight"][:2]
    outputs = shapes["out.2.weight"][0]
    total = 1 + max(int(m[1]) for m in (re.match(r"input_blocks\.(\d+)\.", name) for name in shapes) if m)
    blocks = _blocks(shapes, total)
    resample = "conv" if any(name.endswith(".0.op.weight") for name in shapes) or total == blocks + 1 else "residual"
    widths, attention, cross_only = [], [], []
    for level in range(total // (blocks + 1)):
        first = 1 + level * (blocks + 1)
        widths.append(shapes[f"input_blocks.{first}.0.in_layers.2.weight"][0])
        if f"input_blocks.{first}.1.norm.weight" in shapes:
            attention.append(2**level)
        queries, keys = (
            shapes.get(f"input_blocks.{first}.1.transformer_blocks.0.attn1.to_{n}.weight") for n in ("q", "k")
        )
        if queries and keys and queries[1] != keys[1]:
            cross_only.append(2**level)
    transformer = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    channels, learned = _channels(inputs, outputs, latent)
    first_block = "input_blocks.1.0.emb_layers.1.weight"
    size = UNetSize(
        channels=channels,
        width=width,
        stem=None if stem == width else stem,
        mult=tuple(w // width if w % width == 0 else w / width for w in widths),
        blocks=blocks,
        attention=tuple(attention),
        attends="transformer" if transformer in shapes else "plain",
        depth=max(1, len({n.split(".")[3] for n in shapes if n.startswith("middle_block.1.transformer_blocks.")})),
        context_dim=shapes[transformer][1] if transformer in shapes else None,
        cross_only=tuple(cross_only),
        vector_dim=shapes["label_emb.0.0.weight"][1] if "label_emb.0.0.weight" in shapes else None,
        classes=shapes["label_emb.weight"][0] if "label_emb.weight" in shapes else None,
        map_channels=inputs - channels,
        out_channels=2 * channels if learned else None,
        modulation="scale_shift" if shapes[first_block][0] == 2 * widths[0] else "add",
        resample=resample,
    )
    linear = len(shapes.get("middle_block.1.proj_in.weight", ())) == 2  # noqa: PLR2004
    return size, linear, (f"U-Net with {inputs} channels in, {outputs} out",)


def _blocks(shapes: Shapes, total: int) -> int:
    """Residual blocks a level: the first block of the way up that is followed by an up-sampling ends a level."""
    for block in range(total):
        for at in (1, 2):
            if {f"output_blocks.{block}.{at}.{n}" for n in ("conv.weight", "in_layers.0.weight")} & shapes.keys():
                return block
    return total - 1


def _channels(inputs: int, outputs: int, latent: int | None) -> tuple[int, bool]:
    """Channels of the latent or the picture, and whether the variance is learnt."""
    if latent is None:
        pictures = outputs == 6 and inputs in (3, 6)  # noqa: PLR2004 (ADM, and its up-samplers)
        latent = 3 if pictures else min(inputs, outputs)
    return latent, outputs == 2 * latent


def _ddpm(shapes: Shapes) -> tuple[UNetSize, bool, tuple[str, ...]]:
    width = shapes["temb.dense.0.weight"][1]
    levels = 1 + max(int(m[1]) for m in (re.match(r"down\.(\d+)\.", name) for name in shapes) if m)
    widths = [shapes[f"down.{level}.block.0.conv1.weight"][0] for level in range(levels)]
    size = UNetSize(
        channels=shapes["conv_in.weight"][1],
        width=width,
        mult=tuple(w // width for w in widths),
        blocks=len({n.split(".")[3] for n in shapes if n.startswith("down.0.block.")}),
        attention=tuple(2**level for level in range(levels) if f"down.{level}.attn.0.norm.weight" in shapes),
        attends="plain",
        heads=1,
        lineage="ddpm",
    )
    return size, True, ("U-Net in DDPM's names",)


def autoencoder(shapes: Shapes) -> AutoencoderSize:
    """The first stage with these tensors (LDM's names). ValueError if one that every first stage has is missing."""
    try:
        channels = shapes["encoder.conv_in.weight"][0]
        levels = 1 + max(int(m[1]) for m in (re.match(r"encoder\.down\.(\d+)\.", name) for name in shapes) if m)
        widths = [shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels)]
        z, latent = shapes["decoder.conv_in.weight"][1], shapes["post_quant_conv.weight"][1]
        return AutoencoderSize(
            channels=channels,
            mult=tuple(w // channels for w in widths),
            blocks=len({n.split(".")[4] for n in shapes if n.startswith("encoder.down.0.block.")}),
            latent_channels=latent,
            z_channels=None if z == latent else z,
            image_channels=shapes["encoder.conv_in.weight"][1],
            attention=tuple(2**i for i in range(levels) if f"encoder.down.{i}.attn.0.norm.weight" in shapes),
            middle_attention="encoder.mid.attn_1.norm.weight" in shapes,
            codebook=shapes["quantize.embedding.weight"][0] if "quantize.embedding.weight" in shapes else None,
        )
    except (KeyError, IndexError, ValueError):
        raise ValueError("its first stage is not whole: tensors that every first stage has are missing") from None


def tiny(shapes: Shapes) -> TinySize:
    """The tiny first stage with these tensors (TAESD's names or diffusers').

    ValueError if they are an encoder alone, or if one that every decoder has is missing.
    """
    original = taesd.is_original(shapes)
    layers, first = (shapes, 1) if original else (below(shapes, taesd.DECODER), 0)
    if not layers or (original and "0.weight" in layers and "1.weight" not in layers):
        raise ValueError("it is the encoder of a tiny first stage alone, which cannot paint; give the decoder's file")
    try:
        width, latent = layers[f"{first}.weight"][:2]
        blocks_at = {int(m[1]) for m in (re.match(r"(\d+)\.conv\.", name) for name in layers) if m}
        last = max(int(m[1]) for m in (re.match(r"(\d+)\.", name) for name in layers) if m)
    except (KeyError, ValueError):
        width = latent = last = 0
        blocks_at = set[int]()
    blocks = next(n for n in count() if first + 2 + n not in blocks_at)
    levels, rest = divmod(last - first - 3, blocks + 2)  # behind a level's blocks it is made larger by two layers
    if min(width, latent, blocks, levels) < 1 or rest or last > 2 * len(layers):
        raise ValueError("its first stage is not whole: tensors that every tiny one has are missing")
    encoder = not original and any(name.startswith(taesd.ENCODER) for name in shapes)
    return TinySize(width=width, blocks=blocks, latent_channels=latent, levels=levels, encoder=encoder)


TextNames = Literal["clip", "openclip", "bert"]


def encoder(shapes: Shapes, names: TextNames) -> tuple[int, TransformerSize]:
    """The number of words and the size of a text encoder with these tensors. ValueError if it is not whole."""
    token, position, layer = {
        "clip": (
            "embeddings.token_embedding.weight",
            "embeddings.position_embedding.weight",
            r"encoder\.layers\.(\d+)",
        ),
        "openclip": ("token_embedding.weight", "positional_embedding", r"transformer\.resblocks\.(\d+)"),
        "bert": ("token_emb.weight", "pos_emb.emb.weight", r"attn_layers\.layers\.(\d+)"),
    }[names]
    try:
        (vocabulary, dim), length = shapes[token], shapes[position][0]
        depth = 1 + max(int(m[1]) for m in (re.match(layer, name) for name in shapes) if m)
        if names == "bert":
            inner = shapes["attn_layers.layers.0.1.to_q.weight"][0]
            logits = "to_logits.weight" in shapes
            size = TransformerSize(dim=dim, depth=depth // 2, length=length, dim_head=inner // 8, logits=logits)
            return vocabulary, size
    except (KeyError, IndexError, ValueError):
        raise ValueError("its text encoder is not whole: tensors that every one has are missing") from None
    if names == "openclip" and depth == 24:  # noqa: PLR2004
        depth = 23  # Stable Diffusion 2 was trained on the layer before the last
    heads = max(1, dim // 64)
    activation = "quick_gelu" if dim == 768 else "gelu"  # noqa: PLR2004 (OpenAI's and OpenCLIP's)
    return vocabulary, TransformerSize(
        dim=dim,
        depth=depth,
        length=length,
        heads=heads,
        dim_head=dim // heads,
        causal=True,
        bias=True,
        activation=activation,
    )
