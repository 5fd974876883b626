"""A conditioner (tau_theta and its kin) turns what a sample says into a Cond."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from sfumato.boxes import Layout
from sfumato.cond import Cond


class Heard(NamedTuple):
    """What was read of some prompts."""

    tokens: int  # of the longest that were read
    dropped: int = 0  # of it that were over the model's length
    unknown: tuple[str, ...] = ()  # words that the model was never shown


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


class Prompted(Conditioner, Protocol):
    """A conditioner that is asked with prompts."""

    def heard(self, prompts: Sequence[str]) -> Heard:
        """What is read of these prompts, and what is not."""
        ...

    def of(self, prompts: Sequence[str]) -> Cond:
        """The condition of some prompts."""
        ...


class Placed(Conditioner, Protocol):
    """A conditioner that is asked with boxes, and with prompts beside if it reads some."""

    most: int
    """Boxes that are read; of more the smallest are dropped."""

    captions: bool
    """Whether it reads prompts."""

    def check(self, label: str) -> None:
        """ValueError of one line if it knows no such label."""
        ...

    def heard(self, prompts: Sequence[str]) -> Heard:
        """What is read of these prompts, and what is not."""
        ...

    def laid(self, prompts: Sequence[str], layouts: Sequence[Layout], cells: tuple[int, int]) -> Cond:
        """The condition of some prompts, each with its boxes, for latents of `cells`, rows and columns."""
        ...
