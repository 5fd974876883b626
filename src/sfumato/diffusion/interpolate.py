"""Between two noises."""

import torch
from torch import Tensor


def slerp(a: Tensor, b: Tensor, part: Tensor | float) -> Tensor:
    """`part` of the way from `a` to `b` (B, ...) on the arc between them, sample by sample (Shoemake 1985).

    A straight line between two Gaussian noises would pass where there is less noise than either has; the arc keeps
    their length. `part` is a number or (B,). Samples in one direction are joined by the straight line.
    """
    shape = (-1, *[1] * (a.ndim - 1))
    u, v = a.flatten(1).double(), b.flatten(1).double()
    cosine = (u * v).sum(1) / (u.norm(dim=1) * v.norm(dim=1)).clamp_min(1e-300)
    angle = cosine.clamp(-1, 1).arccos().view(shape)
    part = torch.as_tensor(part, dtype=torch.float64, device=a.device).reshape(
        shape if torch.is_tensor(part) and part.ndim else ()
    )
    sine = angle.sin()
    straight = sine < 1e-6  # noqa: PLR2004
    mine = torch.where(straight, 1 - part, ((1 - part) * angle).sin() / sine)
    theirs = torch.where(straight, part, (part * angle).sin() / sine)
    return (mine * a + theirs * b).to(a.dtype)
