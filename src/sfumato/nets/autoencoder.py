"""The autoencoder of latent diffusion: a picture to the moments of a small latent, and back (Rombach et al. 2022)."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nets.attention import PixelAttention
from sfumato.nets.blocks import Downsample, ResBlock, Upsample, group_norm, zeroed

NARROWEST = -30.0  # log-variance of a posterior, as small as it gets
EPS = 1e-6  # of all group normalisations here; the U-Net has 1e-5


@dataclass(frozen=True, kw_only=True)
class AutoencoderSize:
    """Widths and depths. The latent is `factor` times smaller each way, with `latent_channels` channels.

    `attention` lists the down-sampling factors whose blocks attend, beside the middle. With a `codebook` of so many
    entries it is a VQ autoencoder (van den Oord et al. 2017; Esser et al. 2021), else a KL one.
    """

    channels: int = 128
    mult: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    latent_channels: int = 4
    z_channels: int | None = None  # between the networks and the 1x1 convolutions; as the latent if not said
    image_channels: int = 3
    attention: tuple[int, ...] = ()
    middle_attention: bool = True
    codebook: int | None = None
    patch: int = 1  # pixels folded into channels before the first convolution: 1 in LDM
    shortcut: Literal["none", "linear"] = "none"  # "none" in LDM; "linear" lets the networks learn a residual

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    @property
    def factor(self) -> int:
        """Pixels to one latent position, each way."""
        return self.patch * 2 ** (len(self.mult) - 1)

    @property
    def published(self) -> bool:
        """Whether it is of the published kind: without shortcuts and patches, which are ours."""
        return self.shortcut == "none" and self.patch == 1

    @property
    def z(self) -> int:
        """Channels between the networks and the 1x1 convolutions."""
        return self.z_channels or self.latent_channels

    @property
    def components(self) -> int:
        """The most channels that a latent with linear shortcuts may have: the numbers in the square that one sees."""
        return self.image_channels * self.factor**2

    @property
    def largest(self) -> int:
        """Weights of its largest layer."""
        widest, z = self.channels * max(self.mult), self.z * (1 if self.codebook else 2)
        first, last = self.channels * self.image_channels * self.patch**2, self.channels * self.mult[-1] * z
        linear = self.latent_channels * self.components if self.shortcut == "linear" else 0
        moments = self.latent_channels * z * (1 if self.codebook else 2)
        return max(9 * widest**2, 9 * first, 9 * last, moments, linear, (self.codebook or 0) * self.latent_channels)


class Encoder(nn.Module):
    """(B, 3, H, W) -> moments (B, 2 * latent_channels, H/f, W/f): mean and log-variance; for VQ the latent alone."""

    def __init__(self, size: AutoencoderSize) -> None:
        super().__init__()
        self.patch = size.patch
        self.conv_in = nn.Conv2d(size.image_channels * size.patch**2, size.channels, 3, padding=1)
        layers: list[nn.Module] = []
        width = size.channels
        for level, mult in enumerate(size.mult):
            for _ in range(size.blocks):
                layers += _block(width, size.channels * mult, attends=2**level in size.attention)
                width = size.channels * mult
            if level < len(size.mult) - 1:
                layers.append(Downsample(width, padding="end"))
        self.layers = nn.Sequential(*layers, *_middle(width, size))
        self.norm_out = group_norm(width, eps=EPS)
        kinds = 1 if size.codebook else 2
        self.conv_out = nn.Conv2d(width, kinds * size.z, 3, padding=1)
        self.quant_conv = nn.Conv2d(kinds * size.z, kinds * size.latent_channels, 1)
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
            mean, *logvar = out.split(self.linear.out_channels, dim=1)
            out = torch.cat([mean + self.linear(F.pixel_unshuffle(image, self.fold)), *logvar], dim=1)
        return out


class Decoder(nn.Module):
    """(B, latent_channels, h, w) -> (B, 3, h*f, w*f)."""

    def __init__(self, size: AutoencoderSize) -> None:
        super().__init__()
        self.patch = size.patch
        width = size.channels * size.mult[-1]
        self.post_quant_conv = nn.Conv2d(size.latent_channels, size.z, 1)
        self.conv_in = nn.Conv2d(size.z, width, 3, padding=1)
        layers = _middle(width, size)
        for level, mult in reversed(list(enumerate(size.mult))):
            for _ in range(size.blocks + 1):
                layers += _block(width, size.channels * mult, attends=2**level in size.attention)
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


def _block(channels: int, out: int, *, attends: bool) -> list[nn.Module]:
    block = ResBlock(channels, out, eps=EPS)
    return [block, PixelAttention(out)] if attends else [block]


def _middle(width: int, size: AutoencoderSize) -> list[nn.Module]:
    return [*_block(width, width, attends=size.middle_attention), ResBlock(width, width, eps=EPS)]


class Codebook(nn.Module):
    """Each position becomes the nearest of `entries` vectors (van den Oord et al. 2017)."""

    def __init__(self, entries: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(entries, channels))
        nn.init.uniform_(self.weight, -1 / entries, 1 / entries)

    def nearest(self, z: Tensor) -> Tensor:
        """The index (B, h, w) int64 of the entry nearest to each position of z (B, C, h, w), in squared distance."""
        flat, entries = z.movedim(1, -1).flatten(0, -2).float(), self.weight.float()  # (P, C), (K, C)
        with torch.autocast(z.device.type, enabled=False):  # in bfloat16 neighbours are not told apart
            distance = entries.square().sum(1) - 2 * flat @ entries.T  # but for |z|^2, which all share
        return distance.argmin(1).view(len(z), *z.shape[2:])

    def forward(self, z: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return self.weight[self.nearest(z)].movedim(-1, 1)


def straight_through(z: Tensor, quantised: Tensor) -> Tensor:
    """The quantised latent, with the gradient of `z` (Bengio et al. 2013)."""
    return z + (quantised - z).detach()


def codebook_loss(z: Tensor, quantised: Tensor, *, commitment: float = 0.25, legacy: bool = False) -> Tensor:
    """mean |sg(z) - q|^2 + commitment * mean |z - sg(q)|^2 (van den Oord et al. 2017, eq. 3).

    LDM's first stages were trained with the weight on the other term, a slip: the same value, another gradient.
    `legacy` is that.
    """
    terms = [(z.detach() - quantised).square().mean(), (z - quantised.detach()).square().mean()]
    entries, encoder = reversed(terms) if legacy else terms
    return entries + commitment * encoder


class Autoencoder(nn.Module):
    """Encoder and decoder of one size, and its codebook if it has one."""

    def __init__(self, size: AutoencoderSize) -> None:
        super().__init__()
        self.size = size
        self.encoder = Encoder(size)
        self.decoder = Decoder(size)
        self.codebook = Codebook(size.codebook, size.latent_channels) if size.codebook else None

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
        if self.codebook is None:
            first_variance[k:] = (variance * std[0] ** 2 / std).log()


def moments(encoded: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance, the latter kept within [-30, 20]."""
    mean, logvar = encoded.chunk(2, dim=1)
    return mean, logvar.clamp(NARROWEST, 20.0)


def kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """Divergence of N(mean, exp(logvar)) from N(0, I), summed per sample (B,), in nats (Kingma & Welling 2014)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)


def drawn(mean: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    """The reparameterised sample mean + std * eps."""
    return mean + torch.exp(0.5 * logvar) * eps
