"""What of a picture is kept and what is painted anew: masks, from pixels to latents and back, and larger canvases."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Canvas:
    """A picture to begin from, and the hole in it that is painted anew, if there is one."""

    picture: Tensor  # (3, H, W) in [-1, 1]
    hole: Tensor | None = None  # (H, W), 1 where it is painted anew, 0 where it is kept

    @staticmethod
    def of(picture: Tensor, hole: Tensor | None = None, extend: tuple[int, int, int, int] | None = None) -> "Canvas":
        """A picture (3, H, W) in [-1, 1], with a hole (H, W) of zeros and ones, and `extend` pixels more on the left,
        top, right and bottom.

        ValueError if a picture or a hole is not so, or if they differ in size.
        """
        if picture.ndim != 3 or picture.shape[0] != 3 or not picture.is_floating_point():  # noqa: PLR2004
            raise ValueError(f"a picture has shape (3, height, width) and real numbers, not {_described(picture)}")
        if not (picture.abs() <= 1).all():  # nan is not
            raise ValueError("a picture has numbers from -1 to 1, and this has others")
        if hole is not None and (hole.ndim != 2 or not ((hole == 0) | (hole == 1)).all()):  # noqa: PLR2004
            raise ValueError(f"a mask has shape (height, width) and is 0 or 1 everywhere, not {_described(hole)}")
        if hole is not None and hole.shape != picture.shape[1:]:
            mine, theirs = (f"{s[-1]}x{s[-2]}" for s in (hole.shape, picture.shape))
            raise ValueError(f"the mask is {mine} and the picture is {theirs}; they must have the same size")
        hole = None if hole is None else hole.to(picture.dtype)
        if extend is not None:
            left, top, right, bottom = extend
            sides = (left, right, top, bottom)
            hole = picture.new_zeros(picture.shape[1:]) if hole is None else hole
            hole = F.pad(hole, sides, value=1.0)
            picture = F.pad(picture[None], sides, mode="replicate")[0]
        return Canvas(picture, hole)

    def latent_hole(self, factor: int) -> Tensor | None:
        """(1, 1, H / factor, W / factor): 1 where any pixel under a latent is painted anew."""
        return None if self.hole is None else F.max_pool2d(self.hole[None, None].float(), factor)

    def pasted(self, images: Tensor, feather: int) -> Tensor:
        """The painted pictures (B, 3, H, W) with what is kept put back: those pixels are the given ones, exactly.

        Within `feather` pixels of its edge the hole fades into them.
        """
        if self.hole is None:
            return images
        weight = feathered(self.hole, feather).to(images)
        mixed = weight * images + (1 - weight) * self.picture.to(images)
        return torch.where(weight > 0, mixed, self.picture.to(images))


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"


def feathered(hole: Tensor, radius: int) -> Tensor:
    """How much of what is painted is seen (H, W): 0 outside the hole, rising to 1 within `radius` pixels of its edge.

    A part of the hole that is thinner than that is seen in full at its middle.
    """
    whole = hole[None, None].float()
    depth, inner = whole.clone(), whole
    for _ in range(radius):
        inner = -F.max_pool2d(-inner, 3, stride=1, padding=1)  # the border of the picture is no edge
        depth = depth + inner
    deepest = F.max_pool2d(depth, 2 * radius + 1, stride=1, padding=radius)
    return torch.where(whole > 0, depth / deepest.clamp_min(1), torch.zeros_like(depth))[0, 0]
