"""The loss of a first stage: pixels, perception, a codebook or some KL, an adversary (Rombach et al. 2022, app. G)."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor, nn

from sfumato.diffusion.noise import Address, Stream
from sfumato.latents.adversary import Adversary, contested
from sfumato.latents.codes import Codes
from sfumato.nets.autoencoder import Autoencoder, codebook_loss, drawn, kl, moments, straight_through
from sfumato.nets.lpips import Lpips
from sfumato.nets.patchgan import PatchGan
from sfumato.outcome import Outcome
from sfumato.world import ALONE, World


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The weights of the terms. All terms are means over pixels and channels: no weight depends on a picture's size.

    LDM sums those of its KL autoencoders over the picture, which multiplies all but the adversary's by one number: `kl`
    is its weight.
    """

    absolute: float = 1.0  # of |x - y|
    squares: float = 0.0  # of (x - y)^2
    perceptual: float = 1.0  # of the distance of features
    perceptual_from: int = 0  # the step at which that begins: it is dear, and of no use to what cannot paint yet
    kl: float = 1e-6  # of the divergence of the posterior from N(0, I), in nats for each number of the picture
    codebook: float = 1.0
    commitment: float = 0.25
    beta: Literal["fixed", "legacy"] = "fixed"  # "legacy": LDM's slip, the commitment's weight on the other term
    patience: int = 100  # steps after which an entry of the codebook that nothing chose is dead, and put elsewhere

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 1 if field.name == "patience" else 0
            if not isinstance(value, str) and not least <= value < float("inf"):
                raise ValueError(f"{field.name} is {value}; it must be at least {least}")
        if not self.absolute + self.squares + self.perceptual > 0:
            raise ValueError("absolute, squares and perceptual are all 0: nothing is learnt; give one of them a weight")


class Autoencoding(nn.Module):
    """absolute |x - y| + squares (x - y)^2 + perceptual LPIPS(x, y) + kl KL / pixels, or the codebook's loss for VQ,
    and the adversary's, weighed so that it pulls at the decoder's last layer as `adversary` says.

    `steps` is how long the training takes: in its second half no entry of a codebook is moved by hand, so
    that the average of the weights forgets where it was.
    """

    def __init__(
        self,
        net: Autoencoder,
        lpips: Lpips | None,
        losses: Losses,
        *,
        steps: int,
        adversary: Adversary | None = None,
        critic: PatchGan | None = None,
        world: World = ALONE,
    ) -> None:
        super().__init__()
        self.net, self.lpips, self.world = net, lpips, world
        self.critics = () if critic is None else (critic,)  # whose weights are another's to train
        self.losses, self.adversary = losses, adversary
        self.strength = torch.ones(())  # of the adversary; lowered when the training goes wrong
        entries = 0 if net.codebook is None else len(net.codebook.weight)
        self.codes = Codes(entries, patience=losses.patience, until=steps // 2, world=world)

    @property
    def memory(self) -> dict[str, Tensor]:
        """What must be kept between steps beside the weights."""
        return {"strength": self.strength, "last used": self.codes.last}

    def forward(self, batch: Mapping[str, Tensor], at: Address) -> Outcome:
        """`batch["image"]` (B, 3, H, W) in [-1, 1]."""
        x = batch["image"]
        z, bottleneck, said = (self._posterior if self.net.codebook is None else self._quantised)(x, at)
        y = self.net.decoder(z).float()
        loss, errors = self._reconstruction(x, y, at.step)
        factor = 0.0 if self.adversary is None else self.adversary.factor(at.step) * float(self.strength)
        finite = bool(loss.isfinite())
        for critic in self.critics:
            if self.adversary and factor > 0 and not self.world.any(not finite):
                last = self.net.decoder.conv_out.weight
                loss, pull = contested(loss, y, last, critic, self.adversary, factor, self.world)
                errors |= pull
        return Outcome(loss + bottleneck, {**errors, **said}, {"painted": y.detach()} if self.critics else {})

    def _reconstruction(self, x: Tensor, y: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        error, w = (y - x).abs(), self.losses
        terms = {"l1": error.mean(), "mse": error.square().mean()}
        loss = w.absolute * terms["l1"] + w.squares * terms["mse"]
        if self.lpips is not None and w.perceptual > 0 and step >= w.perceptual_from:
            terms["lpips"] = self.lpips(y, x).mean()
            loss = loss + w.perceptual * terms["lpips"]
        return loss, {k: v.detach() for k, v in terms.items()}

    def _posterior(self, x: Tensor, at: Address) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The draw that is decoded, the KL's share of the loss, and what is logged of it."""
        mean, logvar = (m.float() for m in moments(self.net.encoder(x)))
        divergence = kl(mean, logvar).mean() / x[0].numel()
        nats = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).detach().mean((0, 2, 3))
        said = {"kl": divergence.detach(), "kl of channels": nats, **_spread(mean)}
        return drawn(mean, logvar, at.normal(mean, Stream.ENCODE)), self.losses.kl * divergence, said

    def _quantised(self, x: Tensor, at: Address) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The same of a codebook."""
        codebook, w = self.net.codebook, self.losses
        assert codebook is not None
        z = self.net.encoder(x).float()
        with torch.autocast(x.device.type, enabled=False):
            self.codes.revive(codebook, z, at)
            index = codebook.nearest(z)
            entries = codebook.weight[index].movedim(-1, 1)
            loss = w.codebook * codebook_loss(z, entries, commitment=w.commitment, legacy=w.beta == "legacy")
        said = {"codebook": loss.detach(), **self.codes.chosen(index, at.step), **_spread(z)}
        return straight_through(z, entries), loss, said


def _spread(z: Tensor) -> dict[str, Tensor]:
    """Mean and standard deviation of each channel of a batch of latents."""
    std, mean = torch.std_mean(z.detach(), (0, 2, 3))
    return {"latent mean": mean, "latent std": std}


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B,) in dB of pictures in [-1, 1], rounded to 8 bits as they are saved."""
    x, y = ((p.float().clamp(-1, 1) * 127.5 + 127.5).round() / 255 for p in (a, b))
    return -10 * torch.log10((x - y).square().flatten(1).mean(1).clamp_min(1e-10))
