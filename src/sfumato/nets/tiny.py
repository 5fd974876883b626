"""The tiny autoencoder of TAESD (Boer Bohan 2023): convolutions and ReLU alone, for latents of unit variance.

It is a student of a large first stage: its latents are the large one's times their factor, so that it can be put in
the other's place. It has no posterior, no norm and no attention.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

REACH = 3.0  # of a latent: 3 tanh(z / 3) is nearly z for nearly all of N(0, 1), and bounds the rest


@dataclass(frozen=True, kw_only=True)
class TinySize:
    """Widths and depths. The latent is 2^levels times smaller each way; `blocks` are those at each size but full size,
    where there is one. Without an `encoder` it can only decode.
    """

    width: int = 64
    blocks: int = 3
    latent_channels: int = 4
    levels: int = 3
    encoder: bool = True

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    @property
    def factor(self) -> int:
        """Pixels to one latent position, each way."""
        return 2**self.levels

    @property
    def largest(self) -> int:
        """Weights of its largest layer."""
        return 9 * self.width * max(self.width, self.latent_channels, 3)


class TinyBlock(nn.Module):
    """relu(x + three convolutions of x), with a ReLU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(width, width, 3, padding=1)
        self.conv_middle = nn.Conv2d(width, width, 3, padding=1)
        self.conv_out = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) -> the same."""
        h = self.conv_in(x).relu()
        return (x + self.conv_out(self.conv_middle(h).relu())).relu()


class TinyEncoder(nn.Module):
    """(B, 3, H, W) in [-1, 1] -> latents (B, latent_channels, H/f, W/f); H and W must be multiples of the factor."""

    def __init__(self, size: TinySize) -> None:
        super().__init__()
        width = size.width
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), TinyBlock(width)]
        for _ in range(size.levels):
            layers.append(nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False))
            layers += [TinyBlock(width) for _ in range(size.blocks)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, size.latent_channels, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        """The latent. Inside, pictures are in [0, 1]."""
        return self.layers((image + 1) / 2)


class TinyDecoder(nn.Module):
    """(B, latent_channels, h, w) -> (B, 3, h*f, w*f)."""

    def __init__(self, size: TinySize) -> None:
        super().__init__()
        width = size.width
        layers: list[nn.Module] = [nn.Conv2d(size.latent_channels, width, 3, padding=1), nn.ReLU()]
        for _ in range(size.levels):
            layers += [TinyBlock(width) for _ in range(size.blocks)]
            layers += [nn.Upsample(scale_factor=2.0), nn.Conv2d(width, width, 3, padding=1, bias=False)]
        self.layers = nn.Sequential(*layers, TinyBlock(width), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, latent: Tensor) -> Tensor:
        """The picture, in [-1, 1] but not clamped."""
        return 2 * self.layers(REACH * torch.tanh(latent / REACH)) - 1


class TinyAutoencoder(nn.Module):
    """Encoder, if there is one, and decoder of one size."""

    def __init__(self, size: TinySize) -> None:
        super().__init__()
        self.encoder = TinyEncoder(size) if size.encoder else None
        self.decoder = TinyDecoder(size)
