"""What a training objective says of a batch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Outcome:
    """The loss, what is worth a line in the log, and what the next phase of the step is given."""

    loss: Tensor  # a scalar, which is minimised
    said: Mapping[str, Tensor] = field(default_factory=dict)  # detached: scalars, or vectors of one value a channel
    made: Mapping[str, Tensor] = field(default_factory=dict)  # detached
