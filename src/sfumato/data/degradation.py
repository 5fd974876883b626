"""Small pictures for a network to make large again: blurred, scaled down and grained a little, by their address."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.diffusion.noise import Address, Stream

Degradation = Literal["light", "area"]
BLURRED = 0.7  # share of pictures
SHARPEST, SOFTEST = 0.15, 0.35  # deviation of the blur along an axis, in pixels of the small picture
GRAINIEST = 2 / 127.5  # deviation of the noise: two levels of 255
KERNELS = ("area", "bilinear", "bicubic", "nearest")


def degraded(images: Tensor, at: Address, *, factor: int, kind: Degradation = "light") -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] as (B, 3, H / factor, W / factor), of 256 levels.

    "area" takes means of blocks. "light" is in the spirit of BSRGAN's (Zhang et al. 2021), and milder: what a small
    picture of today may have gone through, and no compression. Seven in ten are blurred by a Gaussian, narrow or wide
    in each of two directions; then scaled down in one of four ways; then noise of at most two levels. ValueError if the
    sides do not divide.
    """
    height, width = images.shape[2:]
    if height % factor or width % factor:
        raise ValueError(
            f"a picture of {width}x{height} cannot be made {factor} times as small; both sides must divide"
        )
    if kind == "area":
        return _levels(F.avg_pool2d(images, factor))
    u = at.uniform(Stream.DEGRADE, 6).tolist()
    small = torch.cat([_one(x[None], factor, how) for x, how in zip(images, u, strict=True)])
    grain = torch.tensor([how[5] for how in u], dtype=small.dtype).view(-1, 1, 1, 1) * GRAINIEST
    return _levels(small + grain * at.normal(small, Stream.GRAIN))


def _one(image: Tensor, factor: int, u: list[float]) -> Tensor:
    blurred = u[0] < BLURRED
    if blurred:
        deviations = [factor * SHARPEST * (SOFTEST / SHARPEST) ** part for part in u[1:3]]
        kernel = gaussian(*deviations, angle=math.pi * u[3]).to(image.dtype)
        side = kernel.shape[-1] // 2
        padded = F.pad(image, (side, side, side, side), mode="replicate")
        image = F.conv2d(padded.transpose(0, 1), kernel[None, None]).transpose(0, 1)
    kernels = KERNELS if blurred else KERNELS[:-1]  # what is not blurred would be torn
    return scaled_down(image, factor, kernels[int(u[4] * len(kernels))])


def scaled_down(images: Tensor, factor: int, kernel: str) -> Tensor:
    """(B, 3, H, W) -> (B, 3, H / factor, W / factor), by one of KERNELS."""
    match kernel:
        case "area":
            return F.avg_pool2d(images, factor)
        case "nearest":
            return images[..., factor // 2 :: factor, factor // 2 :: factor]
        case _:
            size = [side // factor for side in images.shape[2:]]
            return F.interpolate(images, size=size, mode=kernel, antialias=True)


def gaussian(across: float, along: float, *, angle: float) -> Tensor:
    """A kernel (2 r + 1, 2 r + 1) of sum 1 with these deviations, in pixels, in two directions at a right angle."""
    radius = math.ceil(2.5 * max(across, along))
    steps = torch.arange(-radius, radius + 1, dtype=torch.float64)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    p, q = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    weights = (-0.5 * ((p / across) ** 2 + (q / along) ** 2)).exp()
    return weights / weights.sum()


def _levels(images: Tensor) -> Tensor:
    """As a file of 8 bits holds them."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
