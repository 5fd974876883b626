"""What is measured of a first stage, on stages and pictures of which it is known."""

from __future__ import annotations

import json
import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import tiny
from fill import inp
from sfumato.data import Sample
from sfumato.evaluate import first_stage
from sfumato.evaluate.first_stage import KEPT, FirstStageMeasure, FirstStageScore, likeness, likeness_of_one, measure
from sfumato.evaluate.reconstruction import as_saved, bicubic, error_map
from sfumato.evaluate.ssim import ssim
from sfumato.io import pictures
from sfumato.io.feature_networks import alexnet
from sfumato.latents.autoencoding import psnr
from sfumato.latents.kl import KLFirstStage
from sfumato.latents.statistics import LatentStatistics
from sfumato.latents.vq import VQFirstStage
from sfumato.nets.autoencoder import AutoencoderSize, moments
from sfumato.nets.lpips import Lpips


class Means:
    """Features that one can count with: the mean of each channel."""

    name, dim = "means", 3

    def __call__(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


class Brighter:
    """Gives every picture back twenty levels of 255 brighter, through latents at half the side."""

    factor, channels = 2, 12

    def encode(self, image: Tensor, noise: object = None) -> Tensor:
        return torch.nn.functional.pixel_unshuffle(image, 2)

    def decode(self, latent: Tensor) -> Tensor:
        return torch.nn.functional.pixel_shuffle(latent, 2) + 40 / 255


class Pictures:
    """Pictures by the rule, not near white; those of `damaged` cannot be read."""

    fields = frozenset({"image"})

    def __init__(self, n: int, side: int = 32, damaged: tuple[int, ...] = ()) -> None:
        self.n, self.side, self.damaged = n, side, damaged

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int, /) -> Sample:
        if i in self.damaged:
            raise ValueError(f"{i}.png: the picture is damaged")
        return {"image": as_saved(0.25 * inp(f"picture {i}", 3, self.side, self.side) + 0.3 * (i % 3 - 1))}


@pytest.fixture(scope="module")
def lpips() -> Lpips:
    return alexnet()


def last(stage: object, of: Pictures, lpips: Lpips, **more: int) -> FirstStageScore:
    *progress, score = measure(cast(Any, stage), of, features=Means(), lpips=lpips, **more)
    assert isinstance(score, FirstStageScore)
    assert progress == sorted(cast(list[int], progress))
    assert progress[-1] == len(of)
    return score


def all_of(source: Pictures) -> Tensor:
    return torch.stack([source[i]["image"] for i in range(len(source)) if i not in source.damaged])


