"""The PatchGAN: a small convolutional critic that judges each patch of a picture alone (Isola et al. 2017)."""

from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class PatchGanSize:
    """Widths and depth. A patch is 70 pixels a side with three layers, 34 with two, 16 with one."""

    channels: int = 3
    width: int = 64  # of the first layer; each next is twice as wide, to eight times at most
    layers: int = 3  # those that halve the picture

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    @property
    def least(self) -> int:
        """Pixels a side of the smallest picture that it can judge."""
        return 3 * 2**self.layers

    @property
    def widths(self) -> list[int]:
        """Channels behind each layer but the last."""
        return [self.width * min(2**n, 8) for n in range(self.layers + 1)]

    @property
    def largest(self) -> int:
        """Weights of its largest layer."""
        return 16 * max(width * out for width, out in pairwise([self.channels, *self.widths]))


class PatchGan(nn.Module):
    """Logits for "this patch is of a real picture", as in pix2pix and LDM: 4x4 convolutions, batch norm, leaky ReLU.

    It starts as published: weights of convolutions N(0, 0.02), scales of the normalisations N(1, 0.02).
    """

    def __init__(self, size: PatchGanSize) -> None:
        super().__init__()
        self.size = size
        widths = size.widths
        layers: list[nn.Module] = [nn.Conv2d(size.channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for n, (width, out) in enumerate(pairwise(widths), 1):
            stride = 2 if n < size.layers else 1
            layers.append(nn.Conv2d(width, out, 4, stride, 1, bias=False))
            layers += [nn.BatchNorm2d(out), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.layers = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, 0.02)
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.weight, 1.0, 0.02)

    def forward(self, image: Tensor) -> Tensor:
        """(B, channels, H, W) in [-1, 1] -> (B, 1, H / 2^layers - 2, W / 2^layers - 2), both rounded down before the 2.

        ValueError where nothing would be left.
        """
        (height, width), least = image.shape[2:], self.size.least
        if min(height, width) < least:
            raise ValueError(
                f"a picture of {width}x{height} is too small for this PatchGAN; {least}x{least} is the least"
            )
        return self.layers(image)


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The critic's loss: half the mean of relu(1 - real), half that of relu(1 + fake) (Lim & Ye 2017). A scalar."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def hinge_generator(fake: Tensor) -> Tensor:
    """The other side's: minus the mean logit. LDM has it against both kinds of critic."""
    return -fake.mean()


def vanilla(real: Tensor, fake: Tensor) -> Tensor:
    """The critic's loss: half the cross-entropy on each kind of picture (Goodfellow et al. 2014). A scalar."""
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())
