"""All that changes while training: weights, their average, the optimiser's moments, and the step."""

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from sfumato.train.ema import Ema
from sfumato.train.plan import Plan

T = TypeVar("T")


class State:
    """The module under training with its optimiser and its average. `step` counts finished steps.

    `memory` is what an objective remembers from step to step: tensors that it changes in place.
    """

    def __init__(
        self, module: nn.Module, plan: Plan, *, average: bool = True, memory: Mapping[str, Tensor] | None = None
    ) -> None:
        self.module = module
        self.plan = plan
        self.step = 0
        self.skipped = 0
        self.row = 0  # of the steps just finished, how many in a row were skipped
        self.optimizer = torch.optim.AdamW(
            module.parameters(), lr=plan.rate, betas=plan.betas, weight_decay=plan.weight_decay, fused=True
        )
        self._average = Ema(module, plan.ema) if average else None
        self.memory = memory or {}

    @property
    def ema(self) -> Ema:
        """The average of the weights; there must be one."""
        assert self._average is not None
        return self._average

    def advance(self, *, changed: bool) -> None:
        """Finish a step: by the gradients, if there are any and they are of use, or without a change."""
        if changed and any(p.grad is not None for p in self.module.parameters()):
            for group in self.optimizer.param_groups:
                group["lr"] = self.plan.rate_at(self.step)
            self.optimizer.step()
            if self._average is not None:
                self._average.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint must hold, by name."""
        out = {f"module.{k}": v for k, v in self.module.state_dict().items()}
        out |= {f"memory.{k}": v for k, v in self.memory.items()}
        if self._average is not None:
            out |= {f"ema.{k}": v for k, v in self._average.shadow.items()}
        for name, p in self.module.named_parameters():
            out |= {f"optimizer.{name}.{k}": v for k, v in self.optimizer.state.get(p, {}).items()}
        return out

    def numbers(self) -> dict[str, int]:
        """The counters that go beside the tensors."""
        updates = {} if self._average is None else {"ema_updates": self._average.updates}
        row = {"row": self.row} if self.row else {}
        return {"step": self.step, "skipped": self.skipped, **row, **updates}

    def fits(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, int]) -> bool:
        """Whether they are of a state like this one, by names, shapes and types: nothing else can be loaded."""
        like = {name: v for name, v in self.tensors().items() if not name.startswith("optimizer.")}
        for name, p in self.module.named_parameters():
            if any(key.startswith(f"optimizer.{name}.") for key in tensors):
                moments = {"step": torch.zeros(()), "exp_avg": p, "exp_avg_sq": p}
                like |= {f"optimizer.{name}.{key}": v for key, v in moments.items()}
        alike = like.keys() == tensors.keys() and all(
            (v.shape, v.dtype) == (tensors[name].shape, tensors[name].dtype) for name, v in like.items()
        )
        must = self.numbers().keys() | {"row"}
        whole = all(type(n) is int and n >= 0 for n in numbers.values())
        return alike and whole and must - {"row"} <= numbers.keys() <= must

    def load(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, int]) -> None:
        """Continue from what `tensors` and `numbers` gave."""
        self.module.load_state_dict(under("module.", tensors))
        for name, kept in self.memory.items():
            kept.copy_(tensors[f"memory.{name}"])
        if self._average is not None:
            self._average.load(under("ema.", tensors), numbers["ema_updates"])
        self.optimizer.state.clear()
        for name, p in self.module.named_parameters():
            moments = under(f"optimizer.{name}.", tensors)
            if moments:
                self.optimizer.state[p] = {k: v.clone() for k, v in moments.items()}
        self.step, self.skipped = numbers["step"], numbers["skipped"]
        self.row = numbers.get("row", 0)


def under(prefix: str, named: Mapping[str, T]) -> dict[str, T]:
    """Those whose names begin with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in named.items() if k.startswith(prefix)}
