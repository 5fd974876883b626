"""The forward passes of the original networks, written as plain functions of a state dict under its original names.

They are what our networks are compared with, so nothing here comes from `sfumato`. The arguments have the names and the
meaning that they have in the originals (LDM's `openaimodel.py`, ADM, the PyTorch form of DDPM, `x_transformer.py`,
OpenAI's CLIP, lucidrains' Perceivers, taming's PatchGAN).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


class Weights:
    """A state dict that knows which of its tensors were asked for."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)
        self.used: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.used.add(name)
        return self.tensors[name]

    def conv(self, name: str, x: Tensor, *, stride: int = 1, padding: int = 0, bias: bool = True) -> Tensor:
        """A convolution over one or two dimensions, by the weight's number of them; it must have all of them."""
        weight = self[f"{name}.weight"]
        assert weight.ndim == x.ndim, name
        apply = F.conv1d if x.ndim == 3 else F.conv2d
        return apply(x, weight, self[f"{name}.bias"] if bias else None, stride=stride, padding=padding)

    def linear(self, name: str, x: Tensor, *, bias: bool = True) -> Tensor:
        """x W^T + b."""
        weight = self[f"{name}.weight"]
        assert weight.ndim == 2, name
        return F.linear(x, weight, self[f"{name}.bias"] if bias else None)

    def group_norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        """In 32 groups."""
        return F.group_norm(x, 32, self[f"{name}.weight"], self[f"{name}.bias"], eps)

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        """Over the last axis."""
        return F.layer_norm(x, x.shape[-1:], self[f"{name}.weight"], self[f"{name}.bias"], 1e-5)


