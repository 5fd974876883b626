"""Prompts through CLIP's text tower, frozen: the conditioner of Stable Diffusion 1 and 2."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from sfumato.cond import Cond
from sfumato.conditioning.conditioner import Heard
from sfumato.conditioning.prompt import Chunked, chunks
from sfumato.nets.transformer import TransformerEncoder, TransformerSize

MOST_CHUNKS = 64
"""Of a prompt."""
LONG = 80  # characters of a word that an error says again
Learnt = Mapping[str, Tensor]
"""Words, and the vectors (k, dim) of each."""


class Clip(nn.Module):
    """The states of all tokens, padding too, as the published models were trained (Rombach et al. 2022).

    A prompt of more than 75 tokens is read in chunks of 75, each encoded alone, their states joined; weights, as in
    "(word:1.3)", scale the states of their tokens, and a chunk is scaled back to the mean it had. The null condition is
    the empty prompt.

    Words can be learnt (textual inversion, Gal et al. 2022): in a prompt such a word stands for its vectors. They are
    no part of the state dict. Their ids begin where the vocabulary ends.
    """

    needs = frozenset({"caption"})

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, size: TransformerSize, *, pad: int) -> None:
        super().__init__()
        self.tokenizer, self.size, self.pad = tokenizer, size, pad
        self.encoder = TransformerEncoder(vocabulary, size)
        self.learnt: Learnt = {}  # replaced and never written to, so that a batch in the making keeps its own

    def learn(self, word: str, vectors: Tensor) -> None:
        """From now on `word` in a prompt, whole and written just so, is these vectors (k, dim): k tokens of one chunk.

        A word that was learnt before is learnt anew. ValueError of one line if the vectors are for another text tower,
        if there are none or more than a chunk has room for, or if the word is empty or has white space around it.
        """
        named = shown(word)
        if not word or word != word.strip():
            raise ValueError(f"a learnt word must have letters, and no white space around it; {named} is none")
        if vectors.ndim != 2 or not vectors.is_floating_point():  # noqa: PLR2004
            raise ValueError(f"{named} must be vectors (k, {self.size.dim}); it is {tuple(vectors.shape)}")
        count, width = vectors.shape
        if width != self.size.dim:
            raise ValueError(
                f"{named} is for another kind of model: its vectors have {width} numbers, this model's {self.size.dim}"
            )
        if not 1 <= count <= self.size.length - 2:
            raise ValueError(f"{named} has {count} vectors; a word can have from 1 to {self.size.length - 2}")
        self.learnt = {**self.learnt, word: vectors.detach()}

    def forget(self, word: str) -> None:
        """Read a learnt word as any other again; ValueError if it was not learnt."""
        if word not in self.learnt:
            raise ValueError(f"{shown(word)} is no learnt word; these are: {', '.join(sorted(self.learnt)) or 'none'}")
        self.learnt = {known: vectors for known, vectors in self.learnt.items() if known != word}

    def chunked(self, prompt: str) -> Chunked:
        """The chunks of a prompt: ids and weights (n, 77). ValueError if they are more than 64."""
        return self._chunked(prompt, self.learnt)

    def _chunked(self, prompt: str, learnt: Learnt) -> Chunked:
        own: dict[str, range] = {}
        first = self.encoder.tokens.num_embeddings
        for word, vectors in learnt.items():
            own[word] = range(first, first + len(vectors))
            first = own[word].stop
        found = chunks(prompt, self.tokenizer, length=self.size.length, pad=self.pad, learnt=own)
        if len(found.ids) > MOST_CHUNKS:
            raise ValueError(f"the prompt has {len(found.ids):,} chunks of tokens; at most {MOST_CHUNKS} are read")
        return found

    def heard(self, prompts: Sequence[str]) -> Heard:
        """How many tokens the longest has; all are read."""
        return Heard(max(self.chunked(prompt).tokens for prompt in prompts))

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """ "clip_ids" and "clip_weights" (B, n, 77), and "clip_chunks" (B,): how many of the n are a sample's own.

        With learnt words among them also "clip_learnt" (m, dim), the vectors of all ids beyond the vocabulary.
        """
        learnt = self.learnt
        read = [self._chunked(s["caption"], learnt) for s in samples]
        counts = torch.tensor([len(c.ids) for c in read])
        most = int(counts.max())
        ids = torch.full((len(read), most, self.size.length), self.pad)
        weights = torch.ones(ids.shape)
        for row, one in enumerate(read):
            ids[row, : len(one.ids)], weights[row, : len(one.ids)] = one.ids, one.weights
        batch = {"clip_ids": ids, "clip_weights": weights, "clip_chunks": counts}
        words = self.encoder.tokens.num_embeddings
        if bool((ids >= words).any()):
            if not learnt:
                raise ValueError(f"the text encoder knows {words} words and the tokenizer more; it is another model's")
            batch["clip_learnt"] = torch.cat([vectors.float().cpu() for vectors in learnt.values()])
        return batch

    def forward(self, batch: Mapping[str, Tensor]) -> Cond:
        """tokens (B, 77 n, dim); with a mask if some have fewer chunks than others."""
        device = self.encoder.norm.weight.device
        ids, weights, counts = (batch[f"clip_{name}"].to(device) for name in ("ids", "weights", "chunks"))
        embedded = self._embedded(ids.flatten(0, 1), batch.get("clip_learnt"))
        states = self.encoder.states(embedded)
        if bool((weights != 1).any()):
            states = emphasised(states, weights.flatten(0, 1))
        tokens = states.unflatten(0, ids.shape[:2]).flatten(1, 2)
        if bool((counts == ids.shape[1]).all()):
            return Cond(tokens=tokens)
        own = torch.arange(ids.shape[1], device=device) < counts[:, None]  # (B, n)
        return Cond(tokens=tokens, mask=own.repeat_interleave(ids.shape[2], dim=1))

    def _embedded(self, ids: Tensor, learnt: Tensor | None) -> Tensor:
        """(B, L) -> (B, L, dim): rows of the vocabulary, and beyond it those of `learnt` (m, dim)."""
        if learnt is None:
            return self.encoder.tokens(ids)
        beyond = ids - self.encoder.tokens.num_embeddings
        known = self.encoder.tokens(ids.masked_fill(beyond >= 0, 0))
        return torch.where((beyond >= 0)[..., None], learnt.to(known)[beyond.clamp(min=0)], known)

    def of(self, prompts: Sequence[str]) -> Cond:
        """The condition of some prompts."""
        return self(self.collate([{"caption": p} for p in prompts]))

    def null(self, n: int) -> Cond:
        """The empty prompt, n times."""
        return self.of([""]).repeat(n)


def shown(word: str) -> str:
    """A word of any length, fit for one line."""
    return repr(word if len(word) <= LONG else word[:LONG] + "...")


def emphasised(states: Tensor, weights: Tensor) -> Tensor:
    """States (B, L, dim) times weights (B, L), and a row scaled so that its mean stays: the emphasis users know."""
    weighted = states * weights[..., None].to(states.dtype)
    before, after = (s.float().mean((1, 2), keepdim=True) for s in (states, weighted))
    return torch.where((weights != 1).any(1)[:, None, None], weighted * (before / after).to(states.dtype), states)
