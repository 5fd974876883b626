"""Inputs of any length through a Perceiver: captions as bytes and pictures as patches, each to a few tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.cond import Cond
from sfumato.nets.perceiver import Perceiver, PerceiverSize, fourier_positions

PAD = 256  # the row of the table after the bytes


@dataclass(frozen=True, kw_only=True)
class BytesSize:
    """`perceiver.channels` is the width of a byte's row in the table."""

    perceiver: PerceiverSize
    length: int = 2048  # most bytes that are read

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012


class Bytes(nn.Module):
    """Captions in any language without a vocabulary: their UTF-8 bytes, read by N latents, which are the tokens.

    Padding is masked, so a caption means the same beside any other. The empty caption, which is the null condition, is
    one padding mark, for attention must have something to look at. The tokens are normalised, as networks that attend
    to them do not do so.
    """

    needs = frozenset({"caption"})

    def __init__(self, size: BytesSize) -> None:
        super().__init__()
        self.size = size
        self.table = nn.Embedding(PAD + 1, size.perceiver.channels)
        self.positions = nn.Embedding(size.length, size.perceiver.channels)
        self.perceiver = Perceiver(size.perceiver)
        self.norm = nn.LayerNorm(size.perceiver.dim)
        for embedding in (self.table, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def count(self, captions: Sequence[str]) -> list[int]:
        """How many bytes each caption has; over `size.length` are not read."""
        return [len(_encoded(caption)) for caption in captions]

    def dropped(self, captions: Sequence[str]) -> list[int]:
        """How many bytes at the end of each caption are not read."""
        return [max(0, n - self.size.length) for n in self.count(captions)]

    def unknown(self, captions: Sequence[str]) -> tuple[str, ...]:  # noqa: ARG002
        """No word is unknown, for every byte has its row."""
        return ()

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The "bytes" (B, L) int64, padded to the longest caption, cut at `size.length`; and their "bytes_mask"."""
        read = [list(_encoded(s["caption"])[: self.size.length]) or [PAD] for s in samples]
        longest = max(len(b) for b in read)
        data = torch.tensor([b + [PAD] * (longest - len(b)) for b in read], dtype=torch.int64)
        lengths = torch.tensor([len(b) for b in read])
        return {"bytes": data, "bytes_mask": torch.arange(longest)[None] < lengths[:, None]}

    def forward(self, batch: Mapping[str, Tensor]) -> Cond:
        """tokens (B, N, D)."""
        device = self.table.weight.device
        data, mask = batch["bytes"].to(device), batch["bytes_mask"].to(device)
        rows = self.table(data) + self.positions.weight[: data.shape[1]]
        return Cond(tokens=self.norm(self.perceiver(rows, mask)))

    def of(self, captions: Sequence[str]) -> Cond:
        """The condition of some captions."""
        return self(self.collate([{"caption": c} for c in captions]))

    def null(self, n: int) -> Cond:
        """The empty caption, n times."""
        return self.of([""]).repeat(n)


@dataclass(frozen=True, kw_only=True)
class PatchesSize:
    """`perceiver.channels` is the width that a patch and its position are brought to."""

    perceiver: PerceiverSize
    patch: int = 8  # pixels a side
    bands: int = 16  # frequencies of the positions on each axis
    grid: int = 32  # patches a side that the fastest frequency still tells apart

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012


class Patches(nn.Module):
    """A picture of any size as patches with Fourier positions, read by N latents, which are the tokens.

    The null condition is no patch at all: one learnt row in their place.
    """

    needs = frozenset({"image"})

    def __init__(self, size: PatchesSize) -> None:
        super().__init__()
        self.size = size
        width = size.perceiver.channels
        self.embed = nn.Linear(3 * size.patch**2 + 2 * (2 * size.bands + 1), width)
        self.nothing = nn.Parameter(torch.empty(width))
        self.perceiver = Perceiver(size.perceiver)
        self.norm = nn.LayerNorm(size.perceiver.dim)
        nn.init.normal_(self.nothing)

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The "pictures" (B, 3, H, W) in [-1, 1]; ValueError if their sizes differ or do not divide into patches."""
        images = [s["image"] for s in samples]
        height, width = images[0].shape[1:]
        if any(image.shape != images[0].shape for image in images):
            raise ValueError("the pictures of a batch have different sizes; give all the same")
        if height % self.size.patch or width % self.size.patch:
            raise ValueError(f"a picture of {width}x{height} cannot be cut into patches of {self.size.patch} pixels")
        return {"pictures": torch.stack(images)}

    def forward(self, batch: Mapping[str, Tensor]) -> Cond:
        """tokens (B, N, D)."""
        pictures = batch["pictures"].to(self.nothing)
        patches = F.pixel_unshuffle(pictures, self.size.patch)  # (B, 3 * p * p, h, w)
        shape = patches.shape[2:]
        places = fourier_positions(shape, self.size.bands, [self.size.grid] * 2).to(patches)  # (h * w, ...)
        rows = torch.cat([patches.flatten(2).mT, places.expand(len(patches), -1, -1)], dim=2)
        return self._read(self.embed(rows))

    def null(self, n: int) -> Cond:
        """No picture, n times."""
        return self._read(self.nothing[None, None]).repeat(n)

    def _read(self, rows: Tensor) -> Cond:
        return Cond(tokens=self.norm(self.perceiver(rows)))


def _encoded(caption: str) -> bytes:
    return caption.encode("utf-8", "replace")  # half a surrogate pair, which has no bytes, becomes a question mark
