"""The layers of a way down or up, counted as their names in others' files are."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from torch import nn

from sfumato.nets.attention import PixelAttention
from sfumato.nets.blocks import Downsample, Upsample


class Counted(NamedTuple):
    """A layer and where it stands."""

    at: int  # its index among ours
    layer: nn.Module
    level: int  # how many changes of size came before it
    block: int  # the number of the block that it is, or that attention follows, within the level


def counted(layers: Iterable[nn.Module], first: int = 0) -> Iterator[Counted]:
    """The layers of one way; `first` is the index of the first of them. A change of size ends its level."""
    level = block = 0
    for i, layer in enumerate(layers, first):
        if isinstance(layer, PixelAttention):
            yield Counted(i, layer, level, block - 1)
            continue
        yield Counted(i, layer, level, block)
        level, block = (level + 1, 0) if isinstance(layer, Downsample | Upsample) else (level, block + 1)
