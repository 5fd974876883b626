"""Checkpoints: what was saved comes back to the bit, what is damaged is passed over, and a full disk harms none."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from sfumato.io import checkpoint
from sfumato.io.checkpoint import Keeping


def state(step: int) -> dict[str, Tensor]:
    return {"w": torch.full((3, 2), float(step)), "m.v": torch.tensor(step / 3).bfloat16(), "n": torch.tensor(step)}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for step in (9, 10, 100):
        checkpoint.save(tmp_path, step, state(step), {"step": step, "skipped": 0})
    return tmp_path


def found(home: Path) -> int | None:
    latest = checkpoint.latest(home)
    if latest is None:
        return None
    tensors, numbers = latest
    expected = state(numbers["step"])
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[k], v) and tensors[k].dtype == v.dtype for k, v in expected.items())
    return numbers["step"]


def test_the_newest_is_found_and_the_oldest_forgotten(home: Path) -> None:
    assert sorted(p.name for p in home.iterdir()) == ["step-10", "step-100"]
    assert found(home) == 100  # by number, not by the alphabet


def test_where_there_is_none(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.latest(tmp_path / "nowhere") is None


def edit_weights(path: Path) -> None:
    data = bytearray((path / "state.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "state.safetensors").write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "one bit": edit_weights,
    "cut": lambda p: (p / "state.safetensors").write_bytes((p / "state.safetensors").read_bytes()[:-5]),
    "empty": lambda p: (p / "state.safetensors").write_bytes(b""),
    "no weights": lambda p: (p / "state.safetensors").unlink(),
    "no manifest": lambda p: (p / "manifest.json").unlink(),
    "cut manifest": lambda p: (p / "manifest.json").write_text((p / "manifest.json").read_text()[:20]),
    "binary manifest": lambda p: (p / "manifest.json").write_bytes(b"\xff\xfe\x00"),
    "other manifest": lambda p: (p / "manifest.json").write_text("[1, 2]"),
    "no numbers": lambda p: (p / "manifest.json").write_text(
        json.dumps({"sha256": json.loads((p / "manifest.json").read_text())["sha256"]})
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_one_is_passed_over(home: Path, damage: str) -> None:
    DAMAGE[damage](home / "step-100")
    assert found(home) == 10
    DAMAGE[damage](home / "step-10")
    assert found(home) is None


def test_after_going_back_the_damaged_one_is_written_anew(home: Path) -> None:
    edit_weights(home / "step-100")
    checkpoint.save(home, 100, state(100), {"step": 100, "skipped": 0})
    assert found(home) == 100


def test_other_folders_are_not_mistaken_for_checkpoints(home: Path) -> None:
    for name in (
        "step-x",
        "step-200.old",
        ".step-300.1.tmp",
        "step-007",
        "step-1e9",
        "step-\u0663",
        f"step-{'9' * 200}",
    ):
        shutil.copytree(home / "step-10", home / name)
    (home / "step-500").write_bytes(b"a file")
    assert found(home) == 100


def test_a_stop_while_saving_leaves_the_one_before(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.tensors, "sha256", stop)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(home, 200, state(200), {"step": 200, "skipped": 0})
    monkeypatch.undo()
    assert sorted(p.name for p in home.iterdir()) == ["step-10", "step-100"]
    assert found(home) == 100


# Damage ---------------------------------------------------------------------------------------------------

FILES = ("state.safetensors", "manifest.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints; what is done to the newer one is put right by who does it."""
    home = tmp_path_factory.mktemp("whole")
    for step in (10, 100):
        checkpoint.save(home, step, state(step), {"step": step, "skipped": 0})
    return home


@contextmanager
def changed(path: Path) -> Iterator[bytes]:
    before = path.read_bytes()
    try:
        yield before
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80, 0xFF])
def test_any_byte_that_is_another_is_noticed(name: str, mask: int, whole: Path) -> None:
    path = whole / "step-100" / name
    with changed(path) as data:
        for i in range(len(data)):
            path.write_bytes(data[:i] + bytes([data[i] ^ mask]) + data[i + 1 :])
            assert found(whole) == 10, i
    assert found(whole) == 100


@pytest.mark.parametrize("name", FILES)
def test_any_length_that_is_another_is_noticed(name: str, whole: Path) -> None:
    path = whole / "step-100" / name
    with changed(path) as data:
        for length in range(len(data)):
            path.write_bytes(data[:length])
            assert found(whole) == 10, length
            path.write_bytes(data[len(data) - length :])
            assert found(whole) == 10, length
        for tail in (b"\0", b" ", b"\n", b"{}", data):
            path.write_bytes(data + tail)
            assert found(whole) == 10, tail
    assert found(whole) == 100


