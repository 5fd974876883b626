"""The chain that a table is: each entry steps down to the one before it, and the first to clean (Ho et al. 2020)."""

import torch
from torch import Tensor

from sfumato.diffusion.level import Level
from sfumato.diffusion.schedule import Schedule


def step_down(schedule: Schedule, t: Tensor) -> tuple[Level, Level, Level]:
    """The levels of entries `t` (any shape, whole numbers), those below them, and those above.

    Below the first entry all is clean; above the last there is nothing, and it stands for itself. ValueError if the
    schedule is no table.
    """
    if schedule.entries is None:
        raise ValueError("this schedule has no steps of its own; take one that is a table")
    t = t.double()
    below, above = schedule.level(t - 1), schedule.level((t + 1).clamp(max=schedule.entries - 1))
    first = t < 1
    clean = Level.clean(0.0)
    below = Level(*(torch.where(first, end.to(t.device), own) for end, own in zip(clean, below, strict=True)))
    return schedule.level(t), below, above
