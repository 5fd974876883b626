"""The loss of a first stage: pixels, perception and a little KL (Rombach et al. 2022, app. G)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sfumato.diffusion.noise import Address, Stream
from sfumato.nets.autoencoder import Autoencoder, drawn, kl, moments
from sfumato.nets.lpips import Lpips


class Autoencoding(nn.Module):
    """mean |x - y| + squares * mean (x - y)^2 + perceptual * LPIPS(x, y) + kl_weight * KL / pixels.

    All terms are means over pixels and channels, so no weight depends on the picture's size. The perceptual term
    begins at step `perceptual_from`: it is dear, and a network that cannot paint yet has no use for it.
    """

    def __init__(
        self,
        net: Autoencoder,
        lpips: Lpips | None,
        *,
        perceptual: float,
        perceptual_from: int = 0,
        squares: float = 1.0,
        kl_weight: float = 1e-6,
    ) -> None:
        super().__init__()
        self.net, self.lpips = net, lpips
        self.perceptual, self.perceptual_from = perceptual, perceptual_from
        self.squares, self.kl_weight = squares, kl_weight

    def forward(self, batch: Mapping[str, Tensor], at: Address) -> dict[str, Tensor]:
        """`batch["image"]` (B, 3, H, W) in [-1, 1]."""
        x = batch["image"]
        mean, logvar = (m.float() for m in moments(self.net.encoder(x)))
        y = self.net.decoder(drawn(mean, logvar, at.normal(mean, Stream.ENCODE)))
        error = (y.float() - x).abs()
        terms = {"l1": error.mean(), "mse": error.square().mean(), "kl": kl(mean, logvar).mean() / x[0].numel()}
        loss = terms["l1"] + self.squares * terms["mse"] + self.kl_weight * terms["kl"]
        if self.lpips is not None and at.step >= self.perceptual_from:
            terms["lpips"] = self.lpips(y, x).mean()
            loss = loss + self.perceptual * terms["lpips"]
        return {"loss": loss, **{k: v.detach() for k, v in terms.items()}}


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B,) in dB of pictures in [-1, 1], rounded to 8 bits as they are saved."""
    x, y = ((p.float().clamp(-1, 1) * 127.5 + 127.5).round() / 255 for p in (a, b))
    return -10 * torch.log10((x - y).square().flatten(1).mean(1).clamp_min(1e-10))
