"""The loop and its parts: the average, the rate, the order of samples, and what a bad step may not do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sfumato.diffusion.noise import Address, Stream
from sfumato.outcome import Outcome
from sfumato.train.batches import indices
from sfumato.train.ema import Ema
from sfumato.train.fit import Batch, Phase, Progress, fit
from sfumato.train.plan import Plan
from sfumato.train.state import State

PLAN = Plan(steps=6, batch=4, rate=0.05, warmup=2, ema=0.999, seed=3, precision="fp32")

# The average ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("updates", "decay"),
    [(1, 0.181818), (2, 0.25), (10, 0.55), (100, 0.918182), (1000, 0.991089), (89_990, 0.9999), (200_000, 0.9999)],
)
def test_the_decay_warms_up(updates: int, decay: float) -> None:
    """systems.md 10. From 1 to 0, what is left of the average after one update is the decay."""
    net = nn.Linear(1, 1, bias=False)
    nn.init.ones_(net.weight)
    ema = Ema(net, decay=0.9999)
    ema.updates = updates - 1
    nn.init.zeros_(net.weight)
    ema.update()
    assert ema.shadow["weight"].item() == pytest.approx(decay, abs=5e-7)
    assert ema.updates == updates


def test_the_first_update() -> None:
    net = nn.Linear(3, 2)
    ema = Ema(net)
    old = {k: v.clone() for k, v in ema.shadow.items()}
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p))
    ema.update()
    for name, p in net.named_parameters():
        torch.testing.assert_close(ema.shadow[name], 2 / 11 * old[name] + 9 / 11 * p.detach())


def test_the_average_goes_into_another_module_and_not_into_its_own() -> None:
    net, other = nn.Linear(3, 2), nn.Linear(3, 2)
    ema = Ema(net)
    first = net.weight.detach().clone()
    nn.init.zeros_(net.weight)
    ema.copy_to(other)
    assert torch.equal(other.weight, first)
    assert net.weight.abs().max() == 0


@pytest.mark.parametrize("decay", [1.0, -0.1, math.nan])
def test_no_such_decay(decay: float) -> None:
    with pytest.raises(ValueError, match="ema"):
        Ema(nn.Linear(1, 1), decay=decay)


# The plan -------------------------------------------------------------------------------------------------


def test_the_rate_rises_in_a_line_and_falls_in_half_a_cosine() -> None:
    plan = Plan(steps=1000, batch=1, rate=2e-3, warmup=10, floor=0.1)
    assert plan.rate_at(0) == pytest.approx(2e-4)
    assert plan.rate_at(4) == pytest.approx(1e-3, rel=1e-3)
    assert plan.rate_at(500) == pytest.approx(2e-3 * 0.55)
    assert plan.rate_at(250) == pytest.approx(2e-3 * (0.1 + 0.9 * (0.5 + math.sqrt(2) / 4)))
    assert plan.rate_at(1000) == plan.rate_at(2000) == pytest.approx(2e-4)
    rates = [plan.rate_at(step) for step in range(9, 1001)]
    assert rates == sorted(rates, reverse=True)
    assert replace(plan, warmup=0).rate_at(0) == 2e-3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("batch", -1),
        ("save", 0),
        ("preview", 0),
        ("keep", 0),
        ("workers", -1),
        ("workers", 65),
        ("rate", 0.0),
        ("rate", math.nan),
        ("warmup", -1),
        ("floor", 1.5),
        ("betas", (0.9, 1.0)),
        ("weight_decay", -0.1),
        ("clip", 0.0),
        ("ema", 1.0),
        ("seed", -1),
    ],
)
def test_a_plan_that_cannot_be_followed(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} is .*; it must be ") as caught:
        replace(PLAN, **{name: value})
    assert "\n" not in str(caught.value)


# The order of samples -------------------------------------------------------------------------------------


@given(n=st.integers(1, 20), batch=st.integers(1, 7), seed=st.integers(0, 2**64 - 1))
def test_each_epoch_is_a_permutation(n: int, batch: int, seed: int) -> None:
    seen = torch.cat([indices(step, batch=batch, n=n, seed=seed) for step in range(-(-3 * n // batch))]).tolist()
    epochs = [seen[i * n : (i + 1) * n] for i in range(3)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)


def test_batches_are_a_function_of_the_step() -> None:
    forward = [indices(step, batch=8, n=30, seed=1).tolist() for step in range(12)]
    backward = [indices(step, batch=8, n=30, seed=1).tolist() for step in reversed(range(12))]
    assert forward == backward[::-1]
    assert forward != [indices(step, batch=8, n=30, seed=2).tolist() for step in range(12)]
    order = [i for batch in forward for i in batch]
    assert order[:30] != order[30:60]


# The loop -------------------------------------------------------------------------------------------------


def make(plan: Plan = PLAN) -> State:
    torch.manual_seed(0)
    return State(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)), plan)


def data(step: int) -> Batch:
    index = indices(step, batch=4, n=10, seed=3)
    at = Address.of(9, index)
    return {"index": index, "x": at.normal(torch.zeros(4, 3), Stream.AUGMENT)}


def loss(state: State) -> Callable[[Batch, Address], Outcome]:
    """A regression on noisy targets, so that the address matters."""

    def objective(batch: Batch, at: Address) -> Outcome:
        x = batch["x"]
        target = x.sum(1, keepdim=True) + at.normal(x[:, :1], Stream.NOISE)
        error = 9 * (state.module(x) - target).square().mean()
        return Outcome(error, {"half": error.detach() / 2})

    return objective


def values(state: State) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in state.tensors().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_loop_is_adamw_with_clipping() -> None:
    state, plain = make(), make()
    optimizer = torch.optim.AdamW(plain.module.parameters(), betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    objective = loss(plain)
    for progress in fit(Phase(loss(state), state), data):
        step = progress.step - 1
        optimizer.param_groups[0]["lr"] = PLAN.rate_at(step)
        expected = objective(data(step), Address.of(3, data(step)["index"], step)).loss
        optimizer.zero_grad()
        expected.backward()
        norm = torch.stack([p.grad.norm() for p in plain.module.parameters() if p.grad is not None]).norm()
        torch.nn.utils.clip_grad_norm_(plain.module.parameters(), 1.0)
        optimizer.step()
        assert progress.losses == {"loss": expected.item(), "half": expected.item() / 2}
        assert progress.norm == pytest.approx(norm.item())
        assert progress.norm > 1  # so it was clipped
        assert (progress.rate, progress.images, progress.steps) == (PLAN.rate_at(step), 4 * (step + 1), 6)
    assert same(dict(state.module.state_dict()), dict(plain.module.state_dict()))
    assert (state.step, state.skipped, state.ema.updates) == (6, 0, 6)


def test_progress_says_when_something_happens_that_happens_each_n_steps() -> None:
    steps = [Progress(step, 7, {}, 0, 0, 0, 0) for step in range(1, 8)]
    assert [p.step for p in steps if p.every(3)] == [3, 6, 7]


def poisoned(state: State, bad: set[int], value: float) -> Callable[[Batch, Address], Outcome]:
    good = loss(state)

    def objective(batch: Batch, at: Address) -> Outcome:
        found = good(batch, at)
        return replace(found, loss=found.loss * (value if at.step in bad else 1))

    return objective


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(value: float) -> None:
    state = make()
    before = values(state)
    for progress in fit(Phase(poisoned(state, {0, 2, 3, 5}, value), state), data):
        now = values(state)
        assert same(before, now) == (progress.step - 1 in {0, 2, 3, 5})
        assert all(v.isfinite().all() for v in now.values())
        before = now
    assert (state.step, state.skipped, state.ema.updates) == (6, 4, 2)


def test_three_in_a_row_are_too_many() -> None:
    state = make()
    run = fit(Phase(poisoned(state, {1, 2, 3}, math.nan), state), data)
    assert [next(run).step for _ in range(3)] == [1, 2, 3]
    kept = values(state)
    with pytest.raises(FloatingPointError) as caught:
        next(run)
    samples = ", ".join(map(str, data(3)["index"].tolist()))
    said = "the loss or its gradient was not finite three times in a row, at step 3"
    assert str(caught.value) == f"{said} (samples {samples})"
    assert same(kept, values(state))


@pytest.mark.parametrize("size", [1, 8, 9])
def test_eight_samples_of_a_bad_batch_are_named(size: int) -> None:
    state = make()
    bad = lambda step: {"index": torch.arange(size) + 100 * step, "x": torch.full((size, 3), math.nan)}  # noqa: E731
    with pytest.raises(FloatingPointError) as caught:
        list(fit(Phase(loss(state), state), bad))
    names = ", ".join(str(200 + i) for i in range(min(size, 8))) + (", ..." if size == 9 else "")
    assert str(caught.value).endswith(f", at step 2 (samples {names})")


def test_a_state_goes_on_where_another_stopped() -> None:
    """Bit for bit, after its tensors and numbers went through a dictionary."""
    whole = make()
    list(fit(Phase(poisoned(whole, {1}, math.nan), whole), data))
    for stop in range(7):
        first = make()
        run = fit(Phase(poisoned(first, {1}, math.nan), first), data)
        for _ in range(stop):
            next(run)
        run.close()
        tensors, numbers = values(first), first.numbers()
        torch.manual_seed(99)
        second = State(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)), PLAN)
        second.load(tensors, numbers)
        list(fit(Phase(poisoned(second, {1}, math.nan), second), data))
        assert same(values(whole), values(second))
        assert whole.numbers() == second.numbers() == {"step": 6, "skipped": 1, "ema_updates": 5}


def test_a_loaded_state_has_tensors_of_its_own() -> None:
    first, second = make(), make()
    list(fit(Phase(loss(first), first), data))
    saved = first.tensors()
    copies = values(first)
    second.load(saved, first.numbers())
    second.step = 0
    list(fit(Phase(loss(second), second), data))
    assert same(copies, values(first))


def test_half_precision_computes_in_bfloat16_and_keeps_float32() -> None:
    seen = []
    state = make(replace(PLAN, precision="bf16", steps=2))

    def objective(batch: Batch, at: Address) -> Outcome:
        out = state.module(batch["x"])
        seen.append(out.dtype)
        return Outcome(out.float().square().mean())

    list(fit(Phase(objective, state), data))
    assert seen == [torch.bfloat16] * 2
    assert {v.dtype for v in state.tensors().values()} == {torch.float32}
