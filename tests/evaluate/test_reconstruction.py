"""The quality of a first stage is the mean over pictures, whatever the batches."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from sfumato.data import Sample
from sfumato.evaluate.reconstruction import BATCH, mean_psnr


class Greys:
    """Pictures of one grey each."""

    fields = frozenset({"image"})

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int, /) -> Sample:
        return {"image": torch.full((3, 4, 4), (i % 5) * 2 / 255)}


class Brighter:
    """Gives every picture back ten levels of 255 brighter."""

    def encode(self, image: Tensor) -> Tensor:
        return image

    def decode(self, latent: Tensor) -> Tensor:
        return latent + 20 / 255


@pytest.mark.parametrize("n", [1, BATCH, 2 * BATCH + 3])
def test_ten_levels_of_error_are_twenty_eight_decibels(n: int) -> None:
    assert mean_psnr(cast(Any, Brighter()), Greys(n)) == pytest.approx(20 * math.log10(255 / 10), rel=1e-5)
