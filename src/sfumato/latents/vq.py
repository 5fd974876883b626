"""The VQ first stage: diffusion runs on its latents before rounding, and decoding rounds them to the codebook."""

import torch
from torch import Tensor, nn

from sfumato.diffusion.noise import Noise
from sfumato.latents.kl import sides_divide
from sfumato.nets.autoencoder import Autoencoder, AutoencoderSize, Codebook


class VQFirstStage(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] to latents (B, C, H/f, W/f) before rounding, and back."""

    mean: Tensor
    std: Tensor

    def __init__(self, size: AutoencoderSize) -> None:
        super().__init__()
        self.factor, self.channels = size.factor, size.latent_channels
        self.net = Autoencoder(size)
        self.register_buffer("mean", torch.zeros(1, size.latent_channels, 1, 1))
        self.register_buffer("std", torch.ones((), dtype=torch.float64))  # 1 in all published models, and no mean

    def encode(self, image: Tensor, noise: Noise | None = None) -> Tensor:  # noqa: ARG002
        """The latent; nothing is drawn. ValueError on a bad size."""
        sides_divide(image, self.factor)
        return (self.raw(image) - self.mean) / self.std

    def raw(self, image: Tensor) -> Tensor:
        """The latent as the network gives it, which the codebook rounds."""
        return self.net.encoder(image.to(self.dtype)).to(image.dtype)

    def decode(self, latent: Tensor) -> Tensor:
        """The picture of the nearest entries of the codebook, not clamped."""
        entries = self.codebook.weight[self.nearest(latent)].movedim(-1, 1)
        return self.net.decoder(entries).to(latent.dtype)

    def nearest(self, latent: Tensor) -> Tensor:
        """The indices (B, h, w) of the entries of the codebook that a latent is rounded to."""
        return self.codebook.nearest((latent * self.std + self.mean).to(self.dtype))

    @property
    def codebook(self) -> Codebook:
        """The entries; there must be some."""
        assert self.net.codebook is not None
        return self.net.codebook

    @property
    def dtype(self) -> torch.dtype:
        """Of the networks' weights; latents and pictures may be of another."""
        return self.net.decoder.conv_in.weight.dtype
