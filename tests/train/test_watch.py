"""A training that goes nowhere is noticed when its window is full, and not before; any other is left alone."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.train.fit import Said
from sfumato.train.watch import TREND, Watch

WINDOW = 5
Line = dict[str, Said]


def line(l1: float = 0.1, weight: float = 3.0, critic: float = 0.9) -> Line:
    return {"loss": 1.0, "l1": l1, "adversary weight": weight, "critic": critic, "kl of channels": [1.0, 2.0]}


def verdicts(lines: list[Line]) -> list[str | None]:
    watch = Watch(window=WINDOW)
    return [watch.see(one) for one in lines]


def first(lines: list[Line]) -> tuple[int, str] | None:
    return next(((i, text) for i, text in enumerate(verdicts(lines)) if text is not None), None)


def test_a_hundred_steps_agree() -> None:
    assert TREND == 100
    watch = Watch()
    said = [watch.see(line(weight=1e4)) for _ in range(100)]
    assert said[:99] == [None] * 99
    assert said[99] is not None


def test_the_weight_of_the_adversary_has_exploded() -> None:
    found = first([line()] * 7 + [line(weight=1e4)] * 9)
    assert found is not None
    assert found[0] == 7 + WINDOW - 1
    assert found[1].startswith("the adaptive weight of the adversary has exploded (at its limit 10000 for 5 steps)")
    assert first(([line(weight=1e4)] * (WINDOW - 1) + [line(weight=9999.0)]) * 4) is None


def test_the_critic_has_collapsed() -> None:
    found = first([line()] * 7 + [line(critic=0.01)] * 9)
    assert found is not None
    assert found[0] == 7 + WINDOW - 1
    assert found[1].startswith("the critic has collapsed (its loss was below 0.01 for 5 steps)")
    assert first(([line(critic=0.0)] * (WINDOW - 1) + [line(critic=0.011)]) * 4) is None


def test_the_reconstruction_has_become_worse() -> None:
    """The mean of the window over the best such mean: (4 * 0.1 + 0.9) / 5 is not three times 0.1, the next one is."""
    found = first([line(l1=0.1)] * 7 + [line(l1=0.9)] * 9)
    assert found is not None
    assert found[0] == 8
    assert found[1] == "the reconstruction is 4.2 times as bad as it was at its best (mean l1)"
    assert first([line(l1=0.1)] * 7 + [line(l1=0.299)] * 50) is None
    assert first([line(l1=0.1)] * 7 + [line(l1=0.9)] + [line(l1=0.1)] * 50) is None  # one bad step is none


def test_nothing_is_said_before_a_window_is_full() -> None:
    assert first([line(l1=1e-6), *[line(l1=10.0)] * (WINDOW - 1)]) is None
    assert first([line(weight=1e4)] * (WINDOW - 1)) is None
    assert first([line(critic=0.0)] * (WINDOW - 1)) is None


def test_the_best_is_remembered_for_ever() -> None:
    slow = [line(l1=0.1 * 1.02**i) for i in range(80)]
    found = first([line(l1=0.1)] * 5 + slow)
    assert found is not None
    i = found[0]
    mean = sum(0.1 * 1.02**k for k in range(i - 9, i - 4)) / 5
    assert mean > 0.3 >= mean / 1.02


def test_a_usual_log_passes() -> None:
    lines: list[Line] = [{"loss": 1.0, "l1": 0.5 / (1 + i) + 0.1 * (i % 3)} for i in range(50)]
    lines += [line(l1=0.1 + 0.02 * (i % 4), weight=10.0 ** (i % 5), critic=(i % 7) / 7) for i in range(100)]
    assert first(lines) is None
    assert first([{"loss": 1.0}] * 50) is None


def test_steps_that_were_skipped_are_not_counted() -> None:
    bad: Line = {"loss": math.nan}
    assert first([line(weight=1e4), bad] * (WINDOW - 1) + [bad] * 20) is None
    nothing = {"loss": math.nan, "l1": math.nan, "adversary weight": math.inf, "critic": -math.inf}
    found = first([line(), *[nothing] * 20, *[line(weight=1e4), nothing] * WINDOW])
    assert found is not None
    assert found[0] == 1 + 20 + 2 * (WINDOW - 1)


NUMBERS = st.sampled_from([0.001, 0.1, 0.15, 0.5, 3.0, 9999.0, 1e4, math.nan, math.inf])


@given(values=st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), max_size=30), stop=st.integers(0, 30))
def test_it_judges_by_the_log_alone(values: list[tuple[float, float, float]], stop: int) -> None:
    """A run that was stopped reads its lines from the file and goes on; what it then finds is the same."""
    lines = [line(*v) for v in values]
    whole = verdicts(lines)
    again = Watch(window=WINDOW)
    for text in [json.dumps(one) for one in lines[:stop]]:
        again.see(json.loads(text))
    assert [again.see(one) for one in lines[stop:]] == whole[stop:]


@pytest.mark.parametrize(("setting", "limit"), [("worse", 30.0), ("limit", 2e4), ("won", 0.001)])
def test_what_is_too_much_can_be_said(setting: str, limit: float) -> None:
    watch = Watch(window=WINDOW, **{setting: limit})
    lines = {"worse": line(l1=2.0), "limit": line(weight=1e4), "won": line(critic=0.005)}
    said = [watch.see(one) for one in [*[line()] * 6, *[lines[setting]] * 6]]
    assert said == [None] * 12
