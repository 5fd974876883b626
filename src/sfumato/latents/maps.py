"""Pictures that a network is shown beside the latent, as the models that want them were trained."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.latents.canvas import Canvas
from sfumato.latents.first_stage import FirstStage
from sfumato.latents.kl import KLFirstStage
from sfumato.latents.tiny import TinyFirstStage

Kind = Literal["inpainting", "inpainting_black", "picture"]


def maps(kind: Kind, first_stage: FirstStage, canvas: Canvas) -> Tensor:
    """(1, M, h, w) of a given picture; ValueError if there is no hole in it where the model paints holes.

    "inpainting" (Stable Diffusion): the hole, 1 inside, then the latent of the picture with grey in the hole.
    "inpainting_black" (LDM): the latent of the picture with black in the hole, then the hole, 1 inside and -1 outside.
    "picture" (InstructPix2Pix): the latent of the picture, not normalised.
    """
    picture, hole = canvas.picture[None], canvas.hole
    if kind == "picture":
        latent = first_stage.encode(picture)
        return latent * first_stage.std if isinstance(first_stage, KLFirstStage | TinyFirstStage) else latent
    if hole is None:
        raise ValueError("this model paints holes, and the picture has none; give a mask")
    inside = hole[None, None].to(picture.dtype)
    masked = picture * (1 - inside) - (inside if kind == "inpainting_black" else 0)
    latent = first_stage.encode(masked)
    small = F.interpolate(inside, size=latent.shape[2:], mode="nearest")
    return torch.cat([small, latent] if kind == "inpainting" else [latent, 2 * small - 1], dim=1)
