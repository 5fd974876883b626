"""TensorBoard is told each number once, whatever happens to a run; without the package a line says how to get it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.cli.main import main
from sfumato.io import pictures
from sfumato.recipes import track
from sfumato.recipes.events import Begun, Event, Measured, RolledBack, Stepped, Validated, Wrote
from sfumato.train.fit import Progress
from sfumato.train.plan import Plan
from sfumato.train.stage import Rollback


class Written:
    """Keeps what it is told by folder, and forgets as TensorBoard does."""

    def __init__(self) -> None:
        self.scalars: dict[tuple[str, str, int], list[float]] = {}
        self.images: dict[tuple[str, int], np.ndarray] = {}
        self.open = 0

    def __call__(self, home: Path, step: int) -> Written.One:
        self.scalars = {k: v for k, v in self.scalars.items() if k[0] != home.name or k[2] < step}
        self.open += 1
        return Written.One(self, home.name)

    class One:
        def __init__(self, whole: Written, stage: str) -> None:
            self.whole, self.stage = whole, stage

        def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
            self.whole.scalars.setdefault((self.stage, tag, global_step), []).append(scalar_value)

        def add_image(self, tag: str, img_tensor: np.ndarray, global_step: int) -> None:
            self.whole.images[self.stage, global_step] = img_tensor

        def close(self) -> None:
            self.whole.open -= 1


def steps(stage: str, begin: int, end: int, plan: Plan, loss: float = 0.5) -> Iterator[Event]:
    yield Begun(stage, begin, plan)
    for step in range(begin + 1, end + 1):
        losses = {"loss": loss * step, "adversary weight": 0.25, "mean": [1.0, 2.0]}
        yield Stepped(stage, Progress(step, plan.steps, losses, rate=0.1, norm=2.0, seconds=3.0, images=step))


PLAN = Plan(steps=6, batch=1, rate=1.0)


def told(written: Written, *parts: Iterator[Event], home: Path) -> None:
    events = [event for part in parts for event in part]
    assert list(track.tracked(iter(events), home, written)) == events
    assert written.open == 0


def test_numbers_of_each_stage(tmp_path: Path) -> None:
    pictures.save_png(torch.linspace(-1, 1, 3 * 4 * 5).view(3, 4, 5), tmp_path / "a.png", {})
    bins = tuple(k / 8 for k in range(8))
    more = iter([Validated(6, 9, Measured(0.4375, bins), Measured(0.25, bins)), Wrote("preview", tmp_path / "a.png")])
    written = Written()
    told(written, steps("first stage", 0, 6, PLAN), steps("diffusion", 0, 6, PLAN), more, home=tmp_path)
    names = {"loss", "adversary_weight", "rate", "gradient_norm", "seconds"}
    validation = {"validation/held_out", "validation/trained_on", *(f"validation_by_time/{n}" for n in range(1, 9))}
    assert {tag for stage, tag, _ in written.scalars if stage == "first-stage"} == names
    assert {tag for stage, tag, _ in written.scalars if stage == "diffusion"} == names | validation
    assert written.scalars["diffusion", "loss", 4] == [2.0]
    assert written.scalars["diffusion", "validation_by_time/3", 6] == [0.25]
    levels = (pictures.read(tmp_path / "a.png") + 1) * 127.5
    assert written.images["diffusion", 6].dtype == np.uint8
    assert np.array_equal(written.images["diffusion", 6], levels.round().numpy())


def test_what_is_done_again_is_there_once(tmp_path: Path) -> None:
    """After a kill at step 5 of a run that was saved at 3, and after one that went back."""
    written = Written()
    told(written, steps("first stage", 0, 6, PLAN), home=tmp_path)
    told(written, steps("diffusion", 0, 5, PLAN, loss=7.0), home=tmp_path)
    told(written, steps("diffusion", 3, 6, PLAN), home=tmp_path)
    assert {k: len(v) for k, v in written.scalars.items() if k[1] == "loss"} == {
        (stage, "loss", step): 1 for stage in ("first-stage", "diffusion") for step in range(1, 7)
    }
    assert [written.scalars["diffusion", "loss", step][0] for step in (3, 4)] == [21.0, 2.0]
    back = iter([RolledBack("first stage", Rollback(5, 2, "it went wrong"))])
    written = Written()
    told(written, steps("first stage", 0, 5, PLAN), back, steps("first stage", 2, 6, PLAN), home=tmp_path)
    assert all(len(v) == 1 for v in written.scalars.values())


def test_of_a_long_run_some_steps(tmp_path: Path) -> None:
    written = Written()
    plan = Plan(steps=50_000, batch=1, rate=1.0)
    told(written, steps("diffusion", 10, 21, plan), home=tmp_path)
    assert sorted({step for _, _, step in written.scalars}) == [12, 14, 16, 18, 20]


def test_a_run_that_fails_closes_its_file(tmp_path: Path) -> None:
    def events() -> Iterator[Event]:
        yield from steps("diffusion", 0, 2, PLAN)
        raise FloatingPointError

    written = Written()
    with pytest.raises(FloatingPointError):
        list(track.tracked(events(), tmp_path, written))
    assert written.open == 0


def test_without_the_package_nothing_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main(["train", "pixels", "--out", str(tmp_path / "run"), "--tensorboard"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("sfumato: TensorBoard is not installed; pip install tensorboard")
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
