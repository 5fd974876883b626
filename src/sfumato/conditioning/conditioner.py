"""A conditioner (tau_theta and its kin) turns what a sample says into a Cond."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from sfumato.cond import Cond


class Conditioner(Protocol):
    """Reads some fields of a sample; works on the CPU in `collate` and on the device when called."""

    needs: frozenset[str]
    """The fields of a sample that it reads, {"caption"} for text. A data set without them is refused."""

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """CPU work: the tensors of a batch, by names that do not clash with other conditioners'."""
        ...

    def __call__(self, batch: Mapping[str, Tensor]) -> Cond:
        """Device work: the condition of each sample."""
        ...

    def null(self, n: int) -> Cond:
        """The unconditional condition, n times."""
        ...
