"""One stage of a run with its files: a line of metrics a step, checkpoints, and where to go on after a stop."""

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO, TypeVar

import torch
from torch import Tensor

from sfumato.io import atomic, checkpoint
from sfumato.io.checkpoint import Keeping, Sharing
from sfumato.train import stop
from sfumato.train.fit import Batches, Phase, Progress, fit
from sfumato.train.state import under
from sfumato.train.stop import Stopped
from sfumato.train.watch import TREND, Watch
from sfumato.world import ALONE, World

METRICS = "metrics.jsonl"
ROLLBACKS = "rollbacks.jsonl"
WATCH = "watch."  # what it remembers has this before its names
BLOCK = 2**16  # bytes of the log that are read at once
_LINE = re.compile(rb"[^\n]*\n|[^\n]+")

T = TypeVar("T")


@dataclass(frozen=True)
class Rollback:
    """The stage went wrong at `at`, and goes on from its checkpoint of `step` with a weaker adversary."""

    at: int
    step: int
    cause: str


@dataclass(frozen=True)
class Remedy:
    """What is tried, once, when a stage goes wrong: `apply` changes the states, `applied` says that it has."""

    apply: Callable[[], None]
    applied: Callable[[], bool]


@dataclass(frozen=True)
class _Stage:
    """What is saved, and where."""

    phases: Sequence[Phase]
    home: Path
    watch: Watch | None
    keeping: Keeping
    world: World
    also: Sequence[Callable[[Progress], None]]

    @property
    def step(self) -> int:
        return self.phases[0].state.step


def train(
    phases: Phase | Sequence[Phase],
    batches: Batches,
    home: Path,
    world: World = ALONE,
    *,
    watch: Callable[[], Watch] | None = None,
    remedy: Remedy | None = None,
    begin: Callable[[], None] | None = None,
    also: Sequence[Callable[[Progress], None]] = (),
) -> Iterator[Progress | Rollback]:
    """`fit`, from the newest checkpoint in `home` on, saved each `plan.save` steps and at the end.

    What is in `also` is called after each step and before that is saved: what it writes is never behind a checkpoint,
    and after a stop in between it is called for the same step again.

    Where there is no checkpoint, `begin` is called first: it may change the first weights. ValueError if there are
    some and none is good; OSError, with the last good one as it was, if one cannot be written.

    A stage that was finished yields nothing. One that goes wrong, as `watch` or `fit` find, raises FloatingPointError
    with the cause; with a `remedy` that has not been applied it goes back first, to a checkpoint from before that
    began where there is one, and on from there. One that is asked to stop (stop.py) is saved first.
    """
    phases = [phases] if isinstance(phases, Phase) else phases
    plan = phases[0].state.plan
    keeping = Keeping(plan.keep, planned=plan.save, trend=TREND if remedy else 0)
    stage = _Stage(phases, home, watch() if watch else None, keeping, world, also)
    world.by_first(lambda: _mended(home))
    if not _restore(stage):
        world.by_first(lambda: checkpoint.check_none(home))
        if begin is not None:
            begin()
            phases[0].state.follow()
    while True:
        try:
            yield from _steps(stage, batches)
            return
        except FloatingPointError as error:
            at = stage.step
            if remedy is None or remedy.applied() or not _restore(stage, before=at - TREND):
                raise
            remedy.apply()
            rollback = Rollback(at, stage.step, str(error))
            world.by_first(lambda: _gone_back(home, rollback))  # noqa: B023 - called here
            _save(stage)
            yield rollback


def _mended(home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    checkpoint.mend(home)


def _gone_back(home: Path, rollback: Rollback) -> None:
    """Take note of it before it is saved: after a kill in between all of this is done again."""
    checkpoint.forget(home, after=rollback.step)
    _note(home / ROLLBACKS, rollback)


def rollbacks(home: Path) -> int:
    """How often a stage went back."""
    path = home / ROLLBACKS
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


def _steps(stage: _Stage, batches: Batches) -> Iterator[Progress]:
    plan, world = stage.phases[0].state.plan, stage.world
    with _log(stage) as log, stop.awaited():
        for progress in fit(stage.phases, batches, world):
            if log is not None:
                _append(log, json.dumps(_line(progress)).encode() + b"\n", stage.home)
            wrong = stage.watch.see(progress.losses) if stage.watch else None
            if wrong:
                raise FloatingPointError(f"{wrong}, at step {progress.step}")
            for do in stage.also:
                do(progress)
            saved = progress.every(plan.save)
            if saved:
                _save(stage, log)
            yield progress
            if world.any(stop.asked()):
                if not saved:
                    _save(stage, log)
                raise Stopped(progress.step)


@contextmanager
def _log(stage: _Stage) -> Iterator[FileIO | None]:
    """The log, cut after the step where the stage goes on; the first process writes it."""
    if not stage.world.first:
        yield None
        return
    metrics = stage.home / METRICS
    _cut(metrics, stage.step)
    with metrics.open("ab", buffering=0) as log:
        yield log


# Checkpoints ----------------------------------------------------------------------------------------------
def _save(stage: _Stage, log: FileIO | None = None) -> None:
    if log:
        os.fsync(log.fileno())  # so that no checkpoint is ahead of the log
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, int] = {}
    for prefix, phase in zip(_prefixes(stage.phases), stage.phases, strict=True):
        tensors |= {prefix + k: v for k, v in phase.state.tensors().items()}
        numbers |= {prefix + k: v for k, v in phase.state.numbers().items()}
    if stage.watch:
        tensors |= {WATCH + k: v for k, v in stage.watch.tensors().items()}
    checkpoint.save(stage.home, stage.step, tensors, numbers, stage.keeping, stage.world)


