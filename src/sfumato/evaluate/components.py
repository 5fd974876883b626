"""What hangs together in a mask: its connected components."""

import torch
import torch.nn.functional as F
from torch import Tensor


def components(mask: Tensor) -> Tensor:
    """A mask (H, W), bool, to the number of each pixel's component (H, W), int64: 1, 2, ...; 0 where there is none.

    Pixels hang together that touch at a side or a corner. Numbers count in the order of the last pixels. Each pixel
    begins with a number of its own and takes the largest about it, then the number that this pixel has got meanwhile,
    until nothing changes: the way to a far end halves with each turn.
    """
    own = torch.arange(1, mask.numel() + 1, dtype=torch.float64).view(mask.shape) * mask
    while True:
        near = F.max_pool2d(own[None, None], 3, 1, 1)[0, 0] * mask
        there = F.pad(near.flatten(), (1, 0)).gather(0, near.flatten().long()).view(mask.shape)
        if torch.equal(there, own):
            return torch.unique(F.pad(own.flatten(), (1, 0)), return_inverse=True)[1][1:].view(mask.shape)
        own = there


def extent(mask: Tensor) -> tuple[int, int, int, int]:
    """The least box about a mask (H, W), in pixels: left, top, right and bottom, these two past the last."""
    rows, columns = (mask.any(axis).nonzero()[:, 0].tolist() for axis in (1, 0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
