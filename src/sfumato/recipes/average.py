"""An average of any length, after the training: a model folder of what the snapshots of a run make of it."""

from dataclasses import dataclass
from pathlib import Path

from sfumato.io import model_folder, opening
from sfumato.train.posthoc import misfit, reconstructed
from sfumato.train.snapshots import Kept, power_name, read


@dataclass(frozen=True)
class Averaged:
    """A model that was written: its weight set, and how far it is from what was asked for, as a part of its size."""

    path: Path
    weights: str
    sigma_rel: float
    step: int
    snapshots: int
    misfit: float


def average(run: Path, out: Path, *, sigma_rel: float, at: int | None = None) -> Averaged:
    """Write the model of `run` with the average of relative length `sigma_rel` after step `at`, the last if not said.

    ValueError of one line if the run has no snapshots or no model yet, if the step is behind them, or if there is
    something at `out`.
    """
    if out.exists():
        raise ValueError(f"{out} is already there; choose another --out")
    kept = read(run / "diffusion")
    if not kept:
        raise ValueError(
            f"{run} has no snapshots of averages; a run keeps them with --set diffusion.averages=[0.05,0.1]"
        )
    step = kept[-1].step if at is None else at
    snapshots, updates = [k.snapshot for k in kept], _updates(kept, step)
    made = reconstructed(snapshots, sigma_rel=sigma_rel, at=updates)
    off = misfit([s.profile for s in snapshots], sigma_rel=sigma_rel, at=updates)
    loaded = opening.load(str(run))
    weights = loaded.model.state_dict()
    if not made.keys() <= weights.keys():
        raise ValueError(f"the snapshots in {run} are not of its model; begin another run with another --out")
    name = power_name(sigma_rel)
    about = (
        f"power-function average, sigma_rel {sigma_rel:g} at step {step:,}, of {len(kept)} snapshots, misfit {off:.2g}"
    )
    said = {"sigma_rel": sigma_rel, "step": step, "snapshots": len(kept), "misfit": off}
    provenance = {**loaded.file.provenance, "average": said}
    model_folder.save(
        out,
        loaded.file.model_copy(update={"default": name, "provenance": provenance}),
        {name: (about, {**weights, **made})},
        tokenizer=model_folder.tokenizer(model_folder.find(run), loaded.file.config),
    )
    return Averaged(out, name, sigma_rel, step, len(kept), off)


def _updates(kept: list[Kept], step: int) -> int:
    """The updates after a step: fewer by those steps that changed nothing, as the next snapshot knows them."""
    last = kept[-1]
    if not 1 <= step <= last.step:
        raise ValueError(f"step {step} is not within the snapshots, the last of which is of step {last.step}")
    following = next(k for k in kept if k.step >= step)
    return max(1, step - (following.step - following.snapshot.step))
