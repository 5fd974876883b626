"""Which entries of a codebook are in use, and how those that nothing chooses any more are brought back."""

import torch
from torch import Tensor

from sfumato.diffusion.noise import Address, Stream
from sfumato.nets.autoencoder import Codebook
from sfumato.world import ALONE, World


class Codes:
    """Remembers at which step each entry was last chosen. An entry is dead when that is `patience` steps ago."""

    def __init__(self, entries: int, *, patience: int, until: int, world: World = ALONE) -> None:
        self.patience, self.until, self.world = patience, until, world
        self.last = torch.zeros(entries, dtype=torch.int64)

    def chosen(self, index: Tensor, step: int) -> dict[str, Tensor]:
        """Take note of a batch's indices; the perplexity of this batch and the number of dead entries."""
        counts = torch.bincount(self.world.gathered(index.flatten()).cpu(), minlength=len(self.last))
        self.last[counts > 0] = step
        return {"perplexity": perplexity(counts), "dead codes": self._dead(step).sum()}

    def revive(self, codebook: Codebook, z: Tensor, at: Address) -> None:
        """Each `patience` steps, until step `until`, put dead entries where latents z (B, C, h, w) of this batch are.

        Which of them is drawn by the address (Dhariwal et al. 2020, "random restarts").
        """
        if at.step == 0 or at.step % self.patience or at.step > self.until:
            return
        z = self.world.gathered(z)
        if not z.isfinite().all():
            return
        dead = self._dead(at.step).nonzero()[:, 0]
        places = z.detach().movedim(1, -1).flatten(0, -2)  # (P, C)
        each = -(-len(dead) // len(z))
        if each == 0:
            return
        u = self.world.gathered(at.uniform(Stream.CODES, each).to(z.device)).flatten()[: len(dead)]
        with torch.no_grad():
            codebook.weight[dead] = places[(u * len(places)).long()]
        self.last[dead] = at.step

    def _dead(self, step: int) -> Tensor:
        return step - self.last >= self.patience


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of the shares of `counts` (K,): how many entries it would take if all were equally common."""
    p = counts.double() / counts.sum().clamp_min(1)
    return torch.special.entr(p).sum().exp()


@torch.no_grad()
def start_from_latents(codebook: Codebook, z: Tensor, seed: int) -> None:
    """Let the entries begin at latents z (N, C, h, w) of real pictures, drawn by seed, and not around zero.

    Entries that begin as U(-1/K, 1/K) lie closer together than any two latents: one wins everything.
    """
    places = z.movedim(1, -1).flatten(0, -2)
    u = Address.of(seed, torch.arange(len(codebook.weight))).uniform(Stream.CODES)[:, 0]
    codebook.weight.copy_(places[(u * len(places)).long()])
