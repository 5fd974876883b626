"""LoRA: W + alpha / rank * up @ down in the place of W, where up and down alone learn (Hu et al. 2021, sec. 4.1).

A convolution's down is a convolution of its shape onto `rank` channels, and its up one of a single pixel (LoCon).
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sfumato.nets.attention import CrossAttention, PixelAttention, SpatialTransformer
from sfumato.nets.blocks import Downsample, ResBlock, Upsample
from sfumato.nets.transformer import EncoderLayer

Layer = nn.Linear | nn.Conv2d
Targets = Literal["attention", "transformer", "all"]
"""Which layers change: W_Q, W_K, W_V and W_O; all matrices of the transformers; the convolutions of the blocks too."""

ATTENTION = (CrossAttention, PixelAttention)
TRANSFORMER = (*ATTENTION, SpatialTransformer, EncoderLayer)
WITHIN: dict[Targets, tuple[type[nn.Module], ...]] = {
    "attention": ATTENTION,
    "transformer": TRANSFORMER,
    "all": (*TRANSFORMER, ResBlock, Downsample, Upsample),
}


class LowRank(nn.Module):
    """What is added to the answer of one layer: alpha / rank * up(down(x)). It is nothing at first, for up is zero."""

    def __init__(self, layer: Layer, rank: int, alpha: float) -> None:
        super().__init__()
        self.scale = alpha / rank
        outs, ins, *pixels = layer.weight.shape
        self.down = nn.Parameter(torch.empty(rank, ins, *pixels))
        self.up = nn.Parameter(torch.zeros(outs, rank, *[1] * len(pixels)))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))  # as a layer of its own would begin
        self.steps: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding} if pixels else {}

    def forward(self, x: Tensor) -> Tensor:
        """The input of the layer to what is added to its output."""
        if self.steps:
            return F.conv2d(F.conv2d(x, self.down, **self.steps), self.up) * self.scale
        return F.linear(F.linear(x, self.down), self.up) * self.scale


class Adapters(nn.Module):
    """Low-rank changes of some layers by name, which are on from the beginning; the layers' own weights stay.

    ValueError if the rank is beyond a layer's size, for no change of it has more directions.
    """

    def __init__(self, layers: Mapping[str, Layer], *, rank: int, alpha: float) -> None:
        super().__init__()
        for name, layer in layers.items():
            most = min(layer.weight.shape[0], layer.weight[0].numel())
            if rank > most:
                raise ValueError(f"rank is {rank}, and the layer {name} has {most} directions; take {most} or less")
        self._layers = dict(layers)
        self._handles: list[RemovableHandle] = []
        self.changes = nn.ModuleDict({_key(name): LowRank(layer, rank, alpha) for name, layer in layers.items()})
        self.on()

    def on(self) -> None:
        """Let the layers answer with their changes; they must be off."""
        assert not self._handles
        self._handles = [
            layer.register_forward_hook(_Added(self.changes[_key(name)])) for name, layer in self._layers.items()
        ]

    def off(self) -> None:
        """Let the layers answer as they were."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def away(self) -> Iterator[None]:
        """In here they are off."""
        self.off()
        try:
            yield
        finally:
            self.on()

    @staticmethod
    def pairs(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """down and up of each layer by its name, from parameters of this module or averages of them by name."""
        ends = ".down"
        names = [name.removesuffix(ends) for name in tensors if name.endswith(ends)]
        return {
            name.removeprefix("changes.").replace("/", "."): (tensors[f"{name}{ends}"], tensors[f"{name}.up"])
            for name in names
        }


class _Added:
    """The hook of one layer."""

    def __init__(self, change: nn.Module) -> None:
        self.change = change

    def __call__(self, _layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out + self.change(inputs[0])


def adaptable(net: nn.Module, targets: Targets) -> dict[str, Layer]:
    """The layers of a network, by name, that `targets` means: the matrices and convolutions within such modules."""
    within = [name for name, module in net.named_modules() if isinstance(module, WITHIN[targets])]
    above = tuple(f"{name}." if name else "" for name in within)
    return {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and name.startswith(above)
    }


def _key(name: str) -> str:
    return name.replace(".", "/")  # the names of modules have no full stops
