"""Does a model paint what it is asked for? The nearest real picture, by pooled MobileNetV2 features, says.

For a caption one picture is made. The real pictures of the same style are ranked by the cosine of their features
with its own: is the one that the caption names first, among the first five, is the first of the right group? The
ceiling is the same question for the first stage's reconstruction of the real picture itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.data.sample import Dataset, Meta
from sfumato.diffusion.noise import Address, Stream
from sfumato.evaluate import features
from sfumato.evaluate.reconstruction import reconstructed
from sfumato.generate import generate
from sfumato.io.model_folder import Loaded
from sfumato.nets.mobilenet import MobileNetV2
from sfumato.request import Request

BATCH = 32  # pictures made at once


@dataclass(frozen=True)
class Score:
    """Shares of `n` pictures."""

    n: int
    top1: float
    top5: float
    group: float


@dataclass(frozen=True)
class Fidelity:
    """The model's score beside the ceiling, and the pictures (n, 3, H, W) that were made."""

    model: Score
    ceiling: Score
    captions: tuple[str, ...]
    images: Tensor


class Gallery:
    """The real pictures that a made one is compared with: all of those given, by style."""

    def __init__(self, pictures: Dataset, net: MobileNetV2) -> None:
        samples = [pictures[i] for i in range(len(pictures))]
        self.images = torch.stack([s["image"] for s in samples])
        self.metas: list[Meta] = [s["meta"] for s in samples]
        self.features = features.pooled(net, self.images)

    def judge(self, made: Tensor, metas: Sequence[Meta]) -> Score:
        """`made` (N, F) are the features of pictures that should show what `metas` say."""
        hits = torch.zeros(3)
        for feature, meta in zip(made, metas, strict=True):
            rivals = [i for i, m in enumerate(self.metas) if m["style"] == meta["style"]]
            ranked = [self.metas[rivals[j]] for j in (self.features[rivals] @ feature).argsort(descending=True)]
            ids = [m["id"] for m in ranked[:5]]
            hits += torch.tensor([ids[0] == meta["id"], meta["id"] in ids, ranked[0]["group"] == meta["group"]])
        top1, top5, group = (hits / max(1, len(metas))).tolist()
        return Score(len(metas), top1, top5, group)


def drawn(n: int, *, of: int, seed: int) -> list[int]:
    """`n` different indices below `of`, drawn by seed; all of them if there are no more."""
    order = Address.of(seed, torch.arange(of)).uniform(Stream.ORDER)[:, 0].argsort(stable=True)
    return order[:n].tolist()


def fidelity(
    loaded: Loaded, asked: Sequence[int], pictures: Dataset, gallery: Gallery, net: MobileNetV2, *, seed: int
) -> Iterator[int | Fidelity]:
    """One picture for each of `pictures[i]`, i in `asked`, at the model's defaults; picture k has seed `seed + k`.

    Yields the number of pictures made so far, and the Fidelity last.
    """
    samples = [pictures[i] for i in asked]
    metas: list[Meta] = [s["meta"] for s in samples]
    captions = tuple(f"{m['name']}, {m['style']}" for m in metas)
    made = []
    asked_for = [Request(prompt=caption, seed=seed + k) for k, caption in enumerate(captions)]
    for begin in range(0, len(captions), BATCH):
        made.append(generate(loaded, asked_for[begin : begin + BATCH]).images)
        yield min(begin + BATCH, len(captions))
    images = torch.cat(made)
    real = torch.stack([s["image"] for s in samples])
    again = reconstructed(loaded.model.first_stage, real).clamp(-1, 1)
    yield Fidelity(
        model=gallery.judge(features.pooled(net, images), metas),
        ceiling=gallery.judge(features.pooled(net, again), metas),
        captions=captions,
        images=images,
    )
