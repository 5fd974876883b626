"""Tensors in safetensors files, with errors that a person can read."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sfumato.io import atomic

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
"""The names of types in a safetensors file."""


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a file tensor by tensor, so that it takes no memory for all of them, whole or not at all."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so that each is aligned
    head: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name in order:
        tensor = tensors[name]
        size = tensor.numel() * tensor.element_size()
        head[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic.file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            flat = tensors[name].detach().cpu().contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)


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
    check(module, tensors, source=source)
    own = module.state_dict()
    module.load_state_dict({k: v.to(own[k].dtype) for k, v in tensors.items()}, assign=True)


def check(module: nn.Module, tensors: Mapping[str, Tensor], *, source: Path) -> None:
    """ValueError, naming a key, if `tensors` are not exactly those of `module`."""
    own = module.state_dict()
    missing, surplus = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    wrong = [k for k in own if k in tensors and own[k].shape != tensors[k].shape]
    for what, keys in (("lacks", missing), ("has an unknown", surplus), ("has another shape for", wrong)):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise ValueError(f"{source} {what} tensor '{keys[0]}'{more}; it is not a file for this model")


def sha256(path: Path) -> str:
    """The hash of a file; ValueError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); the folder is not complete") from None


def digest(tensors: Mapping[str, Tensor]) -> str:
    """The hash of tensors with their names, types and shapes, whatever file they came from."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        flat = tensors[name].detach().cpu().contiguous()
        whole.update(f"{name} {DTYPES[flat.dtype]} {list(flat.shape)}\n".encode())
        whole.update(flat.reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


def sha256_of(paths: Sequence[Path]) -> str:
    """The hash of a file, or of several the hash of their hashes."""
    hashes = [sha256(path) for path in paths]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
