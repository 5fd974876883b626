"""Two networks in one step: each learns from its own loss alone, and all change together or not at all."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sfumato.diffusion.noise import Address, Stream
from sfumato.outcome import Outcome
from sfumato.train.batches import indices
from sfumato.train.fit import Batch, Phase, fit
from sfumato.train.plan import Plan
from sfumato.train.state import State

PLAN = Plan(steps=5, batch=4, rate=0.05, warmup=2, seed=3, precision="fp32")
FASTER = replace(PLAN, rate=0.2, betas=(0.5, 0.9), clip=0.3, weight_decay=0.0)


def data(step: int) -> Batch:
    index = indices(step, batch=4, n=10, seed=3)
    return {"index": index, "x": Address.of(9, index).normal(torch.zeros(4, 3), Stream.AUGMENT)}


def values(*states: State) -> dict[str, Tensor]:
    return {f"{i} {k}": v.detach().clone() for i, s in enumerate(states) for k, v in s.tensors().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Pair:
    """A maker, and a judge that sees what it made; the maker's loss passes through the judge."""

    def __init__(self, poison: Callable[[str, int], float] = lambda phase, step: 1.0, begins: int = 0) -> None:
        torch.manual_seed(0)
        self.maker = State(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)), PLAN)
        self.judge = State(nn.Linear(3, 1), FASTER, average=False)
        self.poison, self.begins = poison, begins
        self.seen: list[tuple[str, int, dict[str, Tensor]]] = []

    @property
    def phases(self) -> list[Phase]:
        return [Phase(self.first, self.maker), Phase(self.second, self.judge)]

    def first(self, batch: Batch, at: Address) -> Outcome:
        self.seen.append(("first", at.step, values(self.maker, self.judge)))
        made = self.maker.module(batch["x"])
        loss = (made - batch["x"]).square().mean() - self.judge.module(made).mean()
        return Outcome(loss * self.poison("first", at.step), {"own": loss.detach()}, {"made": made.detach()})

    def second(self, batch: Batch, at: Address) -> Outcome | None:
        self.seen.append(("second", at.step, values(self.maker, self.judge)))
        if at.step < self.begins:
            return None
        right = self.judge.module(batch["x"]).mean() - self.judge.module(batch["made"]).mean()
        return Outcome(9 * (right - 1).square() * self.poison("second", at.step), {"right": right.detach()})

    def values(self) -> dict[str, Tensor]:
        return values(self.maker, self.judge)


def test_both_change_together_at_the_end_of_a_step() -> None:
    pair = Pair()
    for progress in fit(pair.phases, data):
        (_, one, before), (_, two, between) = pair.seen[-2:]
        assert one == two == progress.step - 1
        assert same(before, between)
        changed = [k for k, v in pair.values().items() if not torch.equal(v, before.get(k, v + 1))]
        assert any(k.startswith("0 module") for k in changed)
        assert any(k.startswith("1 module") for k in changed)
    assert pair.maker.step == pair.judge.step == 5


