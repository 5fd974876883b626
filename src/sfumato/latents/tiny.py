"""The tiny first stage: it stands in for a large one, in its latents, at a fraction of the time."""

import torch
from torch import Tensor, nn

from sfumato.diffusion.noise import Noise
from sfumato.latents.first_stage import FirstStage
from sfumato.latents.kl import sides_divide
from sfumato.nets.tiny import TinyAutoencoder, TinySize


class TinyFirstStage(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] to latents (B, C, H/f, W/f) of unit variance, and back.

    Without an encoder of its own it encodes with `encoder`, the large one that it decodes for. `mean` and `std` are
    the statistics of the large one's latents: here nothing is scaled, but others may want latents as that has them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: TinySize, encoder: FirstStage | None = None) -> None:
        super().__init__()
        self.factor, self.channels = size.factor, size.latent_channels
        assert encoder is None or (encoder.factor, encoder.channels) == (self.factor, self.channels)
        self.net = TinyAutoencoder(size)
        self.encoder = encoder
        self.register_buffer("mean", torch.zeros(1, size.latent_channels, 1, 1))
        self.register_buffer("std", torch.ones((), dtype=torch.float64))

    def encode(self, image: Tensor, noise: Noise | None = None) -> Tensor:
        """The latent; nothing is drawn by an encoder of its own. ValueError on a bad size, and without an encoder."""
        if self.net.encoder is not None:
            sides_divide(image, self.factor)
            return self.net.encoder(image.to(self.dtype)).to(image.dtype)
        if self.encoder is None:
            raise ValueError(
                "this first stage is a decoder alone, and makes no latents of pictures; give one that does"
            )
        return self.encoder.encode(image, noise)

    def decode(self, latent: Tensor) -> Tensor:
        """The picture, not clamped."""
        return self.net.decoder(latent.to(self.dtype)).to(latent.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Of the networks' weights; latents and pictures may be of another."""
        return next(self.net.parameters()).dtype
