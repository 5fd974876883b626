"""Boxes by where they are and what they are called: any number of them, beside a caption, through tau_theta.

Of each object its label, a row of a table or words that are read, and the Fourier features of its sides (Tancik et al.
2020; Li et al. 2023, sec. 3.1) become one row. The rows of a picture, those of its caption's words among them, go
through the unmasked transformer of LDM or through a Perceiver, without positions: a layout has no order. Painted into
its box, beside the latent, a row says where each part of the object belongs.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from sfumato.boxes import EDGE, Layout, largest
from sfumato.cond import Cond
from sfumato.conditioning import text
from sfumato.conditioning.conditioner import Heard
from sfumato.conditioning.vocabulary import words_of
from sfumato.nets.perceiver import Perceiver, PerceiverSize
from sfumato.nets.transformer import EncoderLayer, TransformerEncoder, TransformerSize
from sfumato.registry import unknown

Cells = tuple[int, int]
"""Rows and columns of the latent."""
SIDES = 4  # of a box
PLACES = 4  # frequencies of the place in a box
HIDDEN = 8  # features between, for each channel that is painted


class Boxes(nn.Module):
    """tokens (B, L, dim) of objects and words, their mean as the vector, and with `painted` maps of so many channels.

    Labels are those in `names`, a row of a table each; or, without names, any words, read by the transformer `words`
    over the vocabulary of `tokenizer`, which with `captions` reads captions too. `reader` is tau_theta (its length says
    nothing) or a Perceiver, to whose latents any number of rows comes down. Of more than `most` boxes the largest are
    read. The null condition is the empty caption and no box.
    """

    def __init__(
        self,
        reader: TransformerSize | PerceiverSize,
        *,
        names: Sequence[str] = (),
        words: TransformerSize | None = None,
        tokenizer: Tokenizer | None = None,
        captions: bool = False,
        most: int = 30,
        bands: int = 8,
        painted: int = 0,
        cells: Cells = (1, 1),
    ) -> None:
        super().__init__()
        self.needs = frozenset({"boxes", "caption"} if captions else {"boxes"})
        self.names, self.captions, self.most, self.bands, self.cells = tuple(names), captions, most, bands, cells
        self.tokenizer = tokenizer if words else None
        dim = reader.dim
        width = reader.channels if isinstance(reader, PerceiverSize) else dim
        self.table = nn.Embedding(len(names), dim) if names else None
        self.words = None
        if words is not None:
            assert tokenizer is not None
            self.words = TransformerEncoder(tokenizer.get_vocab_size(), words)
        self.place = nn.Linear(SIDES * (1 + 2 * bands), dim)
        self.row = nn.Sequential(nn.SiLU(), nn.Linear(dim, width))
        self.word_row = nn.Linear(words.dim, width) if words and captions else None
        self.label_row = nn.Linear(words.dim, dim) if words and not names else None
        self.scene = nn.Parameter(0.02 * torch.randn(width))  # a row that is always there
        self.reader = Perceiver(reader) if isinstance(reader, PerceiverSize) else _Set(reader)
        self.norm = nn.LayerNorm(dim)
        self.paint = _Paint(width, painted) if painted else None

    def heard(self, prompts: Sequence[str]) -> Heard:
        """What is read of prompts: nothing by a model without captions."""
        if not self.captions or self.words is None or self.tokenizer is None:
            return Heard(0)
        return text.heard(self.tokenizer, prompts, self.words.size.length)

    @property
    def known_words(self) -> tuple[str, ...]:
        """The words that labels and captions may be made of, in the order of the alphabet; none of a model of names."""
        vocabulary = self.tokenizer.get_vocab() if self.tokenizer is not None else {}
        return tuple(sorted(word for word in vocabulary if len(word) > 1 and word.isalnum()))

    def check(self, label: str) -> None:
        """ValueError if the model knows no such label, or none of some of its words."""
        if self.names:
            if label not in self.names:
                raise ValueError(unknown("label", label, self.names))
            return
        assert self.tokenizer is not None
        said, strange = words_of(self.tokenizer, [label]), text.strange(self.tokenizer, [label])
        if strange or not said:
            raise ValueError(unknown("word", strange[0] if strange else label, self.known_words))

    def collate(self, samples: Sequence[Mapping[str, Any]], cells: Cells | None = None) -> dict[str, Tensor]:
        """ "boxes" (B, N, 4), "box_mask" (B, N) and what the labels are; of captions "ids" and "mask" (B, L).

        With `painted` also how much of each column and row of the latent is in a box, (B, N, w) and (B, N, h).
        """
        layouts = [largest(sample["boxes"], self.most) for sample in samples]
        n = max(1, *(len(layout) for layout in layouts))
        whole = (0.0, 0.0, 1.0, 1.0)
        rows = [_filled([box[1:5] for box in layout], n, whole) for layout in layouts]
        sides = torch.tensor(rows, dtype=torch.float32)  # of boxes of whole numbers too
        there = torch.arange(n)[None] < torch.tensor([len(layout) for layout in layouts])[:, None]
        batch = {"boxes": sides, "box_mask": there, **self._labels(layouts, n)}
        if self.captions:
            batch["ids"], batch["mask"] = self._read([str(sample.get("caption", "")) for sample in samples])
        if self.paint is not None:
            high, wide = cells or self.cells
            batch["box_columns"] = _covered(sides[..., 0], sides[..., 2], wide)
            batch["box_rows"] = _covered(sides[..., 1], sides[..., 3], high)
        return batch

    def forward(self, batch: Mapping[str, Tensor]) -> Cond:
        """tokens (B, L, dim), mask (B, L) unless a Perceiver reads, vector (B, dim), maps (B, painted, h, w)."""
        batch = {name: part.to(self.scene.device) for name, part in batch.items()}
        sides, there = batch["boxes"], batch["box_mask"]
        where = self.place(_fourier(sides, self.bands).to(self.scene.dtype))
        objects = self.row(self._label(batch) + where)  # (B, N, width)
        rows = [self.scene.expand(len(sides), 1, -1), objects]
        masks = [there.new_ones(len(sides), 1), there]
        if self.captions:
            assert self.words is not None
            assert self.word_row is not None
            rows.append(self.word_row(self.words(batch["ids"], batch["mask"])))
            masks.append(batch["mask"])
        mask = torch.cat(masks, dim=1)
        tokens = self.norm(self.reader(torch.cat(rows, dim=1), mask))
        maps = None
        if self.paint is not None:
            if not isinstance(self.reader, Perceiver):  # an object that was read knows of the caption and of the others
                objects = tokens[:, 1 : 1 + objects.shape[1]]
            maps = self.paint(objects, sides, there, batch["box_rows"], batch["box_columns"])
        if isinstance(self.reader, Perceiver):
            return Cond(tokens=tokens, vector=tokens.mean(1), maps=maps)
        return Cond(tokens=tokens, mask=mask, vector=text.mean(tokens, mask), maps=maps)

    def laid(self, prompts: Sequence[str], layouts: Sequence[Layout], cells: Cells) -> Cond:
        """The condition of some prompts, each with its boxes, for latents of so many cells."""
        told = [{"caption": p, "boxes": boxes} for p, boxes in zip(prompts, layouts, strict=True)]
        return self(self.collate(told, cells))

    def null(self, n: int) -> Cond:
        """The empty caption and no box, n times; its maps are of one pixel, for they are the same at every size."""
        return self.laid([""], [()], (1, 1)).repeat(n)

    def _labels(self, layouts: Sequence[Layout], n: int) -> dict[str, Tensor]:
        """What the labels are: their numbers (B, N), or their words (B, N, L) and which of them are some."""
        if self.names:
            number = {name: i for i, name in enumerate(self.names)}
            for box in (box for layout in layouts for box in layout if box.label not in number):
                self.check(box.label)
            return {"labels": torch.tensor([_filled([number[b.label] for b in boxes], n, 0) for boxes in layouts])}
        ids, mask = self._read([label for boxes in layouts for label in _filled([b.label for b in boxes], n, "")])
        return {"labels": ids.unflatten(0, (-1, n)), "label_mask": mask.unflatten(0, (-1, n))}

    def _label(self, batch: Mapping[str, Tensor]) -> Tensor:
        if self.table is not None:
            return self.table(batch["labels"])
        assert self.words is not None
        assert self.label_row is not None
        ids, mask = batch["labels"], batch["label_mask"]
        each = mask.flatten(0, 1)
        return self.label_row(text.mean(self.words(ids.flatten(0, 1), each), each)).unflatten(0, ids.shape[:2])

    def _read(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (n, L), padded to the longest, cut at the length that is read; and which are some."""
        assert self.tokenizer is not None
        assert self.words is not None
        return text.read(self.tokenizer, texts, self.words.size.length)


