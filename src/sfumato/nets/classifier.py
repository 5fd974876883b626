"""ADM's classifier of noisy pictures: the U-Net's way down and a last attention (Dhariwal & Nichol 2021, sec. 4)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nets.blocks import group_norm
from sfumato.nets.unet import UNetSize, clock, descent, middle, through, time_mlp


@dataclass(frozen=True, kw_only=True)
class ClassifierSize:
    """The way down is that of a U-Net of size `body`; the last attention fixes the `side` of the pictures."""

    body: UNetSize
    classes: int
    side: int

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012


class AttentionPool(nn.Module):
    """All pixels and their mean attend to each other, with learned positions; what the mean hears is the answer
    (Radford et al. 2021, sec. 2.3)."""

    def __init__(self, channels: int, out: int, *, pixels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.positions = nn.Parameter(torch.randn(channels, pixels + 1) / channels**0.5)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.Linear(channels, out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out)."""
        x = x.flatten(2)
        x = (torch.cat([x.mean(2, keepdim=True), x], dim=2) + self.positions).transpose(1, 2)  # (B, 1 + H*W, C)
        asked = (self.to_q(x[:, :1]), self.to_k(x), self.to_v(x))  # the other answers would be dropped
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in asked)
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1))


class Classifier(nn.Module):
    """log p(y | x_t), for `diffusion.guidance.classifier_guided` and `diffusion.objective.classifier_loss`."""

    def __init__(self, size: ClassifierSize) -> None:
        super().__init__()
        self.size = size
        body = size.body
        self.time = time_mlp(body.width, 4 * body.width)
        self.conv_in = nn.Conv2d(body.channels, body.stem or body.width, 3, padding=1)
        self.down, _ = descent(body)
        width = body.widths[-1]
        deepest = 2 ** (len(body.mult) - 1)
        self.middle = middle(body)
        self.norm_out = group_norm(width, eps=body.eps)
        heads = max(1, width // body.head_dim)
        self.pool = AttentionPool(width, size.classes, pixels=(size.side // deepest) ** 2, heads=heads)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Logits (B, classes) of noisy pictures x (B, C, side, side) at times t (B,)."""
        dtype = self.conv_in.weight.dtype
        emb = self.time(clock(t, self.size.body).to(dtype))
        h = self.conv_in(x.to(dtype))
        for layer in (*self.down, *self.middle):
            h = through(layer, h, emb, None, None)
        return self.pool(F.silu(self.norm_out(h)))
