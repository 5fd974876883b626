"""All that changes while training: weights, their average, the optimiser's moments, and the step."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from sfumato.train.ema import Averages, Ema
from sfumato.train.plan import Plan
from sfumato.world import whole

T = TypeVar("T")

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # that AdamW keeps of each parameter
LARGEST_SCALE, FIRST_SCALE = 24, 16  # powers of two that losses are multiplied by in half precision
GROWS = 2000  # steps without an overflow, after which a larger one is tried


class State:
    """The module under training with its optimiser and its average. `step` counts finished steps.

    `memory` is what an objective remembers from step to step: tensors that it changes in place. `averages` are others
    of the same module, beside the one of the plan.
    """

    def __init__(
        self,
        module: nn.Module,
        plan: Plan,
        *,
        average: bool = True,
        memory: Mapping[str, Tensor] | None = None,
        averages: Averages | None = None,
    ) -> None:
        self.module = module
        self.plan = plan
        self.step = 0
        self.skipped = 0
        self.row = 0  # of the steps just finished, how many in a row were skipped
        self.optimizer = torch.optim.AdamW(
            module.parameters(), lr=plan.rate, betas=plan.betas, weight_decay=plan.weight_decay, fused=True
        )
        self._average = Ema(module, plan.ema, warmup=plan.ema_warmup) if average else None
        self.memory = memory or {}
        self.exponent = FIRST_SCALE if plan.precision == "fp16" else 0  # of the scale
        self.since = 0  # steps since it changed
        self.averages = averages or Averages({})

    @property
    def ema(self) -> Ema:
        """The average of the weights; there must be one."""
        assert self._average is not None
        return self._average

    @property
    def scale(self) -> float:
        """What losses are multiplied by so that gradients of half precision do not vanish: a power of two."""
        return 2.0**self.exponent

    def clip(self) -> float:
        """Bring the gradients back from their scale, and to the plan's norm at most; their norm before that."""
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        if self.exponent:
            torch._foreach_mul_(gradients, 1 / self.scale)  # pyright: ignore[reportPrivateImportUsage]
        return float(whole(torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.plan.clip)))

    def shrink(self) -> bool:
        """After a step that was not finite: a smaller scale, if it may have been too large."""
        if self.exponent == 0:
            return False
        self.exponent, self.since = self.exponent - 1, -1
        return True

    def follow(self) -> None:
        """Let all averages begin at the weights as they are now."""
        if self._average is not None:
            self._average.follow()
        self.averages.follow()

    def advance(self, *, changed: bool) -> None:
        """Finish a step: by the gradients, if there are any and they are of use, or without a change."""
        if changed and any(p.grad is not None for p in self.module.parameters()):
            for group in self.optimizer.param_groups:
                group["lr"] = self.plan.rate_at(self.step)
            self.optimizer.step()
            if self._average is not None:
                self._average.update()
            self.averages.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.since += 1
        if self.since == GROWS and self.plan.precision == "fp16":
            self.exponent, self.since = min(self.exponent + 1, LARGEST_SCALE), 0

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint must hold, by name."""
        out = {f"module.{k}": v for k, v in self.module.state_dict().items()}
        out |= {f"memory.{k}": v for k, v in self.memory.items()}
        if self._average is not None:
            out |= {f"ema.{k}": v for k, v in self._average.shadow.items()}
        out |= {f"averages.{k}": v for k, v in self.averages.tensors().items()}
        for name, p in self.module.named_parameters():
            out |= {f"optimizer.{name}.{k}": v for k, v in self.optimizer.state.get(p, {}).items()}
        return out

    def numbers(self) -> dict[str, int]:
        """The counters that go beside the tensors."""
        updates = {} if self._average is None else {"ema_updates": self._average.updates}
        row = {"row": self.row} if self.row else {}
        updates |= {f"averages.{k}": n for k, n in self.averages.numbers().items()}
        scale = {"exponent": self.exponent, "since": self.since} if self.plan.precision == "fp16" else {}
        return {"step": self.step, "skipped": self.skipped, **row, **updates, **scale}

    def like(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Tensors of these names, as a checkpoint of this state has them, to be filled."""
        out = {name: torch.empty_like(v) for name, v in self.tensors().items() if not name.startswith("optimizer.")}
        own = {f"optimizer.{name}.{key}": p for name, p in self.module.named_parameters() for key in MOMENTS}
        out |= {
            name: torch.zeros(()) if name.endswith(".step") else torch.empty_like(own[name])
            for name in names
            if name in own
        }
        return out

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
        self.averages.load(under("averages.", tensors), under("averages.", numbers))
        self.optimizer.state.clear()
        for name, p in self.module.named_parameters():
            moments = under(f"optimizer.{name}.", tensors)
            if moments:
                self.optimizer.state[p] = {k: v.to(p.device, copy=True) for k, v in moments.items()}
        self.step, self.skipped = numbers["step"], numbers["skipped"]
        self.row = numbers.get("row", 0)
        self.exponent, self.since = numbers.get("exponent", 0), numbers.get("since", 0)


def under(prefix: str, named: Mapping[str, T]) -> dict[str, T]:
    """Those whose names begin with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in named.items() if k.startswith(prefix)}
