"""Our networks against plain forms of the originals, over sizes that nobody published.

`test_golden` and `test_golden_families` have a few sizes of each family with numbers of the original programs. Here
sizes and options are drawn by a seed, weights go through the same key rules, and `plain` computes what should come out
from the same weights under their original names. All of these have to be used, too: a key more or less is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import plain
import pytest
import torch
from plain import PerceiverOptions, UNetOptions, VaeOptions, Weights
from torch import Tensor, nn

from fill import fill, inp
from sfumato.io.layouts import ddpm, ldm
from sfumato.io.layouts.ldm import Order
from sfumato.io.layouts.rules import Layout, Place, Places, Rule, ruled, under
from sfumato.nets.autoencoder import Autoencoder, AutoencoderSize
from sfumato.nets.classifier import Classifier, ClassifierSize
from sfumato.nets.patchgan import PatchGan, PatchGanSize
from sfumato.nets.perceiver import (
    DecoderSize,
    PerceiverClassifier,
    PerceiverIO,
    PerceiverSize,
    fourier_positions,
)
from sfumato.nets.transformer import TransformerEncoder, TransformerSize
from sfumato.nets.unet import UNet, UNetSize

TOLERANCE = 1e-4  # absolute; outputs are of order 1
VARIANTS = pytest.mark.parametrize("seed", range(12))


def filled(net: nn.Module, rules: Sequence[Rule]) -> Weights:
    """Fill our network by the rule; its weights as the original would hold them."""
    fill(net.requires_grad_(False), rules)
    return Weights(Layout(tuple(rules)).write(dict(net.named_parameters())))


def same(ours: Tensor, original: Tensor) -> None:
    """Equal to the tolerance, and not because nothing is there."""
    assert original.std() > 0.05
    torch.testing.assert_close(ours, original, rtol=0, atol=TOLERANCE)


def whole(w: Weights, *, but: Sequence[str] = ()) -> None:
    """All tensors took part, but those under some names."""
    assert {n for n in w.tensors if not n.startswith(tuple(but))} == w.used


# U-Nets -----------------------------------------------------------------------------------------------------------


def body(rng: Random, levels: int, width: int) -> UNetOptions:
    """What all of UNetModel's kinds have."""
    mult = [1, *(rng.choice([1, 2, 3]) for _ in range(levels - 1))]
    change = rng.choice(["conv", "residual", "plain"])
    return UNetOptions(
        model_channels=width,
        num_res_blocks=rng.choice([1, 1, 2, 3]),
        channel_mult=tuple(mult),
        attention_resolutions=tuple(2**k for k in range(levels) if rng.random() < 0.5),
        use_scale_shift_norm=rng.random() < 0.5,
        resblock_updown=change == "residual",
        conv_resample=change != "plain",
        use_new_attention_order=rng.random() < 0.5,
        num_classes=rng.choice([None, 5, "sequential"]),
        **rng.choice([{"num_heads": rng.choice([1, 2, 4, 8])}, {"num_head_channels": rng.choice([8, 16, 32])}]),
    )


def transforming(rng: Random, o: UNetOptions) -> UNetOptions:
    """The same with transformers."""
    return replace(
        o,
        use_spatial_transformer=True,
        transformer_depth=rng.choice([1, 2]),
        use_linear=rng.random() < 0.5,
        num_heads=3 if o.num_heads == 1 else o.num_heads,  # which does not divide the width: 30 channels inside
        disable_self_attentions=rng.choice([(), tuple(rng.random() < 0.5 for _ in o.channel_mult)]),
        disable_middle_self_attn=rng.random() < 0.3,
    )


