"""The training loop: a generator of progress. The caller logs, saves and shows; nothing here prints or writes."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from sfumato.diffusion.noise import Address
from sfumato.outcome import Outcome
from sfumato.train.ahead import ahead
from sfumato.train.parallel import Shared, check
from sfumato.train.state import State
from sfumato.world import ALONE, World

NAMED = 8  # samples of a bad batch, at most, that a message names
PATIENCE = 3  # steps in a row that may go wrong

Batch = Mapping[str, Tensor]
"""Tensors of one batch by name, all (B, ...); "index" (B,) holds the address of each sample in its data set."""

Batches = Callable[[int], Batch]
"""The batch of a step, or this process's part of it. A function of the step alone, so a resumed run sees what an
uninterrupted one sees."""

Said = float | list[float]
End = Literal["finite", "overflow", "broken"]
"""How a step ended: well; with a gradient that is not finite, of a loss that is; with nothing that can be used."""


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


def fit(phases: Phase | Sequence[Phase], batches: Batches, world: World = ALONE) -> Iterator[Progress]:
    """Train the states of the phases in place, by the plan of the first, yielding after each step.

    A phase sees the batch and what the phases before it made of it; the weights of all change together at the end of
    the step. A step whose batch, loss or gradient is not finite anywhere changes no weight and is counted in
    `state.skipped`; three in a row raise FloatingPointError. Where half precision overflows it is tried smaller.

    `plan.accumulate` parts of a batch are passed one after the other, processes share each batch: a step is that of the
    whole batch, but for rounding. ValueError if it cannot be cut so.
    """
    phases = [phases] if isinstance(phases, Phase) else phases
    plan, first = phases[0].state.plan, phases[0].state
    check(plan, world)
    places = torch.arange(plan.batch)[world.part(plan.batch)]
    with closing(ahead(batches, range(first.step, plan.steps), workers=plan.workers)) as found:
        yield from _steps(phases, found, world, places)


def _steps(phases: Sequence[Phase], found: Iterator[Batch], world: World, places: Tensor) -> Iterator[Progress]:
    first = phases[0].state
    plan = first.plan
    shared = [Shared(phase.objective, world) for phase in phases]
    while first.step < plan.steps:
        began = time.perf_counter()
        batch = next(found)
        index = batch["index"].cpu()
        at = replace(Address.of(plan.seed, index, first.step), place=places, batch=plan.batch)
        losses, norm, end = _gradients(phases, shared, batch, at, world)
        finite = end == "finite"
        tried = end == "overflow" and all([phase.state.shrink() for phase in phases])
        if not finite and not tried and first.row + 1 == PATIENCE:
            raise FloatingPointError(
                f"the loss or its gradient was not finite three times in a row, at step {first.step} "
                f"(samples {_named(world.gathered(index.to(world.device)))})"
            )
        rate = plan.rate_at(first.step)
        first.skipped += not finite
        first.row = 0 if finite or tried else first.row + 1
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


def _gradients(
    phases: Sequence[Phase], shared: Sequence[Shared], batch: Batch, at: Address, world: World
) -> tuple[dict[str, Said], float, End]:
    """The losses, the norm of the first phase's gradient, and whether all is finite; nothing more is done if not."""
    losses: dict[str, Said] = {}
    norms: list[float] = []  # of the phases that have learnt something
    plan = phases[0].state.plan
    if world.any(not all(_finite(v) for v in batch.values())):
        return {"loss": math.nan}, math.nan, "broken"
    batches, ats = _parts(batch, at, plan.accumulate, world.device)
    for phase, run in zip(phases, shared, strict=True):
        phase.state.optimizer.zero_grad(set_to_none=True)  # another phase's loss may have passed through this module
        outcomes = []
        for n, (part, where) in enumerate(zip(batches, ats, strict=True)):
            with run.part(last=n == plan.accumulate - 1):
                outcomes.append(_passed(run, phase.state, part, where))
        done = [outcome for outcome in outcomes if outcome is not None]
        if not done:
            continue
        norms.append(phase.state.clip())
        said = _mean([{"loss": outcome.loss, **outcome.said} for outcome in done], world)
        loss = said.pop("loss")
        losses = {"loss": loss, **losses, **said}
        if not (isinstance(loss, float) and math.isfinite(loss)):
            return losses, norms[0], "broken"
        if not math.isfinite(norms[-1]):
            return losses, norms[0], "overflow"
        batches = [{**part, **outcome.made} for part, outcome in zip(batches, done, strict=True)]
    return losses, norms[0] if norms else 0.0, "finite"


def _parts(batch: Batch, at: Address, n: int, device: torch.device) -> tuple[list[Batch], list[Address]]:
    """The batch on its device and its address, in `n` parts."""
    if n == 1:
        return [{k: v.to(device) for k, v in batch.items()}], [at]
    pieces = {k: v.to(device).chunk(n) for k, v in batch.items()}
    return [{k: v[i] for k, v in pieces.items()} for i in range(n)], at.chunks(n)


def _passed(run: Shared, state: State, batch: Batch, at: Address) -> Outcome | None:
    """A part of a batch forward and back: gradients are added to."""
    plan, device = state.plan, batch["index"].device
    half = torch.float16 if plan.precision == "fp16" else torch.bfloat16
    with torch.autocast(device.type, half, enabled=plan.precision != "fp32"), _dropout(plan.seed, at, device):
        outcome = run(batch, at)
    if outcome is None:
        return None
    (outcome.loss * (state.scale / plan.accumulate)).backward()
    return Outcome(outcome.loss.detach(), {k: v.detach() for k, v in outcome.said.items()}, outcome.made)


@contextmanager
def _dropout(seed: int, at: Address, device: torch.device) -> Iterator[None]:
    """In here layers that drop out at random draw by the step and by the first place of the part."""
    said = f"{seed} {at.step} {0 if at.place is None else int(at.place[0])}"
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(hashlib.sha256(said.encode()).digest()[:8]))
        yield


def _mean(said: Sequence[Mapping[str, Tensor]], world: World) -> dict[str, Said]:
    """What was said of the parts of a batch, in all processes."""
    if len(said) == world.size == 1:
        return {k: v.tolist() for k, v in said[0].items()}
    means = {k: torch.stack([part[k].double() for part in said]).mean(0) for k in said[0]}
    flat = world.mean(torch.cat([v.reshape(-1).to(world.device) for v in means.values()]))
    pieces = flat.split([v.numel() for v in means.values()])
    return {k: piece.view(v.shape).tolist() for (k, v), piece in zip(means.items(), pieces, strict=True)}


def _named(index: Tensor) -> str:
    """The first few of a batch."""
    return ", ".join([*map(str, index[:NAMED].tolist()), *(["..."] if len(index) > NAMED else [])])


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())
