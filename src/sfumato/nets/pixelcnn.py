"""PixelCNN++: a network that knows of each pixel only those before it (Salimans et al. 2017), and draws them in turn.

Two streams go through the network side by side. `above` sees the rows above a pixel; `beside` sees these, through the
first, and what is left of it in its own row. Both go down three resolutions and up again as in a U-Net, where they are
joined by what they were on the way down. DDPM's U-Net descends from this one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from sfumato.nets.logistics import drawn

LEVELS = 3  # resolutions
FLAT = 1e-5  # a channel of less deviation does not vary


@dataclass(frozen=True, kw_only=True)
class PixelCnnSize:
    """Widths and depths; the defaults are the published ones for CIFAR-10."""

    filters: int = 160
    blocks: int = 5  # in each resolution on the way down, and one more in all but the smallest on the way up
    mixtures: int = 10
    dropout: float = 0.5
    cond_dim: int | None = None  # of a vector that every block is told

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012


class Conv(nn.Module):
    """A weight-normalised convolution that looks up, or up and left, but never further down or to the right.

    A kernel of even width looks left; of odd width to both sides, as only rows above may be seen that way. Weights are
    g v / |v| for each channel of the output (Salimans & Kingma 2016), where v starts at N(0, 0.05) and g at 1.
    """

    def __init__(self, channels: int, out: int, kernel: tuple[int, int], *, stride: int = 1) -> None:
        super().__init__()
        height, width = kernel
        left, right = (width // 2, width // 2) if width % 2 else (width - 1, 0)
        self.padding = (left, right, height - 1, 0)
        self.conv = _normed(nn.Conv2d(channels, out, kernel, stride))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, out, H / stride, W / stride)."""
        return self.conv(F.pad(x, self.padding))


