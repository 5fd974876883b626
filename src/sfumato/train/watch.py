"""Is a training still going somewhere? What the log says of the last steps, held against what may not happen."""

import math
from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

from sfumato.train.fit import Said

TREND = 100  # steps that agree


class Watch:
    """Looks at what each step logged; what it remembers is saved, so a resumed run judges as an uninterrupted one.

    The reconstruction may not become `worse` times as bad as it was at its best; the weight of the adversary may not
    stay at its `limit`; the critic may not be right everywhere, for then its gradient says nothing.
    """

    def __init__(self, *, window: int = TREND, worse: float = 3.0, limit: float = 1e4, won: float = 0.01) -> None:
        self.worse, self.limit, self.won = worse, limit, won
        self._errors: deque[float] = deque(maxlen=window)
        self._weights: deque[float] = deque(maxlen=window)
        self._critic: deque[float] = deque(maxlen=window)
        self._best = math.inf

    def see(self, losses: Mapping[str, Said]) -> str | None:
        """What is wrong since this step, in a sentence; None if nothing is."""
        for name, kept in (("l1", self._errors), ("adversary weight", self._weights), ("critic", self._critic)):
            value = losses.get(name)
            if isinstance(value, float) and math.isfinite(value):
                kept.append(value)
        error = _mean(self._errors)
        self._best = min(self._best, error)
        if error > self.worse * self._best < math.inf:
            return f"the reconstruction is {error / self._best:.1f} times as bad as it was at its best (mean l1)"
        if _full(self._weights) and min(self._weights) >= self.limit:
            return (
                f"the adaptive weight of the adversary has exploded (at its limit {self.limit:g} for "
                f"{len(self._weights)} steps): the critic's gradient has vanished"
            )
        if _full(self._critic) and max(self._critic) <= self.won:
            return (
                f"the critic has collapsed (its loss was below {self.won:g} for {len(self._critic)} steps): it tells "
                "every patch apart, and its gradient says nothing"
            )
        return None

    def tensors(self) -> dict[str, Tensor]:
        """What it remembers, in float64: what the log said, to the bit."""
        kept = {"errors": list(self._errors), "weights": list(self._weights), "critic": list(self._critic)}
        return {name: torch.tensor(v, dtype=torch.float64) for name, v in {**kept, "best": [self._best]}.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Remember what `tensors` gave, and nothing else; they may be empty."""
        for name, kept in (("errors", self._errors), ("weights", self._weights), ("critic", self._critic)):
            kept.clear()
            kept.extend(tensors[name].tolist() if tensors else [])
        self._best = tensors["best"].item() if tensors else math.inf

    def fits(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether it can remember this."""
        rows = all(v.dtype == torch.float64 and v.ndim == 1 for v in tensors.values())
        return not tensors or (rows and tensors.keys() == self.tensors().keys() and len(tensors["best"]) == 1)


def _full(values: deque[float]) -> bool:
    return len(values) == values.maxlen


def _mean(values: deque[float]) -> float:
    return sum(values) / len(values) if _full(values) else math.inf