class Harm(NamedTuple):
    """What is done to a file; `at` is a share of its length."""

    name: str
    kind: str
    at: float
    what: bytes

    def of(self, data: bytes) -> bytes:
        i = int(self.at * len(data))
        match self.kind:
            case "over":
                return data[:i] + self.what + data[i + len(self.what) :]
            case "into":
                return data[:i] + self.what + data[i:]
            case "out":
                return data[:i] + data[i + len(self.what) :]
            case "cut":
                return data[:i]
            case "zeros":  # as of a file whose length was written and whose blocks were not
                return data[:i] + bytes(len(data) - i)
            case _:
                return self.what


HARMS = st.builds(
    Harm,
    st.sampled_from(FILES),
    st.sampled_from(["over", "into", "out", "cut", "zeros", "other"]),
    st.floats(0, 1, exclude_max=True),
    st.one_of(st.binary(max_size=40), st.sampled_from([b"[" * 20_000, b"{}", b"null", b"1e999", b'{"format": 2}'])),
)


@given(harms=st.lists(HARMS, min_size=1, max_size=4))
@example(harms=[Harm("manifest.json", "other", 0, b"[" * 20_000)])
@example(harms=[Harm("state.safetensors", "other", 0, b"")])
def test_a_checkpoint_is_as_it_was_written_or_is_none(harms: list[Harm], whole: Path) -> None:
    folder = whole / "step-100"
    before = {name: (folder / name).read_bytes() for name in FILES}
    try:
        for harm in harms:
            (folder / harm.name).write_bytes(harm.of((folder / harm.name).read_bytes()))
        same = all((folder / name).read_bytes() == data for name, data in before.items())
        assert found(whole) == (100 if same else 10)
    finally:
        for name, data in before.items():
            (folder / name).write_bytes(data)


def test_what_stands_in_the_place_of_a_file_is_none(home: Path) -> None:
    for name in FILES:
        path = home / "step-100" / name
        data = path.read_bytes()
        for put in (path.mkdir, lambda path=path: path.symlink_to(path.name), lambda path=path: path.symlink_to("no")):
            path.unlink()
            put()
            assert found(home) == 10
            path.rmdir() if path.is_dir() else path.unlink()
            path.write_bytes(data)
    assert found(home) == 100


def test_the_parts_of_two_are_none(home: Path) -> None:
    """Each file is whole, and they do not belong together."""
    for name in FILES:
        with changed(home / "step-100" / name):
            shutil.copy(home / "step-10" / name, home / "step-100" / name)
            assert found(home) == 10
    assert found(home) == 100


def test_one_that_does_not_fit_is_passed_over(home: Path) -> None:
    shutil.copytree(home / "step-10", home / "step-300")
    asked: list[int] = []

    def fits(step: int, weights: Any, numbers: Any) -> bool:
        asked.append(step)
        return numbers["step"] == step

    latest = checkpoint.latest(home, fits)
    assert latest is not None
    assert latest[1]["step"] == 100
    assert asked == [300, 100]


def test_one_of_before_manifests_had_a_seal_is_read(home: Path) -> None:
    path = home / "step-100" / "manifest.json"
    old = json.loads(path.read_bytes())
    seal = old.pop("seal")
    for format, good in ((1, True), (2, False), (3, False)):
        path.write_text(json.dumps({**old, "format": format}, indent=2))
        assert found(home) == (100 if good else 10), format
        path.write_text(json.dumps({**old, "format": format, "seal": seal}, indent=2))
        assert found(home) == (100 if format == 2 else 10), format


def test_where_none_is_good_one_line_says_so(home: Path) -> None:
    for step in (10, 100):
        edit_weights(home / f"step-{step}")
    assert checkpoint.latest(home) is None
    with pytest.raises(
        ValueError, match=r"^no checkpoint in .* can be used \(step-100, step-10\): damaged, or "
    ) as caught:
        checkpoint.check_none(home)
    assert str(home) in str(caught.value)
    assert "remove them to begin this stage anew" in str(caught.value)
    assert "\n" not in str(caught.value)
    for step in range(1, 6):
        (home / f"step-{step}").mkdir()
    with pytest.raises(ValueError, match=r"\(step-100, step-10, step-5, step-4 and 3 more\)"):
        checkpoint.check_none(home)


