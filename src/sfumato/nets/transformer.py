"""The transformer that turns a sequence into what cross-attention reads.

One class, by size: LDM's tau_theta (Rombach et al. 2022, app. E.2.1), in which every token sees every other, and the
text towers of CLIP ViT-L/14 and OpenCLIP ViT-H/14 (Radford et al. 2021; Cherti et al. 2023), in which a token sees
itself and those before it.
"""

from dataclasses import dataclass
from typing import Literal

import torch
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
    causal: bool = False  # whether a token sees only itself and those before it
    bias: bool = False  # whether W_Q, W_K and W_V have one
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    logits: bool = False  # a head onto the vocabulary: LDM's files have one, which nothing uses

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012


class EncoderLayer(nn.Module):
    """Self-attention, then a position-wise network with GELU: each normalised before and added after."""

    def __init__(self, size: TransformerSize) -> None:
        super().__init__()
        self.causal = size.causal
        self.activation = quick_gelu if size.activation == "quick_gelu" else F.gelu
        self.norm_attention = nn.LayerNorm(size.dim)
        self.attention = CrossAttention(size.dim, heads=size.heads, dim_head=size.dim_head, bias=size.bias)
        self.norm_mlp = nn.LayerNorm(size.dim)
        self.mlp_in = nn.Linear(size.dim, 4 * size.dim)
        self.mlp_out = nn.Linear(4 * size.dim, size.dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, L, dim) -> (B, L, dim)."""
        x = x + self.attention(self.norm_attention(x), mask=mask, causal=self.causal)
        return x + self.mlp_out(self.activation(self.mlp_in(self.norm_mlp(x))))


class TransformerEncoder(nn.Module):
    """Token and position embeddings, `depth` layers, a last normalisation."""

    def __init__(self, vocabulary: int, size: TransformerSize) -> None:
        super().__init__()
        self.size = size
        self.tokens = nn.Embedding(vocabulary, size.dim)
        self.positions = nn.Embedding(size.length, size.dim)
        self.layers = nn.ModuleList(EncoderLayer(size) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.dim)
        self.logits = nn.Linear(size.dim, vocabulary) if size.logits else None
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, ids: Tensor, mask: Tensor | None = None, *, skip: int = 0) -> Tensor:
        """ids (B, L) int64, mask (B, L) true for real tokens -> (B, L, dim). L is at most `length`.

        `skip` leaves out so many of the last layers ("clip skip"); the last normalisation stays. A causal encoder takes
        no mask.
        """
        return self.states(self.tokens(ids), mask, skip=skip)

    def states(self, embedded: Tensor, mask: Tensor | None = None, *, skip: int = 0) -> Tensor:
        """The same for tokens that are embedded already (B, L, dim), as those of textual inversions are."""
        x = embedded + self.positions.weight[: embedded.shape[1]]
        for layer in self.layers[: len(self.layers) - skip]:
            x = layer(x, mask)
        return self.norm(x)


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x): the GELU of OpenAI's CLIP (Hendrycks & Gimpel 2016, sec. 2)."""
    return x * torch.sigmoid(1.702 * x)
