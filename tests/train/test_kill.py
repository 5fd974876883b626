"""Processes that train are killed at any moment and go on with `--resume`, to the bytes of one that was left alone.

`SFUMATO_KILL_SEED=17 pytest -m "slow or not slow" tests/train/test_kill.py` draws the moments that a failure noted.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

import tiny
from fill import inp
from sfumato.cli.main import main
from sfumato.io import model_folder, pictures

ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(Path(model_folder.__file__).resolve().parents[2]),
    "OMP_NUM_THREADS": str(torch.get_num_threads()),  # another number would round otherwise
}


@dataclass(frozen=True)
class Case:
    """A training of a few seconds that saves at each step."""

    recipe: str
    stages: dict[str, int]  # folder -> steps
    plans: tuple[str, ...]  # the settings that they have
    changes: tuple[str, ...]
    base: bool = False  # whether it goes on from a model that is there

    def begun(self, data: Path, workers: int) -> list[str]:
        """What it is begun with; the model is beside the pictures."""
        model = ["--model", str(data.parent / "tiny")] if self.base else []
        return ["--data", str(data), *model, "--set", *self.settings(workers)]

    def settings(self, workers: int) -> list[str]:
        plans = [f"{plan}.{s}" for plan in self.plans for s in ("save=1", f"workers={workers}", "batch=3", "warmup=2")]
        steps = [f"{plan}.steps={n}" for plan, n in zip(self.plans, self.stages.values(), strict=True)]
        return [*self.changes, *plans, *steps]


CASES = {
    "emoji": Case(
        "emoji",
        {"first-stage": 12, "diffusion": 20},
        ("first_stage.plan", "diffusion.plan"),
        (
            *("model.first_stage.channels=8", "model.first_stage.mult=[1,2]", "model.first_stage.latent_channels=4"),
            *(f"model.conditioner.encoder.{s}" for s in ("dim=16", "depth=1", "length=10", "heads=2")),
            *("model.unet.channels=4", "model.unet.width=16", "model.unet.mult=[1,2]", "model.unet.attention=[2]"),
            *("model.unet.context_dim=16", "model.unet.vector_dim=16", "model.unet.head_dim=8", "model.resolution=16"),
            *("first_stage.losses.perceptual=0", "diffusion.plan.preview=15", "defaults.steps=1"),
            "defaults.guidance=1.0",
        ),
    ),
    "pixels": Case(
        "pixels",
        {"diffusion": 30},
        ("diffusion.plan",),
        (
            *("model.unet.width=8", "model.unet.mult=[1,2]", "model.unet.head_dim=8", "defaults.steps=1"),
            *("diffusion.plan.preview=20", "defaults.guidance=1.0"),
        ),
    ),
    "vq-f4": Case(
        "vq-f4",
        {"first-stage": 24},
        ("run.plan",),
        (
            *("size.channels=4", "size.latent_channels=2", "size.codebook=16", "resolution=32", "run.crop=16"),
            *("run.losses.perceptual=0", "run.losses.patience=5", "run.adversary.critic.width=4"),
            *("run.adversary.critic.layers=1", "run.adversary.start=5", "run.adversary.warmup=4"),
        ),
    ),
    "lora": Case(
        "lora",
        {"diffusion": 25},
        ("diffusion.plan",),
        ("lora.rank=2", "previews=1", "diffusion.plan.preview=15"),
        base=True,
    ),
    "dreambooth": Case(
        "dreambooth",
        {"diffusion": 20},
        ("diffusion.plan",),
        (
            *("prompt=two zog dogs", "prior.prompt=two dogs", "prior.pictures=20", "prior.steps=1", "lora.rank=2"),
            *("previews=1", "diffusion.plan.preview=15"),
        ),
        base=True,
    ),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures with captions, in two classes; and beside them a model."""
    root = tmp_path_factory.mktemp("data") / "things"
    tiny.folder(root.parent / "tiny")
    for i, caption in enumerate([*tiny.CAPTIONS, "a blue house", "one cat, 3d"] * 2):
        path = root / ("ants", "bees")[i % 2] / f"{i}.png"
        pictures.save_png((inp(f"picture {i}", 3, 16, 16) / 2).clamp(-1, 1), path, {})
        path.with_suffix(".txt").write_text(caption)
    return root