class _Set(nn.Module):
    """The layers of tau_theta, without positions and without the last normalisation."""

    def __init__(self, size: TransformerSize) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(size) for _ in range(size.depth))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, L, dim), mask (B, L) -> (B, L, dim)."""
        for layer in self.layers:
            x = layer(x, mask)
        return x


class _Paint(nn.Module):
    """Rows of objects into their boxes: each pixel is drawn from what the object is and from which part of the box it
    is, by a network of its own, the same for all pixels; overlaps add up.

    Such networks of places remember pictures well (Tancik et al. 2020), and one that counts places from the sides of
    the box need not learn a thing anew wherever it may stand.
    """

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        hidden = HIDDEN * channels
        self.what = nn.Linear(dim, hidden)
        self.where = nn.Linear(2 * (1 + 2 * PLACES), hidden, bias=False)
        self.between = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, channels, bias=False)

    def forward(self, objects: Tensor, sides: Tensor, there: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """objects (B, N, dim), sides (B, N, 4), there (B, N), rows (B, N, h), columns (B, N, w) -> (B, C, h, w)."""
        part = [
            self._part(sides[..., 0], sides[..., 2], columns.shape[-1])[..., None, :],
            self._part(sides[..., 1], sides[..., 3], rows.shape[-1])[..., :, None],
        ]
        places = torch.stack(torch.broadcast_tensors(*part), dim=-1)  # (B, N, h, w, 2)
        cover = rows[..., :, None] * columns[..., None, :] * there[..., None, None]  # (B, N, h, w)
        some = cover.nonzero(as_tuple=True)  # most pixels are outside of most boxes
        inner = self.what(objects)[some[:2]] + self.where(_fourier(places[some], PLACES).to(objects.dtype))
        inner = nn.functional.silu(self.between(nn.functional.silu(inner)))
        drawn = self.out(inner) * cover[some][:, None].to(inner.dtype)
        layers = drawn.new_zeros(*cover.shape, drawn.shape[-1]).index_put(some, drawn)
        return layers.sum(1).movedim(-1, 1)

    @staticmethod
    def _part(first: Tensor, last: Tensor, cells: int) -> Tensor:
        """Where in a box the middle of each cell is: from 0 to 1, and not far beyond. (B, N) -> (B, N, cells)."""
        centre = (torch.arange(cells, device=first.device) + 0.5) / cells
        wide = (last - first).clamp_min(EDGE)  # a box may have no area once its numbers are rounded
        return ((centre - first[..., None]) / wide[..., None]).clamp(-0.5, 1.5)


def _covered(first: Tensor, last: Tensor, cells: int) -> Tensor:
    """How much of each of the cells lies between `first` and `last` (B, N): (B, N, cells), from 0 to 1."""
    edge = torch.arange(cells + 1) / cells
    begin = torch.maximum(first[..., None], edge[:-1])
    end = torch.minimum(last[..., None], edge[1:])
    return ((end - begin) * cells).clamp(0, 1)


def _fourier(x: Tensor, bands: int) -> Tensor:
    """(..., n) -> (..., n (1 + 2 bands)): the numbers, and sine and cosine at pi, 2 pi, 4 pi, ..."""
    angles = x[..., None] * (math.pi * 2.0 ** torch.arange(bands, device=x.device, dtype=x.dtype))
    return torch.cat([x[..., None], angles.sin(), angles.cos()], dim=-1).flatten(-2)


def _filled(items: Sequence[Any], n: int, empty: Any) -> list[Any]:
    return [*items, *[empty] * (n - len(items))]
