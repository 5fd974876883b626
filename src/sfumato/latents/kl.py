"""The KL first stage: an autoencoder whose latents are brought to zero mean and unit variance."""

import torch
from torch import Tensor, nn

from sfumato.diffusion.noise import Noise
from sfumato.nets.autoencoder import Autoencoder, AutoencoderSize, drawn, moments


class KLFirstStage(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] to latents (B, C, H/f, W/f) of unit variance, and back.

    One factor for all channels, as in LDM (0.18215 = 1 / std in Stable Diffusion); a mean for each.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: AutoencoderSize) -> None:
        super().__init__()
        self.factor, self.channels = size.factor, size.latent_channels
        self.net = Autoencoder(size)
        self.register_buffer("mean", torch.zeros(1, size.latent_channels, 1, 1))
        self.register_buffer("std", torch.ones((), dtype=torch.float64))  # of which 1 / x is exact enough

    def moments(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the posterior, in units of the normalised latent. ValueError on a bad size."""
        sides_divide(image, self.factor)
        mean, logvar = (m.to(image.dtype) for m in moments(self.net.encoder(image.to(self.dtype))))
        return (mean - self.mean) / self.std, logvar - 2 * self.std.log()

    def encode(self, image: Tensor, noise: Noise | None = None) -> Tensor:
        """The latent: a draw from the posterior with `noise`, its mean without."""
        mean, logvar = self.moments(image)
        return mean if noise is None else drawn(mean, logvar, noise(mean))

    def decode(self, latent: Tensor) -> Tensor:
        """The picture, not clamped."""
        return self.net.decoder((latent * self.std + self.mean).to(self.dtype)).to(latent.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Of the networks' weights; latents and pictures may be of another."""
        return self.net.decoder.conv_in.weight.dtype


def sides_divide(image: Tensor, factor: int) -> None:
    """ValueError if the sides of a picture (..., H, W) do not divide by the factor of a first stage."""
    h, w = image.shape[-2:]
    if h % factor or w % factor:
        raise ValueError(f"a picture of {w}x{h} does not divide by {factor}; both sides must")
