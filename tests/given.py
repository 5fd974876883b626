"""Randomness that a test has chosen, where a loss asks for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.diffusion.noise import Address, Stream


@dataclass(frozen=True, kw_only=True)
class Given(Address):
    """`part` (B,) of the clock that has passed, and the `noise` (B, ...) or one for all."""

    part: Tensor
    noise: Tensor

    def uniform(self, stream: Stream, n: int = 1) -> Tensor:
        assert stream == Stream.TIME
        return self.part[:, None].expand(-1, n)

    def normal(self, like: Tensor, stream: Stream) -> Tensor:
        assert stream == Stream.NOISE
        return self.noise.expand_as(like).to(like.dtype)


def given(part: Tensor, noise: Tensor) -> Given:
    index = torch.zeros(len(part), dtype=torch.int64)
    return Given(index, index, part=part, noise=noise)


def middles(n: int) -> Tensor:
    """The middles of n equal parts of 0..1: of a table of n entries, each once."""
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n
