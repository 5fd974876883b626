"""Which samples a step sees: a function of the step, so nothing needs saving and a resumed run repeats it."""

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
