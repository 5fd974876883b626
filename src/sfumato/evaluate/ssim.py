"""SSIM: how much of the structure of a picture is kept (Wang et al. 2004, eq. 13)."""

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 11  # pixels
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2  # (K L)^2 of values in [0, 1]
ROWS = 64  # of places at a time: memory for the shorter side times these


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean structural similarity (B,) of pictures (B, 3, H, W) in [-1, 1]; 1 where they are the same.

    Each channel by itself with the authors' window, where it lies wholly inside; then the mean over places and
    channels. Summed by strips of rows, so that memory does not grow with the picture. ValueError if a side is shorter
    than the window.
    """
    height, width = a.shape[2:]
    if min(height, width) < WINDOW:
        raise ValueError(f"pictures of {width}x{height} are too small for SSIM; it needs {WINDOW} pixels")
    if width > height:
        a, b = a.mT, b.mT  # strips across the shorter side; the window is the same both ways
    total = torch.zeros(len(a), dtype=torch.float64, device=a.device)
    for first in range(0, a.shape[2] - WINDOW + 1, ROWS):
        rows = slice(first, first + ROWS + WINDOW - 1)
        total += _likeness(a[:, :, rows], b[:, :, rows]).sum((1, 2, 3))
    return total / (a.shape[1] * (height - WINDOW + 1) * (width - WINDOW + 1))


def _likeness(a: Tensor, b: Tensor) -> Tensor:
    """At each place and channel, (B, C, H - 10, W - 10), float64."""
    x, y = ((p.double().clamp(-1, 1) + 1) / 2 for p in (a, b))
    mx, my = _blurred(x), _blurred(y)
    vx, vy, both = _blurred(x * x) - mx * mx, _blurred(y * y) - my * my, _blurred(x * y) - mx * my
    return (2 * mx * my + C1) * (2 * both + C2) / ((mx * mx + my * my + C1) * (vx + vy + C2))


def _blurred(x: Tensor) -> Tensor:
    """The weighted mean around each place where the window fits, (B, C, H - 10, W - 10)."""
    at = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weights = torch.exp(-at.square() / (2 * SIGMA**2))
    weights = weights / weights.sum()
    flat = x.flatten(0, 1)[:, None]
    rows = F.conv2d(flat, weights.view(1, 1, 1, -1))
    return F.conv2d(rows, weights.view(1, 1, -1, 1)).unflatten(0, x.shape[:2])[:, :, 0]
