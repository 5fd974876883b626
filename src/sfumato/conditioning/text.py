"""Captions through a transformer of our own: LDM's tau_theta, trained together with the denoiser."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from sfumato.cond import Cond
from sfumato.conditioning.conditioner import Heard
from sfumato.conditioning.vocabulary import PAD, words_of
from sfumato.nets.transformer import TransformerEncoder, TransformerSize


class Text(nn.Module):
    """Tokens for cross-attention, and their mean as the vector added to the time embedding.

    Padding is masked, so a caption means the same beside any other. The null condition is the empty caption.
    """

    needs = frozenset({"caption"})

    def __init__(self, tokenizer: Tokenizer, size: TransformerSize) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.size = size
        self.encoder = TransformerEncoder(tokenizer.get_vocab_size(), size)

    def count(self, captions: Sequence[str]) -> list[int]:
        """How many tokens each caption has, the start and the end included; over `size.length` are not read."""
        return [len(e.ids) for e in self.tokenizer.encode_batch(list(captions))]

    def heard(self, prompts: Sequence[str]) -> Heard:
        """Of the longest: how many tokens were read, and how many were not; and the words nobody showed the model."""
        return heard(self.tokenizer, prompts, self.size.length)

    def unknown(self, captions: Sequence[str]) -> tuple[str, ...]:
        """The words, each once, that are not in the vocabulary: they are spelt out, and mean nothing."""
        return strange(self.tokenizer, captions)

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Token ids "ids" (B, L), padded to the longest caption, cut at the model's length; and their "mask"."""
        ids, mask = read(self.tokenizer, [s["caption"] for s in samples], self.size.length)
        return {"ids": ids, "mask": mask}

    def forward(self, batch: Mapping[str, Tensor]) -> Cond:
        """tokens (B, L, dim), mask (B, L), vector (B, dim)."""
        device = self.encoder.norm.weight.device
        ids, mask = batch["ids"].to(device), batch["mask"].to(device)
        tokens = self.encoder(ids, mask)
        return Cond(tokens=tokens, mask=mask, vector=mean(tokens, mask))

    def of(self, captions: Sequence[str]) -> Cond:
        """The condition of some captions."""
        return self(self.collate([{"caption": c} for c in captions]))

    def null(self, n: int) -> Cond:
        """The empty caption, n times."""
        return self.of([""]).repeat(n)


def heard(tokenizer: Tokenizer, prompts: Sequence[str], length: int) -> Heard:
    """Of the longest of some prompts, of which `length` tokens are read: how many were, and the words it never saw."""
    longest = max(len(e.ids) for e in tokenizer.encode_batch(list(dict.fromkeys(prompts))))
    return Heard(min(longest, length), max(0, longest - length), strange(tokenizer, prompts))


def strange(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[str, ...]:
    """The words of some texts, each once, that are not in the vocabulary."""
    return tuple(word for word in words_of(tokenizer, texts) if tokenizer.token_to_id(word) is None)


def read(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    """Token ids (n, L) int64, padded to the longest text, cut at `length`; and which of them are some (n, L)."""
    encoded = [e.ids[:length] for e in tokenizer.encode_batch(list(texts))]
    longest = max(len(ids) for ids in encoded)
    pad = tokenizer.token_to_id(PAD)
    ids = torch.tensor([e + [pad] * (longest - len(e)) for e in encoded], dtype=torch.int64)
    lengths = torch.tensor([len(e) for e in encoded])
    return ids, torch.arange(longest)[None] < lengths[:, None]


def mean(states: Tensor, mask: Tensor) -> Tensor:
    """The mean (B, dim) of those of the states (B, L, dim) where `mask` (B, L) is true; each sample has some."""
    weight = mask.to(states.dtype)[..., None]
    return (states * weight).sum(1) / weight.sum(1)
