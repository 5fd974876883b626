"""Two processes train as one does: the same losses, the same order of data; each goes on where the other stopped."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pair
import pytest
import torch

from sfumato.io import tensors
from sfumato.recipes import diffusion, emoji
from sfumato.world import ALONE, World, joined

pytestmark = pytest.mark.xdist_group("two processes")  # what they trained is made once
CLOSE = 1e-5
MANNERS = ("ddp", "fsdp")


class Trained(NamedTuple):
    """Runs of one process and of two, and what each of the two found."""

    data: Path
    out: Path
    order: list[list[int]]  # of one process
    found: list[dict[str, Any]]  # of two


def together(data: Path, out: Path, *more: str) -> None:
    """Two processes, to their end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join(p for p in sys.path if p)
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    two = [
        subprocess.Popen(
            [
                sys.executable,
                "-W",
                "error::UserWarning",
                str(Path(__file__).with_name("pair.py")),
                str(data),
                str(out),
                *more,
            ],
            env={**os.environ, **told, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": path},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=300)[1] for process in two]
    finally:
        for process in two:
            process.kill()
    assert [process.returncode for process in two] == [0, 0], said
    assert said == ["", ""]


def made(root: Path, *more: str) -> Trained:
    data, out = pair.fill(root / "things"), root / "out"
    order = pair.whole(data, out / "one", ALONE)
    pair.codes(data, out / "one-codes", ALONE)
    for manner in MANNERS:
        pair.back(out / "one", out / f"one-to-{manner}", ALONE)
    pair.begun(out / "one", out / "fsdp", ALONE)
    together(data, out, *more)
    return Trained(data, out, order, [json.loads((out / f"found-{n}.json").read_text()) for n in range(2)])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return made(tmp_path_factory.mktemp("runs"))


def losses(home: Path, stage: str = "diffusion") -> list[float]:
    return [json.loads(line)["loss"] for line in (home / stage / "metrics.jsonl").read_text().splitlines()]


def off(a: Path, b: Path, stage: str = "diffusion") -> float:
    mine, others = losses(a, stage), losses(b, stage)
    assert len(mine) == len(others) == pair.STEPS
    return max(abs(x - y) for x, y in zip(mine, others, strict=True))


@pytest.mark.parametrize(("name", "stage"), [("ddp", "first-stage"), ("ddp", "diffusion"), ("fsdp", "diffusion")])
def test_two_processes_train_as_one(runs: Trained, name: str, stage: str) -> None:
    """The times are stratified: they depend on the place in the whole batch."""
    assert off(runs.out / "one", runs.out / name, stage) < CLOSE


def test_the_losses_say_whether_the_order_is_the_same(runs: Trained) -> None:
    """Neighbouring steps differ by far more than the two processes may."""
    assert min(abs(x - y) for x, y in pairwise(losses(runs.out / "one"))) > 10 * CLOSE


@pytest.mark.parametrize("name", MANNERS)
def test_the_order_of_data(runs: Trained, name: str) -> None:
    for found in runs.found:
        assert found[name] == runs.order
        assert found[f"one to {name}"] == runs.order[pair.MIDDLE :]
    assert len(runs.order) == pair.STEPS


@pytest.mark.parametrize("name", MANNERS)
def test_one_process_goes_on_where_two_stopped(runs: Trained, name: str) -> None:
    home = pair.back(runs.out / name, runs.out / f"{name}-to-one", ALONE)
    assert pair.whole(runs.data, home, ALONE) == runs.order[pair.MIDDLE :]
    assert off(runs.out / "one", home) < CLOSE


@pytest.mark.parametrize("name", MANNERS)
def test_two_go_on_where_one_stopped(runs: Trained, name: str) -> None:
    assert off(runs.out / "one", runs.out / f"one-to-{name}") < CLOSE


def test_weights_are_divided(runs: Trained) -> None:
    """Each process writes about half, and no file of one process is there."""
    parts = sorted((runs.out / "fsdp" / "diffusion" / f"step-{pair.STEPS}").glob("*.safetensors"))
    sizes = [sum(v.numel() for v in tensors.load(path).values()) for path in parts]
    assert len(sizes) == 2
    assert max(sizes) < 1.2 * min(sizes)
    assert (runs.out / "ddp" / "diffusion" / f"step-{pair.STEPS}" / "state.safetensors").is_file()


@pytest.mark.parametrize("name", MANNERS)
def test_what_is_handed_over_is_whole(runs: Trained, name: str) -> None:
    """The model's files have the same tensors, nearly equal."""
    one, other = (tensors.load(runs.out / which / "model" / "ema.safetensors") for which in ("one", name))
    assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in other.items()}
    assert max(float((one[k].float() - other[k].float()).abs().max()) for k in one) < 2e-3  # they are kept in halves


def test_latents_are_made_by_all(runs: Trained) -> None:
    """In the same order, nearly the same numbers: those of the first stage differ by rounding."""
    one, two = (next((runs.out / which / "latents").rglob("part-*.safetensors")) for which in ("one", "ddp"))
    mine, others = tensors.load(one), tensors.load(two)
    assert torch.equal(mine["keys"], others["keys"])
    assert torch.allclose(mine["mean"], others["mean"], atol=1e-4)


def test_a_codebook_is_one(runs: Trained) -> None:
    """Which entries are dead, and where they are put, is decided by the latents of both."""
    assert off(runs.out / "one-codes", runs.out / "codes", "") < CLOSE
    dead = [json.loads(line)["dead codes"] for line in (runs.out / "codes" / "metrics.jsonl").read_text().splitlines()]
    assert max(dead) > 0


def test_what_they_tell_each_other(runs: Trained) -> None:
    for found in runs.found:
        assert found["words"] == {
            "told": {"from": 0},
            "any": True,
            "none": False,
            "mean": [0.5, 2.0],
            "gathered": [[0], [0], [1], [1]],
            "ValueError": "ValueError: a wrong word",
            "OSError": "OSError: the disk is full",
        }


def test_who_is_asked_to_stop_stops_both(runs: Trained) -> None:
    first, second = (found["stopped"] for found in runs.found)
    assert first == second
    assert (runs.out / "stopped" / "first-stage" / f"step-{first}" / "manifest.json").is_file()


# One process ----------------------------------------------------------------------------------------------
def test_a_batch_that_cannot_be_shared() -> None:
    with pytest.raises(
        ValueError, match=r"^a batch of 9 cannot be divided among 2 processes; take a multiple of that$"
    ):
        World(0, 2).part(9)
    assert [World(rank, 3).part(9) for rank in range(3)] == [slice(0, 3), slice(3, 6), slice(6, 9)]


def test_what_cannot_be_shared_is_refused_before_anything_is_written(runs: Trained, tmp_path: Path) -> None:
    two, material = World(0, 2), emoji.material(runs.data, 16)
    for changes, message in (
        ({"batch": 7}, "^a batch of 7 cannot be divided among 2 processes; "),
        ({"batch": 8, "accumulate": 8}, "^a process has 4 pictures of a step, which cannot be cut into 8 parts; "),
    ):
        with pytest.raises(ValueError, match=message):
            diffusion.run(pair.with_plan(**changes), material, tmp_path / "run", two)
    assert not (tmp_path / "run").exists()


def test_who_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined("cpu") as world:
        assert world == ALONE
        assert not world.sharded


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "there is no device 'gpu'; take cpu, cuda or cuda:N"),
        ("meta", "trainings run on the CPU and on CUDA devices, not on 'meta'; take cpu or cuda"),
        ("cuda:77", "there is no device 'cuda:77'; "),
    ],
)
def test_devices_that_are_not_there(device: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"), joined(device):
        pass


def test_a_checkpoint_of_two_that_is_damaged_is_passed_over(runs: Trained, tmp_path: Path) -> None:
    home = tmp_path / "run"
    shutil.copytree(runs.out / "fsdp", home)
    part = sorted((home / "diffusion" / f"step-{pair.STEPS}").glob("*.safetensors"))[1]
    part.write_bytes(part.read_bytes()[:-1] + b"\x00\x01")
    assert pair.whole(runs.data, home, ALONE) == runs.order[pair.MIDDLE :]
    part = sorted((runs.out / "fsdp" / "diffusion" / f"step-{pair.MIDDLE}").glob("*.safetensors"))[0]
    home = tmp_path / "another"
    shutil.copytree(runs.out / "fsdp", home)
    shutil.rmtree(home / "diffusion" / f"step-{pair.STEPS}")
    (home / part.relative_to(runs.out / "fsdp")).unlink()
    with pytest.raises(ValueError, match=r"^no checkpoint in .* can be used"):
        pair.whole(runs.data, home, ALONE)


# More, in minutes -----------------------------------------------------------------------------------------
@pytest.mark.slow
def test_more_of_two(tmp_path: Path) -> None:
    """Resumes are exact; parts of a batch, whose activations are made twice, are the batch."""
    out = made(tmp_path, "slow").out
    for name in ("ddp-parts", "fsdp-parts", "fsdp-to-ddp"):
        assert off(out / "one", out / name) < CLOSE
    for name in MANNERS:
        same(out / name, out / f"{name}-again")


def same(home: Path, again: Path) -> None:
    """All tensors to the bit, though DDP begins anew; torch does not write parts in the same order each time."""
    files = [*(home / "diffusion" / f"step-{pair.STEPS}").iterdir(), *(home / "model").iterdir()]
    paths = [path for path in files if path.suffix == ".safetensors"]
    assert len(paths) >= 2
    for path in paths:
        mine, others = tensors.load(path), tensors.load(again / path.relative_to(home))
        assert mine.keys() == others.keys()
        assert [name for name in mine if not torch.equal(mine[name], others[name])] == []
