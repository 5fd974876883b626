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
from sfumato.train.batches import grouped
from sfumato.world import ALONE, World

CHUNK = 64  # pictures encoded at once; divides a part of the cache, so that a run that was killed makes the same ones
MEASURED = 10_000  # pictures, at most, that the statistics are taken over where nothing is kept

T = TypeVar("T")
Latents = Callable[[Tensor], dict[str, Tensor]]
"""Indices (B,) to "mean" (B, C, h, w), and "logvar" where latents are drawn."""


def latents_of(
    stage: Stage | Pixels, images: Dataset, home: Path | None, world: World = ALONE, *, calibrate: bool
) -> Generator[Event, None, Latents]:
    """The latents of a data set, at unit variance: from the cache in `home`, or without one made at each step.

    With `calibrate` they say what the first stage's latents are like, in its mean and deviation.
    """
    pictures = TrainingPictures(images)
    if isinstance(stage, Pixels):
        return lambda index: {"mean": pictures.stack(index.tolist())}
    if home is None:
        if calibrate:
            calibrated(stage, pictures, most=MEASURED)

        @torch.no_grad()
        def made(index: Tensor) -> dict[str, Tensor]:
            return _normalised(stage, *posterior(stage, pictures.stack(index.tolist())))

        return made
    cache, names = yield from encoded(stage, images, home, world)
    stage.cpu()
    if calibrate:
        statistics = LatentStatistics(stage.channels)
        for group in grouped(names, cache.shape):
            for some in _pieces(group, CHUNK):
                statistics.update(*cache.moments(some))
        statistics.put(stage)
    return lambda index: _normalised(stage, *cache.moments([names[i] for i in index.tolist()]))


def unsaid(stage: Stage) -> bool:
    """Whether the file of a first stage does not say what its latents are like."""
    return float(stage.std) == 1


@torch.no_grad()
def encoded(
    stage: Stage, images: Dataset, home: Path, world: World = ALONE
) -> Generator[Event, None, tuple[LatentCache, list[bytes]]]:
    """The cache in `home` with the moments of all pictures, as the networks give them, and the key of each picture.

    Those that it has are not computed again. Processes share the work, and the first one writes.
    """
    cache = LatentCache(home, tensors.digest({name: p for name, p in stage.named_parameters()}))
    found = [(latent_cache.key(image), image.shape) for image in (images[i]["image"] for i in range(len(images)))]
    names = [name for name, _ in found]
    first = {name: i for i, name in reversed([*enumerate(names)])}  # where each is first
    missing = [i for i, name in enumerate(names) if name not in cache and first[name] == i]
    missing = world.told(missing)  # another run may be adding to the cache
    yield Found(f"latents: {len(missing):,} of {len(names):,} pictures are to be encoded, the others are in {home}")
    done = 0
    alike = grouped(missing, lambda i: found[i][1])  # a file has pictures of one shape
    for part in (part for group in alike for part in _pieces(group, latent_cache.PART)):
        mean, logvar = _shared(stage, images, part, world)
        world.by_first(lambda: cache.add([names[i] for i in part], mean, logvar))  # noqa: B023 - called here
        done += len(part)
        yield Encoded(done, len(missing))
    return (cache if world.first else LatentCache(home, cache.stage)), names


def _shared(stage: Stage, images: Dataset, part: list[int], world: World) -> tuple[Tensor, Tensor]:
    """The moments of some pictures, of which each process computes every so many'th chunk."""
    means, logvars = [], []
    for row in _pieces(_pieces(part, CHUNK), world.size):
        some = row[world.rank] if world.rank < len(row) else row[0]
        mean, logvar = posterior(stage, torch.stack([images[i]["image"] for i in some]))
        for n, (all_means, all_logvars) in enumerate(zip(*(_exchanged(m, world) for m in (mean, logvar)), strict=True)):
            if n < len(row):
                means.append(all_means[: len(row[n])])
                logvars.append(all_logvars[: len(row[n])])
    return torch.cat(means), torch.cat(logvars)


def _exchanged(x: Tensor, world: World) -> list[Tensor]:
    """What each process has, at most `CHUNK` rows each."""
    if world.size == 1:
        return [x]
    room = x.new_zeros(CHUNK, *x.shape[1:])
    room[: len(x)] = x
    return list(world.gathered(room.to(world.device)).cpu().split(CHUNK))


def _pieces(items: list[T], n: int) -> list[list[T]]:
    return [items[k : k + n] for k in range(0, len(items), n)]


def _normalised(stage: Stage, mean: Tensor, logvar: Tensor) -> dict[str, Tensor]:
    return {"mean": (mean - stage.mean) / stage.std, "logvar": logvar - 2 * stage.std.log()}