def test_each_learns_from_its_own_loss_by_its_own_plan() -> None:
    """Against AdamW written out: the loss of the first passes through the second and leaves nothing in it."""
    pair, plain = Pair(), Pair()
    nets, plans = [plain.maker.module, plain.judge.module], [PLAN, FASTER]
    optimizers = [
        torch.optim.AdamW(n.parameters(), betas=p.betas, weight_decay=p.weight_decay, fused=True)
        for n, p in zip(nets, plans, strict=True)
    ]
    for progress in fit(pair.phases, data):
        step = progress.step - 1
        batch, at = data(step), Address.of(3, data(step)["index"], step)
        one = plain.first(batch, at)
        two = plain.second({**batch, **one.made}, at)
        assert two is not None
        norms = []
        for net, optimizer, plan, loss in zip(nets, optimizers, plans, (one.loss, two.loss), strict=True):
            found = torch.autograd.grad(loss, list(net.parameters()))
            for p, g in zip(net.parameters(), found, strict=True):
                p.grad = g
            norms.append(torch.nn.utils.clip_grad_norm_(net.parameters(), plan.clip).item())
            optimizer.param_groups[0]["lr"] = plan.rate_at(step)
        for optimizer in optimizers:
            optimizer.step()
        expected = {"loss": one.loss.item(), "own": one.loss.item(), "right": two.said["right"].item()}
        assert progress.losses == expected
        assert progress.norm == norms[0]
        assert progress.rate == PLAN.rate_at(step)
        assert norms[1] > 0.3  # so it was clipped by its own plan
    modules = {k: v for k, v in pair.values().items() if " module." in k}
    assert same(modules, {k: v for k, v in plain.values().items() if " module." in k})


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("phase", ["first", "second"])
def test_what_goes_wrong_in_one_changes_neither(phase: str, value: float) -> None:
    pair = Pair(lambda name, step: value if (name, step) in {(phase, 0), (phase, 2), (phase, 3)} else 1.0)
    before = pair.values()
    for progress in fit(pair.phases, data):
        now = pair.values()
        assert same(before, now) == (progress.step - 1 in {0, 2, 3})
        assert all(v.isfinite().all() for v in now.values())
        before = now
    assert (pair.maker.skipped, pair.maker.step, pair.judge.step, pair.maker.ema.updates) == (3, 5, 5, 2)
    assert [(p, s) for p, s, _ in pair.seen].count(("second", 2)) == (phase == "second")


def test_a_loss_that_is_finite_with_a_gradient_that_is_not() -> None:
    pair = Pair()
    plain = pair.second

    def second(batch: Batch, at: Address) -> Outcome | None:
        found = plain(batch, at)
        assert found is not None
        root = (pair.judge.module(batch["x"]) * 0).sum().sqrt()  # of infinite slope
        return replace(found, loss=found.loss + root) if at.step == 1 else found

    before: dict[str, Tensor] = {}
    for progress in fit([Phase(pair.first, pair.maker), Phase(second, pair.judge)], data):
        assert same(before, pair.values()) == (progress.step == 2)
        assert math.isfinite(progress.losses["loss"]) if isinstance(progress.losses["loss"], float) else False
        before = pair.values()
    assert pair.maker.skipped == 1


def test_a_phase_that_has_not_begun_learns_nothing() -> None:
    """Nor from what the first phase's loss left in its module."""
    pair = Pair(begins=3)
    judge = values(pair.judge)
    for progress in fit(pair.phases, data):
        assert same(judge, values(pair.judge)) == (progress.step <= 3)
        assert ("right" in progress.losses) == (progress.step > 3)
    assert {int(v) for k, v in values(pair.judge).items() if k.endswith("bias.step")} == {2}
    assert pair.judge.step == 5


def test_a_batch_that_is_not_finite_is_not_looked_at() -> None:
    pair = Pair()

    def broken(step: int) -> Batch:
        batch = dict(data(step))
        if step in (1, 2):
            batch["x"] = batch["x"].clone()
            batch["x"][step, 1] = (math.nan, math.inf)[step - 1]
        return batch

    before = pair.values()
    for progress in fit(pair.phases, broken):
        assert same(before, pair.values()) == (progress.step in (2, 3))
        before = pair.values()
    assert [(p, s) for p, s, _ in pair.seen] == [(p, s) for s in (0, 3, 4) for p in ("first", "second")]
    assert pair.maker.skipped == 2


def test_three_batches_in_a_row_are_too_many() -> None:
    pair = Pair()

    def broken(step: int) -> Batch:
        return {**data(step), "x": torch.full((4, 3), math.nan)}

    with pytest.raises(FloatingPointError, match="three times in a row, at step 2") as caught:
        list(fit(pair.phases, broken))
    assert "\n" not in str(caught.value)
    assert pair.seen == []
