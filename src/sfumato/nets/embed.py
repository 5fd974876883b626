"""How a point in time becomes a vector: the sinusoidal embeddings of the two lineages."""

import math

import torch
from torch import Tensor


def sinusoid(t: Tensor, dim: int) -> Tensor:
    """Embed times `t` (B,) as (B, dim): cosines, then sines, at frequencies 10000^(-i / half), i < half = dim // 2.

    The variant of ADM, LDM and Stable Diffusion (systems: cos first). Fractional times are embedded exactly;
    an odd `dim` gets one zero column.
    """
    half = dim // 2
    freq = torch.exp(-math.log(10_000) / half * torch.arange(half, dtype=torch.float32, device=t.device))
    angle = t.float()[:, None] * freq
    return _even(torch.cat([angle.cos(), angle.sin()], dim=-1), dim)


def sinusoid_ddpm(t: Tensor, dim: int) -> Tensor:
    """Embed times `t` (B,) as (B, dim) the way of DDPM (Ho et al. 2020): sines first, divisor half - 1."""
    half = dim // 2
    freq = torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half, dtype=torch.float32, device=t.device))
    angle = t.float()[:, None] * freq
    return _even(torch.cat([angle.sin(), angle.cos()], dim=-1), dim)


def _even(columns: Tensor, dim: int) -> Tensor:
    return torch.nn.functional.pad(columns, (0, dim - columns.shape[-1]))
