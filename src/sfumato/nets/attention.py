"""Attention: queries from the picture, keys and values from the picture itself or from the condition.

Attention(Q, K, V) = softmax(Q K^T / sqrt(d_head)) V with Q = phi W_Q^T, K = tau W_K^T, V = tau W_V^T, where
phi (N, d_eps) are the picture's tokens and tau (M, d_tau) the condition's. So W_Q is (d, d_eps), W_K and W_V are
(d, d_tau) and the output matrix W_O is (d_eps, d); the LDM paper (Rombach et al. 2022, sec. 3.3) has the widths of
W_Q and W_V interchanged.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nets.blocks import group_norm, zeroed


class CrossAttention(nn.Module):
    """Multi-head attention of `x` (B, N, dim) to `context` (B, M, context_dim), or to itself without one.

    A bias on W_O; on W_Q, W_K and W_V only where asked (CLIP). The scale is 1 / sqrt(dim_head) for each head. The inner
    axis holds head after head. With `upcast` scores and their sum are float32, whatever the weights are: Stable
    Diffusion 2.1 at 768 pixels overflows half precision.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        dim_head: int,
        context_dim: int | None = None,
        bias: bool = False,
        upcast: bool = False,
    ) -> None:
        super().__init__()
        inner = heads * dim_head
        self.heads, self.upcast = heads, upcast
        self.to_q = nn.Linear(dim, inner, bias=bias)
        self.to_k = nn.Linear(context_dim or dim, inner, bias=bias)
        self.to_v = nn.Linear(context_dim or dim, inner, bias=bias)
        self.to_out = nn.Linear(inner, dim)

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, *, causal: bool = False
    ) -> Tensor:
        """`mask` (B, M) is true where a token of the context may be attended to; each row needs one such token.

        `causal`: a token sees itself and those before it; there is no mask then.
        """
        context = x if context is None else context
        q, k, v = (self._split(p) for p in (self.to_q(x), self.to_k(context), self.to_v(context)))
        keep = None if mask is None else mask[:, None, None, :]  # (B, 1, 1, M)
        if self.upcast:
            q, k, v = q.float(), k.float(), v.float()
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=keep, is_causal=causal)  # (B, H, N, D)
        return self.to_out(out.to(x.dtype).transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, L, H*D) -> (B, H, L, D)


@dataclass(frozen=True)
class Heads:
    """How attention is split."""

    count: int
    dim: int  # channels of each
    upcast: bool = False  # whether scores are float32


class GatedFeedForward(nn.Module):
    """The position-wise network with GEGLU (Shazeer 2020): value * gelu(gate), four times as wide inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj_in = nn.Linear(dim, 8 * dim)
        self.proj_out = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim)."""
        value, gate = self.proj_in(x).chunk(2, dim=-1)
        return self.proj_out(value * F.gelu(gate))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward: each normalised before and added after.

    Without a context the second attention looks at the picture again, as in LDM. With `cross_only` the first one looks
    at the context too (Stable Diffusion's x4 up-scaler).
    """

    def __init__(self, dim: int, *, heads: Heads, context_dim: int | None, cross_only: bool = False) -> None:
        super().__init__()
        shape = {"heads": heads.count, "dim_head": heads.dim, "upcast": heads.upcast}
        self.cross_only = cross_only
        self.norm_self = nn.LayerNorm(dim)
        self.self_attention = CrossAttention(dim, context_dim=context_dim if cross_only else None, **shape)
        self.norm_cross = nn.LayerNorm(dim)
        self.cross_attention = CrossAttention(dim, context_dim=context_dim, **shape)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = GatedFeedForward(dim)

    def forward(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        """`x` (B, N, dim), `context` (B, M, context_dim), `mask` (B, M)."""
        first = (context, mask) if self.cross_only else (None, None)
        x = x + self.self_attention(self.norm_self(x), *first)
        x = x + self.cross_attention(self.norm_cross(x), context, mask)
        return x + self.mlp(self.norm_mlp(x))


class SpatialTransformer(nn.Module):
    """A picture as tokens through `depth` transformer blocks and back, as a residual that starts at zero."""

    def __init__(
        self, channels: int, *, heads: Heads, depth: int, context_dim: int | None, cross_only: bool = False
    ) -> None:
        super().__init__()
        inner = heads.count * heads.dim
        self.norm = group_norm(channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner)
        self.blocks = nn.ModuleList(
            TransformerBlock(inner, heads=heads, context_dim=context_dim, cross_only=cross_only) for _ in range(depth)
        )
        self.proj_out = zeroed(nn.Linear(inner, channels))

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        h = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))  # (B, H*W, C)
        for block in self.blocks:
            h = block(h, context, mask)
        return x + self.proj_out(h).transpose(1, 2).unflatten(2, x.shape[2:])


class PixelAttention(nn.Module):
    """All pixels attend to each other, with biases and no context: in DDPM, ADM and the autoencoders.

    ADM's published weights hold Q, K and V in one matrix, in one of two orders: head by head (H, 3, D), its default, or
    part by part (3, H, D). Here they are three, and the order is a matter of reading files.
    """

    def __init__(self, channels: int, *, heads: int = 1, eps: float = 1e-6) -> None:
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels, eps=eps)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        h = self.norm(x).flatten(2).transpose(1, 2)  # (B, H*W, C)
        q, k, v = (
            layer(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v)
        )
        out = self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + out.transpose(1, 2).unflatten(2, x.shape[2:])
