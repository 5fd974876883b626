"""A step is the same in parts, with activations made twice, and in half precision, where it fits; drop-out repeats."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tiny
from fill import inp
from sfumato.diffusion.noise import Address, Stream
from sfumato.diffusion.objective import times
from sfumato.diffusion.schedule import SCHEDULES
from sfumato.models.latent_diffusion import LatentDiffusion
from sfumato.outcome import Outcome
from sfumato.recipes.told import Told
from sfumato.train.batches import indices
from sfumato.train.fit import Batch, Phase, Progress, fit
from sfumato.train.parallel import recompute, units
from sfumato.train.plan import Plan
from sfumato.train.stage import train
from sfumato.train.state import FIRST_SCALE, State

PLAN = Plan(steps=6, batch=8, rate=1e-3, warmup=1, save=3, precision="fp32")
PICTURES = inp("latents", 12, 4, 4, 4)


class Line(nn.Module):
    """A loss that is linear in one weight, with a drop-out before it."""

    def __init__(self, drop: float = 0.0, factor: float = 1.0) -> None:
        super().__init__()
        self.weight, self.drop, self.factor = nn.Parameter(torch.ones(4)), nn.Dropout(drop), factor

    def forward(self, batch: Batch, at: Address) -> Outcome:
        x = self.drop(batch["mean"].flatten(1)[:, :4] * self.weight)
        return Outcome((x - 0.3).square().mean() * self.factor)


def source(step: int) -> Batch:
    index = indices(step, batch=PLAN.batch, n=len(PICTURES), seed=0)
    return {"index": index, "mean": PICTURES[index]}


def denoiser(plan: Plan) -> tuple[Told, State]:
    torch.manual_seed(0)
    config = tiny.CONFIG.model_copy(
        update={"conditioner": None, "unet": replace(tiny.CONFIG.unet, context_dim=None, vector_dim=None)}
    )
    model = LatentDiffusion(config)
    tiny.awake(model)
    objective = Told(model, 0.1, "stratified")
    recompute(objective, plan)
    return objective, State(objective, plan)


def losses(objective: nn.Module, state: State) -> list[float]:
    return [float(p.losses["loss"]) for p in fit(Phase(objective, state), source)]  # type: ignore[arg-type]


def gradients(plan: Plan) -> dict[str, Tensor]:
    """Of the first step."""
    objective, state = denoiser(plan)
    found: list[dict[str, Tensor]] = []
    real = state.advance

    def advance(*, changed: bool) -> None:
        found.append({name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None})
        real(changed=changed)

    state.advance = advance  # type: ignore[method-assign]
    with closing(fit(Phase(objective, state), source)) as run:  # type: ignore[type-var]
        next(run)
    return found[0]


@pytest.mark.parametrize("parts", [2, 8])
def test_a_batch_in_parts_is_the_batch(parts: int) -> None:
    whole, other = gradients(PLAN), gradients(replace(PLAN, accumulate=parts))
    assert whole.keys() == other.keys()
    for name, gradient in whole.items():
        assert torch.allclose(other[name], gradient, atol=1e-5), name
    assert max(float(g.abs().max()) for g in whole.values()) > 0.01


def test_steps_in_parts_are_the_steps() -> None:
    """Times that depend on the place in the batch among them."""
    assert losses(*denoiser(replace(PLAN, accumulate=2))) == pytest.approx(losses(*denoiser(PLAN)), abs=1e-5)


def test_activations_that_are_made_again_change_nothing() -> None:
    whole, other = denoiser(PLAN), denoiser(replace(PLAN, recompute=True))
    assert len(units(other[0])) >= 8
    assert losses(*other) == losses(*whole)
    assert all(torch.equal(a, b) for a, b in zip(other[0].parameters(), whole[0].parameters(), strict=True))


def test_the_places_of_parts() -> None:
    """Stratified times of parts are those of the batch."""
    at, schedule = Address.of(3, torch.arange(12), 5), SCHEDULES["cosine"]()
    parts = [times("stratified", part, schedule) for part in at.chunks(3)]
    assert torch.equal(torch.cat(parts), times("stratified", at, schedule))
    assert torch.equal(torch.cat([p.uniform(Stream.DROP) for p in at.chunks(4)]), at.uniform(Stream.DROP))
    again = [part for half in at.chunks(2) for part in half.chunks(3)]
    assert torch.equal(torch.cat([times("stratified", p, schedule) for p in again]), torch.cat(parts))


def test_parts_that_there_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"^accumulate is 3; it must be a part of batch, 8, without remainder$"):
        replace(PLAN, accumulate=3)


# Drop-out -------------------------------------------------------------------------------------------------
def dropped(home: Path, until: int) -> tuple[list[float], Tensor]:
    objective = Line(drop=0.5)
    state = State(objective, PLAN)
    found = []
    with closing(train(Phase(objective, state), source, home)) as events:  # type: ignore[type-var]
        for event in events:
            assert isinstance(event, Progress)
            found.append(float(event.losses["loss"]))  # type: ignore[arg-type]
            torch.rand(3)  # others may draw
            if state.step == until:
                break
    return found, objective.weight.detach().clone()


def test_drop_out_is_a_function_of_the_step(tmp_path: Path) -> None:
    """A run that was stopped drops what an uninterrupted one does, and the caller's generator is left alone."""
    torch.manual_seed(5)
    expected, weight = dropped(tmp_path / "whole", 6)
    drawn = torch.rand(())
    torch.manual_seed(5)
    torch.rand(3 * 6)
    assert torch.equal(torch.rand(()), drawn)
    first, _ = dropped(tmp_path / "parts", 4)
    rest, again = dropped(tmp_path / "parts", 6)
    assert first == expected[:4]
    assert rest == expected[3:]
    assert torch.equal(again, weight)
    assert len({round(v, 9) for v in expected}) == 6