Whole = Callable[[str], tuple[Path, float]]


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Where a case was trained by this process, without workers, and how many seconds that took."""
    found: dict[str, tuple[Path, float]] = {}

    def trained(name: str) -> tuple[Path, float]:
        if name not in found:
            home = tmp_path_factory.mktemp("whole") / "run"
            case, began = CASES[name], time.monotonic()
            arguments = ["train", case.recipe, "--out", str(home), *case.begun(data, 0)]
            assert main(arguments) == 0
            found[name] = home, time.monotonic() - began
        return found[name]

    return trained


# Lives ----------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """A training in a folder, which is begun and gone on with, and ended by signals at moments that `rng` draws."""

    case: Case
    data: Path
    home: Path
    workers: int
    span: float  # seconds, from the first line on, in which a moment lies
    rng: random.Random
    moments: list[str] = field(default_factory=list)

    def begin(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "sfumato.cli.main", "train", self.case.recipe, "--out", str(self.home)]
        if (self.home / "config.json").exists():
            command += ["--resume"]
        else:
            command += self.case.begun(self.data, self.workers)
        return subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)

    def kill(self) -> bool:
        """One life; whether it was killed before its end."""
        with self.begin() as process:
            assert process.stderr is not None
            how = self.rng.choices(["while it saves", "anywhere", "before it says a word"], [5, 5, 1])[0]
            if how == "before it says a word":
                time.sleep(self.rng.uniform(0, 3))
            else:
                process.stderr.readline()
                time.sleep(self.rng.uniform(0, self.span))
            while how == "while it saves" and process.poll() is None and not self.saving():
                time.sleep(0.0002)
            process.send_signal(signal.SIGKILL)
            said = process.communicate()[1]
        assert process.returncode in (0, -signal.SIGKILL), said
        self.moments.append(f"{how}, at {sorted(str(p.relative_to(self.home)) for p in self.home.glob('*/*step-*'))}")
        return process.returncode != 0

    def saving(self) -> bool:
        return any(self.home.glob("*/.step-*"))

    def end(self) -> None:
        """The last life."""
        with self.begin() as process:
            said = process.communicate()[1]
        assert process.returncode == 0, said

    def check(self, expected: Path) -> None:
        for stage, last in self.case.stages.items():
            for name in ("state.safetensors", "manifest.json"):
                mine, other = ((home / stage / f"step-{last}" / name).read_bytes() for home in (self.home, expected))
                assert mine == other, f"{stage}: {name}"
            log = (self.home / stage / "metrics.jsonl").read_text()
            assert [json.loads(line)["step"] for line in log.splitlines()] == list(range(1, last + 1))
            assert sorted(p.name for p in (self.home / stage).glob(".*")) == []
            names = {p.name for p in (self.home / stage).glob("step-*")}
            assert names == {p.name for p in (expected / stage).glob("step-*")}
        weights = sorted(p.name for p in (expected / "model").glob("*.safetensors"))
        assert weights == sorted(p.name for p in (self.home / "model").glob("*.safetensors"))
        assert weights
        for name in weights:
            assert (self.home / "model" / name).read_bytes() == (expected / "model" / name).read_bytes(), name


@contextmanager
def drawn() -> Iterator[random.Random]:
    """Moments from a seed that a failure notes."""
    seed = int(os.environ.get("SFUMATO_KILL_SEED") or random.SystemRandom().getrandbits(32))
    try:
        yield random.Random(seed)
    except BaseException as error:
        error.add_note(f"SFUMATO_KILL_SEED={seed}")
        raise


def killed(name: str, workers: int, kills: int, whole: Whole, data: Path, tmp_path: Path) -> None:
    """So many kills, of one run after the other where one comes to its end before."""
    expected, seconds = whole(name)
    with drawn() as rng:
        while kills > 0:
            home = tmp_path / f"before {kills}" / "run"
            run = Run(CASES[name], data, home, workers, min(seconds, 4.0) / max(4, kills), rng)
            try:
                while kills > 0 and run.kill():
                    kills -= 1
                run.end()
                run.check(expected)
            except BaseException as error:
                error.add_note("\n".join(run.moments))
                raise
            shutil.rmtree(home)


def test_killed_five_times(whole: Whole, data: Path, tmp_path: Path) -> None:
    killed("emoji", 2, 5, whole, data, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", CASES)
def test_killed_again_and_again(name: str, workers: int, whole: Whole, data: Path, tmp_path: Path) -> None:
    killed(name, workers, 10, whole, data, tmp_path)


# Terminated -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_terminated_again_and_again(name: str, whole: Whole, data: Path, tmp_path: Path) -> None:
    """Wherever it is, it says how to go on, and does not fail."""
    expected, seconds = whole(name)
    with drawn() as rng:
        run = Run(CASES[name], data, tmp_path / "run", 2, 0.0, rng)
        again = f"; go on with: sfumato train {name} --out {run.home} --resume"
        for _ in range(4):
            with run.begin() as process:
                assert process.stderr is not None
                lines = [process.stderr.readline()]
                time.sleep(rng.uniform(0, min(seconds, 4.0) / 3))
                process.send_signal(signal.SIGTERM)
                lines += process.communicate()[1].splitlines()
            late = process.returncode == -signal.SIGTERM and lines[-1].startswith("model: ")  # while Python was ending
            assert process.returncode == 0 or late, lines
            if not lines[-1].endswith(again):  # it was done by then
                assert (run.home / "model").is_dir(), lines
        run.end()
        run.check(expected)
