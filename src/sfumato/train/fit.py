"""The training loop: a generator of progress. The caller logs, saves and shows; nothing here prints or writes."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sfumato.diffusion.noise import Address
from sfumato.train.plan import Plan
from sfumato.train.state import State

PATIENCE = 3  # steps in a row that may go wrong

Batch = Mapping[str, Tensor]
"""Tensors of one batch by name; "index" (B,) holds the address of each sample in its data set."""

Batches = Callable[[int], Batch]
"""The batch of a step. A function of the step alone, so a resumed run sees what an uninterrupted one sees."""


class Objective(Protocol):
    """What a batch means. The loop does not know."""

    def __call__(self, batch: Batch, at: Address) -> dict[str, Tensor]:
        """Scalar losses by name; "loss" is the one that is minimised."""
        ...


@dataclass(frozen=True)
class Progress:
    """One finished step."""

    step: int  # steps finished, this one included
    steps: int
    losses: dict[str, float]
    rate: float
    norm: float  # of the gradient, before clipping
    seconds: float
    images: int  # seen since the start of the run

    def every(self, n: int) -> bool:
        """Whether a thing that happens each n steps, and at the end, happens now."""
        return self.step % n == 0 or self.step == self.steps


def fit(objective: Objective, batches: Batches, state: State, plan: Plan) -> Iterator[Progress]:
    """Train `state` in place up to `plan.steps`, yielding after each step.

    A step whose loss or gradient is not finite changes nothing and is counted in `state.skipped`; three in a row
    raise FloatingPointError.
    """
    in_a_row = 0
    device = next(state.module.parameters()).device
    while state.step < plan.steps:
        began = time.perf_counter()
        rate = plan.rate_at(state.step)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        batch = {k: v.to(device) for k, v in batches(state.step).items()}
        at = Address.of(plan.seed, batch["index"].cpu(), state.step)
        with torch.autocast(device.type, torch.bfloat16, enabled=plan.precision == "bf16"):
            losses = objective(batch, at)
        losses["loss"].backward()
        norm = float(torch.nn.utils.clip_grad_norm_(state.module.parameters(), plan.clip))
        if math.isfinite(norm) and math.isfinite(float(losses["loss"].detach())):
            state.optimizer.step()
            state.ema.update()
            in_a_row = 0
        else:
            state.skipped += 1
            in_a_row += 1
            if in_a_row == PATIENCE:
                raise FloatingPointError(
                    f"the loss or its gradient was not finite three times in a row, at step {state.step}"
                )
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        yield Progress(
            step=state.step,
            steps=plan.steps,
            losses={k: float(v.detach()) for k, v in losses.items()},
            rate=rate,
            norm=norm,
            seconds=time.perf_counter() - began,
            images=state.step * plan.batch,
        )
