"""One stage of a run with its files: a line of metrics a step, checkpoints, and where to go on after a stop."""

import json
from collections.abc import Iterator
from pathlib import Path

from sfumato.io import atomic, checkpoint
from sfumato.train.fit import Batches, Objective, Progress, fit
from sfumato.train.plan import Plan
from sfumato.train.state import State


def train(objective: Objective, batches: Batches, state: State, plan: Plan, home: Path) -> Iterator[Progress]:
    """`fit`, from the newest checkpoint in `home` on if there is one, saved each `plan.save` steps and at the end.

    A stage that was finished yields nothing.
    """
    home.mkdir(parents=True, exist_ok=True)
    found = checkpoint.latest(home)
    if found is not None:
        state.load(*found)
    metrics = home / "metrics.jsonl"
    _cut(metrics, state.step)
    with metrics.open("a", encoding="utf-8") as log:
        for progress in fit(objective, batches, state, plan):
            log.write(json.dumps(_line(progress)) + "\n")
            log.flush()
            if progress.every(plan.save):
                checkpoint.save(home, state.step, state.tensors(), state.numbers())
            yield progress


def _line(p: Progress) -> dict[str, float]:
    return {"step": p.step, **p.losses, "rate": p.rate, "norm": p.norm, "seconds": p.seconds, "images": p.images}


def _cut(metrics: Path, step: int) -> None:
    """Forget the lines of steps that will be done again."""
    if not metrics.exists():
        return
    kept = []
    for line in metrics.read_text(encoding="utf-8").splitlines():
        try:
            done = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            continue  # the line that a kill cut short
        if done <= step:
            kept.append(line + "\n")
    atomic.write_bytes(metrics, "".join(kept).encode())
