"""A network, the schedule it was trained with, and what it predicts: together they guess the clean picture."""

from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from sfumato.cond import Cond
from sfumato.diffusion.level import Level
from sfumato.diffusion.prediction import Prediction
from sfumato.diffusion.schedule import Schedule


class Estimate(NamedTuple):
    """A clean guess, and what some networks and guides say beside it. Most samplers want `x0` alone."""

    x0: Tensor  # (B, C, ...)
    spread: Tensor | None = None
    """As x0: where the log-variance of the step lies, from the posterior's (0) to beta's (1) (Nichol & Dhariwal 2021,
    eq. 15)."""
    push: Tensor | None = None
    """As x0: the gradient that moves the mean of the step by variance * push (Dhariwal & Nichol 2021, alg. 1)."""

    @staticmethod
    def of(guess: "Tensor | Estimate") -> "Estimate":
        """A plain clean guess is an estimate too."""
        return Estimate(guess) if isinstance(guess, Tensor) else guess


Denoise = Callable[[Tensor, Level], "Tensor | Estimate"]
"""(x, level) -> x0, or an Estimate of it: all that a sampler's answers come from."""


class Query(NamedTuple):
    """One question to the network: what is clean in `x` (B, ...) at this level, under this condition?"""

    x: Tensor
    at: Level
    cond: Cond


Guess = Generator[Sequence[Query], Sequence[Any], Any]
"""Yields questions, is sent a guess for each (a Tensor, or an Estimate if the network learnt its variance), and returns
the guess that the sampler gets."""

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
        label: Tensor | None = None,  # (B,) int64
    ) -> Tensor:
        """(B, C, H, W)."""
        ...


class Denoiser(nn.Module):
    """Final: to change what is predicted, wrap the guide.

    A network that learnt its variance (`learned`) answers with twice the channels: the prediction, then the spread in
    [-1, 1] (Nichol & Dhariwal 2021).
    """

    def __init__(self, net: Net, schedule: Schedule, prediction: Prediction, *, learned: bool = False) -> None:
        super().__init__()
        self.net = net
        self.schedule = schedule
        self.prediction = prediction
        self.learned = learned

    def raw(self, x: Tensor, at: Level, cond: Cond) -> Tensor:
        """The network's own output, in the network's type."""
        t = at.t.to(x.device, torch.float32).reshape(-1).expand(len(x))
        told = (cond.tokens, cond.mask, cond.vector, cond.maps)
        if cond.label is None:  # networks without a table of labels need not know of them
            return self.net(x, t, *told)
        return self.net(x, t, *told, cond.label)

    def estimate(self, x: Tensor, at: Level, cond: Cond) -> Estimate:
        """The clean guess, of the shape and type of `x`, and the spread if the network learnt it."""
        out = self.raw(x, at, cond)
        out, spread = out.chunk(2, dim=1) if self.learned else (out, None)
        spread = None if spread is None else (spread.to(x.dtype) + 1) / 2
        if at.sigma.ndim == 0:
            return Estimate(self.prediction.x0(out.to(x.dtype), x, at), spread)
        wide = torch.promote_types(x.dtype, torch.float32)  # a level for each sample, which bfloat16 would round
        x0 = self.prediction.x0(out.to(wide), x.to(wide), at.beside(x.to(wide)))
        return Estimate(x0.to(x.dtype), spread)

    def forward(self, x: Tensor, at: Level, cond: Cond) -> Tensor:
        """The clean guess x0, of the shape and type of `x`."""
        return self.estimate(x, at, cond).x0

    def ask(self, queries: Sequence[Query]) -> Sequence[Tensor | Estimate]:
        """Answer several questions, of any batch sizes and levels, with one call of the network.

        A clean guess for each, or an Estimate if the network learnt its variance.
        """
        if not queries:
            return []
        at, sizes = queries[0].at, [len(q.x) for q in queries]
        if at.sigma.ndim or any(q.at is not at for q in queries):  # strangers
            levels = zip(*(q.at.rows(q.x) for q in queries), strict=True)
            at = Level(*(torch.cat(parts) for parts in levels))
        x0, spread, _ = self.estimate(torch.cat([q.x for q in queries]), at, Cond.cat([q.cond for q in queries]))
        each = [own.to(q.x.dtype) for own, q in zip(x0.split(sizes), queries, strict=True)]
        return each if spread is None else [Estimate(*both) for both in zip(each, spread.split(sizes), strict=True)]

    def bind(self, guide: Guide) -> Denoise:
        """The plain callable (x, level) -> x0 that puts the guide's questions to this network."""

        def denoise(x: Tensor, at: Level) -> Tensor | Estimate:
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
