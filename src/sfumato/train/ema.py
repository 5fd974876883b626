"""Moving averages of the weights: what sampling uses."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sfumato.world import whole


class Average(ABC):
    """A shadow of a module's parameters that follows them; the kinds differ in how slowly. `updates` counts its moves.

    It begins at the weights as they are.
    """

    def __init__(self, module: nn.Module) -> None:
        self.updates = 0
        self._live = dict(module.named_parameters())
        self.shadow = {name: p.detach().clone() for name, p in self._live.items()}

    @abstractmethod
    def decay_at(self, update: int) -> float:
        """How much of the shadow is kept at update 1, 2, ..."""

    @torch.no_grad()
    def follow(self) -> None:
        """Begin at the weights as they are now."""
        for name, p in self._live.items():
            self.shadow[name].copy_(p)

    @torch.no_grad()
    def update(self) -> None:
        """Move the shadow towards the live weights: shadow += (1 - d) (live - shadow)."""
        self.updates += 1
        d = self.decay_at(self.updates)
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            list(self.shadow.values()), [p.detach() for p in self._live.values()], 1 - d
        )

    @torch.no_grad()
    def load(self, shadow: Mapping[str, Tensor], updates: int) -> None:
        """Take over a saved shadow; the names must be those of the module's parameters."""
        for name, mine in self.shadow.items():
            mine.copy_(shadow[name])
        self.updates = updates

    @contextmanager
    def shown(self) -> Iterator[None]:
        """In here the module has the averaged weights."""
        live = {name: p.detach().clone() for name, p in self._live.items()}
        with torch.no_grad():
            for name, p in self._live.items():
                p.copy_(self.shadow[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in self._live.items():
                    p.copy_(live[name])

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Write the shadow into the parameters of another module of the same shape."""
        for name, p in module.named_parameters():
            p.copy_(whole(self.shadow[name]))


class Ema(Average):
    """The exponential average, with LDM's warm-up, decay min(decay, (1 + n) / (10 + n)) at update n, or without."""

    def __init__(self, module: nn.Module, decay: float = 0.9999, *, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema decay {decay} is not in [0, 1)")
        super().__init__(module)
        self.decay, self.warmup = decay, warmup

    def decay_at(self, update: int) -> float:
        """See Average."""
        if not self.warmup:
            return self.decay
        return min(self.decay, (1 + update) / (10 + update))


class Averages:
    """Several averages of one module side by side, by name: other decays, or other profiles (`posthoc.py`)."""

    def __init__(self, averages: Mapping[str, Average]) -> None:
        for name in averages:
            if not name or "." in name:
                raise ValueError(f"'{name}' cannot name an average; a name has a letter and no full stop")
        self._averages = dict(averages)

    def __getitem__(self, name: str) -> Average:
        return self._averages[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._averages)

    def follow(self) -> None:
        """Begin all at the weights as they are now."""
        for average in self._averages.values():
            average.follow()

    def update(self) -> None:
        """Move all towards the live weights."""
        for average in self._averages.values():
            average.update()

    def tensors(self) -> dict[str, Tensor]:
        """Every shadow, as "name.parameter"."""
        return {f"{name}.{k}": v for name, average in self._averages.items() for k, v in average.shadow.items()}

    def numbers(self) -> dict[str, int]:
        """The updates of each."""
        return {name: average.updates for name, average in self._averages.items()}

    def load(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, int]) -> None:
        """Continue from what `tensors` and `numbers` gave."""
        for name, average in self._averages.items():
            average.load({k: tensors[f"{name}.{k}"] for k in average.shadow}, numbers[name])
