"""What a first stage is worth: what it gives back, beside bicubic scaling, and what its latents are like.

PSNR, SSIM, LPIPS and the Fréchet distance of features between pictures and their reconstructions by the posterior's
mean (Rombach et al. 2022, table 8); the same for pictures that were made smaller by the first stage's factor and as
large again; the spread of the latents; the divergence of a KL first stage; the use of a VQ codebook. Pictures stream
through: only sums are kept, and the first few pictures.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor

from sfumato.data.sample import Dataset
from sfumato.evaluate.codebook import CodebookUsage, Usage
from sfumato.evaluate.features import Features
from sfumato.evaluate.frechet import Gaussian, Normal, frechet
from sfumato.evaluate.measure import Moments
from sfumato.evaluate.reconstruction import as_saved, bicubic
from sfumato.evaluate.ssim import WINDOW, ssim
from sfumato.latents.autoencoding import psnr
from sfumato.latents.first_stage import FirstStage
from sfumato.latents.kl import KLFirstStage
from sfumato.latents.tiled import out_of_memory, spared
from sfumato.latents.vq import VQFirstStage
from sfumato.nets.autoencoder import kl
from sfumato.nets.lpips import Lpips

BATCH = 8  # pictures at once
KEPT = 16  # pictures kept to be looked at
MEASURES = ("psnr", "ssim", "lpips")


@dataclass(frozen=True)
class Quality:
    """Of pictures given back: means over pictures, the spread of the PSNR, the distance of all from all.

    None stands for what pictures so small do not have.
    """

    psnr: float  # dB
    psnr_std: float
    ssim: float | None
    lpips: float | None
    rfd: float


@dataclass(frozen=True)
class Latent:
    """Of the latents, posterior means as `encode` gives them: each channel's and all channels' mean and deviation.

    `kl` is each channel's divergence of the posterior from N(0, I), in nats at a position, the mean over positions and
    pictures; of the latent as the networks have it, before it is brought to unit variance. None without a posterior.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    overall_mean: float
    overall_std: float
    kl: tuple[float, ...] | None


@dataclass(frozen=True)
class FirstStageScore:
    """All of it, of `n` pictures; `skipped` says which others could not be read, and why."""

    n: int
    skipped: tuple[str, ...]
    factor: int
    features: str  # the network whose features `rfd` compares
    stage: Quality
    bicubic: Quality
    latent: Latent
    codebook: Usage | None
    inputs: Tensor  # the first pictures (KEPT, 3, H, W)
    outputs: Tensor  # and what they became

    def as_dict(self) -> dict[str, Any]:
        """All but the pictures, for JSON."""
        return {name: value for name, value in asdict(self).items() if name not in ("inputs", "outputs")}


@torch.no_grad()
def likeness(a: Tensor, b: Tensor, lpips: Lpips) -> Tensor:
    """PSNR, SSIM and LPIPS (B, 3), float64, of pictures (B, 3, H, W); not a number where the pictures are too small."""
    return torch.stack([_measured(name, a, b, lpips) for name in MEASURES], dim=1)


@torch.no_grad()
def likeness_of_one(a: Tensor, b: Tensor, lpips: Lpips) -> tuple[dict[str, float | None], list[str]]:
    """`likeness` of a picture (1, 3, H, W), by name, and the names of the measures that there is not the memory for.

    None stands for those, and for what pictures so small do not have.
    """
    found: dict[str, float | None] = {}
    missing: list[str] = []
    for name in MEASURES:
        found[name] = None
        try:
            found[name] = _known(_measured(name, a, b, lpips).item())
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            missing.append(name)
    return found, missing


def _measured(name: str, a: Tensor, b: Tensor, lpips: Lpips) -> Tensor:
    """(B) numbers, float64."""
    least, measure = {"psnr": (1, psnr), "ssim": (WINDOW, ssim), "lpips": (lpips.smallest, lpips)}[name]
    if min(a.shape[2:]) < least:
        return torch.full((len(a),), float("nan"), dtype=torch.float64)
    return measure(a, b).double()


class Reconstructions:
    """The measure of pictures given back in one way."""

    def __init__(self, features: Features, lpips: Lpips) -> None:
        self._features, self._lpips = features, lpips
        self._likeness, self._gaussian = Moments(3), Gaussian(features.dim)

    def update(self, pictures: Tensor, again: Tensor) -> None:
        """Pictures (B, 3, H, W) and what they became."""
        self._likeness.update(likeness(again, pictures, self._lpips))
        self._gaussian.update(self._features(again))

    def merge(self, other: Self) -> None:
        """See the pictures of another."""
        self._likeness.merge(other._likeness)
        self._gaussian.merge(other._gaussian)

    def compute(self, real: Normal) -> Quality:
        """The quality so far; `real` are the features of the pictures themselves."""
        spread = self._likeness.compute()
        mean, std = spread.mean.tolist(), spread.std.tolist()
        return Quality(mean[0], std[0], _known(mean[1]), _known(mean[2]), frechet(real, self._gaussian.compute()))


