"""Batches that are made ahead are those that are made in time, whoever makes them, and in whatever order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fill import inp
from sfumato.data import Sample
from sfumato.data.training import TrainingPictures
from sfumato.diffusion.noise import Address
from sfumato.outcome import Outcome
from sfumato.recipes.autoencoder import batches
from sfumato.train.ahead import EACH, ahead
from sfumato.train.fit import Batch, Phase, fit
from sfumato.train.plan import Plan
from sfumato.train.state import State

PLAN = Plan(steps=12, batch=4, rate=0.05, warmup=2, seed=3, precision="fp32")


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("batches")]


def slow_at_times(step: int) -> int:
    """Later ones are done before earlier ones."""
    time.sleep(0.004 * (step % 3 == 0))
    return step * step


# The order of things --------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [range(0), range(5, 6), range(3, 30)], ids=str)
@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_each_step_has_its_own_batch(workers: int, steps: range) -> None:
    assert list(ahead(slow_at_times, steps, workers=workers)) == [s * s for s in steps]
    assert threads() == []


@pytest.mark.parametrize("workers", [1, 3])
def test_so_many_and_no_more_are_made_ahead(workers: int) -> None:
    made: list[int] = []
    found = ahead(lambda step: made.append(step) or step, range(100), workers=workers)
    for step in range(20):
        assert next(found) == step
        time.sleep(0.005)
        assert max(made) < step + EACH * workers
    assert len(made) > 20
    found.close()


def test_without_workers_nothing_is_made_ahead() -> None:
    made: list[int] = []
    found = ahead(lambda step: made.append(step) or step, range(100), workers=0)
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    assert made == [0, 1, 2]


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_what_goes_wrong_is_raised_at_its_own_step(workers: int) -> None:
    def batch(step: int) -> int:
        if step in (7, 8):
            raise ValueError(f"no batch {step}")
        return slow_at_times(step)

    seen = []
    with pytest.raises(ValueError, match=r"^no batch 7$"):
        seen.extend(x for x in ahead(batch, range(30), workers=workers))
    found = ahead(batch, range(30), workers=workers)
    assert [next(found) for _ in range(7)] == [s * s for s in range(7)]
    with pytest.raises(ValueError, match=r"^no batch 7$"):
        next(found)
    assert threads() == []


def test_closing_ends_the_threads_after_the_batches_that_they_make() -> None:
    begun, done = [], []

    def batch(step: int) -> int:
        begun.append(step)
        time.sleep(0.02)
        done.append(step)
        return step

    found = ahead(batch, range(100), workers=2)
    assert next(found) == 0
    assert len(threads()) == 2
    found.close()
    assert threads() == []
    assert sorted(begun) == sorted(done)
    assert len(begun) <= 2 * EACH
    time.sleep(0.05)
    assert sorted(begun) == sorted(done)


# The loop -------------------------------------------------------------------------------------------------


def trained(source: Callable[[int], Batch], workers: int, stop: int = 12) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Conv2d(3, 3, 3)
    state = State(net, replace(PLAN, workers=workers))

    def objective(batch: Batch, at: Address) -> Outcome:
        return Outcome(net(batch["image"]).square().mean())

    run = fit(Phase(objective, state), source)
    for _ in range(stop):
        next(run)
    run.close()
    assert threads() == []
    return {k: v.clone() for k, v in state.tensors().items()}


class Pictures:
    """Pictures that are not quite of 8 bits, some of them damaged, which take their time."""

    fields = frozenset({"image"})

    def __init__(self, n: int, damaged: frozenset[int] = frozenset(), wait: float = 0.0) -> None:
        self.n, self.damaged, self.wait = n, damaged, wait

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int, /) -> Sample:
        time.sleep(self.wait * (i % 3))
        if i in self.damaged:
            raise ValueError(f"{i}.png: the picture is damaged")
        return {"image": (inp(f"picture {i}", 3, 6, 6) / 2).clamp(-1, 1)}


ROOM = 5 * 3 * 6 * 6  # five pictures


@pytest.mark.parametrize("stop", [1, 7, 12])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_change_nothing(workers: int, stop: int) -> None:
    """Of 11 pictures five are kept, whichever; two cannot be decoded."""
    found = []
    for n in (0, workers):
        pictures = TrainingPictures(Pictures(11, frozenset({2, 9}), wait=0.001), room=ROOM)
        found.append(trained(batches(pictures, PLAN, crop=4, flips=True), n, stop))
        assert len(pictures._kept) <= 5
        assert pictures.room == ROOM - sum(v.numel() for v in pictures._kept.values())
        if stop == 12:
            assert sorted(pictures.damaged) == [2, 9]
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(v, found[1][k]) for k, v in found[0].items())


@settings(max_examples=15)
@given(
    asked=st.lists(st.integers(0, 9), min_size=1, max_size=60),
    damaged=st.frozensets(st.integers(0, 9), max_size=9),
    room=st.integers(0, 12),
)
def test_a_picture_is_the_same_whoever_asks_and_when(asked: list[int], damaged: frozenset[int], room: int) -> None:
    plain = TrainingPictures(Pictures(10, damaged), room=0)
    pictures = TrainingPictures(Pictures(10, damaged), room=room * 3 * 6 * 6)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(pictures.__getitem__, asked))
    assert all(torch.equal(x, plain[i]) for x, i in zip(found, asked, strict=True))
    assert pictures.damaged == {i: why for i, why in plain.damaged.items() if i in pictures.damaged}
    assert len(pictures._kept) <= room
    assert pictures.room == (room - len(pictures._kept)) * 3 * 6 * 6


def test_the_first_in_order_is_named_whichever_was_found_first() -> None:
    pictures = TrainingPictures(Pictures(10, frozenset(range(10))))
    for i in (7, 3):
        with pytest.raises(ValueError, match=r"^no picture can be read, first 0\.png: the picture is damaged$"):
            _ = pictures[i]
    pictures = TrainingPictures(Pictures(10, frozenset({3, 7})))
    _ = pictures[7]
    with pytest.raises(ValueError, match=r"one of them is 3\.png"):
        pictures.check()
