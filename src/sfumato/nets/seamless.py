"""A network on a torus: what leaves a picture on one side comes in on the other, so that it tiles without a seam."""

import copy
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def seamless(module: M) -> M:
    """The same network, with the same weights (not copies), whose convolutions pad with the opposite side.

    The given module is not touched. A U-Net without absolute positions then commutes with shifts of its input around
    the torus by whole numbers of its coarsest cells.
    """
    kept = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    twin = copy.deepcopy(module, kept)
    for part in twin.modules():
        if isinstance(part, nn.Conv2d):
            part.padding_mode = "circular"
    return twin