def test_where_there_are_none_nothing_is_said(tmp_path: Path) -> None:
    checkpoint.check_none(tmp_path)
    (tmp_path / ".step-3.77.tmp").mkdir()  # of a process that was killed while it wrote its first
    checkpoint.check_none(tmp_path)


# What stays -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("newest", [1, 2, 3])
def test_the_newest_stay_and_what_is_later_is_not_counted(newest: int, tmp_path: Path) -> None:
    for step in (900, 901, 902):  # of another run, or damaged
        shutil.copytree(checkpoint.save(tmp_path / "other", 5, state(5), {"step": 5}), tmp_path / f"step-{step}")
    for step in range(1, 7):
        checkpoint.save(tmp_path, step, state(step), {"step": step}, Keeping(newest))
        names = {int(p.name[5:]) for p in tmp_path.glob("step-*")} - {900, 901, 902}
        assert names == set(range(max(1, step - newest + 1), step + 1))


@given(
    newest=st.integers(1, 4),
    planned=st.integers(1, 12),
    trend=st.integers(1, 30),
    stops=st.sets(st.integers(1, 120), max_size=12),
)
def test_where_it_goes_back_to_is_a_function_of_the_plan(
    newest: int, planned: int, trend: int, stops: set[int]
) -> None:
    """At no time is a landmark gone that it would go back to, and what was saved in between does not matter."""
    keeping = Keeping(newest, planned, trend)
    there: list[int] = []
    for now in range(1, 121):
        back = now - trend
        every = keeping.landmarks(range(planned, now, planned))
        expected = max((n for n in every if n <= back), default=min(every, default=None))
        mine = keeping.landmarks(there)
        assert max((n for n in mine if n <= back), default=min(mine, default=None)) == expected
        if expected is not None and every[0] <= back:
            assert 0 <= back - expected < 2 * max(trend, planned)
        if now % planned == 0 or now in stops:
            stay = keeping.stay([*there, now], now)
            there = sorted(stay)
            assert now in stay
            assert len(stay) <= newest + 3


def test_going_back(tmp_path: Path) -> None:
    keeping = Keeping(2, planned=10, trend=20)
    for step in (*range(10, 61, 10), 63):
        checkpoint.save(tmp_path, step, state(step), {"step": step}, keeping)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-40", "step-60", "step-63"]

    def back(to: int) -> int | None:
        before = checkpoint.before(tmp_path, to, keeping)
        return before and before[1]["step"]

    assert [back(to) for to in (70, 63, 60, 59, 40, 39, 0)] == [60, 60, 60, 40, 40, 40, 40]
    edit_weights(tmp_path / "step-40")
    assert [back(to) for to in (60, 59)] == [60, 60]
    edit_weights(tmp_path / "step-60")
    assert back(60) is None


# Left behind by a kill ------------------------------------------------------------------------------------


def test_what_a_kill_left_is_removed(home: Path) -> None:
    for name in (".step-200.77.tmp", ".step-100.77.old.tmp"):
        shutil.copytree(home / "step-10", home / name)
    (home / ".metrics.jsonl.77.tmp").write_bytes(b"not ours")
    checkpoint.mend(home)
    assert sorted(p.name for p in home.iterdir()) == [".metrics.jsonl.77.tmp", "step-10", "step-100"]
    assert found(home) == 100


def test_one_that_was_moved_aside_is_put_back(home: Path) -> None:
    """Killed between the two renames that put a checkpoint in the place of another."""
    (home / "step-100").replace(home / ".step-100.77.old.tmp")
    shutil.copytree(home / "step-10", home / ".step-100.77.tmp")
    assert found(home) == 10
    checkpoint.mend(home)
    assert sorted(p.name for p in home.iterdir()) == ["step-10", "step-100"]
    assert found(home) == 100


# A full disk ----------------------------------------------------------------------------------------------


class Usage(NamedTuple):
    total: int = 10**9
    used: int = 10**9
    free: int = 0


def files(home: Path) -> dict[str, bytes]:
    return {str(p.relative_to(home)): p.read_bytes() for p in home.rglob("*") if p.is_file()}


