"""The U-Net: residual blocks and transformers over a pyramid of resolutions (Ho et al. 2020; Rombach et al. 2022)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nets.attention import SpatialTransformer
from sfumato.nets.blocks import Downsample, Modulation, ResBlock, Upsample, group_norm, zeroed
from sfumato.nets.embed import sinusoid


@dataclass(frozen=True, kw_only=True)
class UNetSize:
    """Widths and depths. `attention` lists the down-sampling factors (1, 2, 4, ...) whose blocks attend."""

    channels: int  # of the input and of the output
    width: int
    mult: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    attention: tuple[int, ...] = (1, 2, 4)
    head_dim: int = 64
    depth: int = 1  # transformer blocks in each place
    context_dim: int | None = None  # of the tokens that cross-attention sees
    vector_dim: int | None = None  # of the vector added to the time embedding
    map_channels: int = 0  # concatenated to the input
    modulation: Modulation = "add"
    time_scale: float = 1.0  # the clock is multiplied by this: 1000 for one that runs from 0 to 1

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012


class Stage(nn.Module):
    """A residual block and, in some places, a transformer."""

    def __init__(self, channels: int, out: int, size: UNetSize, *, attends: bool) -> None:
        super().__init__()
        self.res = ResBlock(channels, out, emb_dim=4 * size.width, modulation=size.modulation)
        self.transformer = _transformer(out, size) if attends else None

    def forward(self, x: Tensor, emb: Tensor, tokens: Tensor | None, mask: Tensor | None) -> Tensor:
        """(B, channels, H, W) -> (B, out, H, W)."""
        x = self.res(x, emb)
        return x if self.transformer is None else self.transformer(x, tokens, mask)


class UNet(nn.Module):
    """Down, through the middle, and up again, with each result on the way down joined on the way up."""

    def __init__(self, size: UNetSize) -> None:
        super().__init__()
        self.size = size
        self.factor = 2 ** (len(size.mult) - 1)  # what both sides of the input must divide by
        emb_dim = 4 * size.width
        self.time = _mlp(size.width, emb_dim)
        self.vector = _mlp(size.vector_dim, emb_dim) if size.vector_dim else None
        self.conv_in = nn.Conv2d(size.channels + size.map_channels, size.width, 3, padding=1)

        self.down = nn.ModuleList()
        width, skips = size.width, [size.width]
        for level, mult in enumerate(size.mult):
            for _ in range(size.blocks):
                self.down.append(Stage(width, mult * size.width, size, attends=2**level in size.attention))
                width = mult * size.width
                skips.append(width)
            if level < len(size.mult) - 1:
                self.down.append(Downsample(width, padding="same"))
                skips.append(width)

        self.middle = nn.ModuleList([Stage(width, width, size, attends=True), Stage(width, width, size, attends=False)])

        self.up = nn.ModuleList()
        for level, mult in reversed(list(enumerate(size.mult))):
            for _ in range(size.blocks + 1):
                attends = 2**level in size.attention
                self.up.append(Stage(width + skips.pop(), mult * size.width, size, attends=attends))
                width = mult * size.width
            if level > 0:
                self.up.append(Upsample(width))
        self.norm_out = group_norm(width, eps=1e-5)
        self.conv_out = zeroed(nn.Conv2d(width, size.channels, 3, padding=1))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        vector: Tensor | None = None,
        maps: Tensor | None = None,
    ) -> Tensor:
        """x (B, C, H, W), t (B,), tokens (B, L, D), mask (B, L), vector (B, V), maps (B, M, H, W) -> (B, C, H, W)."""
        dtype = self.conv_in.weight.dtype
        emb = self.time(sinusoid(t * self.size.time_scale, self.size.width).to(dtype))
        if self.vector is not None and vector is not None:
            emb = emb + self.vector(vector.to(dtype))
        tokens = None if tokens is None else tokens.to(dtype)
        h = self.conv_in((x if maps is None else torch.cat([x, maps], dim=1)).to(dtype))
        skips = [h]
        for layer in self.down:
            h = layer(h, emb, tokens, mask) if isinstance(layer, Stage) else layer(h)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, emb, tokens, mask)
        for layer in self.up:
            h = layer(torch.cat([h, skips.pop()], dim=1), emb, tokens, mask) if isinstance(layer, Stage) else layer(h)
        return self.conv_out(F.silu(self.norm_out(h)))


def _transformer(channels: int, size: UNetSize) -> SpatialTransformer:
    heads = max(1, channels // size.head_dim)
    return SpatialTransformer(channels, heads=heads, depth=size.depth, context_dim=size.context_dim)


def _mlp(dim: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, out), nn.SiLU(), nn.Linear(out, out))
