"""A stage goes on from the newest checkpoint that is whole and its own, to the same end; where none is, it says so."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sfumato.diffusion.noise import Address, Stream
from sfumato.io import checkpoint
from sfumato.outcome import Outcome
from sfumato.train import stage, stop
from sfumato.train.batches import indices
from sfumato.train.fit import Batch, Phase, Progress
from sfumato.train.plan import Plan
from sfumato.train.stage import Rollback, train
from sfumato.train.state import State
from sfumato.train.stop import Stopped
from sfumato.train.watch import Watch

PLAN = Plan(steps=20, batch=2, rate=0.05, warmup=2, seed=3, precision="fp32", save=4, keep=3)


def data(step: int) -> Batch:
    index = indices(step, batch=2, n=10, seed=3)
    return {"index": index, "x": Address.of(9, index).normal(torch.zeros(2, 3), Stream.AUGMENT)}


class Training:
    """Two networks, one of which has a memory, watched."""

    def __init__(self, home: Path, plan: Plan = PLAN, width: int = 3) -> None:
        torch.manual_seed(0)
        self.home, self.begun = home, 0
        self.memory = torch.zeros(2)
        self.one = State(nn.Linear(3, width), plan, memory={"seen": self.memory})
        self.two = State(nn.Linear(3, 1), replace(plan, rate=0.1), average=False)

    def first(self, batch: Batch, at: Address) -> Outcome:
        self.memory[at.step % 2] += 1
        loss = (self.one.module(batch["x"]) - at.normal(batch["x"][:, :1], Stream.NOISE)).square().mean()
        return Outcome(loss, {"l1": torch.tensor(0.1 + 0.01 * (at.step % 3), dtype=torch.float64)})

    def second(self, batch: Batch, at: Address) -> Outcome:
        return Outcome((self.two.module(batch["x"]) - batch["x"].sum(1, keepdim=True)).square().mean())

    def run(self) -> Iterator[Progress | Rollback]:
        def begin() -> None:
            self.begun += 1

        phases = [Phase(self.first, self.one), Phase(self.second, self.two)]
        return train(phases, data, self.home, watch=lambda: Watch(window=3), begin=begin)

    def until(self, step: int) -> Training:
        with closing(self.run()) as events:  # type: ignore[type-var]
            while next(events).step < step:  # type: ignore[union-attr]
                pass
        return self

    def values(self) -> dict[str, Tensor]:
        return {f"{i} {k}": v.clone() for i, s in enumerate((self.one, self.two)) for k, v in s.tensors().items()}


def checkpoints(home: Path) -> dict[str, bytes]:
    return {str(p.relative_to(home)): p.read_bytes() for p in home.glob("step-*/*")}


def steps(home: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (home / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("whole") / "stage"
    list(Training(home).run())
    return home


def goes_on(home: Path, whole: Path, *, at: int) -> None:
    """A new process goes on at this step, to the same end."""
    again = Training(home)
    events = list(again.run())
    assert [e.step for e in events if isinstance(e, Progress)] == list(range(at + 1, 21))
    assert again.begun == (at == 0)
    assert checkpoints(home) == checkpoints(whole)
    assert steps(home) == list(range(1, 21))


# Damage ---------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "weights": lambda p: flip(p / "state.safetensors"),
    "numbers": lambda p: (p / "manifest.json").write_bytes((p / "manifest.json").read_bytes().replace(b"12", b"13")),
    "half removed": lambda p: (p / "state.safetensors").unlink(),
    "nothing in it": lambda p: (shutil.rmtree(p), p.mkdir()),
    "cut": lambda p: (p / "state.safetensors").write_bytes((p / "state.safetensors").read_bytes()[:700]),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_one_costs_only_time(kind: str, whole: Path, tmp_path: Path) -> None:
    Training(tmp_path).until(14)
    DAMAGE[kind](tmp_path / "step-12")
    goes_on(tmp_path, whole, at=8)


@pytest.mark.parametrize("kind", DAMAGE)
def test_where_none_is_good_it_does_not_begin_anew(kind: str, whole: Path, tmp_path: Path) -> None:
    """A night would be lost without a word."""
    Training(tmp_path).until(14)
    for n in (4, 8, 12):
        (tmp_path / f"step-{n}" / "manifest.json").write_bytes((tmp_path / "step-12" / "manifest.json").read_bytes())
        DAMAGE[kind](tmp_path / f"step-{n}")
    before = checkpoints(tmp_path), (tmp_path / "metrics.jsonl").read_bytes()
    made = Training(tmp_path)
    with pytest.raises(ValueError, match=r"\(step-12, step-8, step-4\): damaged, or of another training; ") as caught:
        list(made.run())
    assert "\n" not in str(caught.value)
    assert made.begun == 0
    assert (checkpoints(tmp_path), (tmp_path / "metrics.jsonl").read_bytes()) == before
    for n in (4, 8, 12):
        shutil.rmtree(tmp_path / f"step-{n}")
    goes_on(tmp_path, whole, at=0)


def renamed(home: Path) -> None:
    shutil.copytree(home / "step-8", home / "step-16")


def other(**more: Any) -> Callable[[Path], None]:
    def put(home: Path) -> None:
        Training(home / "other", **more).until(16)
        (home / "other" / "step-16").replace(home / "step-16")
        shutil.rmtree(home / "other")

    return put


def other_memory(home: Path) -> None:
    made = Training(home / "other")
    made.one.memory = {"seen": torch.zeros(3)}
    made.memory = made.one.memory["seen"]
    made.until(16)
    (home / "other" / "step-16").replace(home / "step-16")
    shutil.rmtree(home / "other")


def with_change(change: Callable[[dict[str, Tensor], dict[str, Any]], object]) -> Callable[[Path], None]:
    def put(home: Path) -> None:
        found = checkpoint.latest(home)
        assert found is not None
        tensors, numbers = found
        numbers = {k: 16 if k.endswith("step") else v for k, v in numbers.items()}
        change(tensors, numbers)
        checkpoint.save(home, 16, tensors, numbers, checkpoint.Keeping(9))

    return put


FOREIGN: dict[str, Callable[[Path], None]] = {
    "renamed": renamed,
    "wider": other(width=4),
    "another memory": other_memory,
    "one more": with_change(lambda t, n: t.update(more=torch.zeros(1))),
    "one less": with_change(lambda t, n: t.pop("ema.weight")),
    "half of the moments": with_change(lambda t, n: t.pop("phase 2.optimizer.bias.exp_avg")),
    "of another type": with_change(lambda t, n: t.update({"module.bias": t["module.bias"].double()})),
    "a phase at another step": with_change(lambda t, n: n.update({"phase 2.step": 15})),
    "a number less": with_change(lambda t, n: n.pop("ema_updates")),
    "a number more": with_change(lambda t, n: n.update(more=1)),
    "no number": with_change(lambda t, n: n.update(skipped="1")),
    "a negative one": with_change(lambda t, n: n.update({"phase 2.skipped": -1})),
    "a watch of another shape": with_change(lambda t, n: t.update({"watch.best": torch.zeros(2, dtype=torch.float64)})),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_one_of_another_training_is_not_taken(kind: str, whole: Path, tmp_path: Path) -> None:
    Training(tmp_path).until(14)
    FOREIGN[kind](tmp_path)
    assert (tmp_path / "step-16" / "manifest.json").is_file()
    goes_on(tmp_path, whole, at=12)


def test_a_change_that_is_none_is_taken(tmp_path: Path) -> None:
    """So that the cases above are told apart by what they change."""
    Training(tmp_path).until(14)
    with_change(lambda t, n: None)(tmp_path)
    assert [e.step for e in Training(tmp_path).run() if isinstance(e, Progress)] == [17, 18, 19, 20]


def test_one_without_what_the_watch_remembers_is_taken(tmp_path: Path) -> None:
    """As they were before it was saved."""
    Training(tmp_path).until(14)
    with_change(lambda t, n: [t.pop(k) for k in list(t) if k.startswith("watch.")])(tmp_path)
    assert [e.step for e in Training(tmp_path).run() if isinstance(e, Progress)] == [17, 18, 19, 20]


def test_what_a_kill_left_does_not_pile_up(whole: Path, tmp_path: Path) -> None:
    Training(tmp_path).until(14)
    for name in (".step-16.1.tmp", ".step-16.2.tmp", ".step-12.2.old.tmp"):
        shutil.copytree(tmp_path / "step-8", tmp_path / name)
    goes_on(tmp_path, whole, at=12)
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]


# A full disk ----------------------------------------------------------------------------------------------


def test_a_disk_without_room_stops_it_and_harms_nothing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    made = Training(tmp_path)
    events = made.run()
    while next(events).step < 14:  # type: ignore[union-attr]
        pass
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2000))
        with pytest.raises(OSError, match=r"the last checkpoint, of step 12, is whole; make room and go on") as caught:
            list(events)
    said = f"the checkpoint of step 16 cannot be written to {tmp_path}: 1.0 MB are needed and 0.0 MB are free"
    assert str(caught.value).startswith(said)
    goes_on(tmp_path, whole, at=12)


def test_a_disk_without_room_for_a_line_stops_it_too(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stage._append

    class Full(io.FileIO):
        def write(self, _: Any) -> int:
            raise OSError(28, "No space left on device")

    def append(log: io.FileIO, line: bytes, home: Path) -> None:
        if b'"step": 15,' in line:
            log.write(line[:30])
            with Full(home / "metrics.jsonl", "a") as full:
                real(full, line, home)
        real(log, line, home)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "_append", append)
        with pytest.raises(OSError, match="metrics") as caught:
            list(Training(tmp_path).run())
    assert str(caught.value) == (
        f"metrics.jsonl cannot be written to {tmp_path} (No space left on device); the last checkpoint, of step 12, is "
        "whole; make room and go on with --resume"
    )
    goes_on(tmp_path, whole, at=12)


# The log --------------------------------------------------------------------------------------------------

JUNK = st.sampled_from(
    [b"", b'{"step": 9', b"\0\0\0", b"[1]\n", b'{"step": "7"}\n', b'{"step": true}\n', b"\n\n", b"{}\r"]
)


@given(
    lines=st.lists(st.integers(0, 30), max_size=12),
    last=st.integers(0, 14),
    junk=JUNK,
    block=st.integers(1, 70),
)
def test_the_log_is_cut_after_the_step(lines: list[int], last: int, junk: bytes, block: int) -> None:
    """Of lines of many lengths, in blocks of many lengths, with something that is no line at the end."""
    texts = [json.dumps({"step": i + 1, "loss": "x" * n}).encode() + b"\n" for i, n in enumerate(lines)]
    kept = b"".join(texts[:last])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "BLOCK", block)
        assert stage._end(io.BytesIO(b"".join(texts) + junk), last) == len(kept)


def test_a_long_log_is_read_from_the_end_alone() -> None:
    class Counted(io.BytesIO):
        total = 0

        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            self.total += len(data)
            return data

    line = b'{"step": %d, "loss": 0.1234567890123456789}\n'
    log = Counted(b"".join(line % n for n in range(1, 100_001)))
    assert stage._end(log, 99_500) == len(b"".join(line % n for n in range(1, 99_501)))
    assert log.total < 4 * stage.BLOCK


# The watch ------------------------------------------------------------------------------------------------

NUMBERS = st.sampled_from([0.001, 0.1, 0.15, 0.5, 3.0, 9999.0, 1e4, 1 / 3, float("nan"), float("inf")])


@given(values=st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), max_size=30), at=st.integers(0, 30))
def test_a_watch_that_was_saved_judges_as_one_that_saw_it_all(
    values: list[tuple[float, float, float]], at: int
) -> None:
    lines = [{"l1": a, "adversary weight": b, "critic": c} for a, b, c in values]
    whole, again = Watch(window=5), Watch(window=5)
    for line in lines[:at]:
        whole.see(line)
    saved = whole.tensors()
    again.see({"l1": 1e-9, "critic": 0.0, "adversary weight": 1e4})  # of which nothing may stay
    assert again.fits(saved)
    again.load(saved)
    assert [again.see(line) for line in lines[at:]] == [whole.see(line) for line in lines[at:]]
    assert all(torch.equal(v, again.tensors()[k]) for k, v in whole.tensors().items())


def test_what_a_watch_cannot_remember() -> None:
    watch = Watch(window=5)
    good = watch.tensors()
    assert watch.fits({})
    assert watch.fits(good)
    for bad in (
        {**good, "more": good["best"]},
        {k: v for k, v in good.items() if k != "errors"},
        {**good, "best": torch.zeros(2, dtype=torch.float64)},
        {**good, "critic": torch.zeros(2)},
        {**good, "critic": torch.zeros((2, 2), dtype=torch.float64)},
    ):
        assert not watch.fits(bad)


# Asked to stop --------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def unasked() -> Iterator[None]:
    yield
    stop.forget()


@pytest.mark.parametrize("step", [1, 3, 4, 13, 20])
def test_who_asks_waits_for_the_step_and_its_checkpoint(step: int, whole: Path, tmp_path: Path) -> None:
    """In the middle of a step, or after it, while somebody looks at what it gave."""
    for inside in (True, False):
        home = tmp_path / str(inside)
        made = Training(home)
        plain = made.second

        def second(batch: Batch, at: Address, plain: Any = plain, inside: bool = inside) -> Outcome:
            if inside and at.step == step - 1:
                stop.ask()
            return plain(batch, at)

        made.second = second  # type: ignore[method-assign]
        seen = []

        def looked(event: Progress | Rollback, inside: bool = inside) -> int:
            if not inside and event.step == step:
                stop.ask()
            return event.step

        with pytest.raises(Stopped, match=rf"^stopped at step {step}$") as caught:
            seen.extend(map(looked, made.run()))
        stop.forget()
        assert caught.value.step == step
        assert seen == list(range(1, step + 1)) == steps(home)
        latest = checkpoint.latest(home)
        assert latest is not None
        assert latest[1]["step"] == step
        goes_on(home, whole, at=step) if step != 13 else ends_alike(home, whole)


def ends_alike(home: Path, whole: Path) -> None:
    """But for the checkpoint of the stop, which is one of those that stay or gone."""
    list(Training(home).run())
    last = {name: data for name, data in checkpoints(whole).items() if name.startswith("step-20/")}
    assert len(last) == 2
    assert {name: data for name, data in checkpoints(home).items() if name.startswith("step-20/")} == last
    assert steps(home) == list(range(1, 21))


def test_who_asks_between_stages_does_not_wait() -> None:
    with pytest.raises(Stopped, match=r"^stopped$"):
        stop.ask()
    assert stop.asked()
    stop.forget()
    with stop.awaited():
        pass
    with pytest.raises(Stopped), stop.awaited():
        stop.ask()  # too late for the stage to have looked


def test_a_failure_of_a_stage_that_was_asked_is_the_failure() -> None:
    def fails() -> None:
        with stop.awaited():
            stop.ask()
            raise ValueError("this")

    with pytest.raises(ValueError, match="this"):
        fails()