def stage_of(size: AutoencoderSize, kind: type = KLFirstStage, *, seed: int = 0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        stage = kind(size)
    return tiny.awake(stage, seed=seed).eval().requires_grad_(False)


def test_twenty_levels_of_light(lpips: Lpips) -> None:
    """PSNR and the distance of mean colours are known; the others are those of all pictures at once."""
    source = Pictures(7)
    x = all_of(source)
    y = as_saved(x + 40 / 255)
    score = last(Brighter(), source, lpips, batch=3)
    assert (score.n, score.factor, score.features, score.skipped, score.codebook) == (7, 2, "means", (), None)
    assert score.stage.psnr == pytest.approx(20 * math.log10(255 / 20), rel=1e-3)
    assert score.stage.rfd == pytest.approx(3 * (40 / 255) ** 2, rel=1e-4)
    values = psnr(x, y).double()
    assert score.stage.psnr == pytest.approx(values.mean().item(), rel=1e-6)
    assert score.stage.psnr_std == pytest.approx(values.std(correction=0).item(), abs=1e-5)
    assert score.stage.ssim == pytest.approx(ssim(x, y).mean().item(), rel=1e-9)
    assert score.stage.lpips == pytest.approx(lpips(x, y).mean().item(), rel=1e-5)
    floor = as_saved(bicubic(x, 2))
    assert score.bicubic.psnr == pytest.approx(psnr(x, floor).mean().item(), rel=1e-6)
    assert score.bicubic.ssim == pytest.approx(ssim(x, floor).mean().item(), rel=1e-9)
    assert score.bicubic.psnr != pytest.approx(score.stage.psnr, rel=0.01)


def test_parts_merged_are_the_whole(lpips: Lpips) -> None:
    stage, source = stage_of(tiny.CONFIG.first_stage or AutoencoderSize()), Pictures(9)
    x = all_of(source)
    parts = [FirstStageMeasure(stage, features=Means(), lpips=lpips) for _ in range(3)]
    parts[0].update(x[:4])
    parts[0].update(x[4:])
    parts[1].update(x[:4])
    parts[2].update(x[4:])
    parts[1].merge(parts[2])
    whole, merged = parts[0].compute(), parts[1].compute()
    assert torch.equal(merged.inputs, whole.inputs)
    assert torch.equal(merged.outputs, whole.outputs)

    def flat(value: object) -> list[float]:
        if isinstance(value, dict):
            return [x for one in value.values() for x in flat(one)]
        if isinstance(value, tuple):
            return [x for one in value for x in flat(one)]
        return [] if isinstance(value, str) or value is None else [float(cast(float, value))]

    assert len(flat(whole.as_dict())) > 20
    assert flat(merged.as_dict()) == pytest.approx(flat(whole.as_dict()), rel=1e-12, abs=1e-12)


def test_the_first_pictures_are_kept_and_no_more(lpips: Lpips) -> None:
    source = Pictures(KEPT + 5)
    score = last(Brighter(), source, lpips, batch=6)
    x = all_of(source)[:KEPT]
    assert torch.equal(score.inputs, x)
    torch.testing.assert_close(score.outputs, as_saved(x + 40 / 255))
    few = last(Brighter(), Pictures(3), lpips)
    assert few.inputs.shape == (3, 3, 32, 32)


def test_latents_and_divergence_of_a_kl_stage(lpips: Lpips) -> None:
    size = tiny.CONFIG.first_stage or AutoencoderSize()
    stage, source = stage_of(size), Pictures(5)
    x = all_of(source)
    mean, logvar = (m.double() for m in moments(stage.net.encoder(x)))
    statistics = LatentStatistics(stage.channels)
    statistics.update(mean, logvar)
    statistics.put(stage)
    latent = last(stage, source, lpips, batch=2).latent
    z = stage.encode(x).double()
    rows = z.movedim(1, 0).flatten(1)
    assert latent.mean == pytest.approx(rows.mean(1).tolist(), abs=1e-6)
    assert latent.std == pytest.approx(rows.std(1, correction=0).tolist(), rel=1e-5)
    assert latent.overall_mean == pytest.approx(z.mean().item(), abs=1e-6)
    assert latent.overall_std == pytest.approx(z.std(correction=0).item(), rel=1e-5)
    nats = 0.5 * (mean.square() + logvar.exp() - 1 - logvar)  # of the raw posterior, before it was calibrated away
    assert latent.kl is not None
    assert latent.kl == pytest.approx(nats.mean((0, 2, 3)).tolist(), rel=1e-4)


def test_codebook_of_a_vq_stage(lpips: Lpips) -> None:
    size = AutoencoderSize(channels=8, mult=(1, 2), blocks=1, latent_channels=3, codebook=16, middle_attention=False)
    stage, source = stage_of(size, VQFirstStage), Pictures(4)
    x = all_of(source)
    raw = stage.net.encoder(x)
    stage.net.codebook.weight.data = raw.movedim(1, -1).flatten(0, 2)[:: len(x) * 16][:16].clone()
    stage.std.fill_(raw.std())
    score = last(stage, source, lpips, batch=3)
    distance = (raw.movedim(1, -1)[..., None, :] - stage.net.codebook.weight).square().sum(-1)
    counts = torch.bincount(distance.argmin(-1).flatten(), minlength=len(stage.net.codebook.weight))
    assert score.codebook is not None
    assert score.codebook.positions == int(counts.sum()) == 4 * 16 * 16
    assert score.codebook.used == int((counts > 0).sum()) > 4
    p = counts[counts > 0] / counts.sum()
    assert score.codebook.perplexity == pytest.approx(math.exp(-(p * p.log()).sum().item()), rel=1e-5)
    assert score.latent.kl is None
    assert score.latent.std == pytest.approx((raw / stage.std).std((0, 2, 3), correction=0).tolist(), rel=1e-5)


def test_damaged_pictures_are_skipped_and_said(lpips: Lpips) -> None:
    damaged = last(Brighter(), Pictures(7, damaged=(0, 1, 2, 5)), lpips, batch=3)
    assert damaged.n == 3
    assert damaged.skipped == tuple(f"{i}.png: the picture is damaged" for i in (0, 1, 2, 5))
    whole = all_of(Pictures(7, damaged=(0, 1, 2, 5)))
    assert torch.equal(damaged.inputs, whole)
    with pytest.raises(ValueError, match=r"^0 pictures can be read, and at least 2 .*first that cannot is 0.png: "):
        last(Brighter(), Pictures(3, damaged=(0, 1, 2)), lpips)
    with pytest.raises(ValueError, match=r"^1 pictures can be read, and at least 2 are needed$"):
        last(Brighter(), Pictures(1), lpips)


def test_what_small_pictures_do_not_have(lpips: Lpips) -> None:
    for side, has in ((10, (False, False)), (12, (True, False)), (30, (True, False)), (32, (True, True))):
        x = all_of(Pictures(2, side))
        found = likeness(x, as_saved(x + 0.1), lpips)
        assert found.shape == (2, 3)
        assert (~found.isnan()).all(0).tolist() == [True, *has]
    score = last(Brighter(), Pictures(2, 12), lpips)
    assert score.stage.lpips is None
    assert score.stage.ssim is not None
    text = json.dumps(score.as_dict(), allow_nan=False)
    assert json.loads(text)["stage"]["lpips"] is None
    assert "inputs" not in text


NO_MEMORY = RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried")


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), NO_MEMORY])
def test_what_there_is_no_memory_for_is_none(lpips: Lpips, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    x = all_of(Pictures(1))
    y = as_saved(x + 0.1)
    known = dict(zip(("psnr", "ssim", "lpips"), likeness(y, x, lpips)[0].tolist(), strict=True))
    assert likeness_of_one(y, x, lpips) == (known, [])
    small = likeness_of_one(y[..., :12, :12], x[..., :12, :12], lpips)
    assert (small[0]["lpips"], small[1]) == (None, [])
    monkeypatch.setattr(lpips, "forward", fail)
    assert likeness_of_one(y, x, lpips) == (known | {"lpips": None}, ["lpips"])
    monkeypatch.setattr(first_stage, "ssim", fail)
    assert likeness_of_one(y, x, lpips) == (known | {"ssim": None, "lpips": None}, ["ssim", "lpips"])
    monkeypatch.setattr(first_stage, "ssim", lambda *_: (_ for _ in ()).throw(RuntimeError("shapes do not match")))
    with pytest.raises(RuntimeError, match=r"^shapes do not match$"):
        likeness_of_one(y, x, lpips)


def test_bicubic_scaling_keeps_what_is_smooth() -> None:
    x = 0.7 * inp("x", 2, 3, 24, 16).clamp(-1, 1)
    assert torch.equal(bicubic(x, 1), x)
    grey = torch.full((1, 3, 16, 24), 0.3)
    torch.testing.assert_close(bicubic(grey, 8), grey)
    ramp = (torch.arange(64.0) / 64)[None, None, None].expand(1, 3, 64, 64)
    torch.testing.assert_close(bicubic(ramp, 4)[..., 16:-16], ramp[..., 16:-16], rtol=0, atol=1e-5)
    board = ((torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1)[None, None].expand(1, 3, 16, 16)
    assert bicubic(board, 2)[..., 4:-4, 4:-4].abs().max() < 0.25  # finer than what half the pixels can hold


def test_levels_and_errors_are_as_files_have_them() -> None:
    x = 1.3 * inp("x", 3, 9, 9)
    torch.testing.assert_close(as_saved(x), pictures.from_pil(pictures.to_pil(x)), rtol=0, atol=1e-6)
    a = torch.tensor([-1.0, 0.0, 0.25, 1.0]).view(1, 1, 1, 4).expand(1, 3, 1, 4)
    b = torch.tensor([-1.0, 0.25, 0.0, -1.0]).view(1, 1, 1, 4).expand(1, 3, 1, 4)
    assert error_map(a, b)[0, 0, 0].tolist() == [-1.0, 0.0, 0.0, 1.0]  # none; an eighth of the range, times four; all
