"""The adversary of a first stage: a critic of patches, and how much it is listened to (Esser et al. 2021, sec. 3.1)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from sfumato.diffusion.noise import Address
from sfumato.nets import patchgan
from sfumato.nets.patchgan import PatchGan, PatchGanSize
from sfumato.outcome import Outcome
from sfumato.world import ALONE, World

LARGEST = 1e4  # of the adaptive weight
LOSSES = {
    "hinge": (patchgan.hinge, patchgan.hinge_generator),
    "vanilla": (patchgan.vanilla, patchgan.hinge_generator),  # as in LDM, which has -mean against both
}


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """When the adversary begins, how strong it is, and how its critic is trained."""

    critic: PatchGanSize = field(default_factory=PatchGanSize)
    start: int = 50_001  # the step at which it begins; the critic is not trained before
    warmup: int = 0  # steps over which its weight then rises
    weight: float = 0.5  # its gradient at the decoder's last layer, in terms of the reconstruction's
    rate: float | None = None  # of the critic's learning at the peak of the plan's curve; the autoencoder's if not said
    betas: tuple[float, float] = (0.5, 0.9)
    limit: float = LARGEST  # of the adaptive weight
    loss: Literal["hinge", "vanilla"] = "hinge"

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    def __post_init__(self) -> None:
        for name, good, need in (
            ("start", self.start >= 0, "at least 0"),
            ("warmup", self.warmup >= 0, "at least 0"),
            ("weight", 0 <= self.weight < LARGEST, "at least 0"),
            ("rate", self.rate is None or 0 < self.rate < LARGEST, "positive"),
            ("limit", 0 < self.limit <= LARGEST, f"positive and at most {LARGEST:g}"),
            ("betas", all(0 <= beta < 1 for beta in self.betas), "at least 0 and below 1"),
        ):
            if not good:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {need}")

    def factor(self, step: int) -> float:
        """How much of its weight it has at a step: 0 before it begins, then a line up to 1."""
        if step < self.start:
            return 0.0
        return min(1.0, (step - self.start + 1) / max(1, self.warmup))


def adaptive_weight(reconstruction: Tensor, adversary: Tensor, limit: float = LARGEST) -> Tensor:
    """|g_rec| / (|g_adv| + 1e-4), in [0, limit], of the gradients at the decoder's last weight; norms in float32.

    Esser et al. 2021, eq. 7: whatever the scale of the critic's logits, its pull is that of the reconstruction.
    """
    ratio = reconstruction.float().norm() / (adversary.float().norm() + 1e-4)
    return ratio.clamp(0, limit)


def contested(
    reconstruction: Tensor,
    painted: Tensor,
    last: Tensor,
    critic: PatchGan,
    settings: Adversary,
    factor: float,
    world: World = ALONE,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The reconstruction loss and `factor` of the adversary's, and what to log.

    `painted` (B, 3, H, W) is what both losses look at, and `last` the weight that made it. Both gradients are taken
    at the picture once and weighed there: neither the perceptual network nor the critic is passed twice. The weight is
    that of the gradients of the whole batch, where processes share it.
    """
    with frozen(critic):
        adversary = LOSSES[settings.loss][1](critic(painted).float())
    pulls = [
        torch.autograd.grad(reconstruction, painted, retain_graph=True)[0],
        torch.autograd.grad(adversary, painted)[0],
    ]
    first, second = (world.mean(torch.autograd.grad(painted, last, pull, retain_graph=True)[0]) for pull in pulls)
    weight = adaptive_weight(first, second, settings.limit)
    share = factor * settings.weight * weight
    value = reconstruction.detach() + share * adversary.detach()
    surrogate = (painted * (pulls[0] + share * pulls[1])).sum()
    said = {"adversary": adversary.detach(), "adversary weight": weight}
    return value + (surrogate - surrogate.detach()), said


class Criticism(nn.Module):
    """The critic's own objective, on the pictures of a batch and on what the autoencoder made of them."""

    def __init__(self, critic: PatchGan, settings: Adversary) -> None:
        super().__init__()
        self.critic, self.settings = critic, settings

    def forward(self, batch: Mapping[str, Tensor], at: Address) -> Outcome | None:
        """`batch`: "image" and "painted" (B, 3, H, W) in [-1, 1]. None before the adversary begins.

        "critic real" and "critic fake" are the shares of patches that it tells right.
        """
        if self.settings.factor(at.step) == 0:
            return None
        real, fake = self.critic(batch["image"]).float(), self.critic(batch["painted"]).float()
        loss = LOSSES[self.settings.loss][0](real, fake)
        right = {"critic real": (real > 0).float().mean(), "critic fake": (fake < 0).float().mean()}
        return Outcome(loss, {"critic": loss.detach(), **right})


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """In here, gradients pass through the module and not into it."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
