"""The autoencoder of latent diffusion: a picture to the moments of a small latent, and back (Rombach et al. 2022)."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nets.attention import PixelAttention
from sfumato.nets.blocks import Downsample, ResBlock, Upsample, group_norm, zeroed

EPS = 1e-6  # of all group normalisations here; the U-Net has 1e-5


@dataclass(frozen=True, kw_only=True)
class AutoencoderSize:
    """Widths and depths. The latent is `factor` times smaller each way, with `latent_channels` channels."""

    channels: int = 128
    mult: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    latent_channels: int = 4
    image_channels: int = 3
    patch: int = 1  # pixels folded into channels before the first convolution: 1 in LDM
    shortcut: Literal["none", "linear"] = "none"  # "none" in LDM; "linear" lets the networks learn a residual

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    @property
    def factor(self) -> int:
        """Pixels to one latent position, each way."""
        return self.patch * 2 ** (len(self.mult) - 1)


class Encoder(nn.Module):
    """(B, 3, H, W) -> moments (B, 2 * latent_channels, H/f, W/f): mean and log-variance."""

    def __init__(self, size: AutoencoderSize) -> None:
        super().__init__()
        self.patch = size.patch
        self.conv_in = nn.Conv2d(size.image_channels * size.patch**2, size.channels, 3, padding=1)
        layers: list[nn.Module] = []
        width = size.channels
        for level, mult in enumerate(size.mult):
            for _ in range(size.blocks):
                layers.append(ResBlock(width, size.channels * mult, eps=EPS))
                width = size.channels * mult
            if level < len(size.mult) - 1:
                layers.append(Downsample(width, padding="end"))
        layers += [ResBlock(width, width, eps=EPS), PixelAttention(width), ResBlock(width, width, eps=EPS)]
        self.layers = nn.Sequential(*layers)
        self.norm_out = group_norm(width, eps=EPS)
        self.conv_out = nn.Conv2d(width, 2 * size.latent_channels, 3, padding=1)
        self.quant_conv = nn.Conv2d(2 * size.latent_channels, 2 * size.latent_channels, 1)
        self.linear = None
        if size.shortcut == "linear":
            zeroed(self.conv_out)
            self.fold = size.factor
            self.linear = nn.Conv2d(size.image_channels * size.factor**2, size.latent_channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Pictures in [-1, 1]; H and W must be multiples of the factor."""
        h = self.layers(self.conv_in(F.pixel_unshuffle(image, self.patch)))
        out = self.quant_conv(self.conv_out(F.silu(self.norm_out(h))))
        if self.linear is not None:
            mean, logvar = out.chunk(2, dim=1)
            out = torch.cat([mean + self.linear(F.pixel_unshuffle(image, self.fold)), logvar], dim=1)
        return out


class Decoder(nn.Module):
    """(B, latent_channels, h, w) -> (B, 3, h*f, w*f)."""

    def __init__(self, size: AutoencoderSize) -> None:
        super().__init__()
        self.patch = size.patch
        width = size.channels * size.mult[-1]
        self.post_quant_conv = nn.Conv2d(size.latent_channels, size.latent_channels, 1)
        self.conv_in = nn.Conv2d(size.latent_channels, width, 3, padding=1)
        layers: list[nn.Module] = [ResBlock(width, width, eps=EPS), PixelAttention(width)]
        layers += [ResBlock(width, width, eps=EPS)]
        for level, mult in reversed(list(enumerate(size.mult))):
            for _ in range(size.blocks + 1):
                layers.append(ResBlock(width, size.channels * mult, eps=EPS))
                width = size.channels * mult
            if level > 0:
                layers.append(Upsample(width))
        self.layers = nn.Sequential(*layers)
        self.norm_out = group_norm(width, eps=EPS)
        self.conv_out = nn.Conv2d(width, size.image_channels * size.patch**2, 3, padding=1)
        self.linear = None
        if size.shortcut == "linear":
            zeroed(self.conv_out)
            self.fold = size.factor
            self.linear = nn.Conv2d(size.latent_channels, size.image_channels * size.factor**2, 1)

    def forward(self, latent: Tensor) -> Tensor:
        """The picture, in [-1, 1] but not clamped."""
        h = self.layers(self.conv_in(self.post_quant_conv(latent)))
        out = F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), self.patch)
        return out if self.linear is None else out + F.pixel_shuffle(self.linear(latent), self.fold)


class Autoencoder(nn.Module):
    """Encoder and decoder of one size."""

    def __init__(self, size: AutoencoderSize) -> None:
        super().__init__()
        self.encoder = Encoder(size)
        self.decoder = Decoder(size)

    @torch.no_grad()
    def start_at_principal_components(self, images: Tensor, variance: float = 0.02) -> None:
        """Begin where linear algebra ends: make the linear shortcuts the PCA of the patches of `images`.

        `images` (N, 3, H, W) in [-1, 1]. A component of deviation s in pixels gets deviation sqrt(s) in the latent:
        half way between nature, where detail drowns in noise, and white, where it counts as much as form. `variance`
        is the share of the posterior's first variance in the weakest component; in the others it is as large in
        pixels. ValueError without linear shortcuts.
        """
        inner, outer = self.encoder.linear, self.decoder.linear
        first_variance = self.encoder.quant_conv.bias
        if inner is None or outer is None or inner.bias is None or outer.bias is None or first_variance is None:
            raise ValueError("this autoencoder has no linear shortcut to start from")
        k = len(inner.weight)
        patches = F.pixel_unshuffle(images, self.encoder.fold).movedim(1, -1).flatten(0, 2).double()  # (P, c*f*f)
        mean = patches.mean(0)
        values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
        std, basis = values[-k:].clamp_min(1e-12).sqrt(), vectors[:, -k:]  # (k,), (c*f*f, k)
        inner.weight.copy_((basis / std.sqrt()).T[:, :, None, None])
        inner.bias.copy_(-(mean @ basis) / std.sqrt())
        outer.weight.copy_((basis * std.sqrt())[:, :, None, None])
        outer.bias.copy_(mean)
        first_variance[k:] = (variance * std[0] ** 2 / std).log()


def moments(encoded: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance, the latter kept within [-30, 20]."""
    mean, logvar = encoded.chunk(2, dim=1)
    return mean, logvar.clamp(-30.0, 20.0)


def kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """Divergence of N(mean, exp(logvar)) from N(0, I), summed per sample (B,), in nats (Kingma & Welling 2014)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)


def drawn(mean: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    """The reparameterised sample mean + std * eps."""
    return mean + torch.exp(0.5 * logvar) * eps