class Latents:
    """The measure of a first stage's latents."""

    def __init__(self, stage: FirstStage) -> None:
        self._stage = stage
        self._spread, self._kl = Moments(stage.channels), Moments(stage.channels)
        codebook = stage.net.codebook if isinstance(stage, VQFirstStage) else None
        self._codebook = None if codebook is None else CodebookUsage(len(codebook.weight))

    def update(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W); returns their latents (B, C, h, w)."""
        stage = self._stage
        if isinstance(stage, KLFirstStage):
            latent, logvar = stage.moments(pictures)
            raw = latent * stage.std + stage.mean, logvar + 2 * stage.std.log()
            nats = [kl(*(m[:, c] for m in raw)) for c in range(stage.channels)]  # (C) of (B,)
            self._kl.update(torch.stack(nats, dim=1) / latent[0, 0].numel())
        else:
            latent = stage.encode(pictures)
        if isinstance(stage, VQFirstStage) and self._codebook is not None:
            self._codebook.update(stage.nearest(latent))
        self._spread.update(latent.movedim(1, -1).flatten(0, -2))
        return latent

    def merge(self, other: Self) -> None:
        """See the latents of another."""
        self._spread.merge(other._spread)
        self._kl.merge(other._kl)
        if self._codebook is not None and other._codebook is not None:
            self._codebook.merge(other._codebook)

    def compute(self) -> tuple[Latent, Usage | None]:
        """What the latents are like, and the use of the codebook if there is one."""
        spread = self._spread.compute()
        mean = spread.mean.mean()
        std = (spread.variance.mean() + (spread.mean - mean).square().mean()).sqrt()
        nats = tuple(self._kl.compute().mean.tolist()) if self._kl.n else None
        latent = Latent(tuple(spread.mean.tolist()), tuple(spread.std.tolist()), float(mean), float(std), nats)
        return latent, None if self._codebook is None else self._codebook.compute()


class FirstStageMeasure:
    """All that is measured of a first stage."""

    def __init__(self, stage: FirstStage, *, features: Features, lpips: Lpips) -> None:
        self._stage, self._features = stage, features
        self._real, self._latents = Gaussian(features.dim), Latents(stage)
        self._by_stage, self._by_scaling = (Reconstructions(features, lpips) for _ in range(2))
        self._kept: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def update(self, pictures: Tensor) -> None:
        """Pictures (B, 3, H, W); ValueError if their sides do not divide by the first stage's factor."""
        latent = self._latents.update(pictures)
        painted = spared(self._stage, lambda stage: stage.decode(latent))
        if not painted.isfinite().all():
            raise FloatingPointError("the first stage gives back numbers that are none (nan, inf): it is damaged")
        again = as_saved(painted)
        self._real.update(self._features(pictures))
        self._by_stage.update(pictures, again)
        self._by_scaling.update(pictures, as_saved(bicubic(pictures, self._stage.factor)))
        self._kept += zip(pictures[: KEPT - len(self._kept)], again, strict=False)

    def merge(self, other: Self) -> None:
        """See the pictures of another."""
        self._real.merge(other._real)
        self._latents.merge(other._latents)
        self._by_stage.merge(other._by_stage)
        self._by_scaling.merge(other._by_scaling)
        self._kept += other._kept[: KEPT - len(self._kept)]

    def compute(self, skipped: tuple[str, ...] = ()) -> FirstStageScore:
        """The score so far; ValueError of fewer than two pictures."""
        real = self._real.compute()
        latent, usage = self._latents.compute()
        inputs, outputs = (torch.stack(side) for side in zip(*self._kept, strict=True))
        return FirstStageScore(
            n=real.n,
            skipped=skipped,
            factor=self._stage.factor,
            features=self._features.name,
            stage=self._by_stage.compute(real),
            bicubic=self._by_scaling.compute(real),
            latent=latent,
            codebook=usage,
            inputs=inputs,
            outputs=outputs,
        )


def measure(
    stage: FirstStage, pictures: Dataset, *, features: Features, lpips: Lpips, batch: int = BATCH
) -> Iterator[int | FirstStageScore]:
    """Every picture once, `batch` at a time; all have one size. Pictures that cannot be read are skipped and listed.

    Yields the number of pictures read so far, and the score last. ValueError if there are not two that can be read.
    """
    sums = FirstStageMeasure(stage, features=features, lpips=lpips)
    skipped: list[str] = []
    for begin in range(0, len(pictures), batch):
        end = min(begin + batch, len(pictures))
        if images := list(_readable(pictures, range(begin, end), skipped)):
            sums.update(torch.stack(images))
        yield end
    if len(pictures) - len(skipped) < 2:  # noqa: PLR2004
        first = f"; the first that cannot is {skipped[0]}" if skipped else ""
        raise ValueError(f"{len(pictures) - len(skipped)} pictures can be read, and at least 2 are needed{first}")
    yield sums.compute(tuple(skipped))


def _readable(pictures: Dataset, indices: range, skipped: list[str]) -> Iterator[Tensor]:
    """The pictures that can be read; what is wrong with the others goes to `skipped`."""
    for i in indices:
        try:
            yield pictures[i]["image"]
        except ValueError as error:
            skipped.append(str(error))


def _known(value: float) -> float | None:
    return None if value != value else value  # noqa: PLR0124
