"""Tensors that are divided among processes, in safetensors files: torch's distributed checkpoint, and no pickle.

Each process writes the parts that it has; any number of processes reads them, each the parts that it needs.
"""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_parts
from torch.distributed.checkpoint.state_dict_saver import save as save_parts


def save(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the parts that this process has; all processes must, at once. OSError in all of them if one cannot."""
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    _together(lambda: save_parts(dict(tensors), storage_writer=writer))


def load(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors, which may be divided among the processes that call this, with what the files have by their names.

    ValueError if that cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one process is alone
        try:
            _together(lambda: load_parts(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder))))
        except OSError as error:
            raise ValueError(f"{folder} cannot be read ({error})") from None


def described(folder: Path) -> dict[str, Tensor]:
    """Names, shapes and types of all tensors, without their numbers (on torch's "meta" device)."""
    found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {
        name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
        for name, entry in found.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def _together(do: Callable[[], object]) -> None:
    try:
        do()
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        number = cause.errno if isinstance(cause, OSError) else None
        raise OSError(number, " ".join(str(cause).split()) or type(cause).__name__) from None
