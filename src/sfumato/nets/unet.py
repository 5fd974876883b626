"""The U-Net: residual blocks and attention over a pyramid of resolutions.

One skeleton serves DDPM (Ho et al. 2020), ADM (Dhariwal & Nichol 2021), LDM and Stable Diffusion (Rombach et al. 2022);
`models/published.py` has their sizes.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nets.attention import Heads, PixelAttention, SpatialTransformer
from sfumato.nets.blocks import Downsample, Modulation, ResBlock, Upsample, group_norm, zeroed
from sfumato.nets.embed import sinusoid, sinusoid_ddpm


@dataclass(frozen=True, kw_only=True)
class UNetSize:
    """Widths and depths. `attention` lists the down-sampling factors (1, 2, 4, ...) whose blocks attend.

    Attention is a "transformer" over the pixels and the context, or "plain": pixels to pixels. `lineage` "ddpm" has
    sines before cosines, an epsilon of 1e-6 in all normalisations and strides that pad below and right alone; "adm",
    LDM's too, has cosines first, 1e-5 and padding all round.
    """

    channels: int  # of the input, without maps
    width: int
    mult: tuple[int | float, ...] = (1, 2, 4, 4)
    blocks: int = 2
    attention: tuple[int, ...] = (1, 2, 4)
    attends: Literal["transformer", "plain"] = "transformer"
    heads: int | None = None  # in each place; as many as have `head_dim` channels if not said
    head_dim: int = 64
    depth: int = 1  # transformer blocks in each place
    context_dim: int | None = None  # of the tokens that cross-attention sees
    cross_only: tuple[int, ...] = ()  # factors at which self-attention looks at the tokens too
    middle_cross_only: bool | None = None  # whether it does so in the middle; as at the last factor if not said
    vector_dim: int | None = None  # of the vector added to the time embedding
    classes: int | None = None  # rows of the table of labels added to the time embedding
    map_channels: int = 0  # concatenated to the input
    map_short: bool = False  # whether maps also have a short way to the answer: one convolution, steered by the clock
    out_channels: int | None = None  # as `channels` if not said; twice as many where the variance is learnt
    stem: int | None = None  # channels of the first convolution; `width` if not said
    modulation: Modulation = "add"
    resample: Literal["conv", "residual", "plain"] = "conv"  # a convolution, BigGAN's residual block, or neither
    dropout: float = 0.0
    upcast: bool = False  # whether attention scores are float32 in a network of half precision
    lineage: Literal["adm", "ddpm"] = "adm"
    time_scale: float = 1.0  # the clock is multiplied by this: 1000 for one that runs from 0 to 1

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    @property
    def eps(self) -> float:
        """Of the group normalisations outside the transformers."""
        return 1e-6 if self.lineage == "ddpm" else 1e-5

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each level."""
        return tuple(int(m * self.width) for m in self.mult)

    def heads_at(self, channels: int) -> Heads:
        """How attention over so many channels is split."""
        count = self.heads or max(1, channels // self.head_dim)
        return Heads(count, channels // count, self.upcast)


class Stage(nn.Module):
    """A residual block and, in some places, attention."""

    def __init__(self, channels: int, out: int, size: UNetSize, *, at: int | None) -> None:
        super().__init__()
        self.res = residual(channels, out, size)
        self.transformer = attention(out, size, at=at)

    def forward(self, x: Tensor, emb: Tensor, tokens: Tensor | None, mask: Tensor | None) -> Tensor:
        """(B, channels, H, W) -> (B, out, H, W)."""
        x = self.res(x, emb)
        if self.transformer is None:
            return x
        return (
            self.transformer(x) if isinstance(self.transformer, PixelAttention) else self.transformer(x, tokens, mask)
        )


class UNet(nn.Module):
    """Down, through the middle, and up again, with each result on the way down joined on the way up."""

    def __init__(self, size: UNetSize) -> None:
        super().__init__()
        self.size = size
        self.factor = 2 ** (len(size.mult) - 1)  # what both sides of the input must divide by
        emb_dim = 4 * size.width
        self.time = time_mlp(size.width, emb_dim)
        self.vector = time_mlp(size.vector_dim, emb_dim) if size.vector_dim else None
        self.label = nn.Embedding(size.classes, emb_dim) if size.classes else None
        width = size.stem or size.width
        self.conv_in = nn.Conv2d(size.channels + size.map_channels, width, 3, padding=1)

        self.down, skips = descent(size)
        width = size.widths[-1]
        self.middle = middle(size)

        self.up = nn.ModuleList()
        for level, out in reversed(list(enumerate(size.widths))):
            for _ in range(size.blocks + 1):
                at = 2**level if 2**level in size.attention else None
                self.up.append(Stage(width + skips.pop(), out, size, at=at))
                width = out
            if level > 0:
                self.up.append(rising(width, size))
        self.norm_out = group_norm(width, eps=size.eps)
        self.conv_out = zeroed(nn.Conv2d(width, size.out_channels or size.channels, 3, padding=1))
        self.short = Short(size) if size.map_short else None

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        vector: Tensor | None = None,
        maps: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """The network's answer (B, out_channels, H, W).

        x (B, C, H, W), t (B,), tokens (B, L, D), mask (B, L), vector (B, V), maps (B, M, H, W), label (B,) int64.
        """
        dtype = self.conv_in.weight.dtype
        emb = self.time(clock(t, self.size).to(dtype))
        if self.vector is not None and vector is not None:
            emb = emb + self.vector(vector.to(dtype))
        if self.label is not None and label is not None:
            emb = emb + self.label(label)
        tokens = None if tokens is None else tokens.to(dtype)
        h = self.conv_in((x if maps is None else torch.cat([x, maps], dim=1)).to(dtype))
        skips = [h]
        for layer in self.down:
            h = through(layer, h, emb, tokens, mask)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, emb, tokens, mask)
        for layer in self.up:
            h = torch.cat([h, skips.pop()], dim=1) if isinstance(layer, Stage) else h
            h = through(layer, h, emb, tokens, mask)
        answer = self.conv_out(F.silu(self.norm_out(h)))
        return answer if self.short is None or maps is None else answer + self.short(maps.to(dtype), emb)


class Short(nn.Module):
    """The short way of maps to the answer: a guess of the clean picture, and how much of it counts by the clock.

    Our own: a network that is shown what a picture should be has to learn to hand it on through all of its layers. The
    guess has a loss of its own in training, so that what drew the maps need not wait for that.
    """

    def __init__(self, size: UNetSize) -> None:
        super().__init__()
        out = size.out_channels or size.channels
        self.channels = size.channels
        self.guess = nn.Conv2d(size.map_channels, size.channels, 3, padding=1)
        self.gain = zeroed(nn.Linear(4 * size.width, out))

    def forward(self, maps: Tensor, emb: Tensor) -> Tensor:
        """maps (B, M, H, W), emb (B, E) -> (B, out_channels, H, W)."""
        guess = self.guess(maps)
        gain = self.gain(F.silu(emb))[:, :, None, None]
        return torch.cat([guess * part for part in gain.split(self.channels, dim=1)], dim=1)


def descent(size: UNetSize) -> tuple[nn.ModuleList, list[int]]:
    """The layers of the way down, and the channels of each result on it, the first convolution's included."""
    layers = nn.ModuleList()
    width = size.stem or size.width
    skips = [width]
    for level, out in enumerate(size.widths):
        for _ in range(size.blocks):
            layers.append(Stage(width, out, size, at=2**level if 2**level in size.attention else None))
            width = out
            skips.append(width)
        if level < len(size.mult) - 1:
            layers.append(falling(width, size))
            skips.append(width)
    return layers, skips


def falling(width: int, size: UNetSize) -> nn.Module:
    """What halves the sides between two levels of this size: "plain" takes means."""
    if size.resample == "conv":
        return Downsample(width, padding="end" if size.lineage == "ddpm" else "same")
    return nn.AvgPool2d(2) if size.resample == "plain" else residual(width, width, size, "down")


def rising(width: int, size: UNetSize) -> nn.Module:
    """What doubles the sides between two levels of this size: "plain" repeats pixels."""
    if size.resample == "conv":
        return Upsample(width)
    return nn.Upsample(scale_factor=2.0) if size.resample == "plain" else residual(width, width, size, "up")


def middle(size: UNetSize) -> nn.ModuleList:
    """The two residual blocks at the bottom and the attention between them."""
    width, deepest = size.widths[-1], 2 ** (len(size.mult) - 1)
    if size.middle_cross_only is not None:
        size = replace(size, cross_only=(deepest,) if size.middle_cross_only else ())
    return nn.ModuleList([Stage(width, width, size, at=deepest), Stage(width, width, size, at=None)])


def through(layer: nn.Module, h: Tensor, emb: Tensor, tokens: Tensor | None, mask: Tensor | None) -> Tensor:
    """One layer of the way down or up, told what it listens to."""
    if isinstance(layer, Stage):
        return layer(h, emb, tokens, mask)
    return layer(h, emb) if isinstance(layer, ResBlock) else layer(h)


def residual(channels: int, out: int, size: UNetSize, resample: Literal["none", "down", "up"] = "none") -> ResBlock:
    """A residual block of this size's kind, steered by the time embedding."""
    return ResBlock(
        channels,
        out,
        emb_dim=4 * size.width,
        modulation=size.modulation,
        resample=resample,
        dropout=size.dropout,
        eps=size.eps,
    )


def attention(channels: int, size: UNetSize, *, at: int | None) -> SpatialTransformer | PixelAttention | None:
    """Attention of this size's kind at a down-sampling factor; none at None."""
    if at is None:
        return None
    heads = size.heads_at(channels)
    if size.attends == "plain":
        plain = PixelAttention(channels, heads=heads.count, eps=size.eps)
        zeroed(plain.to_out)
        return plain
    cross_only = at in size.cross_only
    return SpatialTransformer(
        channels, heads=heads, depth=size.depth, context_dim=size.context_dim, cross_only=cross_only
    )


def clock(t: Tensor, size: UNetSize) -> Tensor:
    """The times (B,) as (B, width)."""
    embed = sinusoid_ddpm if size.lineage == "ddpm" else sinusoid
    return embed(t * size.time_scale, size.width)


def time_mlp(dim: int, out: int) -> nn.Sequential:
    """What makes a steering vector of an embedding."""
    return nn.Sequential(nn.Linear(dim, out), nn.SiLU(), nn.Linear(out, out))
