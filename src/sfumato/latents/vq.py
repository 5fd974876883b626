"""The VQ first stage: diffusion runs on its latents as they are, and decoding rounds them to the codebook."""

import torch
from torch import Tensor, nn

from sfumato.diffusion.noise import Noise
from sfumato.latents.kl import sides_divide
from sfumato.nets.autoencoder import Autoencoder, AutoencoderSize


class VQFirstStage(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] to latents (B, C, H/f, W/f) before rounding, and back."""

    std: Tensor

    def __init__(self, size: AutoencoderSize) -> None:
        super().__init__()
        self.factor, self.channels = size.factor, size.latent_channels
        self.net = Autoencoder(size)
        self.register_buffer("std", torch.ones((), dtype=torch.float64))  # 1 in all published models

    def encode(self, image: Tensor, noise: Noise | None = None) -> Tensor:  # noqa: ARG002
        """The latent; nothing is drawn. ValueError on a bad size."""
        sides_divide(image, self.factor)
        return self.net.encoder(image.to(self.dtype)).to(image.dtype) / self.std

    def decode(self, latent: Tensor) -> Tensor:
        """The picture of the nearest entries of the codebook, not clamped."""
        assert self.net.codebook is not None
        return self.net.decoder(self.net.codebook((latent * self.std).to(self.dtype))).to(latent.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Of the networks' weights; latents and pictures may be of another."""
        return self.net.decoder.conv_in.weight.dtype
