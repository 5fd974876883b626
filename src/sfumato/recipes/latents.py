"""The latents of a data set: what a diffusion model is trained on, computed once or again at each step."""

from collections.abc import Callable, Generator
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from sfumato.data.sample import Dataset
from sfumato.data.training import TrainingPictures
from sfumato.io import latent_cache, tensors
from sfumato.io.latent_cache import LatentCache
from sfumato.latents.pixels import Pixels
from sfumato.latents.statistics import LatentStatistics
from sfumato.recipes.autoencoder import Stage, calibrated, posterior
from sfumato.recipes.events import Encoded, Event, Found

CHUNK = 64  # pictures encoded at once; divides a part of the cache, so that a run that was killed makes the same ones
MEASURED = 10_000  # pictures, at most, that the statistics are taken over where nothing is kept

T = TypeVar("T")
Latents = Callable[[Tensor], dict[str, Tensor]]
"""Indices (B,) to "mean" (B, C, h, w), and "logvar" where latents are drawn."""


def latents_of(
    stage: Stage | Pixels, images: Dataset, home: Path | None, *, calibrate: bool
) -> Generator[Event, None, Latents]:
    """The latents of a data set, at unit variance: from the cache in `home`, or without one made at each step.

    With `calibrate`, and for a first stage whose file does not say what its latents are like, they say it.
    """
    pictures = TrainingPictures(images)
    if isinstance(stage, Pixels):
        return lambda index: {"mean": pictures.stack(index.tolist())}
    calibrate = calibrate or float(stage.std) == 1
    if home is None:
        if calibrate:
            calibrated(stage, pictures, most=MEASURED)

        @torch.no_grad()
        def made(index: Tensor) -> dict[str, Tensor]:
            return _normalised(stage, *posterior(stage, pictures.stack(index.tolist())))

        return made
    cache, names = yield from encoded(stage, images, home)
    if calibrate:
        statistics = LatentStatistics(stage.channels)
        for some in _pieces(names, CHUNK):
            statistics.update(*cache.moments(some))
        statistics.put(stage)
    return lambda index: _normalised(stage, *cache.moments([names[i] for i in index.tolist()]))


@torch.no_grad()
def encoded(stage: Stage, images: Dataset, home: Path) -> Generator[Event, None, tuple[LatentCache, list[bytes]]]:
    """The cache in `home` with the moments of all pictures, as the networks give them, and the key of each picture.

    Those that it has are not computed again.
    """
    cache = LatentCache(home, tensors.digest({name: p for name, p in stage.named_parameters()}))
    names = [latent_cache.key(images[i]["image"]) for i in range(len(images))]
    first = {name: i for i, name in reversed([*enumerate(names)])}  # where each is first
    missing = [i for i, name in enumerate(names) if name not in cache and first[name] == i]
    yield Found(f"latents: {len(missing):,} of {len(names):,} pictures are to be encoded, the others are in {home}")
    done = 0
    for part in _pieces(missing, latent_cache.PART):
        means, logvars = [], []
        for some in _pieces(part, CHUNK):
            mean, logvar = posterior(stage, torch.stack([images[i]["image"] for i in some]))
            means.append(mean)
            logvars.append(logvar)
        cache.add([names[i] for i in part], torch.cat(means), torch.cat(logvars))
        done += len(part)
        yield Encoded(done, len(missing))
    return cache, names


def _pieces(items: list[T], n: int) -> list[list[T]]:
    return [items[k : k + n] for k in range(0, len(items), n)]


def _normalised(stage: Stage, mean: Tensor, logvar: Tensor) -> dict[str, Tensor]:
    return {"mean": (mean - stage.mean) / stage.std, "logvar": logvar - 2 * stage.std.log()}
