"""How much of a box lies behind others."""

from collections.abc import Sequence

import torch

from sfumato.boxes import Box, Window


def hidden(box: Box, front: Sequence[Box]) -> float:
    """The part of a box, from 0 to 1, that the boxes in front of it cover together.

    Their sides cut it into cells; how many boxes lie over a cell is a running sum of what begins and ends there.
    """
    seen = Window(box.x0, box.y0, box.x1, box.y1)
    over = [cut[1:5] for other in front if (cut := other.within(seen)) is not None]  # in parts of the box
    if not over:
        return 0.0
    sides = torch.tensor(over, dtype=torch.float64)
    (columns, across), (rows, down) = (torch.unique(sides[:, i::2], return_inverse=True) for i in (0, 1))
    begun = torch.zeros(len(rows), len(columns), dtype=torch.int32)
    for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)):
        sign = torch.tensor(1 if x == y else -1, dtype=torch.int32)
        begun.index_put_((down[:, y], across[:, x]), sign, accumulate=True)
    covered = begun.cumsum(0).cumsum(1)[:-1, :-1] > 0
    return float(rows.diff() @ covered.double() @ columns.diff())
