"""The statistics of latents are those of two passes, in any parts, and bring latents to where diffusion begins."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fill import inp
from sfumato.diffusion.noise import Address, Stream
from sfumato.latents.kl import KLFirstStage
from sfumato.latents.statistics import LatentStatistics
from sfumato.latents.vq import VQFirstStage
from sfumato.nets.autoencoder import AutoencoderSize, moments
from tiny import awake

SIZE = AutoencoderSize(channels=8, mult=(1, 2), blocks=1, latent_channels=3)
SCALE = torch.tensor([2.0, 0.5, 1.0]).view(3, 1, 1)
OFFSET = torch.tensor([10.0, -3.0, 0.1]).view(3, 1, 1)
MEAN = inp("mean", 7, 3, 4, 5) * SCALE + OFFSET
LOGVAR = 2 * inp("logvar", 7, 3, 4, 5) - 1
IMAGES = (0.5 * inp("img", 5, 3, 8, 8)).clamp(-1, 1)


def of(*parts: tuple[Tensor, Tensor | None]) -> LatentStatistics:
    found = LatentStatistics(3)
    for mean, logvar in parts:
        found.update(mean, logvar)
    return found


def test_they_are_those_of_two_passes() -> None:
    wide = MEAN.double().movedim(1, 0).flatten(1)
    found = of((MEAN, None))
    torch.testing.assert_close(found.mean, wide.mean(1), rtol=1e-13, atol=0)
    torch.testing.assert_close(found.std, wide.std(1, correction=0), rtol=1e-12, atol=0)
    assert found.n == 7 * 4 * 5
    spread = LOGVAR.double().exp().mean((0, 2, 3))
    found = of((MEAN, LOGVAR))
    torch.testing.assert_close(found.mean, wide.mean(1), rtol=1e-13, atol=0)
    torch.testing.assert_close(found.std, (wide.var(1, correction=0) + spread).sqrt(), rtol=1e-12, atol=0)


def test_the_posterior_counts_as_its_draws_do() -> None:
    draws = MEAN + (LOGVAR / 2).exp() * Address.of(1, range(7)).normal(MEAN, Stream.ENCODE)
    many = torch.cat(
        [MEAN + (LOGVAR / 2).exp() * Address.of(s, range(7)).normal(MEAN, Stream.ENCODE) for s in range(200)]
    )
    assert not torch.equal(draws, MEAN)
    torch.testing.assert_close(of((MEAN, LOGVAR)).std, of((many, None)).std, rtol=0.02, atol=0)
    assert bool((of((MEAN, LOGVAR)).std > 1.1 * of((MEAN, None)).std).all())


@given(cuts=st.lists(st.integers(1, 6), max_size=3), posterior=st.booleans())
def test_parts_merged_are_the_whole(cuts: list[int], posterior: bool) -> None:
    logvar = LOGVAR if posterior else None
    ends = [0, *sorted(cuts), 7]
    merged = LatentStatistics(3)
    for begin, end in zip(ends, ends[1:], strict=False):
        if begin < end:
            merged.merge(of((MEAN[begin:end], None if logvar is None else logvar[begin:end])))
    whole = of((MEAN, logvar))
    assert merged.n == whole.n
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-14, atol=0)
    torch.testing.assert_close(merged.std, whole.std, rtol=1e-12, atol=0)


def test_merging_leaves_the_other_alone() -> None:
    one, other = of((MEAN[:3], None)), of((MEAN[3:], None))
    before = other.mean.clone()
    one.merge(other)
    one.update(MEAN)
    assert torch.equal(other.mean, before)
    assert other.n == 4 * 20


def test_equal_latents_have_no_deviation() -> None:
    """What rounding leaves of a variance is not below zero."""
    assert of((torch.full((3, 3, 2, 2), 0.1), None)).std.tolist() == pytest.approx([0, 0, 0], abs=1e-8)


@torch.no_grad()
@pytest.mark.parametrize("kind", [KLFirstStage, VQFirstStage])
def test_a_first_stage_gives_latents_of_unit_variance_and_paints_the_same(kind: type) -> None:
    torch.manual_seed(0)
    size = SIZE if kind is KLFirstStage else AutoencoderSize(**{**SIZE.__dict__, "codebook": 16})
    stage = kind(size)
    awake(stage)
    bias = stage.net.encoder.quant_conv.bias
    bias[:3].copy_(torch.tensor([1.0, -2.0, 0.5]))
    stage.net.encoder.quant_conv.weight.mul_(8)
    if kind is VQFirstStage:
        stage.codebook.weight.copy_(stage.raw(IMAGES).movedim(1, -1).reshape(-1, 3)[::5][:16])
    before = stage.decode(stage.encode(IMAGES))
    statistics = LatentStatistics(3)
    for part in IMAGES.split(2):
        if kind is KLFirstStage:
            statistics.update(*moments(stage.net.encoder(part)))
        else:
            statistics.update(stage.raw(part))
    statistics.put(stage)
    assert abs(stage.std.item() - 1) > 0.1
    assert stage.std.dtype == torch.float64
    z = stage.encode(IMAGES).double()
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(3).double(), rtol=0, atol=1e-6)
    own = stage.moments(IMAGES)[1].double().exp().mean().item() if kind is KLFirstStage else 0.0
    assert z.square().mean().item() + own == pytest.approx(1, abs=1e-6)
    if kind is KLFirstStage:
        assert own > 0.01
        draws = torch.stack([stage.encode(IMAGES, lambda like, s=s: inp(f"eps {s}", *like.shape)) for s in range(100)])
        assert draws.square().mean().item() == pytest.approx(1, abs=0.01)
    after = stage.decode(stage.encode(IMAGES))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
