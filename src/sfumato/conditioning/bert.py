"""Captions through LDM's own transformer over BERT's words (Rombach et al. 2022, app. E.2.1)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from sfumato.cond import Cond
from sfumato.conditioning.conditioner import Heard
from sfumato.nets.transformer import TransformerEncoder, TransformerSize


class Bert(nn.Module):
    """Word pieces between [CLS] and [SEP], padded with 0 to the model's length and attended to, padding too.

    The null condition is the empty caption.
    """

    needs = frozenset({"caption"})

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, size: TransformerSize) -> None:
        super().__init__()
        self.tokenizer, self.size = tokenizer, size
        self.encoder = TransformerEncoder(vocabulary, size)

    def heard(self, prompts: Sequence[str]) -> Heard:
        """Of the longest: how many tokens were read, and how many were not."""
        longest = max(len(e.ids) for e in self.tokenizer.encode_batch(list(prompts)))
        return Heard(min(longest, self.size.length), max(0, longest - self.size.length))

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Token ids "bert_ids" (B, length)."""
        rows = []
        for encoded in self.tokenizer.encode_batch([s["caption"] for s in samples]):
            ids = encoded.ids
            if len(ids) > self.size.length:  # the last one stays the end
                ids = [*ids[: self.size.length - 1], ids[-1]]
            rows.append(ids + [0] * (self.size.length - len(ids)))
        return {"bert_ids": torch.tensor(rows)}

    def forward(self, batch: Mapping[str, Tensor]) -> Cond:
        """tokens (B, length, dim)."""
        return Cond(tokens=self.encoder(batch["bert_ids"].to(self.encoder.norm.weight.device)))

    def of(self, prompts: Sequence[str]) -> Cond:
        """The condition of some captions."""
        return self(self.collate([{"caption": p} for p in prompts]))

    def null(self, n: int) -> Cond:
        """The empty caption, n times."""
        return self.of([""]).repeat(n)