# Half precision -------------------------------------------------------------------------------------------
def steps(state: State, objective: nn.Module) -> Iterator[Progress]:
    return fit(Phase(objective, state), source)  # type: ignore[arg-type]


def test_a_scale_changes_nothing() -> None:
    """A power of two in float32: the same weights to the bit."""
    found = []
    for precision in ("fp32", "fp16"):
        objective = Line()
        list(steps(State(objective, replace(PLAN, precision=precision)), objective))  # the formula stays in float32
        found.append(objective.weight.detach())
    assert torch.equal(*found)


class Half(nn.Module):
    """A loss whose gradient passes through half precision, sixteen times as large there: 65,504 is the largest."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, batch: Batch, at: Address) -> Outcome:
        return Outcome((self.weight.half() * 16).float().mean())


def test_an_overflow_is_tried_smaller() -> None:
    """Three skipped steps in a row are no end here, and the smaller scale is kept."""
    objective = Half()
    state = State(objective, replace(PLAN, precision="fp16"))
    finite = [math.isfinite(p.norm) for p in steps(state, objective)]
    assert finite == [False, False, False, True, True, True]  # 2^14 / 4 * 16 is 65,536
    assert (state.skipped, state.row, state.exponent, state.since) == (3, 0, FIRST_SCALE - 3, 3)
    again = State(Half(), state.plan)
    assert again.fits(state.tensors(), state.numbers())
    again.load(state.tensors(), state.numbers())
    assert (again.exponent, again.since) == (state.exponent, state.since)


def test_a_loss_that_is_not_finite_is_no_overflow() -> None:
    objective = Line(factor=float("nan"))
    state = State(objective, replace(PLAN, precision="fp16"))
    with pytest.raises(FloatingPointError, match="three times in a row"):
        list(steps(state, objective))
    assert state.exponent == FIRST_SCALE


def test_the_scale_grows_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfumato.train.state.GROWS", 2)
    objective = Line()
    state = State(objective, replace(PLAN, precision="fp16"))
    list(steps(state, objective))
    assert state.exponent == FIRST_SCALE + 3
