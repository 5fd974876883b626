"""The quality of a first stage is the mean over pictures, whatever the batches."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from sfumato.data import Sample
from sfumato.evaluate.reconstruction import BATCH, mean_psnr, operations
from sfumato.latents.kl import KLFirstStage
from sfumato.latents.tiny import TinyFirstStage
from sfumato.latents.vq import VQFirstStage
from sfumato.nets.autoencoder import AutoencoderSize
from sfumato.nets.tiny import TinySize


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


STAGES = {
    "published": KLFirstStage(AutoencoderSize(channels=32, mult=(1, 2), blocks=1, latent_channels=3)),
    "ours": KLFirstStage(
        AutoencoderSize(channels=32, mult=(1,), blocks=1, latent_channels=3, patch=2, shortcut="linear")
    ),
    "vq": VQFirstStage(AutoencoderSize(channels=32, mult=(2, 1), blocks=2, attention=(1, 2), codebook=8)),
    "no attention": KLFirstStage(AutoencoderSize(channels=32, mult=(1, 1), blocks=1, middle_attention=False)),
    "tiny": TinyFirstStage(TinySize(width=8, blocks=1)),
}


def attended(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    """The products of an attention, which torch does not count on a CPU."""
    return sdpa_flop_count(q, k, v)


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_the_operations_of_a_small_picture_say_those_of_a_large_one(stage: Any) -> None:
    """As torch counts them while they run, but for the search of a codebook."""
    work = operations(stage)
    assert (work.square > 0) == (stage is not STAGES["no attention"] and stage is not STAGES["tiny"])
    for height, width in ((40, 24), (16, 64)):
        counted = FlopCounterMode(
            display=False, custom_mapping={torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attended}
        )
        with counted, torch.no_grad():
            stage.decode(stage.encode(torch.zeros(1, 3, height, width)))
        positions = height * width // stage.factor**2
        searched = 2 * positions * stage.net.codebook.weight.numel() if isinstance(stage, VQFirstStage) else 0
        assert work.of(height, width) + searched == counted.get_total_flops()
