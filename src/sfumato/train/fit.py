"""The training loop: a generator of progress. The caller logs, saves and shows; nothing here prints or writes."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sfumato.diffusion.noise import Address
from sfumato.outcome import Outcome
from sfumato.train.ahead import ahead
from sfumato.train.state import State

NAMED = 8  # samples of a bad batch, at most, that a message names
PATIENCE = 3  # steps in a row that may go wrong

Batch = Mapping[str, Tensor]
"""Tensors of one batch by name; "index" (B,) holds the address of each sample in its data set."""

Batches = Callable[[int], Batch]
"""The batch of a step. A function of the step alone, so a resumed run sees what an uninterrupted one sees."""

Said = float | list[float]


class Objective(Protocol):
    """What a batch means. The loop does not know."""

    def __call__(self, batch: Batch, at: Address) -> Outcome | None:
        """The loss at this batch, with the randomness of this address; None where nothing is to be learnt yet."""
        ...


@dataclass(frozen=True)
class Phase:
    """One of the things that a step does with its batch, in turn: an objective, and what it changes."""

    objective: Objective
    state: State


@dataclass(frozen=True)
class Progress:
    """One finished step."""

    step: int  # steps finished, this one included
    steps: int
    losses: dict[str, Said]  # "loss", and what the objectives said
    rate: float
    norm: float  # of the gradient, before clipping
    seconds: float
    images: int  # seen since the start of the run

    def every(self, n: int) -> bool:
        """Whether a thing that happens each n steps, and at the end, happens now."""
        return self.step % n == 0 or self.step == self.steps


def fit(phases: Phase | Sequence[Phase], batches: Batches) -> Iterator[Progress]:
    """Train the states of the phases in place, by the plan of the first, yielding after each step.

    A phase sees the batch and what the phases before it made of it; the weights of all change together at the end of
    the step. A step whose batch, loss or gradient is not finite anywhere changes no weight and is counted in
    `state.skipped`; three in a row raise FloatingPointError.
    """
    phases = [phases] if isinstance(phases, Phase) else phases
    plan, first = phases[0].state.plan, phases[0].state
    with closing(ahead(batches, range(first.step, plan.steps), workers=plan.workers)) as found:
        yield from _steps(phases, found)


def _steps(phases: Sequence[Phase], found: Iterator[Batch]) -> Iterator[Progress]:
    first = phases[0].state
    plan, device = first.plan, next(first.module.parameters()).device
    while first.step < plan.steps:
        began = time.perf_counter()
        batch = {k: v.to(device) for k, v in next(found).items()}
        at = Address.of(plan.seed, batch["index"].cpu(), first.step)
        losses, norm, finite = _gradients(phases, batch, at)
        if not finite and first.row + 1 == PATIENCE:
            raise FloatingPointError(
                f"the loss or its gradient was not finite three times in a row, at step {first.step} "
                f"(samples {_named(batch['index'])})"
            )
        rate = plan.rate_at(first.step)
        first.skipped += not finite
        first.row = 0 if finite else first.row + 1
        for phase in phases:
            phase.state.advance(changed=finite)
        yield Progress(
            step=first.step,
            steps=plan.steps,
            losses=losses,
            rate=rate,
            norm=norm,
            seconds=time.perf_counter() - began,
            images=first.step * plan.batch,
        )


def _gradients(phases: Sequence[Phase], batch: Batch, at: Address) -> tuple[dict[str, Said], float, bool]:
    """The losses, the norm of the first phase's gradient, and whether all is finite; nothing more is done if not."""
    losses: dict[str, Said] = {}
    norms: list[float] = []  # of the phases that have learnt something
    plan, device = phases[0].state.plan, batch["index"].device
    if not all(_finite(v) for v in batch.values()):
        return {"loss": math.nan}, math.nan, False
    for phase in phases:
        module = phase.state.module
        phase.state.optimizer.zero_grad(set_to_none=True)  # another phase's loss may have passed through this module
        with torch.autocast(device.type, torch.bfloat16, enabled=plan.precision == "bf16"):
            outcome = phase.objective(batch, at)
        if outcome is None:
            continue
        outcome.loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(module.parameters(), phase.state.plan.clip)))
        loss = float(outcome.loss.detach())
        losses = {"loss": loss, **losses, **{k: v.detach().tolist() for k, v in outcome.said.items()}}
        if not (math.isfinite(norms[-1]) and math.isfinite(loss)):
            return losses, norms[0], False
        batch = {**batch, **outcome.made}
    return losses, norms[0] if norms else 0.0, True


def _named(index: Tensor) -> str:
    """The first few of a batch."""
    return ", ".join([*map(str, index[:NAMED].tolist()), *(["..."] if len(index) > NAMED else [])])


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())
