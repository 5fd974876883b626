"""One stage of a run with its files: a line of metrics a step, checkpoints, and where to go on after a stop."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sfumato.io import atomic, checkpoint
from sfumato.train.fit import Batches, Phase, Progress, Said, fit
from sfumato.train.state import under
from sfumato.train.watch import TREND, Watch

METRICS = "metrics.jsonl"
ROLLBACKS = "rollbacks.jsonl"


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


def train(
    phases: Phase | Sequence[Phase],
    batches: Batches,
    home: Path,
    *,
    watch: Callable[[], Watch] | None = None,
    remedy: Remedy | None = None,
) -> Iterator[Progress | Rollback]:
    """`fit`, from the newest checkpoint in `home` on if there is one, saved each `plan.save` steps and at the end.

    A stage that was finished yields nothing. One that goes wrong, as `watch` or `fit` find, raises FloatingPointError
    with the cause; with a `remedy` that has not been applied it goes back first, to a checkpoint from before that
    began where there is one, and on from there.
    """
    phases = [phases] if isinstance(phases, Phase) else phases
    home.mkdir(parents=True, exist_ok=True)
    _restore(phases, home)
    while True:
        try:
            yield from _steps(phases, batches, home, watch() if watch else None)
            return
        except FloatingPointError as error:
            at = phases[0].state.step
            if remedy is None or remedy.applied() or not _restore(phases, home, until=at - TREND):
                raise
            remedy.apply()
            checkpoint.forget(home, after=phases[0].state.step)
            rollback = Rollback(at, phases[0].state.step, str(error))
            _note(home / ROLLBACKS, rollback)  # before it is saved: after a kill in between all of this is done again
            _save(phases, home)
            yield rollback


def rollbacks(home: Path) -> int:
    """How often a stage went back."""
    path = home / ROLLBACKS
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


def _steps(phases: Sequence[Phase], batches: Batches, home: Path, watch: Watch | None) -> Iterator[Progress]:
    metrics, plan = home / METRICS, phases[0].state.plan
    for line in _kept(metrics, phases[0].state.step):
        if watch:
            watch.see(line)
    with metrics.open("a", encoding="utf-8") as log:
        for progress in fit(phases, batches):
            log.write(json.dumps(_line(progress)) + "\n")
            log.flush()
            wrong = watch.see(progress.losses) if watch else None
            if wrong:
                raise FloatingPointError(f"{wrong}, at step {progress.step}")
            if progress.every(plan.save):
                _save(phases, home)
            yield progress


# Checkpoints ----------------------------------------------------------------------------------------------
def _save(phases: Sequence[Phase], home: Path) -> None:
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, int] = {}
    for prefix, phase in zip(_prefixes(phases), phases, strict=True):
        tensors |= {prefix + k: v for k, v in phase.state.tensors().items()}
        numbers |= {prefix + k: v for k, v in phase.state.numbers().items()}
    checkpoint.save(home, phases[0].state.step, tensors, numbers)


def _restore(phases: Sequence[Phase], home: Path, until: int | None = None) -> bool:
    """Whether there was a checkpoint to go on from."""
    found = checkpoint.latest(home, until=until)
    if found is None:
        return False
    tensors, numbers = found
    for prefix, phase in zip(_prefixes(phases), phases, strict=True):
        own = {k.removeprefix(prefix): v for k, v in numbers.items() if k.startswith(prefix)}
        phase.state.load(under(prefix, tensors), own)
    return True


def _prefixes(phases: Sequence[Phase]) -> list[str]:
    return ["", *(f"phase {n}." for n in range(2, len(phases) + 1))]


# Lines ----------------------------------------------------------------------------------------------------
def _line(p: Progress) -> dict[str, object]:
    return {"step": p.step, **p.losses, "rate": p.rate, "norm": p.norm, "seconds": p.seconds, "images": p.images}


def _kept(metrics: Path, step: int) -> list[dict[str, Said]]:
    """The lines up to this step, from a file that has no others any more: later steps will be done again."""
    if not metrics.exists():
        return []
    kept, texts = [], []
    for text in metrics.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
            done = line["step"]
        except (ValueError, KeyError, TypeError):
            continue  # the line that a kill cut short
        if done <= step:
            kept.append(line)
            texts.append(text + "\n")
    atomic.write_bytes(metrics, "".join(texts).encode())
    return kept


def _note(path: Path, rollback: Rollback) -> None:
    """Add a line, if it is not there yet."""
    before = path.read_bytes() if path.exists() else b""
    line = json.dumps({"at": rollback.at, "step": rollback.step, "cause": rollback.cause}).encode() + b"\n"
    if not before.endswith(line):
        atomic.write_bytes(path, before + line)
