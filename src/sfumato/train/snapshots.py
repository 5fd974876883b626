"""Averages beside the one that sampling uses: other decays, and power-function averages with their snapshots on disk.

A snapshot is a file of an average as it was at a step. From them `posthoc.py` makes an average of any length after the
training (Karras et al. 2024b).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from sfumato.io import checkpoint, tensors
from sfumato.io.stored import Stored, open_stored
from sfumato.train.ema import Average, Averages, Ema
from sfumato.train.fit import Progress
from sfumato.train.posthoc import PowerEma, Snapshot, gamma_of
from sfumato.train.state import State
from sfumato.world import World, whole

FOLDER = "snapshots"
_FILE = re.compile(r"step-(\d+)_[\w-]+\.safetensors")


def power_name(sigma_rel: float) -> str:
    """What a power-function average is called, in a checkpoint, in a file's name, as a weight set: power-0_05."""
    return f"power-{sigma_rel:g}".replace(".", "_")


def decay_name(decay: float) -> str:
    """The same of an exponential one: decay-0_9999."""
    return f"decay-{decay:.12g}".replace(".", "_")


def spacing(steps: int) -> int:
    """The steps between snapshots of a run of so many, if nothing else is said: sixteen, and one at its end."""
    return max(1, steps // 16)


def check(sigma_rels: Sequence[float], decays: Sequence[float]) -> None:
    """ValueError of one line if there are no such averages, or if one is asked for twice."""
    for sigma_rel in sigma_rels:
        gamma_of(sigma_rel)
    for decay in decays:
        if not 0 <= decay < 1:
            raise ValueError(f"decays has {decay}; a decay is at least 0 and below 1")
    for names, given in ((map(power_name, sigma_rels), sigma_rels), (map(decay_name, decays), decays)):
        if len({*names}) < len(given):
            raise ValueError(f"of {', '.join(map(str, given))} two are the same average; leave one out")


def averages(module: nn.Module, sigma_rels: Sequence[float], decays: Sequence[float]) -> Averages:
    """Averages of a module, by their names."""
    found: dict[str, Average] = {power_name(sigma_rel): PowerEma(module, sigma_rel) for sigma_rel in sigma_rels}
    return Averages(found | {decay_name(decay): Ema(module, decay) for decay in decays})


class Snapshots:
    """Keeps the power-function averages of a state each so many steps, and at the end, in `home`/snapshots.

    To be called after each step and before that is saved (stage.py): then a resumed run has the same files. Those of
    later steps, which a run left that was killed, are removed and made again.
    """

    def __init__(self, home: Path, state: State, *, every: int, world: World) -> None:
        self.home, self.state, self.every, self.world = home / FOLDER, state, every, world
        self._began = False

    def __call__(self, progress: Progress) -> None:
        """Write those of this step, if it is time. OSError, as where a checkpoint cannot be written."""
        if self.world.first and not self._began:
            self._began = True
            for step, path in _files(self.home):
                if step >= progress.step:
                    path.unlink()
        if progress.every(self.every):
            for name in self.state.averages:
                average = self.state.averages[name]
                if isinstance(average, PowerEma) and average.updates:
                    self._write(progress.step, name, average)

    def _write(self, step: int, name: str, average: PowerEma) -> None:
        path = self.home / f"step-{step}_{name}.safetensors"
        said = {"step": str(step), "updates": str(average.updates), "sigma_rel": repr(average.sigma_rel)}
        shadow = {name: whole(v) for name, v in average.shadow.items()}  # by all processes
        if not self.world.first:
            return
        try:
            tensors.write(path, shadow, {**said, "sha256": tensors.digest(shadow)})
        except OSError as error:
            raise checkpoint.failed(self.home.parent, path.name, error) from None


class Kept(NamedTuple):
    """A snapshot that was read: the step of the training, of which some may have changed nothing, and what it holds."""

    step: int
    snapshot: Snapshot


def read(home: Path) -> list[Kept]:
    """The snapshots below `home`, by step, with tensors that are read when they are asked for.

    ValueError, naming the file, if one is not as it was written.
    """
    found = []
    for step, path in _files(home / FOLDER):
        stored = open_stored(path)
        held = _Held(stored)
        try:
            said = {name: str(stored.metadata[name]) for name in ("step", "updates", "sigma_rel", "sha256")}
            good = int(said["step"]) == step and tensors.digest(held) == said["sha256"]
            snapshot = Snapshot(int(said["updates"]), float(said["sigma_rel"]), held)
        except (LookupError, ValueError):
            good, snapshot = False, None
        if not good or snapshot is None:
            raise ValueError(f"{path} is damaged; remove it, and the average is made of the others")
        found.append(Kept(step, snapshot))
    return found


class _Held(Mapping[str, Tensor]):
    """The tensors of a file by name."""

    def __init__(self, stored: Stored) -> None:
        self._stored = stored

    def __getitem__(self, name: str) -> Tensor:
        return self._stored.tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored.entries)

    def __len__(self) -> int:
        return len(self._stored.entries)


def _files(home: Path) -> list[tuple[int, Path]]:
    found = ((_FILE.fullmatch(path.name), path) for path in home.glob("step-*.safetensors"))
    return sorted((int(match[1]), path) for match, path in found if match)