def test_too_little_room_is_said_before_anything_is_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = {"w": torch.zeros(1_000_000)}  # 4 MB, and a little for what is beside it
    before = files(home)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: Usage(free=3_500_000))
    with pytest.raises(OSError, match="is full") as caught:
        checkpoint.save(home, 200, large, {"step": 200})
    assert str(caught.value) == (
        f"the checkpoint of step 200 cannot be written to {home}: 5.0 MB are needed and 3.5 MB are free (the disk is "
        "full); the last checkpoint, of step 100, is whole; make room and go on with --resume"
    )
    assert files(home) == before
    edit_weights(home / "step-100")
    with pytest.raises(OSError, match=r"the last checkpoint, of step 10, is whole;"):
        checkpoint.save(home, 200, large, {"step": 200})
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: Usage(free=6_000_000))
    checkpoint.save(home, 200, large, {"step": 200})


def test_the_first_one_has_none_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: Usage())
    with pytest.raises(OSError, match=r"; no checkpoint was written before; make room and go on with --resume$"):
        checkpoint.save(tmp_path / "stage", 1, state(1), {"step": 1})
    assert list((tmp_path / "stage").iterdir()) == []


class Disk:
    """Counts what is written, and fails at the n-th time; half of what that was to write is written."""

    def __init__(self, fails: int, code: int) -> None:
        self.fails, self.code, self.calls = fails, code, 0

    def full(self) -> bool:
        self.calls += 1
        return self.calls >= self.fails

    def open(self, path: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if not set(mode) & set("wax+"):
            return REAL_OPEN(path, mode, *rest, **more)
        disk = self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                if disk.full():
                    super().write(memoryview(data)[: len(data) // 2])
                    raise OSError(disk.code, os.strerror(disk.code))
                return super().write(data)

        return io.BufferedWriter(Raw(path, mode.replace("b", "").replace("t", "")))

    def fsync(self, descriptor: int) -> None:
        if self.full():
            raise OSError(self.code, os.strerror(self.code))
        REAL_FSYNC(descriptor)


REAL_OPEN, REAL_FSYNC = io.open, os.fsync


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize("again", [False, True], ids=["new", "in the place of a damaged one"])
def test_a_disk_that_fills_up_at_any_write(
    code: int, again: bool, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = 100 if again else 200
    if again:
        edit_weights(home / "step-100")
    good = 10 if again else 100
    before = files(home)
    fails = 0
    while True:
        fails += 1
        disk = Disk(fails, code)
        with monkeypatch.context() as patch:
            patch.setattr(io, "open", disk.open)
            patch.setattr(os, "fsync", disk.fsync)
            try:
                checkpoint.save(home, step, state(step), {"step": step, "skipped": 0})
                break
            except OSError as error:
                said = str(error)
        kind = "put that right" if code == errno.EIO else "make room"
        assert said.startswith(f"the checkpoint of step {step} cannot be written to {home}: 1.0 MB are needed and "), (
            said
        )
        assert f"({os.strerror(code)}); the last checkpoint, of step " in said
        assert said.endswith(f", is whole; {kind} and go on with --resume")
        after = files(home)
        if found(home) == good:
            assert after == before
            assert f"of step {good}, is whole" in said
        else:  # all was written but the entry of its folder
            assert found(home) == step
            shutil.rmtree(home / f"step-{step}")
            for name, data in before.items():
                (home / name).parent.mkdir(exist_ok=True)
                (home / name).write_bytes(data)
        assert not [p for p in home.iterdir() if p.name.startswith(".")]
    assert fails > 6
    assert found(home) == step


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from sfumato.io import checkpoint
home = Path(sys.argv[1])
for step in (1, 2):
    checkpoint.save(home, step, {"w": torch.full((1000,), float(step))}, {"step": step})
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try:
    checkpoint.save(home, 3, {"w": torch.zeros(100_000)}, {"step": 3})
except OSError as error:
    print(error)
"""


def test_a_process_that_may_not_write_more(tmp_path: Path) -> None:
    """The kernel refuses, in the middle of a file."""
    environment = os.environ | {"PYTHONPATH": str(Path(checkpoint.__file__).resolve().parents[2])}
    command = [sys.executable, "-c", LIMITED, tmp_path]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert said.startswith(f"the checkpoint of step 3 cannot be written to {tmp_path}: 1.4 MB are needed and ")
    end = f"({os.strerror(errno.EFBIG)}); the last checkpoint, of step 2, is whole; make room and go on with --resume"
    assert said.strip().endswith(end)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-1", "step-2"]
    latest = checkpoint.latest(tmp_path)
    assert latest is not None
    assert torch.equal(latest[0]["w"], torch.full((1000,), 2.0))
