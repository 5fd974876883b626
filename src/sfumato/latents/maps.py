"""Pictures that a network is shown beside the latent, as the models that want them were trained."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.latents.canvas import Canvas
from sfumato.latents.first_stage import FirstStage
from sfumato.latents.kl import KLFirstStage
from sfumato.latents.tiny import TinyFirstStage

Kind = Literal["inpainting", "inpainting_black", "picture", "low_resolution"]


def maps(kind: Kind, first_stage: FirstStage, canvas: Canvas, *, larger: int = 1) -> Tensor:
    """(1, M, h, w) of a given picture, which is shown to a model that paints `larger` times as large.

    ValueError if there is no hole in it where the model paints holes.
    """
    if kind == "low_resolution":
        return low_resolution(canvas.picture[None], larger, first_stage.factor)
    if canvas.hole is None and kind != "picture":
        raise ValueError("this model paints holes, and the picture has none; give a mask")
    return shown(kind, first_stage, canvas.picture[None], None if canvas.hole is None else canvas.hole[None])


def shown(kind: Kind, first_stage: FirstStage, picture: Tensor, hole: Tensor | None) -> Tensor:
    """(B, M, h, w) of pictures (B, 3, H, W) with holes (B, H, W), as training and sampling make them.

    "inpainting" (Stable Diffusion): the hole, 1 inside, then the latent of the picture with grey in the hole.
    "inpainting_black" (LDM): the latent of the picture with black in the hole, then the hole, 1 inside and -1 outside.
    "picture" (InstructPix2Pix): the latent of the picture, not normalised.
    """
    if kind == "picture":
        latent = first_stage.encode(picture)
        return latent * first_stage.std if isinstance(first_stage, KLFirstStage | TinyFirstStage) else latent
    assert hole is not None
    inside = hole[:, None].to(picture.dtype)
    masked = picture * (1 - inside) - (inside if kind == "inpainting_black" else 0)
    latent = first_stage.encode(masked)
    small = F.interpolate(inside, size=latent.shape[2:], mode="nearest")
    return torch.cat([small, latent] if kind == "inpainting" else [latent, 2 * small - 1], dim=1)


def low_resolution(small: Tensor, larger: int, factor: int) -> Tensor:
    """Small pictures (B, 3, H, W) at the size of the latents of those that are `larger` times as large.

    LDM's super-resolution has a first stage of the same factor, and is shown the pixels as they are; ADM's, which
    paints pixels, is shown them scaled up (bilinearly). ValueError if the latents have no such size.
    """
    sides = [side * larger for side in small.shape[2:]]
    if any(side % factor for side in sides):
        raise ValueError(f"a picture of {sides[1]}x{sides[0]} does not divide by {factor}; both sides must")
    size = [side // factor for side in sides]
    return small if [*small.shape[2:]] == size else F.interpolate(small, size=size, mode="bilinear")
