"""Perceiver and Perceiver IO: a few latents read an input of any length, think, and are asked (Jaegle et al. 2021).

The input x (M, C) may be long and of any kind; the latents z (N, D) are few. Reading is cross-attention from z to x,
O(M N); thinking is self-attention of z, O(N^2) a layer; decoding is cross-attention from queries o (O, E) to z, O(O N).
The Perceiver (2103.03206) reads again before each round of thinking and averages its latents; Perceiver IO
(2107.14795, here "2021b") reads once, and decodes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class PerceiverSize:
    """Widths and depths; the defaults are DeepMind's for ImageNet.

    In each of the `rounds` the latents go through a block of `depth` self-attentions; in the first `reads` of them they
    read the input before. Perceiver IO has one reading, the Perceiver as many as rounds. If `shared`, all rounds have
    the same block, and all readings but the first the same cross-attention, except that the first `own_rounds` have
    blocks and readings of their own.
    """

    channels: int  # of a row of the input
    latents: int = 512
    dim: int = 1024  # of a latent
    rounds: int = 8
    depth: int = 6
    reads: int = 1
    shared: bool = True
    own_rounds: int = 0  # 1 in lucidrains' Perceiver, where the first layer shares nothing
    heads: int = 8
    keys: int | None = None  # width of queries and keys, all heads together; None: that of the latents
    values: int | None = None  # None: that of the latents
    read_heads: int = 1
    read_keys: int | None = None  # None: that of the input's rows
    read_values: int | None = None  # None: as the keys
    bias: bool = True  # on W_Q, W_K and W_V
    widening: int = 1  # of the networks between the attentions
    gated: bool = False  # GEGLU there in place of GELU

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012


@dataclass(frozen=True, kw_only=True)
class DecoderSize:
    """What is asked of the latents, and what comes out."""

    queries: int  # width of a query
    out: int | None = None  # width of an answer; None: no last linear layer
    learned: int = 0  # queries that the decoder has of its own: 1 for a classifier
    heads: int = 1
    keys: int | None = None  # None: width of the latents
    values: int | None = None  # None: as the keys
    residual: bool = True  # the query is added to what it found
    mlp: bool = True

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012


class Attention(nn.Module):
    """Normalised attention of `x` (B, N, dim) to `context` (B, M, context_dim), or to itself without one."""

    def __init__(
        self, dim: int, *, context_dim: int | None = None, heads: int, keys: int, values: int, bias: bool
    ) -> None:
        super().__init__()
        if keys % heads or values % heads:
            raise ValueError(f"{heads} heads do not divide keys of {keys} and values of {values} channels")
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.norm_context = None if context_dim is None else nn.LayerNorm(context_dim)
        self.to_q = nn.Linear(dim, keys, bias=bias)
        self.to_k = nn.Linear(context_dim or dim, keys, bias=bias)
        self.to_v = nn.Linear(context_dim or dim, values, bias=bias)
        self.to_out = nn.Linear(values, dim)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """`mask` (B, M) is true where a row of the context may be attended to; each sample needs one such row."""
        x = self.norm(x)
        if self.norm_context is not None:
            assert context is not None
            context = self.norm_context(context)
        else:
            context = x
        q, k, v = (self._split(p) for p in (self.to_q(x), self.to_k(context), self.to_v(context)))
        keep = None if mask is None else mask[:, None, None, :]  # (B, 1, 1, M)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)  # (B, H, N, values / H)
        return self.to_out(out.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, L, H*D) -> (B, H, L, D)


class FeedForward(nn.Module):
    """The position-wise network, normalised before: GELU, or GEGLU (Shazeer 2020), `widening` times as wide inside."""

    def __init__(self, dim: int, *, widening: int, gated: bool) -> None:
        super().__init__()
        self.gated = gated
        self.norm = nn.LayerNorm(dim)
        self.proj_in = nn.Linear(dim, widening * dim * (2 if gated else 1))
        self.proj_out = nn.Linear(widening * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim)."""
        h = self.proj_in(self.norm(x))
        if self.gated:
            value, gate = h.chunk(2, dim=-1)
            return self.proj_out(value * F.gelu(gate))
        return self.proj_out(F.gelu(h))


class PerceiverLayer(nn.Module):
    """Attention and the position-wise network, each added to what came in; a decoder may do without one or other."""

    def __init__(self, attention: Attention, mlp: FeedForward | None, *, residual: bool = True) -> None:
        super().__init__()
        self.attention = attention
        self.mlp = mlp
        self.residual = residual

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """`x` (B, N, dim), `context` (B, M, context_dim), `mask` (B, M)."""
        found = self.attention(x, context, mask)
        x = x + found if self.residual else found
        return x if self.mlp is None else x + self.mlp(x)


class Perceiver(nn.Module):
    """The latents: what they have become after reading an input and thinking about it."""

    def __init__(self, size: PerceiverSize) -> None:
        super().__init__()
        if not 1 <= size.reads <= size.rounds:
            raise ValueError(f"a perceiver of {size.rounds} rounds can read 1 to {size.rounds} times, not {size.reads}")
        self.size = size
        self.latents = nn.Parameter(torch.empty(size.latents, size.dim))
        nn.init.trunc_normal_(self.latents, std=0.02)
        own = size.own_rounds if size.shared else size.rounds
        self.readings = nn.ModuleList(_reading(size) for _ in range(min(size.reads, max(own, 1) + 1)))
        self.blocks = nn.ModuleList(
            nn.Sequential(*(_thinking(size) for _ in range(size.depth))) for _ in range(min(size.rounds, own + 1))
        )

    def forward(self, data: Tensor, mask: Tensor | None = None) -> Tensor:
        """data (B, M, channels), mask (B, M) true = keep, at least one in each sample -> latents (B, N, dim)."""
        x = self.latents.expand(len(data), -1, -1)
        for i in range(self.size.rounds):
            if i < self.size.reads:
                x = self.readings[min(i, len(self.readings) - 1)](x, data, mask)
            x = self.blocks[min(i, len(self.blocks) - 1)](x)
        return x


