"""Checkpoints: what was saved comes back to the bit, and a damaged one is passed over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sfumato.io import checkpoint


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
    for name in ("step-x", "step-200.old", ".step-300.1.tmp"):
        (home / name).mkdir()
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
