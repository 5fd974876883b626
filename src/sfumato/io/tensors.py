"""Tensors in safetensors files, with errors that a person can read."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as pack
from torch import Tensor, nn


def packed(tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of a file with contiguous copies of `tensors`."""
    return pack({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()})


def save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write such a file."""
    path.write_bytes(packed(tensors))


def load(path: Path) -> dict[str, Tensor]:
    """Read a file; ValueError, naming it, if it is missing, cut short or damaged."""
    try:
        return load_file(str(path))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; the folder is not complete") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or cut short ({error}); copy it again") from None


def fill(module: nn.Module, tensors: Mapping[str, Tensor], *, source: Path) -> None:
    """Put `tensors` into `module`, in the types it has; ValueError, naming a key, if the two do not match exactly."""
    own = module.state_dict()
    missing, surplus = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    wrong = [k for k in own if k in tensors and own[k].shape != tensors[k].shape]
    for what, keys in (("lacks", missing), ("has an unknown", surplus), ("has another shape for", wrong)):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise ValueError(f"{source} {what} tensor '{keys[0]}'{more}; it is not a file for this model")
    module.load_state_dict({k: v.to(own[k].dtype) for k, v in tensors.items()}, assign=True)


def sha256(path: Path) -> str:
    """The hash of a file; ValueError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); the folder is not complete") from None