class Transposed(nn.Module):
    """The like of `Conv` that doubles height and width."""

    def __init__(self, channels: int, out: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.left = kernel[1] // 2 if kernel[1] % 2 else 0
        self.conv = _normed(nn.ConvTranspose2d(channels, out, kernel, 2, output_padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, out, 2H, 2W)."""
        height, width = x.shape[2:]
        return self.conv(x)[:, :, : 2 * height, self.left : self.left + 2 * width]


class Gated(nn.Module):
    """A residual block: x + a sigmoid(b), where a and b are of x, of `side` and of the condition."""

    def __init__(self, size: PixelCnnSize, kernel: tuple[int, int], *, side: int = 0) -> None:
        super().__init__()
        f = size.filters
        self.conv_in = Conv(2 * f, f, kernel)
        self.side = _normed(nn.Conv2d(2 * side * f, f, 1)) if side else None
        self.dropout = nn.Dropout(size.dropout)
        self.conv_out = Conv(2 * f, 2 * f, kernel)
        self.cond = nn.Linear(size.cond_dim, 2 * f, bias=False) if size.cond_dim else None

    def forward(self, x: Tensor, side: Tensor | None, cond: Tensor | None) -> Tensor:
        """`x` (B, F, H, W), `side` (B, side * F, H, W), `cond` (B, cond_dim)."""
        h = self.conv_in(_elus(x))
        if self.side is not None:
            assert side is not None
            h = h + self.side(_elus(side))
        h = self.conv_out(self.dropout(_elus(h)))
        if self.cond is not None:
            assert cond is not None
            h = h + self.cond(cond)[:, :, None, None]
        a, b = h.chunk(2, dim=1)
        return x + a * b.sigmoid()


class Pair(nn.Module):
    """One block of each stream. `joins` says whether it is told what the streams were on the way down."""

    def __init__(self, size: PixelCnnSize, *, joins: bool) -> None:
        super().__init__()
        self.above = Gated(size, ABOVE, side=1 if joins else 0)
        self.beside = Gated(size, BESIDE, side=2 if joins else 1)

    def forward(self, streams: "Streams", joined: "Streams | None", cond: Tensor | None) -> "Streams":
        """Streams (B, F, H, W) each."""
        above, beside = streams
        if joined is None:
            above = self.above(above, None, cond)
            return above, self.beside(beside, above, cond)
        above = self.above(above, joined[0], cond)
        return above, self.beside(beside, torch.cat([above, joined[1]], dim=1), cond)


class Resize(nn.Module):
    """Both streams to half or to twice the height and width."""

    def __init__(self, filters: int, *, double: bool) -> None:
        super().__init__()
        if double:
            self.above: nn.Module = Transposed(filters, filters, ABOVE)
            self.beside: nn.Module = Transposed(filters, filters, BESIDE)
        else:
            self.above = Conv(filters, filters, ABOVE, stride=2)
            self.beside = Conv(filters, filters, BESIDE, stride=2)

    def forward(self, streams: "Streams") -> "Streams":
        """Streams (B, F, H, W) each."""
        return self.above(streams[0]), self.beside(streams[1])


ABOVE, BESIDE = (2, 3), (2, 2)  # kernels of the two streams
Streams = tuple[Tensor, Tensor]


class PixelCnn(nn.Module):
    """From a picture, for each pixel, the mixture that it is drawn from, which hangs on the pixels before it alone.

    Before is in the order of reading: the rows above, and what is left in the same row.
    """

    def __init__(self, size: PixelCnnSize) -> None:
        super().__init__()
        self.size = size
        f = size.filters
        self.first_above = Conv(4, f, (2, 3))
        self.first_row = Conv(4, f, (1, 3))
        self.first_column = Conv(4, f, (2, 1))
        self.down = nn.ModuleList()
        for level in range(LEVELS):
            self.down.extend(Pair(size, joins=False) for _ in range(size.blocks))
            if level < LEVELS - 1:
                self.down.append(Resize(f, double=False))
        self.up = nn.ModuleList()
        for level in reversed(range(LEVELS)):
            self.up.extend(Pair(size, joins=True) for _ in range(size.blocks + (level < LEVELS - 1)))
            if level > 0:
                self.up.append(Resize(f, double=True))
        self.out = _normed(nn.Conv2d(f, 10 * size.mixtures, 1))

    def forward(self, image: Tensor, cond: Tensor | None = None) -> Tensor:
        """image (B, 3, H, W) in [-1, 1], cond (B, cond_dim) -> parameters of mixtures (B, 10 * mixtures, H, W).

        `nets/logistics.py` says what they mean. ValueError if H or W is no multiple of 4, or if the network is
        conditional and there is no condition, or the other way round.
        """
        height, width = image.shape[2:]
        factor = 2 ** (LEVELS - 1)
        if height % factor or width % factor:
            raise ValueError(f"PixelCNN++ reads pictures whose sides are multiples of {factor}, not {width}x{height}")
        if (cond is None) is not (self.size.cond_dim is None):
            raise ValueError(
                "this PixelCNN++ needs a condition" if cond is None else "this PixelCNN++ takes no condition"
            )
        x = torch.cat([image, torch.ones_like(image[:, :1])], dim=1)  # the ones tell a border from grey
        streams = _down(self.first_above(x)), _down(self.first_row(x)) + _right(self.first_column(x))
        seen = [streams]
        for layer in self.down:
            streams = layer(streams, None, cond) if isinstance(layer, Pair) else layer(streams)
            seen.append(streams)
        streams = seen.pop()
        for layer in self.up:
            streams = layer(streams, seen.pop(), cond) if isinstance(layer, Pair) else layer(streams)
        return self.out(F.elu(streams[1]))

    @torch.no_grad()
    def start_at_data(self, images: Tensor, cond: Tensor | None = None) -> None:
        """Set scales and biases so that on these `images` (B, 3, H, W) every layer has mean 0 and variance 1.

        Each channel of each layer's output, over pictures and places; deviation 0.1 for the second convolution of a
        block (Salimans & Kingma 2016, sec. 3). Dropout is off meanwhile. A channel that does not vary keeps its scale.
        """
        small = {block.conv_out.conv for block in self.modules() if isinstance(block, Gated)}

        def normalise(layer: nn.Module, _: object, out: Tensor) -> Tensor:
            target = 0.1 if layer in small else 1.0
            mean, std = out.mean((0, 2, 3)), out.std((0, 2, 3), correction=0)
            ratio = torch.where(std > FLAT, target / std, 1.0)
            scale = layer.get_parameter("parametrizations.weight.original0")
            scale.mul_(ratio.reshape(scale.shape))
            bias = layer.get_parameter("bias")
            bias.copy_((bias - mean) * ratio)
            return (out - mean[:, None, None]) * ratio[:, None, None]

        layers = [m for m in self.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
        hooks = [layer.register_forward_hook(normalise) for layer in layers]
        training = self.training
        try:
            self.eval()(images, cond)
        finally:
            self.train(training)
            for hook in hooks:
                hook.remove()


def painted(
    net: Callable[[Tensor, Tensor | None], Tensor], uniform: Tensor, cond: Tensor | None = None
) -> Iterator[Tensor]:
    """Draw pictures pixel by pixel; after each comes the picture so far (B, 3, H, W), grey where nothing is drawn yet.

    `uniform` (B, mixtures + 3, H, W) in [0, 1] is all the chance there is (see `logistics.drawn`), and its height and
    width are those of the picture. The network is to be in `eval` mode. It is run for each pixel, on the rows that it
    may see.
    """
    picture = uniform.new_zeros(len(uniform), 3, *uniform.shape[2:])
    factor = 2 ** (LEVELS - 1)
    for row, column in product(*map(range, uniform.shape[2:])):
        with torch.no_grad():
            out = net(picture[:, :, : (row // factor + 1) * factor], cond)
            here = (slice(None), slice(None), slice(row, row + 1), slice(column, column + 1))
            picture[here] = drawn(out[here], uniform[here])
        yield picture.clone()


def _normed(layer: nn.Conv2d | nn.ConvTranspose2d) -> nn.Module:
    nn.init.normal_(layer.weight, std=0.05)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    weight_norm(layer, dim=1 if isinstance(layer, nn.ConvTranspose2d) else 0)  # the axis of the output's channels
    nn.init.ones_(layer.get_parameter("parametrizations.weight.original0"))
    return layer


def _elus(x: Tensor) -> Tensor:
    return F.elu(torch.cat([x, -x], dim=1))


def _down(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 1, -1))  # each row gets what the row above had


def _right(x: Tensor) -> Tensor:
    return F.pad(x, (1, -1, 0, 0))
