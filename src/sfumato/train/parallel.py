"""How gradients and weights travel between processes that share a step: torch's DDP, or FSDP2 (`fully_shard`)."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from sfumato.diffusion.noise import Address
from sfumato.nets.blocks import ResBlock
from sfumato.nets.transformer import EncoderLayer
from sfumato.nets.unet import Stage
from sfumato.outcome import Outcome
from sfumato.train.plan import Plan
from sfumato.world import World

UNITS = (Stage, ResBlock, EncoderLayer)
Objective = Callable[[Mapping[str, Tensor], Address], Outcome | None]


def check(plan: Plan, world: World) -> None:
    """ValueError if a batch cannot be divided among the processes, and a process's share into parts."""
    each = len(range(plan.batch)[world.part(plan.batch)])
    if each % plan.accumulate:
        raise ValueError(
            f"a process has {each} pictures of a step, which cannot be cut into {plan.accumulate} parts; "
            "set accumulate to a number that divides them"
        )


def recompute(module: nn.Module, plan: Plan) -> None:
    """Let the blocks in `module` make their activations again on the way back, where the plan says so."""
    if plan.recompute:
        for unit in units(module):
            unit.forward = partial(checkpoint, unit.forward, use_reentrant=False)


def units(module: nn.Module) -> list[nn.Module]:
    """The blocks of the networks in `module`: most of their weights, and of their activations."""
    if isinstance(module, UNITS):
        return [module]
    return [unit for child in module.children() for unit in units(child)]


def shard(objective: nn.Module, world: World) -> None:
    """Divide the parameters of `objective` among the processes, where the world says so: before its `State` is made.

    Those of a block are collected when it is called and let go behind it; the others when the objective is.
    """
    if not world.sharded:
        return
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415 - a second that one process never needs
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

    mesh = init_device_mesh(world.device.type, (world.size,))
    for unit in units(objective):
        fully_shard(unit, mesh=mesh)
    fully_shard(objective, mesh=mesh)


class Shared:
    """An objective that is called in all processes, each with its part of a batch.

    The gradients behind it are those of the mean of the processes' losses.
    """

    def __init__(self, objective: Objective, world: World) -> None:
        self.world = world
        self._run: Objective = objective
        self._sharded = world.size > 1 and _is_sharded(objective)
        self._waits = world.size > 1 and not self._sharded and isinstance(objective, nn.Module)

    def __call__(self, batch: Mapping[str, Tensor], at: Address) -> Outcome | None:
        """The loss at this process's part of the batch."""
        return self._run(batch, at)

    @contextmanager
    def part(self, *, last: bool) -> Iterator[None]:
        """In here a part of the process's batch is passed forward and back; behind the last one gradients travel."""
        if self._sharded:
            self._run.set_requires_gradient_sync(last)  # pyright: ignore[reportFunctionMemberAccess]
        with self._run.no_sync() if isinstance(self._run, DistributedDataParallel) and not last else nullcontext():
            yield
        if last and self._waits:
            self._begin()

    def _begin(self) -> None:
        """Bring the first gradients together, and then leave that to DDP, which has to know whether some never come."""
        assert isinstance(self._run, nn.Module)
        learnt = [p for p in self._run.parameters() if p.requires_grad]
        found = [p.grad for p in learnt if p.grad is not None]
        if not found:
            return
        for gradient in found:
            dist.all_reduce(gradient.div_(self.world.size))
        gpu = [self.world.device] if self.world.device.type == "cuda" else None
        unused = len(found) < len(learnt)
        self._run = DistributedDataParallel(self._run, device_ids=gpu, find_unused_parameters=unused)
        self._waits = False


def _is_sharded(objective: Objective) -> bool:
    from torch.distributed.fsdp import FSDPModule  # noqa: PLC0415 - see `shard`

    return isinstance(objective, FSDPModule)
