"""Textual inversions: the vectors that stand for a learnt word (Gal et al. 2022), read from files of every kind."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sfumato.io.head import quoted
from sfumato.io.stored import Stored, open_stored

__all__ = ["Embedding", "read_embedding"]

WEB_UI, KOHYA = "string_to_param.", "emb_params"
BESIDE = "string_to_token."  # what the web UI writes beside the vectors: numbers of tokens
SDXL = {"clip_g", "clip_l"}


@dataclass(frozen=True, eq=False)
class Embedding:
    """A word and its vectors (k, dim), in the type they are stored in."""

    name: str
    vectors: Tensor


def read_embedding(path: Path) -> Embedding:
    """The learnt word in a file of AUTOMATIC1111's web UI, of kohya's scripts or of diffusers.

    In diffusers' files the word is the key; for the other kinds it is the name of the file without its ending, as their
    users write it. ValueError of one line if the file holds something else.
    """
    stored = open_stored(path)
    names = {name for name in stored.entries if not name.startswith(BESIDE)}
    if names >= SDXL:
        raise ValueError(f"{path} is a textual inversion for SDXL; give one for Stable Diffusion 1 or 2")
    if len(names) != 1:
        raise ValueError(f"{path} holds {len(names)} tensors; a textual inversion is one, for one word")
    name = names.pop()
    word = path.stem if name == KOHYA or name.startswith(WEB_UI) else name
    return Embedding(word, _vectors(stored, name))


def _vectors(stored: Stored, name: str) -> Tensor:
    """(k, dim) from a tensor of that shape, or of one vector."""
    shape, dtype = stored.entries[name].shape, stored.entries[name].dtype
    if len(shape) not in (1, 2) or 0 in shape or not dtype.is_floating_point:
        kind = f"{'x'.join(map(str, shape)) or 'one number'} of {str(dtype).removeprefix('torch.')}"
        raise ValueError(f"{stored.path} holds {quoted(name)} as {kind}; a textual inversion is vectors of fractions")
    vectors = stored.tensor(name)
    if not bool(torch.isfinite(vectors.float()).all()):
        raise ValueError(f"{stored.path} holds {quoted(name)} with numbers that are none; it is damaged")
    return vectors if vectors.ndim == 2 else vectors[None]  # noqa: PLR2004
