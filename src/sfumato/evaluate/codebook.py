"""How much of a codebook is used: entries that no picture needs are dead, and weigh nothing in the perplexity."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.latents.codes import perplexity


@dataclass(frozen=True)
class Usage:
    """Of `entries` entries, `used` were nearest to some of `positions` positions."""

    entries: int
    positions: int
    used: int
    share: float  # used / entries
    perplexity: float  # exp of the entropy: as many entries, equally often used, would say as much


class CodebookUsage:
    """How often each of `entries` entries was the nearest."""

    def __init__(self, entries: int) -> None:
        self.counts = torch.zeros(entries, dtype=torch.int64)

    def update(self, indices: Tensor) -> None:
        """`indices` int64 of any shape, from 0 to entries - 1."""
        self.counts += torch.bincount(indices.detach().cpu().flatten(), minlength=len(self.counts))

    def merge(self, other: "CodebookUsage") -> None:
        """Count what another has counted."""
        self.counts += other.counts

    def compute(self) -> Usage:
        """The usage so far; of no positions the perplexity is 0."""
        counts, positions, used = self.counts, int(self.counts.sum()), int((self.counts > 0).sum())
        return Usage(len(counts), positions, used, used / len(counts), float(perplexity(counts)) if used else 0.0)
