"""A network, the schedule it was trained with, and what it predicts: together they guess the clean picture."""

from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from sfumato.cond import Cond
from sfumato.diffusion.level import Level
from sfumato.diffusion.prediction import Prediction
from sfumato.diffusion.schedule import Schedule

Denoise = Callable[[Tensor, Level], Tensor]
"""(x, level) -> x0: all that a sampler's answers come from."""


class Query(NamedTuple):
    """One question to the network: what is clean in `x` (B, ...) at this level, under this condition?"""

    x: Tensor
    at: Level
    cond: Cond


Guess = Generator[Sequence[Query], Sequence[Tensor], Tensor]
"""Yields questions, is sent a clean guess for each, and returns the guess that the sampler gets."""

Guide = Callable[[Tensor, Level], Guess]
"""How the network's answers become the guess for (x, level): see `guidance`."""


class Net(Protocol):
    """What a network offers: plain tensors in, a tensor like `x` out."""

    def __call__(
        self,
        x: Tensor,  # (B, C, H, W)
        t: Tensor,  # (B,)
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        vector: Tensor | None = None,
        maps: Tensor | None = None,
    ) -> Tensor:
        """(B, C, H, W)."""
        ...


class Denoiser(nn.Module):
    """Final: to change what is predicted, wrap the guide."""

    def __init__(self, net: Net, schedule: Schedule, prediction: Prediction) -> None:
        super().__init__()
        self.net = net
        self.schedule = schedule
        self.prediction = prediction

    def raw(self, x: Tensor, at: Level, cond: Cond) -> Tensor:
        """The network's own output, in the network's type."""
        t = at.t.to(x.device, torch.float32).reshape(-1).expand(len(x))
        return self.net(x, t, cond.tokens, cond.mask, cond.vector, cond.maps)

    def forward(self, x: Tensor, at: Level, cond: Cond) -> Tensor:
        """The clean guess x0, of the shape and type of `x`."""
        return self.prediction.x0(self.raw(x, at, cond).to(x.dtype), x, at)

    def ask(self, queries: Sequence[Query]) -> list[Tensor]:
        """Answer several questions, of any batch sizes and levels, with one call of the network."""
        if not queries:
            return []
        if len(queries) == 1:
            return [self(*queries[0])]
        sizes = [len(q.x) for q in queries]
        levels = zip(*(_rows(q.at, n, q.x) for q, n in zip(queries, sizes, strict=True)), strict=True)
        at = Level(*(torch.cat(parts) for parts in levels))
        x0 = self(torch.cat([q.x for q in queries]), at, Cond.cat([q.cond for q in queries]))
        return list(x0.split(sizes))

    def bind(self, guide: Guide) -> Denoise:
        """The plain callable (x, level) -> x0 that puts the guide's questions to this network."""

        def denoise(x: Tensor, at: Level) -> Tensor:
            guess = guide(x, at)
            try:
                queries = next(guess)
                while True:
                    queries = guess.send(self.ask(queries))
            except StopIteration as done:
                return done.value
            finally:
                guess.close()

        return denoise


def _rows(at: Level, n: int, x: Tensor) -> list[Tensor]:
    """The level's numbers as (n, 1, ..., 1); alpha and sigma in the type of x, which may be too coarse for t."""
    shape = (n, *[1] * (x.ndim - 1))
    at = Level(at.t, at.alpha.to(x.dtype), at.sigma.to(x.dtype))
    return [v.to(x.device).reshape(-1, *shape[1:]).expand(shape) for v in at]
