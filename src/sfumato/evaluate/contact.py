"""Contact sheets: pictures above what a first stage made of them, above the errors."""

import torch
from torch import Tensor

from sfumato.evaluate.reconstruction import CONTRAST, error_map
from sfumato.io import pictures

COLUMNS = 8
ROWS = ("input", "reconstruction", f"|error| x {CONTRAST}")


def side_by_side(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Pictures (N, 3, H, W), their reconstructions and the errors, (3, N, 3, H, W)."""
    return torch.stack([inputs, outputs, error_map(inputs, outputs)])


def contact_sheet(inputs: Tensor, outputs: Tensor) -> Tensor:
    """A sheet (3, ., .): a row of pictures, one of their reconstructions, one of the errors, and again."""
    columns = min(COLUMNS, len(inputs))
    blank = inputs.new_ones(-len(inputs) % columns, *inputs.shape[1:])
    rows = torch.cat([side_by_side(inputs, outputs), blank.expand(3, *blank.shape)], dim=1)
    bands = rows.unflatten(1, (-1, columns)).transpose(0, 1)  # (bands, 3, columns, 3, H, W)
    return pictures.sheet(bands.flatten(0, 2), columns=columns)
