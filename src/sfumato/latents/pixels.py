"""No first stage: the latent is the picture (DDPM, ADM)."""

from torch import Tensor, nn

from sfumato.diffusion.noise import Noise


class Pixels(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] as they are."""

    factor, channels = 1, 3

    def encode(self, image: Tensor, noise: Noise | None = None) -> Tensor:  # noqa: ARG002
        """The picture."""
        return image

    def decode(self, latent: Tensor) -> Tensor:
        """The picture."""
        return latent