def sized(o: UNetOptions, channels: int, *, stem: int | None = None, **rest: int | None) -> UNetSize:
    """Our size of an original's arguments."""
    crossing = tuple(2**k for k, disabled in enumerate(o.disable_self_attentions) if disabled)
    return UNetSize(
        channels=channels,
        width=o.model_channels,
        mult=o.channel_mult,
        blocks=o.num_res_blocks,
        attention=o.attention_resolutions,
        attends="transformer" if o.use_spatial_transformer else "plain",
        heads=None if o.num_heads == -1 else o.num_heads,
        head_dim=o.num_head_channels,
        depth=o.transformer_depth,
        cross_only=crossing,
        middle_cross_only=o.disable_middle_self_attn,
        vector_dim=6 if o.num_classes == "sequential" else None,
        classes=o.num_classes if isinstance(o.num_classes, int) else None,
        stem=stem,
        modulation="scale_shift" if o.use_scale_shift_norm else "add",
        resample="residual" if o.resblock_updown else "conv" if o.conv_resample else "plain",
        **rest,  # pyright: ignore[reportArgumentType]
    )


def order(o: UNetOptions) -> Order:
    """Of Q, K and V in attention blocks."""
    return "by_part" if o.use_new_attention_order else "by_head"


def compare(o: UNetOptions, size: UNetSize, *, side: int, tokens: Tensor | None = None) -> None:
    """Both on the same noise at two times, with labels or a vector where the network takes them."""
    net = UNet(size)
    w = filled(net, ldm.unet(net, linear=o.use_linear, order=order(o)))
    sides = (side, side * 3 // 2)
    x, maps = inp("x", 2, size.channels, *sides), inp("maps", 2, size.map_channels, *sides)
    t, y = torch.tensor([1, 981]), torch.tensor([3, 1])
    vector = inp("y", 2, 6) if o.num_classes == "sequential" else None
    label = y if isinstance(o.num_classes, int) else None
    original = plain.unet_model(w, o, torch.cat([x, maps], 1), t, tokens, vector if label is None else label)
    same(net(x, t, tokens, vector=vector, label=label, maps=maps if size.map_channels else None), original)
    whole(w)


@VARIANTS
def test_unet_with_attention_blocks(seed: int) -> None:
    rng = Random(f"blocks {seed}")
    levels = rng.choice([1, 2, 3, 4])
    o = body(rng, levels, rng.choice([32, 64]))
    more = {"map_channels": rng.choice([0, 2]), "out_channels": rng.choice([None, 6])}
    compare(o, sized(o, rng.choice([3, 4]), **more), side=2**levels)


@VARIANTS
def test_unet_with_transformers(seed: int) -> None:
    """With a context, and without, where cross-attention looks at the picture again."""
    rng = Random(f"transformers {seed}")
    levels = rng.choice([1, 2, 3, 4])
    o = transforming(rng, body(rng, levels, rng.choice([32, 64])))
    tokens = inp("ctx", 2, 5, 12) if seed % 3 else None
    more = {"map_channels": rng.choice([0, 5]), "context_dim": None if tokens is None else 12}
    compare(o, sized(o, 4, **more), side=2**levels, tokens=tokens)


@pytest.mark.parametrize("first", [0.5, 2])
def test_unet_of_adm_whose_first_width_is_not_its_model_channels(first: float) -> None:
    """At 512 pixels: the first convolution is as wide as the first level, half of what the embedding is made of."""
    o = replace(body(Random("stem"), 3, 64), channel_mult=(first, 1, 2), num_classes=5, num_heads=-1)
    o = replace(o, num_head_channels=16, attention_resolutions=(2, 4))
    compare(o, sized(o, 3, stem=int(64 * first), out_channels=6), side=8)


@VARIANTS
def test_classifier(seed: int) -> None:
    rng = Random(f"classifier {seed}")
    levels = rng.choice([1, 2, 3, 4])
    o = replace(body(rng, levels, rng.choice([32, 64])), num_classes=None)
    o = replace(o, num_heads=-1, num_head_channels=rng.choice([8, 16, 32]))
    side, classes = rng.choice([2, 3, 4]) * 2 ** (levels - 1), rng.choice([1, 7, 1000])
    stem = None
    if o.model_channels == 64 and seed % 2:
        o, stem = replace(o, channel_mult=(0.5, *o.channel_mult[1:])), 32
    net = Classifier(ClassifierSize(body=sized(o, 3, stem=stem), classes=classes, side=side))
    w = filled(net, ldm.classifier(net, order=order(o)))
    x, t = inp("x", 2, 3, side, side), torch.tensor([1, 981])
    same(net(x, t), plain.encoder_unet_model(w, o, x, t))
    whole(w)


def pyramid(rng: Random) -> VaeOptions:
    """Of DDPM's code and the autoencoders."""
    mult = tuple(rng.choice([1, 1, 2, 3]) for _ in range(rng.choice([1, 2, 3, 4])))
    return VaeOptions(
        ch=rng.choice([32, 64]),
        ch_mult=mult,
        num_res_blocks=rng.choice([1, 1, 2, 3]),
        attn_resolutions=tuple(r for r in (16, 8, 4, 2) if rng.random() < 0.4),
        resolution=16,
        attn_type=rng.choice(["vanilla", "vanilla", "none"]),
    )


def attending(o: VaeOptions) -> tuple[int, ...]:
    """The factors of the levels that attend."""
    return tuple(2**level for level in range(len(o.ch_mult)) if o.attends(level))


@VARIANTS
def test_unet_of_ddpm(seed: int) -> None:
    rng = Random(f"ddpm {seed}")
    o = replace(pyramid(rng), attn_type="vanilla")
    size = UNetSize(
        channels=3,
        width=o.ch,
        mult=o.ch_mult,
        blocks=o.num_res_blocks,
        attention=attending(o),
        attends="plain",
        heads=1,
        lineage="ddpm",
        out_channels=rng.choice([3, 6]),
    )
    net = UNet(size)
    w = filled(net, ddpm.unet(net))
    x, t = inp("x", 2, 3, 16, 16), torch.tensor([1, 981])
    same(net(x, t), plain.ddpm_model(w, o, x, t))
    whole(w)


# First stages -----------------------------------------------------------------------------------------------------


@VARIANTS
def test_autoencoder(seed: int) -> None:
    """KL and VQ in turn, with other channels before the codebook or the moments than after."""
    rng = Random(f"autoencoder {seed}")
    o = pyramid(rng)
    embed, z = rng.choice([2, 3, 4]), rng.choice([2, 4, 5])
    size = AutoencoderSize(
        channels=o.ch,
        mult=o.ch_mult,
        blocks=o.num_res_blocks,
        latent_channels=embed,
        z_channels=z,
        attention=attending(o),
        middle_attention=o.attn_type != "none",
        codebook=16 if seed % 2 else None,
    )
    net = Autoencoder(size)
    w = filled(net, ldm.autoencoder(net, levels=len(o.ch_mult)))
    image = inp("img", 1, 3, 16, 16)
    encoded = net.encoder(image)
    same(encoded, plain.vae_encode(w, o, image))
    latent = encoded[:, :embed]
    if net.codebook is not None:
        codes = plain.quantized(w, encoded)
        same(net.codebook(encoded), codes)
        latent = codes
    same(net.decoder(latent), plain.vae_decode(w, o, latent))
    whole(w)


# Text -------------------------------------------------------------------------------------------------------------


def ids(rng: Random, vocabulary: int, length: int) -> Tensor:
    return torch.tensor([[rng.randrange(vocabulary) for _ in range(length)] for _ in range(2)])


@VARIANTS
def test_text_encoder(seed: int) -> None:
    rng = Random(f"bert {seed}")
    dim, depth, heads, length = rng.choice([16, 40]), rng.choice([1, 2, 4]), rng.choice([2, 8]), rng.choice([1, 7, 12])
    size = TransformerSize(dim=dim, depth=depth, length=12, heads=heads, dim_head=rng.choice([8, 64]), logits=True)
    net = TransformerEncoder(30, size)
    w = filled(net, ldm.bert(net))
    tokens = ids(rng, 30, length)
    same(net(tokens), plain.transformer_wrapper(w, tokens, depth=depth, heads=heads))
    whole(w, but=["to_logits."])


@VARIANTS
def test_clip_text_tower(seed: int) -> None:
    rng = Random(f"clip {seed}")
    heads, depth, length = rng.choice([1, 2, 4]), rng.choice([2, 3, 4]), rng.choice([1, 7, 12])
    dim_head, quick, last = rng.choice([8, 16]), rng.random() < 0.5, rng.random() < 0.5
    size = TransformerSize(
        dim=heads * dim_head,
        depth=depth,
        length=12,
        heads=heads,
        dim_head=dim_head,
        causal=True,
        bias=True,
        activation="quick_gelu" if quick else "gelu",
    )
    net = TransformerEncoder(30, size)
    w = filled(net, ldm.openclip(net))
    tokens = ids(rng, 30, length)
    original = plain.clip_text(w, tokens, layers=depth, heads=heads, quick=quick, last=last)
    same(net(tokens, skip=0 if last else 1), original)
    whole(w, but=[] if last else [f"transformer.resblocks.{depth - 1}."])


# Perceivers -------------------------------------------------------------------------------------------------------


class Halves:
    """K and V here, one matrix there."""

    def read(self, there: Sequence[Tensor]) -> Sequence[Tensor]:
        return there[0].chunk(2)

    def write(self, here: Sequence[Tensor]) -> Sequence[Tensor]:
        return [torch.cat(list(here))]


NORMS = {"norm": "norm", "norm_context": "norm_context"}
MLP = {"norm": "norm", "proj_in": "fn.net.0", "proj_out": "fn.net.2"}


class Lucidrains:
    """The places of layers in lucidrains' Perceivers."""

    def __init__(self) -> None:
        self.places: Places = {}
        self.extra: list[Rule] = [Rule(("perceiver.latents",), ("latents",))]

    def layer(self, here: str, attention: str, mlp: str) -> None:
        """Attention, and the network behind it."""
        self.places |= under({**NORMS, "to_q": "fn.to_q", "to_out": "fn.to_out"}, f"{here}.attention", attention)
        ours = tuple(f"{here}.attention.to_{n}.weight" for n in "kv")
        self.extra.append(Rule(ours, (f"{attention}.fn.to_kv.weight",), Halves()))
        self.places |= under(MLP, f"{here}.mlp", mlp)


def io_rules(net: PerceiverIO) -> list[Rule]:
    """PerceiverIO."""
    walk = Lucidrains()
    walk.layer("perceiver.readings.0", "cross_attend_blocks.0", "cross_attend_blocks.1")
    # one round of many layers, or many of the same one
    for k in range(net.perceiver.size.depth):
        walk.layer(f"perceiver.blocks.0.{k}", f"layers.{k}.0", f"layers.{k}.1")
    walk.layer("decoder.ask", "decoder_cross_attn", "decoder_ff")
    return ruled(net, walk.places | {"decoder.out": Place("to_logits")}, walk.extra)


def perceiver_rules(net: PerceiverClassifier) -> list[Rule]:
    """Perceiver: the layers of the names are those that are not shared, and the first of those that are."""
    walk = Lucidrains()
    for i, _ in enumerate(net.perceiver.readings):
        walk.layer(f"perceiver.readings.{i}", f"layers.{i}.0", f"layers.{i}.1")
    for i, _ in enumerate(net.perceiver.blocks):
        for k in range(net.perceiver.size.depth):
            walk.layer(f"perceiver.blocks.{i}.{k}", f"layers.{i}.2.{k}.0", f"layers.{i}.2.{k}.1")
    return ruled(net, walk.places | {"norm": Place("to_logits.1"), "logits": Place("to_logits.2")}, walk.extra)


def latent_size(rng: Random, channels: int, **rounds: int) -> PerceiverSize:
    """What both have: no biases on Q, K and V, GEGLU four times as wide, K and V of one width."""
    heads, cross_heads = rng.choice([1, 2, 4]), rng.choice([1, 2])
    inner = heads * rng.choice([4, 8])
    return PerceiverSize(
        channels=channels,
        latents=rng.choice([1, 5, 8]),
        dim=rng.choice([16, 24]),
        heads=heads,
        keys=inner,
        values=inner,
        read_heads=cross_heads,
        read_keys=cross_heads * rng.choice([4, 8]),
        bias=False,
        gated=True,
        widening=4,
        **rounds,
    )


def some(rng: Random, *shape: int) -> Tensor | None:
    """A mask that leaves a cell of each sample, or none."""
    mask = inp("mask", 2, *shape) > 0
    mask[(slice(None), *[0] * len(shape))] = True
    return mask if rng.random() < 0.5 else None


@VARIANTS
def test_perceiver_io(seed: int) -> None:
    rng = Random(f"perceiver io {seed}")
    depth, tied, answers = rng.choice([1, 2, 3]), rng.random() < 0.5, rng.random() < 0.7
    size = latent_size(rng, rng.choice([6, 20]), rounds=depth if tied else 1, depth=1 if tied else depth)
    decoder = DecoderSize(
        queries=12,
        out=5 if answers else None,
        heads=size.read_heads,
        keys=size.read_keys,
        residual=False,
        mlp=rng.random() < 0.5,
    )
    net = PerceiverIO(size, decoder)
    w = filled(net, io_rules(net))
    data, queries, mask = inp("data", 2, 9, size.channels), inp("q", *rng.choice([(5,), (2, 5)]), 12), some(rng, 9)
    o = PerceiverOptions(
        depth=depth,
        cross_heads=size.read_heads,
        latent_heads=size.heads,
        weight_tie_layers=tied,
        decoder_ff=decoder.mlp,
        logits=answers,
    )
    same(net(data, mask, queries), plain.perceiver_io(w, o, data, queries, mask))
    whole(w)


@VARIANTS
def test_perceiver(seed: int) -> None:
    """Over a line, a picture or a film, with positions or without, tied and not."""
    rng = Random(f"perceiver {seed}")
    depth, tied, axes = rng.choice([1, 2, 4]), seed % 2 == 0, rng.choice([(7,), (4, 3), (2, 3, 2)])
    bands, max_freq = rng.choice([2, 4]), rng.choice([None, 10.0, 7.0])
    data, mask = inp("data", 2, *axes, 3), some(rng, *axes)
    rows = data.flatten(1, -2)
    if max_freq is not None:
        places = fourier_positions(axes, bands, [max_freq] * len(axes), order="by_axis")
        rows = torch.cat([rows, places.expand(2, -1, -1)], dim=2)
    rounds = {"rounds": depth, "reads": depth, "depth": rng.choice([1, 2]), "shared": tied, "own_rounds": 1}
    size = latent_size(rng, rows.shape[2], **rounds)
    net = PerceiverClassifier(size, 7, norm=True)
    w = filled(net, perceiver_rules(net))
    o = PerceiverOptions(
        depth=depth,
        cross_heads=size.read_heads,
        latent_heads=size.heads,
        weight_tie_layers=tied,
        self_per_cross_attn=size.depth,
        max_freq=max_freq,
        num_freq_bands=bands,
    )
    keep = None if mask is None else mask.flatten(1)
    same(net(rows, keep), plain.perceiver(w, o, data, mask))
    same(net.perceiver(rows, keep), plain.perceiver(w, replace(o, logits=False), data, mask))
    whole(w)


# The critic -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [4, 6, 16])
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_patchgan(layers: int, width: int) -> None:
    net = PatchGan(PatchGanSize(channels=width % 3 + 1, width=width, layers=layers))
    names = {name: name.replace("layers.", "main.", 1) for name, _ in net.named_parameters()}
    w = filled(net, [Rule((here,), (there,)) for here, there in names.items()])
    image = inp("img", 1, width % 3 + 1, 5 * 2**layers, 4 * 2**layers)
    same(net(image), plain.patchgan(w, image, n_layers=layers))
    whole(w)