def _restore(stage: _Stage, before: int | None = None) -> bool:
    """Whether there was a checkpoint to go on from; with `before`, one to go back to."""

    def fits(step: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, int]) -> bool:
        *own, watched = _parts(stage, tensors)
        alike = all(
            phase.state.fits(mine, said) and said["step"] == step
            for phase, mine, said in zip(stage.phases, own, _parts(stage, numbers), strict=False)
        )
        return alike and (stage.watch.fits(watched) if stage.watch else not watched)

    def like(said: Mapping[str, Tensor]) -> dict[str, Tensor]:
        *own, watched = _parts(stage, said)
        out = {WATCH + name: torch.empty_like(v, device="cpu") for name, v in watched.items()}
        for prefix, phase, mine in zip(_prefixes(stage.phases), stage.phases, own, strict=True):
            out |= {prefix + name: v for name, v in phase.state.like(mine).items()}
        return out

    home, world = stage.home, stage.world
    sharing = Sharing(like, lambda step: _agree(step, stage)) if world.sharded else None
    found = (
        checkpoint.latest(home, fits, sharing)
        if before is None
        else checkpoint.before(home, before, stage.keeping, fits, sharing)
    )
    if sharing is None:
        _agree(-1 if found is None else found[1]["step"], stage)
    if found is None:
        return False
    *own, watched = _parts(stage, found[0])
    for phase, mine, numbers in zip(stage.phases, own, _parts(stage, found[1]), strict=False):
        phase.state.load(mine, numbers)
    if stage.watch:
        stage.watch.load(watched)
    return True


def _agree(step: int, stage: _Stage) -> None:
    """ValueError if the processes go on from different steps; -1 is none."""
    steps = stage.world.gathered(torch.tensor([step], device=stage.world.device)).tolist()
    if len(set(steps)) > 1:
        raise ValueError(
            f"not all processes find the same checkpoints in {stage.home} (their last steps: "
            f"{', '.join('none' if n < 0 else str(n) for n in steps)}); it must be a folder that all machines share"
        )


def _parts(stage: _Stage, saved: Mapping[str, T]) -> list[dict[str, T]]:
    """What was saved of each phase, and last of the watch."""
    later = [*_prefixes(stage.phases)[1:], WATCH]
    first = {k: v for k, v in saved.items() if not k.startswith(tuple(later))}
    return [first, *(under(prefix, saved) for prefix in later)]


def _prefixes(phases: Sequence[Phase]) -> list[str]:
    return ["", *(f"phase {n}." for n in range(2, len(phases) + 1))]


# Lines ----------------------------------------------------------------------------------------------------
def _line(p: Progress) -> dict[str, object]:
    return {"step": p.step, **p.losses, "rate": p.rate, "norm": p.norm, "seconds": p.seconds, "images": p.images}


def _append(log: FileIO, line: bytes, home: Path) -> None:
    try:
        while line:
            line = line[log.write(line) :]
    except OSError as error:
        raise checkpoint.failed(home, METRICS, error) from None


def _cut(metrics: Path, step: int) -> None:
    """Let the log end with the line of this step: later ones will be done again, and a kill may have cut the last."""
    if metrics.exists():
        with metrics.open("r+b") as log:
            log.truncate(_end(log, step))


def _end(log: BinaryIO, step: int) -> int:
    """Where the last line of a step up to this one ends; read from the end."""
    begin = end = log.seek(0, os.SEEK_END)
    text = b""
    while begin > 0 and step > 0:
        begin -= (size := min(max(BLOCK, len(text)), begin))
        log.seek(begin)
        text = log.read(size) + text
        first, *lines = _LINE.findall(text)
        for line in reversed(lines if begin else [first, *lines]):
            if _done(line) <= step:
                return end
            end -= len(line)
        text = first
    return 0


def _done(line: bytes) -> float:
    """The step of a line; of one that is not whole, or no line of ours, one that is never reached."""
    try:
        said = json.loads(line)["step"] if line.endswith(b"\n") else None
    except (ValueError, LookupError, TypeError, RecursionError):
        return math.inf
    return said if type(said) is int else math.inf


def _note(path: Path, rollback: Rollback) -> None:
    """Add a line, if it is not there yet."""
    before = path.read_bytes() if path.exists() else b""
    line = json.dumps({"at": rollback.at, "step": rollback.step, "cause": rollback.cause}).encode() + b"\n"
    if not before.endswith(line):
        atomic.write_bytes(path, before + line)
