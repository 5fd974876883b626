"""How long, how fast and how a training run goes: everything about it that is not the loss."""

import math
from dataclasses import dataclass, field
from typing import Literal

from sfumato.world import has_bfloat16

MOST_WORKERS = 64

Precision = Literal["bf16", "fp16", "fp32"]


def fitting() -> Precision:
    """What this machine is fast in: where there are no instructions for bf16, it takes many times as long as fp32."""
    return "bf16" if has_bfloat16() else "fp32"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The loop's settings. Rates and averages are functions of the step alone, so a resumed run repeats them."""

    steps: int
    batch: int  # pictures of a step, in all processes
    rate: float  # peak learning rate of AdamW
    warmup: int = 100  # steps of linear rise
    floor: float = 0.05  # the cosine decay ends at this fraction of the peak
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip: float = 1.0  # largest norm of the gradient
    ema: float = 0.999
    ema_warmup: bool = True  # LDM's: the average follows faster at first; DDPM and ADM have none
    seed: int = 0
    precision: Precision = field(default_factory=fitting)
    accumulate: int = 1  # parts of a batch that are passed one after the other: less memory, the same step
    recompute: bool = False  # whether activations are made again on the way back: less memory, more time
    save: int = 500  # steps between checkpoints
    keep: int = 2  # checkpoints, the newest
    preview: int = 500  # steps between previews
    workers: int = 0  # threads that prepare the batches of the next steps; none changes a result

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "save", "keep", "preview"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name, good, need in (
            ("rate", 0 < self.rate < math.inf, "positive"),
            ("warmup", self.warmup >= 0, "at least 0"),
            ("floor", 0 <= self.floor <= 1, "between 0 and 1"),
            ("betas", all(0 <= beta < 1 for beta in self.betas), "at least 0 and below 1"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "at least 0"),
            ("clip", self.clip > 0, "positive"),
            ("ema", 0 <= self.ema < 1, "at least 0 and below 1"),
            ("workers", 0 <= self.workers <= MOST_WORKERS, f"from 0 to {MOST_WORKERS}"),
            ("accumulate", self.batch % self.accumulate == 0, f"a part of batch, {self.batch}, without remainder"),
            ("seed", 0 <= self.seed < 2**64, "from 0 to 2^64 - 1"),
        ):
            if not good:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {need}")

    def rate_at(self, step: int) -> float:
        """The learning rate of step 0, 1, ...: a linear rise, then half a cosine down to floor * rate."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        done = min(1.0, step / self.steps)
        return self.rate * rise * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done)))
