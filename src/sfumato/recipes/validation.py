"""How well a denoiser does on pictures that it never saw, with the same noise at each measurement.

The loss of one step is of a few pictures and a few times out of all, and says little. This one is over the same
pictures, the same places on the clock and the same noise each time: what changes between two of them is the network.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.data.part import spaced
from sfumato.diffusion.noise import Address, Stream, permutation
from sfumato.io import atomic, checkpoint
from sfumato.recipes.events import Measured, Validated
from sfumato.recipes.log import lines
from sfumato.recipes.material import MEASURED
from sfumato.recipes.told import Told
from sfumato.train.batches import grouped
from sfumato.train.fit import Batch, Progress
from sfumato.train.state import State
from sfumato.world import World

NAME = "validation.jsonl"
BINS = 8  # equal parts of the clock
SEED = 0  # of any run, so that two of them over the same pictures are measured alike
LAST = 2**32 - 1  # the step of the first bin's addresses, the next count down: no training comes there


class Pictures(NamedTuple):
    """`batch` is what an objective is given of the pictures at indices (B,) below `n`, which must be of one shape."""

    batch: Callable[[Tensor], Batch]
    n: int
    sides: Sequence[tuple[int, ...]] = ()  # the shape of each; all are alike if not said


@dataclass(frozen=True, kw_only=True)
class Placed(Address):
    """An address that says where on the clock its samples lie: `part` (B,) of it, from 0 to 1, has passed."""

    part: Tensor

    def uniform(self, stream: Stream, n: int = 1) -> Tensor:
        """See Address."""
        return self.part[:, None].expand(-1, n) if stream is Stream.TIME else super().uniform(stream, n)


def placed(bin: int, n: int) -> Placed:
    """The addresses of `n` pictures in one bin: each in an n-th of it of its own, in an order of that bin's."""
    at = Address.of(SEED, torch.arange(n), LAST - bin)
    within = (permutation(n, seed=SEED, epoch=LAST - bin) + at.uniform(Stream.TIME)[:, 0]) / n
    return Placed(at.seed, at.index, at.step, part=(bin + within) / BINS)


@torch.no_grad()
def measured(objective: Told, pictures: Pictures, index: list[int], *, together: int, bf16: bool) -> Measured:
    """The loss of these pictures at the addresses of all bins, at most `together` of them, of one shape, at a time.

    `objective` draws its times uniformly and drops no condition.
    """
    device = next(objective.parameters()).device
    bins: list[float] = []
    for bin in range(BINS):
        whole, found = placed(bin, len(index)), []
        for rows in _together(pictures, index, together):
            batch = {k: v.to(device) for k, v in pictures.batch(torch.tensor(index)[rows]).items()}
            at = Placed(whole.seed[rows], whole.index[rows], whole.step, part=whole.part[rows])
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                found.append(objective.each(batch, at).double().cpu())
        bins.append(torch.cat(found).mean().item())
    return Measured(sum(bins) / BINS, tuple(bins))


def _together(pictures: Pictures, index: list[int], most: int) -> list[Tensor]:
    """The places in `index`, in groups of one shape."""
    alike = grouped(range(len(index)), lambda place: pictures.sides[index[place]] if pictures.sides else ())
    return [rows for group in alike for rows in torch.tensor(group).split(most)]


class Validation:
    """Measures the averaged weights each so many steps, and keeps a line of each time in `validation.jsonl`.

    Beside the pictures held out as many of those that are learnt from are measured, with the same noise: where the two
    part, the network learns its pictures by heart. To be called after each step and before that is saved (stage.py):
    then a resumed run has the same lines. In `weights` there is an objective with the averaged weights.
    """

    def __init__(
        self,
        home: Path,
        state: State,
        weights: Callable[[], AbstractContextManager[Told]],
        held_out: Pictures,
        learnt: Pictures,
        *,
        every: int,
        world: World,
    ) -> None:
        self.path, self.state, self.weights, self.every, self.world = home / NAME, state, weights, every, world
        self.n = min(MEASURED, held_out.n, learnt.n)
        self.parts = [(pictures, spaced(pictures.n, self.n)) for pictures in (held_out, learnt)]
        self._found: Validated | None = None

    def __call__(self, progress: Progress) -> None:
        """Measure, if it is time. OSError, as where a checkpoint cannot be written, if its line cannot be."""
        if not progress.every(self.every):
            return
        plan = self.state.plan
        with self.weights() as objective:  # by all processes: each may have a part of them
            if not self.world.first:
                return
            training = objective.training
            objective.eval()
            held_out, learnt = (
                measured(objective, pictures, index, together=plan.batch, bf16=plan.precision == "bf16")
                for pictures, index in self.parts
            )
            objective.train(training)
        self._found = Validated(progress.step, self.n, held_out, learnt)
        self._write(self._found)

    def found(self) -> Validated | None:
        """What was measured since this was last asked."""
        found, self._found = self._found, None
        return found

    def _write(self, found: Validated) -> None:
        """The lines of the steps before, and this one; those of later steps are measured again."""
        line = {
            "step": found.step,
            "pictures": found.pictures,
            "held out": found.held_out._asdict(),
            "trained on": found.trained_on._asdict(),
        }
        try:
            before = [old for old in lines(self.path) if old["step"] < found.step]
            text = "".join(json.dumps(one) + "\n" for one in (*before, line))
            atomic.write_bytes(self.path, text.encode())
        except OSError as error:
            raise checkpoint.failed(self.path.parent, NAME, error) from None
