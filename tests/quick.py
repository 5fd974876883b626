"""Stands in for MobileNetV2, of which a distance takes seconds."""

import pytest
from torch import Tensor

from sfumato.evaluate import features


class Means:
    """The mean of each channel."""

    name, dim = "means", 3

    def __call__(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


def features_are_means(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what asks for the bundled features get these."""
    real = features.opened
    monkeypatch.setattr(features, "opened", lambda path=None: Means() if path is None else real(path))
