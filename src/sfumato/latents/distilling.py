"""The loss of a tiny decoder: it learns to paint what a large one paints of the same latent."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sfumato.diffusion.noise import Address, Noise, Stream
from sfumato.latents.first_stage import FirstStage
from sfumato.nets.lpips import Lpips
from sfumato.nets.tiny import TinyDecoder
from sfumato.outcome import Outcome


class Distilling(nn.Module):
    """mean |student(z) - teacher(z)| + squares mean (..)^2 + perceptual LPIPS, at latents z of pictures.

    The latents are drawn from the teacher's posterior where it has one: what a diffusion model paints is not exact
    either. The teacher's picture is the target, and not the picture itself: details that the latent does not hold
    would only teach the student to blur.
    """

    def __init__(
        self, student: TinyDecoder, teacher: FirstStage, lpips: Lpips | None, *, squares: float, perceptual: float
    ) -> None:
        super().__init__()
        self.student, self.lpips = student, lpips
        self.teacher = teacher
        self.squares, self.perceptual = squares, perceptual

    def forward(self, batch: Mapping[str, Tensor], at: Address) -> Outcome:
        """`batch["image"]` (B, 3, H, W) in [-1, 1]."""
        noise: Noise = lambda like: at.normal(like, Stream.ENCODE)  # noqa: E731
        with torch.no_grad():
            z = self.teacher.encode(batch["image"], noise)
            target = self.teacher.decode(z).float().clamp(-1, 1)
        y = self.student(z).float()
        error = (y - target).abs()
        terms = {"l1": error.mean(), "mse": error.square().mean()}
        loss = terms["l1"] + self.squares * terms["mse"]
        if self.lpips is not None and self.perceptual > 0:
            terms["lpips"] = self.lpips(y, target).mean()
            loss = loss + self.perceptual * terms["lpips"]
        return Outcome(loss, {k: v.detach() for k, v in terms.items()})
