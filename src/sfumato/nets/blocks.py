"""The convolutional pieces that the U-Net and the autoencoder share."""

from typing import Literal, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
Modulation = Literal["add", "scale_shift"]


def group_norm(channels: int, *, eps: float) -> nn.GroupNorm:
    """Group normalisation with the field's 32 groups, or the largest smaller number that divides `channels`."""
    groups = next(g for g in range(min(32, channels), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps=eps)


def zeroed(module: M) -> M:
    """The module with all its parameters at zero: a residual branch that starts as nothing."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


class ResBlock(nn.Module):
    """Two convolutions with a residual; a vector `emb` (B, emb_dim) steers it where there is one.

    "add" adds the projected vector between the convolutions (DDPM, LDM); "scale_shift" lets it scale and shift the
    second normalisation, ADM's adaptive group normalisation (Dhariwal & Nichol 2021, eq. 3). `resample` halves the
    sides by means, or doubles them by repetition, on both ways before the first convolution (Brock et al. 2019).
    """

    def __init__(
        self,
        channels: int,
        out: int,
        *,
        emb_dim: int | None = None,
        modulation: Modulation = "add",
        resample: Literal["none", "down", "up"] = "none",
        dropout: float = 0.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.modulation = modulation
        self.resample = resample
        self.norm_in = group_norm(channels, eps=eps)
        self.conv_in = nn.Conv2d(channels, out, 3, padding=1)
        width = 2 * out if modulation == "scale_shift" else out
        self.emb = nn.Linear(emb_dim, width) if emb_dim else None
        self.norm_out = group_norm(out, eps=eps)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = zeroed(nn.Conv2d(out, out, 3, padding=1))
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        """(B, channels, H, W) -> (B, out, H, W)."""
        h = self.conv_in(self._resampled(F.silu(self.norm_in(x))))
        if self.emb is not None and emb is not None:
            steer = self.emb(F.silu(emb))[:, :, None, None]
            if self.modulation == "add":
                h = self.norm_out(h + steer)
            else:
                scale, shift = steer.chunk(2, dim=1)
                h = self.norm_out(h) * (1 + scale) + shift
        else:
            h = self.norm_out(h)
        return self.skip(self._resampled(x)) + self.conv_out(self.dropout(F.silu(h)))

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "none":
            return x
        return F.avg_pool2d(x, 2) if self.resample == "down" else F.interpolate(x, scale_factor=2.0, mode="nearest")


class Downsample(nn.Module):
    """Halve height and width with a strided convolution.

    `padding` "same" pads all round (U-Nets of ADM and LDM); "end" pads below and right only (autoencoders, DDPM).
    """

    def __init__(self, channels: int, *, padding: Literal["same", "end"]) -> None:
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1 if padding == "same" else 0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2)."""
        if self.padding == "end":
            x = F.pad(x, (0, 1, 0, 1), mode="circular" if self.conv.padding_mode == "circular" else "constant")
        return self.conv(x)


class Upsample(nn.Module):
    """Double height and width: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
