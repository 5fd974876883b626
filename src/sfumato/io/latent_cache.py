"""Moments of latents that were computed once, by the content of the picture and of the first stage that made them.

A folder for each first stage, named after its weights; in it files `part-N.safetensors` that are only ever added to.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sfumato.io import tensors
from sfumato.io.pictures import to_pil
from sfumato.io.stored import open_stored

PART = 1024  # pictures in a file
_PART = re.compile(r"part-(\d{5,})\.safetensors")
NAME = 16  # characters of a first stage's hash that its folder is called after


def key(image: Tensor) -> bytes:
    """What a picture (3, H, W) in [-1, 1] is called here: the hash of its size and of its 8-bit pixels."""
    picture = to_pil(image)
    return hashlib.sha256(f"{picture.width}x{picture.height}\n".encode() + picture.tobytes()).digest()


class LatentCache:
    """What is known of the latents of one first stage. Files that are damaged are passed over: they are made again."""

    def __init__(self, home: Path, stage: str) -> None:
        """`stage` is the hash of the first stage's weights."""
        self.home, self.stage = home / stage[:NAME], stage
        self._parts: list[tuple[Tensor, Tensor]] = []  # windows on the files: what is not asked for is not read
        self._places: dict[bytes, tuple[int, int]] = {}
        for path in sorted(self._files().values()):
            self._open(path)

    def __contains__(self, name: bytes) -> bool:
        return name in self._places

    def __len__(self) -> int:
        return len(self._places)

    def add(self, names: Sequence[bytes], mean: Tensor, logvar: Tensor) -> None:
        """Keep means and log-variances (N, C, h, w) of pictures; `names` are their keys."""
        path = self.home / f"part-{max(self._files(), default=0) + 1:05}.safetensors"
        keys = torch.from_numpy(np.frombuffer(b"".join(names), dtype=np.uint8).copy()).view(len(names), -1)
        whole = {"keys": keys, "mean": mean, "logvar": logvar}
        tensors.write(path, whole, {"first stage": self.stage, "sha256": tensors.digest(whole)})
        self._open(path)

    def moments(self, names: Sequence[bytes]) -> tuple[Tensor, Tensor]:
        """Means and log-variances (N, C, h, w) of these pictures; KeyError for one that is not there."""
        places = [self._places[name] for name in names]
        mean, logvar = (torch.stack([self._parts[part][kind][row] for part, row in places]) for kind in (0, 1))
        return mean, logvar

    def shape(self, name: bytes) -> tuple[int, ...]:
        """(C, h, w) of this picture's; KeyError if it is not there."""
        part, row = self._places[name]
        return tuple(self._parts[part][0][row].shape)

    def _files(self) -> dict[int, Path]:
        found = ((_PART.fullmatch(path.name), path) for path in self.home.glob("part-*.safetensors"))
        return {int(match[1]): path for match, path in found if match and path.is_file()}

    def _open(self, path: Path) -> None:
        try:
            stored = open_stored(path)
            whole = {name: stored.tensor(name) for name in ("keys", "mean", "logvar")}
        except ValueError:
            return
        if stored.metadata.get("first stage") != self.stage or stored.metadata.get("sha256") != tensors.digest(whole):
            return
        keys, mean, logvar = whole.values()
        self._parts.append((mean, logvar))
        self._places |= {row.tobytes(): (len(self._parts) - 1, n) for n, row in enumerate(keys.numpy())}
