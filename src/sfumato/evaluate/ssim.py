"""SSIM: how much of the structure of a picture is kept (Wang et al. 2004, eq. 13)."""

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 11  # pixels
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2  # (K L)^2 of values in [0, 1]


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean structural similarity (B,) of pictures (B, 3, H, W) in [-1, 1]; 1 where they are the same.

    Each channel by itself with the authors' window, where it lies wholly inside; then the mean over places and
    channels. ValueError if a side is shorter than the window.
    """
    height, width = a.shape[2:]
    if min(height, width) < WINDOW:
        raise ValueError(f"pictures of {width}x{height} are too small for SSIM; it needs {WINDOW} pixels")
    x, y = ((p.double().clamp(-1, 1) + 1) / 2 for p in (a, b))
    mx, my = _blurred(x), _blurred(y)
    vx, vy, both = _blurred(x * x) - mx * mx, _blurred(y * y) - my * my, _blurred(x * y) - mx * my
    likeness = (2 * mx * my + C1) * (2 * both + C2) / ((mx * mx + my * my + C1) * (vx + vy + C2))
    return likeness.mean((1, 2, 3))


def _blurred(x: Tensor) -> Tensor:
    """The weighted mean around each place where the window fits, (B, C, H - 10, W - 10)."""
    at = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weights = torch.exp(-at.square() / (2 * SIGMA**2))
    weights = weights / weights.sum()
    flat = x.flatten(0, 1)[:, None]
    rows = F.conv2d(flat, weights.view(1, 1, 1, -1))
    return F.conv2d(rows, weights.view(1, 1, -1, 1)).unflatten(0, x.shape[:2])[:, :, 0]
