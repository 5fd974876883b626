"""What the network is told: one typed bundle for captions, labels, boxes and pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Cond:
    """Every field is optional; the first axis is the batch."""

    tokens: Tensor | None = None  # (B, L, D) attended to
    mask: Tensor | None = None  # (B, L) bool, true where a token counts
    vector: Tensor | None = None  # (B, D) added to the time embedding
    maps: Tensor | None = None  # (B, C, H, W) concatenated to the latent
    label: Tensor | None = None  # (B,) int64, a row of the network's own table

    def where(self, keep: Tensor, other: "Cond") -> "Cond":
        """This condition where `keep` (B,) is true, the `other` elsewhere: condition dropout in one line."""
        mine, theirs = _aligned([self, other])
        return mine._with(lambda a, b: torch.where(keep.view(-1, *[1] * (a.ndim - 1)), a, b), theirs)

    def __or__(self, other: "Cond") -> "Cond":
        """Both conditions at once: tokens joined, vectors added, maps stacked. ValueError if both have a label."""
        if self.label is not None and other.label is not None:
            raise ValueError("both conditions have a label, and a network has one table; give one of them as tokens")
        tokens, mask = self.tokens, self.mask
        if tokens is None:
            tokens, mask = other.tokens, other.mask
        elif other.tokens is not None:
            mask = None
            if self.mask is not None or other.mask is not None:
                mask = torch.cat([_mask(self), _mask(other)], dim=1)
            tokens = torch.cat([tokens, other.tokens], dim=1)
        return Cond(
            tokens=tokens,
            mask=mask,
            vector=_both(self.vector, other.vector, torch.add),
            maps=_both(self.maps, other.maps, lambda a, b: torch.cat([a, b], dim=1)),
            label=other.label if self.label is None else self.label,
        )

    def rows(self, index: Tensor | slice) -> "Cond":
        """The samples at `index`."""
        return self._with(lambda a: a[index])

    def repeat(self, n: int) -> "Cond":
        """Each sample n times in a row."""
        return self._with(lambda a: a.repeat_interleave(n, dim=0))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Cond":
        """On another device; `dtype` applies to what is not whole numbers."""
        return self._with(lambda a: a.to(device, dtype if a.is_floating_point() else a.dtype))

    @staticmethod
    def cat(parts: Sequence["Cond"]) -> "Cond":
        """One batch of several. Shorter token sequences are padded, and masked; fields must agree in presence."""
        first, *others = _aligned(parts)
        return first._with(lambda *a: torch.cat(a), *others)

    def _with(self, f: Callable[..., Tensor], *others: "Cond") -> "Cond":
        """The field-wise result of `f`."""
        new = {}
        for field in fields(self):
            values = [getattr(c, field.name) for c in (self, *others)]
            if any(v is None for v in values):
                if any(v is not None for v in values):
                    raise ValueError(f"one condition has {field.name} and another has none; they cannot be batched")
                continue
            new[field.name] = f(*values)
        return replace(self, **new)


def _mask(cond: Cond) -> Tensor:
    assert cond.tokens is not None
    return cond.mask if cond.mask is not None else cond.tokens.new_ones(cond.tokens.shape[:2], dtype=torch.bool)


def _aligned(parts: Sequence[Cond]) -> list[Cond]:
    """The conditions with token sequences of one length, and a mask for all if any has or needs one."""
    lengths = {c.tokens.shape[1] for c in parts if c.tokens is not None}
    if not lengths or (len(lengths) == 1 and all(c.mask is None for c in parts)):
        return list(parts)
    longest = max(lengths)
    out = []
    for c in parts:
        if c.tokens is None:
            out.append(c)
            continue
        extra = longest - c.tokens.shape[1]
        out.append(replace(c, tokens=F.pad(c.tokens, (0, 0, 0, extra)), mask=F.pad(_mask(c), (0, extra))))
    return out


def _both(a: Tensor | None, b: Tensor | None, f: Callable[[Tensor, Tensor], Tensor]) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return f(a, b)
