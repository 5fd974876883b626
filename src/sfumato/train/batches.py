"""Which samples a step sees: a function of the step, so nothing needs saving and a resumed run repeats it."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

from sfumato.diffusion.noise import permutation

T = TypeVar("T")


def indices(step: int, *, batch: int, n: int, seed: int) -> Tensor:
    """Indices (batch,) of step 0, 1, ... in a data set of `n`: epoch after epoch, each in an order of its own."""
    places = torch.arange(step * batch, (step + 1) * batch)
    epochs = places // n
    found = torch.empty_like(places)
    for epoch in epochs.unique().tolist():
        here = epochs == epoch
        found[here] = _order(n, seed, epoch)[places[here] % n]
    return found


@lru_cache(maxsize=32)  # of some groups, in this epoch and the next
def _order(n: int, seed: int, epoch: int) -> Tensor:
    return permutation(n, seed=seed, epoch=epoch)


def grouped(items: Iterable[T], by: Callable[[T], Hashable]) -> list[list[T]]:
    """The items that are alike `by` something together, in the order in which they come."""
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(by(item), []).append(item)
    return list(groups.values())


class Grouped:
    """Which samples a step sees where a batch must be of one group: pictures of one shape, for instance.

    In an epoch each group is seen once, in an order of its own, and its last batch is filled from its beginning; the
    batches of all groups are mixed. A function of the step, as `indices` is.
    """

    def __init__(self, groups: Sequence[Hashable], *, batch: int, seed: int) -> None:
        self.batch, self.seed = batch, seed
        self._members = [torch.tensor(each) for each in grouped(range(len(groups)), groups.__getitem__)]
        self._batches = [(g, k) for g, each in enumerate(self._members) for k in range(-(-len(each) // batch))]

    def __call__(self, step: int) -> Tensor:
        """Indices (batch,) of step 0, 1, ..."""
        epoch, place = divmod(step, len(self._batches))
        group, k = self._batches[int(_order(len(self._batches), self.seed, epoch)[place])]
        members = self._members[group]
        order = _order(len(members), (self.seed + 1 + group) % 2**64, epoch)
        places = torch.arange(k * self.batch, (k + 1) * self.batch) % len(members)
        return members[order[places]]
