"""A stage that goes wrong goes back once, to before that began, and goes on with its remedy; killed anywhere, it still
ends as one that was not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.diffusion.noise import Address, Stream
from sfumato.io import checkpoint
from sfumato.outcome import Outcome
from sfumato.train import stage
from sfumato.train.batches import indices
from sfumato.train.fit import Batch, Phase, Progress
from sfumato.train.plan import Plan
from sfumato.train.stage import Remedy, Rollback, rollbacks, train
from sfumato.train.state import State
from sfumato.train.watch import Watch

PLAN = Plan(steps=30, batch=2, rate=0.05, warmup=2, seed=3, precision="fp32", save=5)
GOES_WRONG = 14  # the last step that is as it should be
CAUSE = "the reconstruction is 4.0 times as bad as it was at its best (mean l1), at step 20"
Event = Progress | Rollback


def data(step: int) -> Batch:
    index = indices(step, batch=2, n=10, seed=3)
    return {"index": index, "x": Address.of(9, index).normal(torch.zeros(2, 3), Stream.AUGMENT)}


def error(step: int) -> float:
    """0.1, then half as much again with each step: the mean of three is beyond three times 0.1 with step 20."""
    return 0.1 * 1.4 ** max(0, step - GOES_WRONG)


@dataclass
class Stage:
    """Two phases that share a strength; while it is 1 the first goes wrong."""

    home: Path
    plan: Plan = PLAN
    wrong: Callable[[int, float], float] = lambda step, strength: error(step) if strength == 1 else 0.1

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.strength = torch.ones(())
        self.one = State(nn.Linear(3, 3), self.plan, memory={"strength": self.strength})
        self.two = State(nn.Linear(3, 1), replace(self.plan, rate=0.1), average=False)
        self.remedy = Remedy(lambda: self.strength.mul_(0.25), lambda: bool(self.strength < 1))  # type: ignore[arg-type]

    def first(self, batch: Batch, at: Address) -> Outcome:
        made = self.one.module(batch["x"])
        loss = (made - batch["x"]).square().mean() + self.strength * made.mean()
        l1 = torch.tensor(self.wrong(at.step, float(self.strength)), dtype=torch.float64)
        return Outcome(loss * (l1 / l1), {"l1": l1}, {"made": made.detach()})

    def second(self, batch: Batch, at: Address) -> Outcome:
        return Outcome((self.two.module(batch["made"]) - batch["x"].sum(1, keepdim=True)).square().mean())

    def run(self, *, remedy: bool = True) -> Iterator[Event]:
        phases = [Phase(self.first, self.one), Phase(self.second, self.two)]
        watch = lambda: Watch(window=3)  # noqa: E731
        return train(phases, data, self.home, watch=watch, remedy=self.remedy if remedy else None)

    def values(self) -> dict[str, Tensor]:
        return {f"{i} {k}": v.clone() for i, s in enumerate((self.one, self.two)) for k, v in s.tensors().items()}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "TREND", 4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event], dict[str, Tensor]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "TREND", 4)
        made = Stage(tmp_path_factory.mktemp("whole") / "stage")
        return made.home, list(made.run()), made.values()


def lines(home: Path) -> list[dict[str, Any]]:
    found = [json.loads(text) for text in (home / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in found]


def checkpoints(home: Path) -> dict[str, bytes]:
    return {str(p.relative_to(home)): p.read_bytes() for p in home.glob("step-*/*")}


def alike(home: Path, expected: Path) -> None:
    """All files of a stage but for how long its steps took."""
    mine, theirs = checkpoints(home), checkpoints(expected)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if mine[name] != theirs[name]] == []
    assert lines(home) == lines(expected)
    assert (home / "rollbacks.jsonl").read_text() == (expected / "rollbacks.jsonl").read_text()
    assert not [p for p in home.iterdir() if p.name.endswith(".tmp")]


# What happens ---------------------------------------------------------------------------------------------


def test_it_goes_back_to_before_that_began(whole: tuple[Path, list[Event], dict[str, Tensor]]) -> None:
    home, events, values = whole
    at = next(s for s in range(1, 30) if sum(map(error, range(s - 3, s))) > 3 * 0.3)
    steps = [e.step for e in events if isinstance(e, Progress)]
    backs = [(i, e) for i, e in enumerate(events) if isinstance(e, Rollback)]
    assert backs == [(at - 1, Rollback(at, 15, CAUSE))]
    assert at == 20
    assert steps == [*range(1, 20), *range(16, 31)]
    assert values["0 memory.strength"] == 0.25  # once
    assert [line["step"] for line in lines(home)] == list(range(1, 31))
    assert all(line["l1"] == 0.1 for line in lines(home)[15:])  # what went wrong is not in the log any more
    assert rollbacks(home) == 1
    assert json.loads((home / "rollbacks.jsonl").read_text()) == {"at": 20, "step": 15, "cause": CAUSE}


def test_it_goes_on_from_the_state_that_it_had_then(
    whole: tuple[Path, list[Event], dict[str, Tensor]], tmp_path: Path
) -> None:
    """As a stage that was changed by hand at that step."""
    plain = Stage(tmp_path / "stage", wrong=lambda *_: 0.1)
    events = plain.run()
    while next(events).step < 15:
        pass
    plain.strength.mul_(0.25)
    list(events)
    assert plain.values().keys() == whole[2].keys()
    assert all(torch.equal(v, whole[2][k]) for k, v in plain.values().items())


def test_later_checkpoints_are_forgotten_before_it_goes_on(tmp_path: Path) -> None:
    made = Stage(tmp_path / "stage", wrong=lambda step, strength: error(step - 2) if strength == 1 else 0.1)
    events = made.run()
    names: list[set[str]] = []
    for event in events:
        names.append({p.name for p in made.home.glob("step-*")})
        if isinstance(event, Rollback):
            break
    assert event == Rollback(22, 15, CAUSE.replace("step 20", "step 22"))
    assert names[-2] == {"step-15", "step-20"}
    assert names[-1] == {"step-15"}
    found = checkpoint.latest(made.home)
    assert found is not None
    assert found[0]["memory.strength"] == 0.25
    list(events)
    assert made.one.step == made.two.step == 30


def test_where_nothing_is_old_enough_it_goes_back_as_far_as_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "TREND", 100)
    events = list(Stage(tmp_path / "stage").run())
    assert [(e.at, e.step) for e in events if isinstance(e, Rollback)] == [(20, 5)]


def test_a_second_time_is_too_often(tmp_path: Path) -> None:
    made = Stage(tmp_path / "stage", wrong=lambda step, strength: error(step - (0 if strength == 1 else 7)))
    seen: list[Event] = []
    with pytest.raises(FloatingPointError) as caught:
        seen.extend(event for event in made.run())
    assert str(caught.value) == CAUSE.replace("step 20", "step 27")
    assert rollbacks(made.home) == 1
    assert made.strength == 0.25


def test_without_a_checkpoint_it_stops(tmp_path: Path) -> None:
    made = Stage(tmp_path / "stage", plan=replace(PLAN, save=25))
    with pytest.raises(FloatingPointError) as caught:
        list(made.run())
    assert str(caught.value) == CAUSE
    assert made.strength == 1
    assert rollbacks(made.home) == 0


def test_without_a_remedy_it_stops(tmp_path: Path) -> None:
    made = Stage(tmp_path / "stage")
    with pytest.raises(FloatingPointError) as caught:
        list(made.run(remedy=False))
    assert str(caught.value) == CAUSE
    assert sorted(p.name for p in made.home.glob("step-*")) == ["step-10", "step-15"]


def unfinite(step: int, strength: float) -> float:
    return math.nan if strength == 1 and step in (18, 19, 20) else 0.1


def test_losses_that_are_not_finite_are_a_cause_too(tmp_path: Path) -> None:
    made = Stage(tmp_path / "stage", wrong=unfinite)
    backs = [e for e in made.run() if isinstance(e, Rollback)]
    assert [(e.at, e.step) for e in backs] == [(20, 15)]
    samples = ", ".join(map(str, data(20)["index"].tolist()))
    said = "the loss or its gradient was not finite three times in a row, at step 20"
    assert backs[0].cause == f"{said} (samples {samples})"
    assert made.one.step == 30
    assert made.one.skipped == 0  # those were before


# Killed ---------------------------------------------------------------------------------------------------


def killed(home: Path, after: int, **more: Any) -> None:
    events = Stage(home, **more).run()
    for _ in range(after):
        next(events)
    events.close()


@pytest.mark.parametrize("after", [1, 5, 13, *range(14, 26), 29, 33, 34])
def test_a_stage_that_was_killed_ends_alike(
    after: int, whole: tuple[Path, list[Event], dict[str, Tensor]], tmp_path: Path
) -> None:
    """After each event from the last good checkpoint to some steps beyond the rollback."""
    killed(tmp_path / "stage", after)
    again = Stage(tmp_path / "stage")
    list(again.run())
    alike(again.home, whole[0])
    assert all(torch.equal(v, whole[2][k]) for k, v in again.values().items())


def test_a_stage_that_was_killed_again_and_again_ends_alike(
    whole: tuple[Path, list[Event], dict[str, Tensor]], tmp_path: Path
) -> None:
    """It never gets far, but past each checkpoint."""
    for _ in range(6):
        killed(tmp_path / "stage", 5)
    list(Stage(tmp_path / "stage").run())
    alike(tmp_path / "stage", whole[0])


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("act", ["forget", "_note", "_save"])
def test_a_stage_that_was_killed_while_going_back_ends_alike(
    act: str,
    done: bool,
    whole: tuple[Path, list[Event], dict[str, Tensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Stage(tmp_path / "stage")
    owner: Any = checkpoint if act == "forget" else stage
    real = getattr(owner, act)

    def cut(*given: Any, **more: Any) -> None:
        if done or made.strength == 1:
            real(*given, **more)
        if made.strength < 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(owner, act, cut)
    with pytest.raises(KeyboardInterrupt):
        list(made.run())
    monkeypatch.setattr(owner, act, real)
    again = Stage(tmp_path / "stage")
    list(again.run())
    alike(again.home, whole[0])


@pytest.mark.parametrize("after", range(17, 24))
def test_bad_steps_are_counted_across_a_kill(after: int, tmp_path: Path) -> None:
    """Two before a checkpoint and one after it are three in a row."""
    wrong = lambda step, strength: math.nan if strength == 1 and step in (18, 19, 20) else 0.1  # noqa: E731
    expected, home = tmp_path / "whole", tmp_path / "killed"
    list(Stage(expected, wrong=wrong).run())
    killed(home, after, wrong=wrong)
    list(Stage(home, wrong=wrong).run())
    alike(home, expected)
