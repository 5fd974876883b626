"""Who says what a crop shows: logistic regression on features of real crops, centred and made unit vectors."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.evaluate.logistic import Logistic, fit

L2 = 3e-5  # of 1e-5 to 1e-3, 1e-3 alone was worse on real crops that it had not learnt
LEAST = 5  # crops of a label: what it saw less often it cannot be blamed for


@dataclass(frozen=True)
class Recogniser:
    """What learnt the crops of some labels."""

    labels: tuple[str, ...]
    mean: Tensor  # (D,) of the features that it learnt from
    logistic: Logistic

    def read(self, features: Tensor) -> list[str]:
        """The label of each of (N, D) features."""
        found = self.logistic.logits(_centred(features, self.mean)).argmax(1)
        return [self.labels[k] for k in found.tolist()]


def learnt(features: Tensor, labels: Sequence[str]) -> Recogniser:
    """From the features (N, D) of real crops; labels of which there are fewer than `LEAST` are not learnt.

    ValueError if fewer than two are left.
    """
    known = tuple(sorted(label for label, n in Counter(labels).items() if n >= LEAST))
    if len(known) < 2:  # noqa: PLR2004
        raise ValueError(
            f"there are {len(labels)} boxes to learn labels from, and fewer than 2 labels with {LEAST} of them"
        )
    number = {label: k for k, label in enumerate(known)}
    kept = [i for i, label in enumerate(labels) if label in number]
    mean = features[kept].double().mean(0)
    y = torch.tensor([number[labels[i]] for i in kept])
    return Recogniser(known, mean, fit(_centred(features[kept], mean), y, classes=len(known), l2=L2))


def _centred(features: Tensor, mean: Tensor) -> Tensor:
    return F.normalize(features.double() - mean, dim=1)