class Decoder(nn.Module):
    """Queries that ask the latents, each by itself (2021b, sec. 3.2)."""

    def __init__(self, latents: int, size: DecoderSize, *, bias: bool, widening: int, gated: bool) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(size.learned, size.queries)) if size.learned else None
        if self.queries is not None:
            nn.init.trunc_normal_(self.queries, std=0.02)
        keys = size.keys or latents
        attention = Attention(
            size.queries, context_dim=latents, heads=size.heads, keys=keys, values=size.values or keys, bias=bias
        )
        mlp = FeedForward(size.queries, widening=widening, gated=gated) if size.mlp else None
        self.ask = PerceiverLayer(attention, mlp, residual=size.residual)
        self.out = nn.Identity() if size.out is None else nn.Linear(size.queries, size.out)

    def forward(self, latents: Tensor, queries: Tensor | None = None) -> Tensor:
        """latents (B, N, D), queries (B, O, E) or for all samples (O, E), None: those of its own -> (B, O, out)."""
        queries = self.queries if queries is None else queries
        if queries is None:
            raise ValueError("this decoder has no queries of its own and was given none")
        return self.out(self.ask(queries.expand(len(latents), -1, -1), latents))


class PerceiverIO(nn.Module):
    """Any input to any output: encode, think, decode. All attentions and networks are of the kind that `size` says."""

    def __init__(self, size: PerceiverSize, decoder: DecoderSize) -> None:
        super().__init__()
        self.perceiver = Perceiver(size)
        self.decoder = Decoder(size.dim, decoder, bias=size.bias, widening=size.widening, gated=size.gated)

    def forward(self, data: Tensor, mask: Tensor | None = None, queries: Tensor | None = None) -> Tensor:
        """data (B, M, channels), mask (B, M) true = keep, queries as in `Decoder` -> (B, O, out)."""
        return self.decoder(self.perceiver(data, mask), queries)


class PerceiverClassifier(nn.Module):
    """The Perceiver of 2103.03206: the mean of the latents, and linear logits; lucidrains' has a `norm` between."""

    def __init__(self, size: PerceiverSize, classes: int, *, norm: bool = False) -> None:
        super().__init__()
        self.perceiver = Perceiver(size)
        self.norm = nn.LayerNorm(size.dim) if norm else nn.Identity()
        self.logits = nn.Linear(size.dim, classes)

    def forward(self, data: Tensor, mask: Tensor | None = None) -> Tensor:
        """data (B, M, channels), mask (B, M) true = keep -> logits (B, classes)."""
        return self.logits(self.norm(self.perceiver(data, mask).mean(1)))


def fourier_positions(
    shape: Sequence[int],
    bands: int,
    resolution: Sequence[float] | None = None,
    *,
    order: Literal["by_kind", "by_axis"] = "by_kind",
) -> Tensor:
    """Where each cell of a grid is: (cells, axes * (2 * bands + 1)) float32, the last axis of the grid running fastest.

    Positions p run from -1 to 1 on each axis. First the p of all axes, then sin(pi f p), then cos(pi f p), each axis
    with `bands` frequencies f evenly from 1 to half its resolution, which is the grid itself if not said: the fastest
    is then at the limit that the grid can show (2103.03206, sec. 3.2). In the `order` "by_axis" each axis has its
    sines, cosines and p together, as in lucidrains' Perceiver, whose `max_freq` is the resolution of all axes.
    """
    axes = [torch.linspace(-1, 1, n, dtype=torch.float64) for n in shape]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)  # (cells, axes)
    tops = shape if resolution is None else resolution
    frequencies = torch.stack([torch.linspace(1, n / 2, bands, dtype=torch.float64) for n in tops])  # (axes, bands)
    angles = math.pi * (places[..., None] * frequencies)  # (cells, axes, bands)
    if order == "by_axis":
        return torch.cat([angles.sin(), angles.cos(), places[..., None]], dim=2).flatten(1).float()
    return torch.cat([places, angles.sin().flatten(1), angles.cos().flatten(1)], dim=1).float()


def _reading(size: PerceiverSize) -> PerceiverLayer:
    keys = size.read_keys or size.channels
    values = size.read_values or keys
    attention = Attention(
        size.dim, context_dim=size.channels, heads=size.read_heads, keys=keys, values=values, bias=size.bias
    )
    return PerceiverLayer(attention, FeedForward(size.dim, widening=size.widening, gated=size.gated))


def _thinking(size: PerceiverSize) -> PerceiverLayer:
    keys, values = size.keys or size.dim, size.values or size.dim
    attention = Attention(size.dim, heads=size.heads, keys=keys, values=values, bias=size.bias)
    return PerceiverLayer(attention, FeedForward(size.dim, widening=size.widening, gated=size.gated))
