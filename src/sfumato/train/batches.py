"""Which samples a step sees: a function of the step, so nothing needs saving and a resumed run repeats it."""

from collections.abc import Hashable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from sfumato.diffusion.noise import permutation


def indices(step: int, *, batch: int, n: int, seed: int) -> Tensor:
    """Indices (batch,) of step 0, 1, ... in a data set of `n`: epoch after epoch, each in an order of its own."""
    places = torch.arange(step * batch, (step + 1) * batch)
    epochs = places // n
    found = torch.empty_like(places)
    for epoch in epochs.unique().tolist():
        here = epochs == epoch
        found[here] = _order(n, seed, epoch)[places[here] % n]
    return found


@lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> Tensor:
    return permutation(n, seed=seed, epoch=epoch)


class Grouped:
    """Which samples a step sees where a batch must be of one group: pictures of one shape, for instance.

    In an epoch each group is seen once, in an order of its own, and its last batch is filled from its beginning; the
    batches of all groups are mixed. A function of the step, as `indices` is.
    """

    def __init__(self, groups: Sequence[Hashable], *, batch: int, seed: int) -> None:
        self.batch, self.seed = batch, seed
        members: dict[Hashable, list[int]] = {}
        for i, group in enumerate(groups):
            members.setdefault(group, []).append(i)
        self._members = [torch.tensor(each) for each in members.values()]
        self._batches = [(g, k) for g, each in enumerate(self._members) for k in range(-(-len(each) // batch))]

    def __call__(self, step: int) -> Tensor:
        """Indices (batch,) of step 0, 1, ..."""
        epoch, place = divmod(step, len(self._batches))
        group, k = self._batches[int(_order(len(self._batches), self.seed, epoch)[place])]
        members = self._members[group]
        order = permutation(len(members), seed=(self.seed + 1 + group) % 2**64, epoch=epoch)
        places = torch.arange(k * self.batch, (k + 1) * self.batch) % len(members)
        return members[order[places]]
