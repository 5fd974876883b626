"""A contact sheet: a few pictures of a data set, whole and small, with their boxes drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.data.listed import measured
from sfumato.data.listing import Entry
from sfumato.data.part import spaced
from sfumato.io import pictures
from sfumato.io.outlined import outlined

MOST = 48
COLUMNS = 8
SIDE = 224  # pixels of the longer side of each


def contact_sheet(entries: Sequence[Entry], *, most: int = MOST, side: int = SIDE) -> Tensor:
    """At most so many pictures, spread over the data set, in one (3, H, W), each whole, its longer side `side` pixels.

    Those that cannot be read are passed over; ValueError if none can.
    """
    found: list[Tensor] = []
    for i in spaced(len(entries), most):
        try:
            found.append(_drawn(entries[i], side))
        except ValueError:
            continue
    if not found:
        raise ValueError("none of the pictures can be drawn, for none can be read")
    return pictures.sheet(torch.stack(found), columns=min(COLUMNS, len(found)))


def _drawn(entry: Entry, side: int) -> Tensor:
    """One picture with its boxes, in the middle of a white square."""
    data = entry.read()
    with entry.open() as file:
        head = pictures.header(file)
    boxes = measured(entry, head).boxes or ()
    longer = max(head.width, head.height)
    small = (max(1, round(head.width * side / longer)), max(1, round(head.height * side / longer)))
    image = outlined(pictures.decode(data, size=small if longer > side else None), boxes, side=side)
    high, wide = image.shape[1:]
    left, top = (side - wide) // 2, (side - high) // 2
    return F.pad(image, (left, side - wide - left, top, side - high - top), value=1.0)
