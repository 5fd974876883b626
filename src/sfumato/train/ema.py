"""The exponential moving average of the weights: what sampling uses."""

import torch
from torch import Tensor, nn


class Ema:
    """A shadow of a module's parameters, with LDM's warm-up: decay min(decay, (1 + n) / (10 + n)) at update n."""

    def __init__(self, module: nn.Module, decay: float = 0.9999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema decay {decay} is not in [0, 1)")
        self.decay = decay
        self.updates = 0
        self._live = dict(module.named_parameters())
        self.shadow = {name: p.detach().clone() for name, p in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the shadow towards the live weights: shadow += (1 - d) (live - shadow)."""
        self.updates += 1
        d = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            list(self.shadow.values()), [p.detach() for p in self._live.values()], 1 - d
        )

    @torch.no_grad()
    def load(self, shadow: dict[str, Tensor], updates: int) -> None:
        """Take over a saved shadow; the names must be those of the module's parameters."""
        for name, mine in self.shadow.items():
            mine.copy_(shadow[name])
        self.updates = updates

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Write the shadow into the parameters of another module of the same shape."""
        for name, p in module.named_parameters():
            p.copy_(self.shadow[name])
