"""Denoising score matching with an adversary: clean guesses that a critic takes for pictures (Jolicoeur-Martineau et
al. 2020, "Adversarial score matching and improved sampling for image generation", sec. 4).

A step has two phases: the denoiser's, `AdversarialDenoising`, then the critic's, `CriticOfGuesses`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfumato.cond import Cond
from sfumato.diffusion.denoiser import Denoiser
from sfumato.diffusion.noise import Address, Stream
from sfumato.diffusion.objective import noised
from sfumato.outcome import Outcome


@dataclass(frozen=True, kw_only=True)
class Hybrid:
    """The weights of both terms, and between what clean guesses are cut before the critic sees them."""

    denoising: float = 1.0
    adversary: float = 1.0
    low: float = -1.0  # as pictures are here; theirs are from 0 to 1
    high: float = 1.0

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"guesses are cut between low and high, and {self.low} is not below {self.high}")
        if min(self.denoising, self.adversary) < 0 or self.denoising + self.adversary == 0:
            raise ValueError("denoising and adversary are at least 0, and one of them is not 0")


def critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Least squares (Mao et al. 2017): mean (D(x) - 1)^2 + mean (D(H) + 1)^2, of the critic's answers."""
    return (real - 1).square().mean() + (fake + 1).square().mean()


def generator_loss(fake: Tensor) -> Tensor:
    """mean (D(H) - 1)^2."""
    return (fake - 1).square().mean()


def matched(denoiser: Denoiser, x0: Tensor, cond: Cond, at: Address, settings: Hybrid) -> tuple[Tensor, Tensor]:
    """The denoising loss (B,), and the clean guess H, cut.

    On the `geometric` schedule with prediction "eps" the loss is 1/2 |s + z|^2 in all dimensions, where s = -answer is
    the score times sigma, and H = x + sigma s is Tweedie's estimate. Elsewhere it is the same of what is predicted.
    """
    x, eps, level = noised(denoiser.schedule, x0, at)
    out = denoiser.raw(x, level, cond).float()
    loss = 0.5 * (out - denoiser.prediction.target(x0, eps, level)).square().flatten(1).sum(1)
    return loss, denoiser.prediction.x0(out, x, level).clamp(settings.low, settings.high)


class AdversarialDenoising(nn.Module):
    """The denoiser's objective: denoising * mean loss + adversary * mean (D(H) - 1)^2. The critic is passed through."""

    def __init__(self, denoiser: Denoiser, critic: nn.Module, settings: Hybrid) -> None:
        super().__init__()
        self.denoiser, self.settings = denoiser, settings
        self._critic = (critic,)  # in a tuple, where no module looks for its parts: it is not trained here

    def forward(self, batch: Mapping[str, Tensor], at: Address) -> Outcome:
        """`batch["mean"]` (B, C, ...): what is denoised."""
        (critic,), w = self._critic, self.settings
        loss, guess = matched(self.denoiser, batch["mean"], Cond(), at, w)
        critic.requires_grad_(False)
        adversary = generator_loss(critic(guess))
        critic.requires_grad_(True)
        total = w.denoising * loss.mean() + w.adversary * adversary
        return Outcome(total, {"denoising": loss.mean().detach(), "adversary": adversary.detach()})


class CriticOfGuesses(nn.Module):
    """The critic's objective: pictures against clean guesses at other levels and other noise than the denoiser's step.

    Nothing of the denoiser learns from it.
    """

    def __init__(self, critic: nn.Module, denoiser: Denoiser, settings: Hybrid) -> None:
        super().__init__()
        self.critic, self.settings = critic, settings
        self._denoiser = (denoiser,)

    def forward(self, batch: Mapping[str, Tensor], at: Address) -> Outcome:
        """`batch["mean"]` (B, C, ...)."""
        x0 = batch["mean"]
        with torch.no_grad():
            _, guess = matched(self._denoiser[0], x0, Cond(), Fresh(at.seed, at.index, at.step), self.settings)
        loss = critic_loss(self.critic(x0), self.critic(guess))
        return Outcome(loss, {"critic": loss.detach()})


@dataclass(frozen=True)
class Fresh(Address):
    """The address whose levels and noise are the critic's."""

    def uniform(self, stream: Stream, n: int = 1) -> Tensor:
        """Of the critic's streams."""
        return super().uniform(OTHER.get(stream, stream), n)

    def normal(self, like: Tensor, stream: Stream) -> Tensor:
        """Of the critic's streams."""
        return super().normal(like, OTHER.get(stream, stream))


OTHER = {Stream.TIME: Stream.CRITIC_TIME, Stream.NOISE: Stream.CRITIC_NOISE}
