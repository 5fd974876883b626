"""tau_theta: the transformer that turns a sequence into what cross-attention reads (Rombach et al. 2022, app. E.2.1).

Unmasked: every token sees every other. (A mask here only hides padding.)
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nets.attention import CrossAttention


@dataclass(frozen=True, kw_only=True)
class TransformerSize:
    """Widths and depths; LDM's text encoder is dim 1280, depth 32, length 77 with 8 heads of 64 at any width."""

    dim: int
    depth: int
    length: int = 77  # most tokens in a sequence
    heads: int = 8
    dim_head: int = 64

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012


class EncoderLayer(nn.Module):
    """Global self-attention, then a position-wise network with GELU: each normalised before and added after."""

    def __init__(self, size: TransformerSize) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(size.dim)
        self.attention = CrossAttention(size.dim, heads=size.heads, dim_head=size.dim_head)
        self.norm_mlp = nn.LayerNorm(size.dim)
        self.mlp_in = nn.Linear(size.dim, 4 * size.dim)
        self.mlp_out = nn.Linear(4 * size.dim, size.dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, L, dim) -> (B, L, dim)."""
        x = x + self.attention(self.norm_attention(x), mask=mask)
        return x + self.mlp_out(F.gelu(self.mlp_in(self.norm_mlp(x))))


class TransformerEncoder(nn.Module):
    """Token and position embeddings, `depth` layers, a last normalisation."""

    def __init__(self, vocabulary: int, size: TransformerSize) -> None:
        super().__init__()
        self.size = size
        self.tokens = nn.Embedding(vocabulary, size.dim)
        self.positions = nn.Embedding(size.length, size.dim)
        self.layers = nn.ModuleList(EncoderLayer(size) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.dim)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """ids (B, L) int64, mask (B, L) true for real tokens -> (B, L, dim). L is at most `length`."""
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)
