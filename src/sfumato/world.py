"""Where a training runs: in one process, or in one of several that share the work of each step (torch.distributed).

Processes that share a batch take consecutive places of it. What they tell each other is here; how gradients and weights
travel is in `train/parallel.py`.
"""

import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

CPU = torch.device("cpu")
PATIENCE = timedelta(hours=2)  # that a process waits for the others: one of them may be writing a checkpoint
RAISED: Mapping[str, type[Exception]] = {"ValueError": ValueError, "OSError": OSError}

Parallel = Literal["ddp", "fsdp"]
"""Every process has all weights, or they are divided among them."""


@dataclass(frozen=True)
class World:
    """This process among those of the training, and the device that it computes on."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    parallel: Parallel = "ddp"

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and says things."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether weights are divided among the processes."""
        return self.size > 1 and self.parallel == "fsdp"

    def part(self, n: int) -> slice:
        """Which of `n` places of a batch are this process's; ValueError if all cannot have equally many."""
        if n % self.size:
            raise ValueError(f"a batch of {n} cannot be divided among {self.size} processes; take a multiple of that")
        each = n // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    # What they tell each other: all processes must ask alike ------------------------------------------------
    def mean(self, x: Tensor) -> Tensor:
        """The mean over all processes of a tensor that each has."""
        if self.size == 1:
            return x
        total = x.detach().clone()
        dist.all_reduce(total)
        return total / self.size

    def gathered(self, x: Tensor) -> Tensor:
        """(N, ...) of each process, of one shape, in the order of the processes: (size * N, ...)."""
        if self.size == 1:
            return x
        found = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(found, x.detach().contiguous())
        return torch.cat(found)

    def any(self, here: bool) -> bool:
        """Whether it is so in any process."""
        if self.size == 1:
            return here
        votes = torch.tensor(float(here), device=self.device)
        dist.all_reduce(votes)
        return votes.item() > 0

    def by_first(self, do: Callable[[], object]) -> None:
        """The first process does it, the others wait; the ValueError or OSError that it raises is raised by all."""
        if self.size == 1:
            do()
            return
        failure: Exception | None = None
        if self.first:
            try:
                do()
            except tuple(RAISED.values()) as error:
                failure = error
        kind = next((name for name, kind in RAISED.items() if isinstance(failure, kind)), "")
        kind, text = self.told([kind, str(failure)])
        if failure is not None:
            raise failure
        if kind:
            raise RAISED[kind](text)

    def told(self, words: Any) -> Any:
        """What the first process says, in JSON's types, to all."""
        if self.size == 1:
            return words
        text = json.dumps(words).encode() if self.first else b""
        length = torch.tensor(len(text), device=self.device)
        dist.broadcast(length, src=0)
        body = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
        if self.first:
            body.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        dist.broadcast(body, src=0)
        return json.loads(bytes(body.tolist()))


ALONE = World()
"""One process, on the CPU."""


@contextmanager
def joined(device: str | None = None, parallel: Parallel = "ddp") -> Iterator[World]:
    """The world that this process is in: of several if `torchrun` or another launcher began it, else alone.

    On the GPU of its number on its machine if there is one, else on the CPU, unless a `device` is said. ValueError if
    that is not there.
    """
    size, rank, local = (
        int(os.environ.get(name, n)) for name, n in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0))
    )
    found = _device(device, local)
    if size == 1:
        yield World(device=found)
        return
    if found.type == "cuda":
        torch.cuda.set_device(found)
    dist.init_process_group("nccl" if found.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield World(rank, size, found, parallel)
    finally:
        dist.destroy_process_group()


def _device(asked: str | None, local: int) -> torch.device:
    if asked is None:
        return torch.device("cuda", local) if torch.cuda.is_available() else CPU
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise ValueError(f"there is no device '{asked}'; take cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"trainings run on the CPU and on CUDA devices, not on '{asked}'; take cpu or cuda")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        device = torch.device("cuda", local if device.index is None else device.index)
        if device.index >= count:
            raise ValueError(f"there is no device '{device}'; {count} CUDA devices are here")
    return device


def has_bfloat16() -> bool:
    """Whether the GPU, or the processor where there is none, has instructions for bfloat16: without, it is slow."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()


def hardware(world: World) -> str:
    """What a training ran on, in words for the card of a model."""
    if world.device.type == "cuda":
        each = torch.cuda.get_device_name(world.device)
    else:
        each = f"{platform.machine()}, {torch.get_num_threads()} threads"
    return each if world.size == 1 else f"{world.size} x {each}"


def divided(x: Tensor) -> bool:
    """Whether each process has a part of this tensor."""
    if not dist.is_initialized():
        return False
    from torch.distributed.tensor import DTensor  # noqa: PLC0415 - a second that one process never needs

    return isinstance(x, DTensor)


def whole(x: Tensor) -> Tensor:
    """A tensor that may be divided among the processes, in one piece; all must ask alike."""
    return x.full_tensor() if divided(x) else x  # pyright: ignore[reportAttributeAccessIssue]
