"""Attention: queries from the picture, keys and values from the picture itself or from the condition.

Attention(Q, K, V) = softmax(Q K^T / sqrt(d_head)) V with Q = phi W_Q^T, K = tau W_K^T, V = tau W_V^T, where
phi (N, d_eps) are the picture's tokens and tau (M, d_tau) the condition's. So W_Q is (d, d_eps), W_K and W_V are
(d, d_tau) and the output matrix W_O is (d_eps, d); the LDM paper (Rombach et al. 2022, sec. 3.3) has the widths of
W_Q and W_V interchanged.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nets.blocks import group_norm, zeroed


class CrossAttention(nn.Module):
    """Multi-head attention of `x` (B, N, dim) to `context` (B, M, context_dim), or to itself without one.

    No bias on W_Q, W_K, W_V; one on W_O. The scale is 1 / sqrt(dim_head) for each head.
    """

    def __init__(self, dim: int, *, heads: int, dim_head: int, context_dim: int | None = None) -> None:
        super().__init__()
        inner = heads * dim_head
        self.heads = heads
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_k = nn.Linear(context_dim or dim, inner, bias=False)
        self.to_v = nn.Linear(context_dim or dim, inner, bias=False)
        self.to_out = nn.Linear(inner, dim)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """`mask` (B, M) is true where a token of the context may be attended to; each row needs one such token."""
        context = x if context is None else context
        q, k, v = (self._split(p) for p in (self.to_q(x), self.to_k(context), self.to_v(context)))
        keep = None if mask is None else mask[:, None, None, :]  # (B, 1, 1, M)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)  # (B, H, N, D)
        return self.to_out(out.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, L, H*D) -> (B, H, L, D)


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

    Without a context the second attention looks at the picture again, as in LDM.
    """

    def __init__(self, dim: int, *, heads: int, dim_head: int, context_dim: int | None) -> None:
        super().__init__()
        self.norm_self = nn.LayerNorm(dim)
        self.self_attention = CrossAttention(dim, heads=heads, dim_head=dim_head)
        self.norm_cross = nn.LayerNorm(dim)
        self.cross_attention = CrossAttention(dim, heads=heads, dim_head=dim_head, context_dim=context_dim)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = GatedFeedForward(dim)

    def forward(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        """`x` (B, N, dim), `context` (B, M, context_dim), `mask` (B, M)."""
        x = x + self.self_attention(self.norm_self(x))
        x = x + self.cross_attention(self.norm_cross(x), context, mask)
        return x + self.mlp(self.norm_mlp(x))


class SpatialTransformer(nn.Module):
    """A picture as tokens through `depth` transformer blocks and back, as a residual that starts at zero."""

    def __init__(self, channels: int, *, heads: int, depth: int, context_dim: int | None) -> None:
        super().__init__()
        self.norm = group_norm(channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.blocks = nn.ModuleList(
            TransformerBlock(channels, heads=heads, dim_head=channels // heads, context_dim=context_dim)
            for _ in range(depth)
        )
        self.proj_out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        h = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))  # (B, H*W, C)
        for block in self.blocks:
            h = block(h, context, mask)
        return x + self.proj_out(h).transpose(1, 2).unflatten(2, x.shape[2:])


class PixelAttention(nn.Module):
    """One head over all pixels, between the residual blocks of DDPM and of the autoencoder."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, eps=1e-6)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        h = self.norm(x).flatten(2).transpose(1, 2)  # (B, H*W, C)
        q, k, v = (layer(h)[:, None] for layer in (self.to_q, self.to_k, self.to_v))  # (B, 1, H*W, C)
        out = self.to_out(F.scaled_dot_product_attention(q, k, v)[:, 0])
        return x + out.transpose(1, 2).unflatten(2, x.shape[2:])
