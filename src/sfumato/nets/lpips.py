"""How different two pictures look: distances between VGG features (Zhang et al. 2018, LPIPS 0.1)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN = (-0.030, -0.088, -0.188)
STD = (0.458, 0.448, 0.450)
STAGES = (2, 2, 3, 3, 3)  # convolutions between two poolings of VGG16
WIDTHS = (64, 128, 256, 512, 512)


class Lpips(nn.Module):
    """VGG16 up to the last convolution of stage `stages`, and one weight for each feature of each stage.

    With five stages this is LPIPS; the weights that ship with the project have three (up to relu3_3).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, stages: int = 3) -> None:
        super().__init__()
        widths = [w for w, n in zip(WIDTHS[:stages], STAGES[:stages], strict=True) for _ in range(n)]
        self.last = [sum(STAGES[: i + 1]) - 1 for i in range(stages)]  # convolutions whose output is compared
        self.features = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in zip([3, *widths[:-1]], widths, strict=True)
        )
        self.lin = nn.ModuleList(nn.Conv2d(w, 1, 1, bias=False) for w in WIDTHS[:stages])
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance (B,) of pictures in [-1, 1], (B, 3, H, W)."""
        total = a.new_zeros(len(a), dtype=torch.float32)
        for f, g, lin in zip(self._maps(a), self._maps(b), self.lin, strict=True):
            total = total + lin((_unit(f) - _unit(g)).square()).float().mean((1, 2, 3))
        return total

    def _maps(self, x: Tensor) -> list[Tensor]:
        maps, h = [], (x - self.mean) / self.std
        for i, conv in enumerate(self.features):
            if i - 1 in self.last:
                h = F.max_pool2d(h, 2)
            h = F.relu(conv(h))
            if i in self.last:
                maps.append(h)
        return maps


def _unit(f: Tensor) -> Tensor:
    return f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10)
