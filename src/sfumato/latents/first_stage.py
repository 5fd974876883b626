"""What every first stage offers: pictures to latents of unit variance, and back."""

from typing import Protocol

from torch import Tensor

from sfumato.diffusion.noise import Noise


class FirstStage(Protocol):
    """See `KLFirstStage`, `VQFirstStage` and `Pixels`."""

    factor: int  # pixels to one latent position, each way
    channels: int  # of the latent

    def encode(self, image: Tensor, noise: Noise | None = None) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] to latents (B, C, H/f, W/f); with `noise` a draw, where there is one."""
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """The pictures, not clamped."""
        ...
