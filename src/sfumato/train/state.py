"""All that changes while training: weights, their average, the optimiser's moments, and the step."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sfumato.train.ema import Ema
from sfumato.train.plan import Plan


class State:
    """The module under training with its optimiser and its average. `step` counts finished steps."""

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        self.module = module
        self.step = 0
        self.skipped = 0
        self.optimizer = torch.optim.AdamW(
            module.parameters(), lr=plan.rate, betas=plan.betas, weight_decay=plan.weight_decay, fused=True
        )
        self.ema = Ema(module, plan.ema)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint must hold, by name."""
        out = {f"module.{k}": v for k, v in self.module.state_dict().items()}
        out |= {f"ema.{k}": v for k, v in self.ema.shadow.items()}
        for name, p in self.module.named_parameters():
            out |= {f"optimizer.{name}.{k}": v for k, v in self.optimizer.state.get(p, {}).items()}
        return out

    def numbers(self) -> dict[str, int]:
        """The counters that go beside the tensors."""
        return {"step": self.step, "skipped": self.skipped, "ema_updates": self.ema.updates}

    def load(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, int]) -> None:
        """Continue from what `tensors` and `numbers` gave."""
        self.module.load_state_dict(_under("module.", tensors))
        self.ema.load(_under("ema.", tensors), numbers["ema_updates"])
        for name, p in self.module.named_parameters():
            moments = _under(f"optimizer.{name}.", tensors)
            if moments:
                self.optimizer.state[p] = {k: v.clone() for k, v in moments.items()}
        self.step, self.skipped = numbers["step"], numbers["skipped"]


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