def mixed(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v for tensors (B, H, N, d)."""
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.shape[-1]) + bias
    return torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)


def split(x: Tensor, heads: int) -> Tensor:
    """(B, N, H d) -> (B, H, N, d), the head being the slow axis."""
    return x.view(x.shape[0], x.shape[1], heads, -1).permute(0, 2, 1, 3)


def merged(x: Tensor) -> Tensor:
    """(B, H, N, d) -> (B, N, H d)."""
    return x.permute(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


# ADM's and LDM's U-Net --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class UNetOptions:
    """The arguments of UNetModel and EncoderUNetModel that say more than the shapes of the weights."""

    model_channels: int
    num_res_blocks: int
    channel_mult: tuple[float, ...]
    attention_resolutions: tuple[int, ...]
    num_heads: int = -1
    num_head_channels: int = -1
    use_spatial_transformer: bool = False
    transformer_depth: int = 1
    use_linear: bool = False
    use_new_attention_order: bool = False
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    conv_resample: bool = True
    num_classes: int | str | None = None
    disable_self_attentions: tuple[bool, ...] = ()
    disable_middle_self_attn: bool = False

    def heads(self, channels: int) -> int:
        """How many there are at a width."""
        return self.num_heads if self.num_head_channels == -1 else channels // self.num_head_channels


def time_embedding(w: Weights, o: UNetOptions, t: Tensor) -> Tensor:
    """Cosines, then sines, at exp(-ln(10000) i / half); then two layers."""
    half = o.model_channels // 2
    angles = t.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)[None]
    return mlp(w, "time_embed.0", "time_embed.2", torch.cat([angles.cos(), angles.sin()], 1))


def mlp(w: Weights, first: str, second: str, x: Tensor) -> Tensor:
    """Linear, SiLU, Linear."""
    return w.linear(second, F.silu(w.linear(first, x)))


def adm_res(w: Weights, o: UNetOptions, name: str, x: Tensor, emb: Tensor, out: int, change: str = "") -> Tensor:
    """ResBlock, with the change of size, "up" or "down", inside."""

    def resized(h: Tensor) -> Tensor:
        if change == "down":
            return F.avg_pool2d(h, 2, 2)
        return h.repeat_interleave(2, 2).repeat_interleave(2, 3) if change == "up" else h

    h = resized(F.silu(w.group_norm(f"{name}.in_layers.0", x, 1e-5)))
    h = w.conv(f"{name}.in_layers.2", h, padding=1)
    assert h.shape[1] == out, name
    steer = w.linear(f"{name}.emb_layers.1", F.silu(emb))[:, :, None, None]
    if o.use_scale_shift_norm:
        h = w.group_norm(f"{name}.out_layers.0", h, 1e-5) * (1 + steer[:, :out]) + steer[:, out:]
    else:
        h = w.group_norm(f"{name}.out_layers.0", h + steer, 1e-5)
    h = w.conv(f"{name}.out_layers.3", F.silu(h), padding=1)
    x = resized(x)
    return h + (x if x.shape[1] == out else w.conv(f"{name}.skip_connection", x))


def attention_block(w: Weights, o: UNetOptions, name: str, x: Tensor) -> Tensor:
    """AttentionBlock: the 3 C axis is (H, 3, d), or in the new order (3, H, d)."""
    batch, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    flat = x.view(batch, channels, pixels)
    qkv = w.conv(f"{name}.qkv", w.group_norm(f"{name}.norm", flat, 1e-5))
    heads = o.heads(channels)
    if o.use_new_attention_order:
        q, k, v = qkv.view(batch, 3, heads, -1, pixels).unbind(1)
    else:
        q, k, v = qkv.view(batch, heads, 3, -1, pixels).unbind(2)
    out = mixed(q.mT, k.mT, v.mT).mT.reshape(batch, channels, pixels)
    return (flat + w.conv(f"{name}.proj_out", out)).view_as(x)


def cross_attention(w: Weights, name: str, x: Tensor, context: Tensor, heads: int) -> Tensor:
    """CrossAttention: no bias but on the way out."""
    q = w.linear(f"{name}.to_q", x, bias=False)
    k, v = (w.linear(f"{name}.to_{n}", context, bias=False) for n in "kv")
    return w.linear(f"{name}.to_out.0", merged(mixed(split(q, heads), split(k, heads), split(v, heads))))


def spatial_transformer(
    w: Weights, o: UNetOptions, name: str, x: Tensor, context: Tensor | None, *, disable_self_attn: bool
) -> Tensor:
    """SpatialTransformer of `transformer_depth` blocks, with projections by convolution or by matrix."""
    heads = o.heads(x.shape[1])
    h = w.group_norm(f"{name}.norm", x, 1e-6)
    h = w.linear(f"{name}.proj_in", h.flatten(2).mT) if o.use_linear else w.conv(f"{name}.proj_in", h).flatten(2).mT
    for i in range(o.transformer_depth):
        block = f"{name}.transformer_blocks.{i}"
        n = w.layer_norm(f"{block}.norm1", h)
        first = context if disable_self_attn and context is not None else n
        h = h + cross_attention(w, f"{block}.attn1", n, first, heads)
        n = w.layer_norm(f"{block}.norm2", h)
        h = h + cross_attention(w, f"{block}.attn2", n, n if context is None else context, heads)
        value, gate = w.linear(f"{block}.ff.net.0.proj", w.layer_norm(f"{block}.norm3", h)).chunk(2, -1)
        h = h + w.linear(f"{block}.ff.net.2", value * F.gelu(gate))
    if o.use_linear:
        return x + w.linear(f"{name}.proj_out", h).mT.reshape(x.shape)
    return x + w.conv(f"{name}.proj_out", h.mT.reshape(x.shape[0], -1, *x.shape[2:]))


Attend = Callable[[str, Tensor, bool], Tensor]


def attending(w: Weights, o: UNetOptions, context: Tensor | None) -> Attend:
    """What stands after a residual block where there is attention; the last argument is disable_self_attn."""

    def attend(name: str, h: Tensor, disable: bool) -> Tensor:
        if o.use_spatial_transformer:
            return spatial_transformer(w, o, name, h, context, disable_self_attn=disable)
        return attention_block(w, o, name, h)

    return attend


def way_down(w: Weights, o: UNetOptions, x: Tensor, emb: Tensor, attend: Attend) -> tuple[Tensor, list[Tensor]]:
    """`input_blocks` and `middle_block`: the result at the bottom, and those on the way."""
    h = w.conv("input_blocks.0.0", x, padding=1)
    hs, ds, last = [h], 1, len(o.channel_mult) - 1
    disabled = o.disable_self_attentions or (False,) * len(o.channel_mult)
    for level, mult in enumerate(o.channel_mult):
        for _ in range(o.num_res_blocks):
            h = adm_res(w, o, f"input_blocks.{len(hs)}.0", h, emb, int(mult * o.model_channels))
            if ds in o.attention_resolutions:
                h = attend(f"input_blocks.{len(hs)}.1", h, disabled[level])
            hs.append(h)
        if level != last:
            name = f"input_blocks.{len(hs)}.0"
            if o.resblock_updown:
                h = adm_res(w, o, name, h, emb, h.shape[1], "down")
            else:
                h = w.conv(f"{name}.op", h, stride=2, padding=1) if o.conv_resample else F.avg_pool2d(h, 2, 2)
            hs.append(h)
            ds *= 2
    h = adm_res(w, o, "middle_block.0", h, emb, h.shape[1])
    h = attend("middle_block.1", h, o.disable_middle_self_attn)
    return adm_res(w, o, "middle_block.2", h, emb, h.shape[1]), hs


def unet_model(
    w: Weights, o: UNetOptions, x: Tensor, t: Tensor, context: Tensor | None = None, y: Tensor | None = None
) -> Tensor:
    """UNetModel of ADM, LDM and Stable Diffusion."""
    emb = time_embedding(w, o, t)
    if y is not None:
        emb = emb + (mlp(w, "label_emb.0.0", "label_emb.0.2", y) if y.is_floating_point() else w["label_emb.weight"][y])
    attend = attending(w, o, context)
    h, hs = way_down(w, o, x, emb, attend)
    disabled = o.disable_self_attentions or (False,) * len(o.channel_mult)
    ds, n = 2 ** (len(o.channel_mult) - 1), 0
    for level, mult in reversed(list(enumerate(o.channel_mult))):
        for i in range(o.num_res_blocks + 1):
            name, part = f"output_blocks.{n}", 1
            h = adm_res(w, o, f"{name}.0", torch.cat([h, hs.pop()], 1), emb, int(mult * o.model_channels))
            if ds in o.attention_resolutions:
                h, part = attend(f"{name}.1", h, disabled[level]), 2
            if level and i == o.num_res_blocks:
                if o.resblock_updown:
                    h = adm_res(w, o, f"{name}.{part}", h, emb, h.shape[1], "up")
                else:
                    h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
                    h = w.conv(f"{name}.{part}.conv", h, padding=1) if o.conv_resample else h
                ds //= 2
            n += 1
    return w.conv("out.2", F.silu(w.group_norm("out.0", h, 1e-5)), padding=1)


def encoder_unet_model(w: Weights, o: UNetOptions, x: Tensor, t: Tensor) -> Tensor:
    """EncoderUNetModel with attention pooling: token 0 of an attention in the new order, whatever the body has."""
    h, _ = way_down(w, o, x, time_embedding(w, o, t), attending(w, o, None))
    h = F.silu(w.group_norm("out.0", h, 1e-5)).flatten(2)
    h = torch.cat([h.mean(2, keepdim=True), h], 2) + w["out.2.positional_embedding"][None]
    qkv = w.conv("out.2.qkv_proj", h)
    q, k, v = qkv.view(len(x), 3, -1, o.num_head_channels, qkv.shape[2]).unbind(1)
    return w.conv("out.2.c_proj", mixed(q.mT, k.mT, v.mT).mT.reshape(h.shape))[:, :, 0]


# DDPM's U-Net and the autoencoders --------------------------------------------------------------------------------


def vae_res(w: Weights, name: str, x: Tensor, out: int, temb: Tensor | None = None) -> Tensor:
    """ResnetBlock; the swish of `temb` is inside."""
    h = w.conv(f"{name}.conv1", F.silu(w.group_norm(f"{name}.norm1", x, 1e-6)), padding=1)
    assert h.shape[1] == out, name
    if temb is not None:
        h = h + w.linear(f"{name}.temb_proj", F.silu(temb))[:, :, None, None]
    h = w.conv(f"{name}.conv2", F.silu(w.group_norm(f"{name}.norm2", h, 1e-6)), padding=1)
    return h + (x if x.shape[1] == out else w.conv(f"{name}.nin_shortcut", x))


def attn_block(w: Weights, name: str, x: Tensor) -> Tensor:
    """AttnBlock: one head over the pixels."""
    h = w.group_norm(f"{name}.norm", x, 1e-6)
    q, k, v = (w.conv(f"{name}.{n}", h).flatten(2).mT[:, None] for n in "qkv")
    return x + w.conv(f"{name}.proj_out", mixed(q, k, v)[:, 0].mT.reshape(x.shape))


def vae_middle(w: Weights, name: str, h: Tensor, temb: Tensor | None = None, *, attn: bool = True) -> Tensor:
    """mid.block_1, attn_1, block_2."""
    h = vae_res(w, f"{name}.block_1", h, h.shape[1], temb)
    h = attn_block(w, f"{name}.attn_1", h) if attn else h
    return vae_res(w, f"{name}.block_2", h, h.shape[1], temb)


def shrunk(w: Weights, name: str, h: Tensor) -> Tensor:
    """A row below and a column on the right of zeros, then stride 2."""
    return w.conv(name, F.pad(h, (0, 1, 0, 1)), stride=2)


def grown(w: Weights, name: str, h: Tensor) -> Tensor:
    """Each pixel four times, then a convolution."""
    return w.conv(name, h.repeat_interleave(2, 2).repeat_interleave(2, 3), padding=1)


@dataclass(frozen=True, kw_only=True)
class VaeOptions:
    """Of DDPM's Model and of LDM's Encoder and Decoder. `attn_resolutions` are sides, compared with `resolution`."""

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    resolution: int
    attn_type: str = "vanilla"

    def attends(self, level: int) -> bool:
        """Whether blocks of a level do."""
        return self.attn_type != "none" and self.resolution // 2**level in self.attn_resolutions


def ddpm_model(w: Weights, o: VaeOptions, x: Tensor, t: Tensor) -> Tensor:
    """Model: sines before cosines, with the divisor half - 1."""
    half = o.ch // 2
    angles = t.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / (half - 1))[None]
    temb = mlp(w, "temb.dense.0", "temb.dense.1", torch.cat([angles.sin(), angles.cos()], 1))
    hs = [w.conv("conv_in", x, padding=1)]
    last = len(o.ch_mult) - 1
    for level, mult in enumerate(o.ch_mult):
        for i in range(o.num_res_blocks):
            h = vae_res(w, f"down.{level}.block.{i}", hs[-1], o.ch * mult, temb)
            hs.append(attn_block(w, f"down.{level}.attn.{i}", h) if o.attends(level) else h)
        if level != last:
            hs.append(shrunk(w, f"down.{level}.downsample.conv", hs[-1]))
    h = vae_middle(w, "mid", hs[-1], temb)
    for level in range(last, -1, -1):
        for i in range(o.num_res_blocks + 1):
            h = vae_res(w, f"up.{level}.block.{i}", torch.cat([h, hs.pop()], 1), o.ch * o.ch_mult[level], temb)
            h = attn_block(w, f"up.{level}.attn.{i}", h) if o.attends(level) else h
        h = grown(w, f"up.{level}.upsample.conv", h) if level else h
    return w.conv("conv_out", F.silu(w.group_norm("norm_out", h, 1e-6)), padding=1)


def vae_encode(w: Weights, o: VaeOptions, image: Tensor) -> Tensor:
    """The moments, or a VQ model's latent before the codebook: Encoder and quant_conv."""
    h = w.conv("encoder.conv_in", image, padding=1)
    for level, mult in enumerate(o.ch_mult):
        name = f"encoder.down.{level}"
        for i in range(o.num_res_blocks):
            h = vae_res(w, f"{name}.block.{i}", h, o.ch * mult)
            h = attn_block(w, f"{name}.attn.{i}", h) if o.attends(level) else h
        h = shrunk(w, f"{name}.downsample.conv", h) if level != len(o.ch_mult) - 1 else h
    h = vae_middle(w, "encoder.mid", h, attn=o.attn_type != "none")
    h = w.conv("encoder.conv_out", F.silu(w.group_norm("encoder.norm_out", h, 1e-6)), padding=1)
    return w.conv("quant_conv", h)


def vae_decode(w: Weights, o: VaeOptions, z: Tensor) -> Tensor:
    """post_quant_conv and Decoder."""
    h = w.conv("decoder.conv_in", w.conv("post_quant_conv", z), padding=1)
    h = vae_middle(w, "decoder.mid", h, attn=o.attn_type != "none")
    for level in range(len(o.ch_mult) - 1, -1, -1):
        name = f"decoder.up.{level}"
        for i in range(o.num_res_blocks + 1):
            h = vae_res(w, f"{name}.block.{i}", h, o.ch * o.ch_mult[level])
            h = attn_block(w, f"{name}.attn.{i}", h) if o.attends(level) else h
        h = grown(w, f"{name}.upsample.conv", h) if level else h
    return w.conv("decoder.conv_out", F.silu(w.group_norm("decoder.norm_out", h, 1e-6)), padding=1)


def quantized(w: Weights, z: Tensor) -> Tensor:
    """Each position becomes the codeword at the least squared distance."""
    codes = w["quantize.embedding.weight"]
    far = (z.permute(0, 2, 3, 1)[..., None, :] - codes).square().sum(-1)  # (B, h, w, entries)
    return codes[far.argmin(-1)].permute(0, 3, 1, 2)


# Text encoders ----------------------------------------------------------------------------------------------------


def transformer_wrapper(w: Weights, ids: Tensor, *, depth: int, heads: int) -> Tensor:
    """TransformerWrapper with an Encoder, return_embeddings=True; `to_logits` is there and unused."""
    x = w["token_emb.weight"][ids] + w["pos_emb.emb.weight"][: ids.shape[1]]
    for i in range(depth):
        name = f"attn_layers.layers.{2 * i}"
        n = w.layer_norm(f"{name}.0", x)
        q, k, v = (split(w.linear(f"{name}.1.to_{p}", n, bias=False), heads) for p in "qkv")
        x = x + w.linear(f"{name}.1.to_out", merged(mixed(q, k, v)))
        name = f"attn_layers.layers.{2 * i + 1}"
        n = w.linear(f"{name}.1.net.0.0", w.layer_norm(f"{name}.0", x))
        x = x + w.linear(f"{name}.1.net.2", F.gelu(n))
    return w.layer_norm("norm", x)


def clip_text(w: Weights, ids: Tensor, *, layers: int, heads: int, quick: bool, last: bool) -> Tensor:
    """OpenAI's tower: `quick` GELU or the exact one; all blocks or all but the last; ln_final in both cases."""
    x = w["token_embedding.weight"][ids] + w["positional_embedding"][: ids.shape[1]]
    ahead = torch.full((ids.shape[1],) * 2, -math.inf).triu(1)
    for i in range(layers if last else layers - 1):
        name = f"transformer.resblocks.{i}"
        n = w.layer_norm(f"{name}.ln_1", x)
        qkv = F.linear(n, w[f"{name}.attn.in_proj_weight"], w[f"{name}.attn.in_proj_bias"])
        q, k, v = (split(p, heads) for p in qkv.chunk(3, -1))
        x = x + w.linear(f"{name}.attn.out_proj", merged(mixed(q, k, v, ahead)))
        n = w.linear(f"{name}.mlp.c_fc", w.layer_norm(f"{name}.ln_2", x))
        x = x + w.linear(f"{name}.mlp.c_proj", n / (1 + torch.exp(-1.702 * n)) if quick else F.gelu(n))
    return w.layer_norm("ln_final", x)


# lucidrains' Perceivers -------------------------------------------------------------------------------------------


def perceiver_attention(
    w: Weights, name: str, x: Tensor, heads: int, context: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """PreNorm and Attention: Q without a bias, K and V in one matrix."""
    x = w.layer_norm(f"{name}.norm", x)
    context = x if context is None else w.layer_norm(f"{name}.norm_context", context)
    q = w.linear(f"{name}.fn.to_q", x, bias=False)
    k, v = w.linear(f"{name}.fn.to_kv", context, bias=False).chunk(2, -1)
    hidden = 0.0 if mask is None else torch.zeros(mask.shape).masked_fill(~mask, -torch.finfo().max)[:, None, None]
    return w.linear(f"{name}.fn.to_out", merged(mixed(split(q, heads), split(k, heads), split(v, heads), hidden)))


def perceiver_ff(w: Weights, name: str, x: Tensor) -> Tensor:
    """PreNorm and FeedForward with GEGLU."""
    value, gate = w.linear(f"{name}.fn.net.0", w.layer_norm(f"{name}.norm", x)).chunk(2, -1)
    return w.linear(f"{name}.fn.net.2", value * F.gelu(gate))


@dataclass(frozen=True, kw_only=True)
class PerceiverOptions:
    """The arguments of PerceiverIO (the upper ones) and of Perceiver (all but `decoder_ff`)."""

    depth: int
    cross_heads: int
    latent_heads: int
    weight_tie_layers: bool = False
    decoder_ff: bool = False
    logits: bool = True  # logits_dim there, final_classifier_head here
    self_per_cross_attn: int = 1
    max_freq: float | None = None  # None: fourier_encode_data is off
    num_freq_bands: int = 0


def perceiver_io(w: Weights, o: PerceiverOptions, data: Tensor, queries: Tensor, mask: Tensor | None = None) -> Tensor:
    """PerceiverIO: reads once, thinks `depth` times, with tied weights in the same layer each time, and is asked."""
    x = w["latents"].repeat(len(data), 1, 1)
    x = x + perceiver_attention(w, "cross_attend_blocks.0", x, o.cross_heads, data, mask)
    x = x + perceiver_ff(w, "cross_attend_blocks.1", x)
    for i in range(o.depth):
        name = f"layers.{0 if o.weight_tie_layers else i}"
        x = x + perceiver_attention(w, f"{name}.0", x, o.latent_heads)
        x = x + perceiver_ff(w, f"{name}.1", x)
    queries = queries.repeat(len(data), 1, 1) if queries.ndim == 2 else queries
    out = perceiver_attention(w, "decoder_cross_attn", queries, o.cross_heads, x)
    out = out + perceiver_ff(w, "decoder_ff", out) if o.decoder_ff else out
    return w.linear("to_logits", out) if o.logits else out


def fourier_encode(shape: Sequence[int], max_freq: float, num_bands: int) -> Tensor:
    """(cells, axes * (2 num_bands + 1)): sines, cosines and the position, axis by axis, the last axis fastest."""
    steps = [[-1 + 2 * i / (n - 1) for i in range(n)] for n in shape]
    bands = [1 + (max_freq / 2 - 1) * i / (num_bands - 1) for i in range(num_bands)]
    cells: list[list[float]] = [[]]
    for axis in steps:
        told = [[f(math.pi * b * p) for f in (math.sin, math.cos) for b in bands] + [p] for p in axis]
        cells = [cell + more for cell in cells for more in told]
    return torch.tensor(cells)


def perceiver(w: Weights, o: PerceiverOptions, data: Tensor, mask: Tensor | None = None) -> Tensor:
    """Perceiver: data (B, *axes, C). With tied weights layer 0 has its own and layer 1's serve all that follow."""
    if o.max_freq is not None:
        places = fourier_encode(data.shape[1:-1], o.max_freq, o.num_freq_bands)
        data = torch.cat([data.flatten(1, -2), places.repeat(len(data), 1, 1)], -1)
    else:
        data = data.flatten(1, -2)
    x = w["latents"].repeat(len(data), 1, 1)
    for i in range(o.depth):
        name = f"layers.{min(i, 1) if o.weight_tie_layers else i}"
        x = x + perceiver_attention(w, f"{name}.0", x, o.cross_heads, data, None if mask is None else mask.flatten(1))
        x = x + perceiver_ff(w, f"{name}.1", x)
        for k in range(o.self_per_cross_attn):
            x = x + perceiver_attention(w, f"{name}.2.{k}.0", x, o.latent_heads)
            x = x + perceiver_ff(w, f"{name}.2.{k}.1", x)
    return w.linear("to_logits.2", w.layer_norm("to_logits.1", x.mean(1))) if o.logits else x


# PatchGAN ---------------------------------------------------------------------------------------------------------


def patchgan(w: Weights, x: Tensor, *, n_layers: int) -> Tensor:
    """NLayerDiscriminator in evaluation, its running statistics 0 and 1."""
    x = F.leaky_relu(w.conv("main.0", x, stride=2, padding=1), 0.2)
    for n in range(1, n_layers + 1):
        x = w.conv(f"main.{3 * n - 1}", x, stride=2 if n < n_layers else 1, padding=1, bias=False)
        scale, shift = (w[f"main.{3 * n}.{leaf}"][:, None, None] for leaf in ("weight", "bias"))
        x = F.leaky_relu(x / math.sqrt(1 + 1e-5) * scale + shift, 0.2)
    return w.conv(f"main.{3 * n_layers + 2}", x, padding=1)
