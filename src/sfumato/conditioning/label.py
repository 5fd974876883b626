"""Class labels: as one token to attend to (LDM), or as a row of the network's own table (ADM)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.cond import Cond

UNGUIDED = "this model was never trained without a label, so guidance must be 1"


class Labels(nn.Module):
    """LDM's ClassEmbedder. `null` is the class that stands for none, if there is one: 1000 of ImageNet's 1001."""

    needs = frozenset({"label"})

    def __init__(self, classes: int, dim: int, *, null: int | None = None) -> None:
        super().__init__()
        self.classes, self.none = classes, null
        self.table = nn.Embedding(classes, dim)

    @property
    def known(self) -> str:
        """The labels, in words."""
        return span(self.classes, self.none)

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """ "label" (B,) int64."""
        return {"label": checked([s["label"] for s in samples], self.classes, self.none)}

    def forward(self, batch: Mapping[str, Tensor]) -> Cond:
        """tokens (B, 1, dim)."""
        return Cond(tokens=self.table(batch["label"].to(self.table.weight.device))[:, None])

    def null(self, n: int) -> Cond:
        """The class that stands for none, n times; ValueError if there is none."""
        if self.none is None:
            raise ValueError(UNGUIDED)
        return self({"label": torch.full((n,), self.none)})


class TableRow(nn.Module):
    """ADM's: the row is in the network. There is no null condition; guidance is a classifier's."""

    needs = frozenset({"label"})

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    @property
    def known(self) -> str:
        """The labels, in words."""
        return span(self.classes)

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """ "label" (B,) int64."""
        return {"label": checked([s["label"] for s in samples], self.classes)}

    def forward(self, batch: Mapping[str, Tensor]) -> Cond:
        """The label (B,)."""
        return Cond(label=batch["label"])

    def null(self, n: int) -> Cond:  # noqa: ARG002
        """ValueError: a network like this was never trained without a label."""
        raise ValueError(UNGUIDED)


def span(classes: int, none: int | None = None) -> str:
    """ "0 to 9" of ten classes and one that stands for none."""
    last = classes - 1 - (none == classes - 1)
    return f"0 to {last}" + (f" without {none}" if none is not None and none < last else "")


def checked(labels: Sequence[int], classes: int, none: int | None = None) -> Tensor:
    """The labels as int64; ValueError for one that is not there. `none` stands for none, if there is such a one."""
    wrong = [label for label in labels if not 0 <= label < classes]
    if wrong:
        raise ValueError(f"label {wrong[0]} is out of range; this model has labels {span(classes, none)}")
    return torch.tensor(list(labels), dtype=torch.int64)
