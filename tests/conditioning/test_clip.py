"""Prompts through a causal tower: chunks, weights, batches, and what the mask of a causal tower means."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sfumato.conditioning.clip import Clip, emphasised
from sfumato.conditioning.clip_tokens import clip_tokenizer
from sfumato.nets.transformer import TransformerEncoder, TransformerSize

THINGS = [
    f"{size} {thing}" for size in ("small", "large") for thing in ("apple", "chair", "dog", "house", "tree", "car")
]
SIZE = TransformerSize(dim=16, depth=2, heads=2, dim_head=8, causal=True, bias=True, activation="quick_gelu")
LONG = " ".join(f"{colour} {thing}" for thing in THINGS for colour in ("red", "blue", "green", "old"))


@pytest.fixture(scope="module")
def clip() -> Clip:
    torch.manual_seed(0)
    return Clip(clip_tokenizer(), 49408, SIZE, pad=49407).eval().requires_grad_(False)


def tokens(clip: Clip, *prompts: str) -> Tensor:
    found = clip.of(list(prompts)).tokens
    assert found is not None
    return found


def test_a_causal_tower_sees_what_comes_before_and_nothing_after() -> None:
    torch.manual_seed(0)
    net = TransformerEncoder(50, SIZE).eval().requires_grad_(False)
    ids = torch.arange(10)[None]
    other = ids.clone()
    other[0, 6] = 40
    before, after = net(ids), net(other)
    assert torch.equal(before[:, :6], after[:, :6])
    assert (before[:, 6:] - after[:, 6:]).abs().amax(-1).min() > 1e-3


def test_an_unmasked_transformer_hears_every_change_everywhere() -> None:
    torch.manual_seed(0)
    net = TransformerEncoder(50, replace(SIZE, causal=False)).eval().requires_grad_(False)
    ids = torch.arange(10)[None]
    other = ids.clone()
    other[0, 6] = 40
    assert (net(ids) - net(other)).abs().amax(-1).min() > 1e-5


def test_the_tower_of_one_layer_less_is_the_same_tower_with_a_layer_skipped() -> None:
    torch.manual_seed(0)
    deep = TransformerEncoder(50, SIZE).eval().requires_grad_(False)
    shallow = TransformerEncoder(50, replace(SIZE, depth=1)).eval().requires_grad_(False)
    shallow.load_state_dict({n: v for n, v in deep.state_dict().items() if not n.startswith("layers.1.")})
    ids = torch.arange(7)[None]
    assert torch.equal(deep(ids, skip=1), shallow(ids))
    assert not torch.allclose(deep(ids), shallow(ids))


def test_a_long_prompt_is_read_whole_in_chunks(clip: Clip) -> None:
    heard = clip.heard([LONG, "a cat"])
    assert heard.tokens == 12 * 4 * 3
    assert heard.dropped == 0
    long = tokens(clip, LONG)
    assert long.shape[1] == 77 * len(clip.chunked(LONG).ids) > 77
    assert not torch.equal(long[:, :77], long[:, 77:154])


def test_a_prompt_means_the_same_beside_a_longer_one(clip: Clip) -> None:
    both = clip.of(["a cat", LONG])
    assert both.mask is not None
    assert both.tokens is not None
    torch.testing.assert_close(both.tokens[0][both.mask[0]], tokens(clip, "a cat")[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(both.tokens[1], tokens(clip, LONG)[0], rtol=0, atol=1e-6)


def test_weights_scale_their_tokens_and_keep_the_mean(clip: Clip) -> None:
    plain, weighted = tokens(clip, "a cat"), tokens(clip, "a (cat:1.5)")
    ratio = weighted / plain
    common = ratio[0, 0, 0]
    torch.testing.assert_close(ratio[0, 2], (1.5 * common).expand(16))
    others = [i for i in range(77) if i != 2]
    torch.testing.assert_close(ratio[0, others], common.expand(76, 16))
    torch.testing.assert_close(weighted.mean(), plain.mean())


def test_rows_without_weights_are_left_to_the_bit() -> None:
    states = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    weights = torch.ones(2, 5)
    weights[1, 2] = 2.0
    out = emphasised(states, weights)
    assert torch.equal(out[0], states[0])
    assert not torch.equal(out[1], states[1])


def test_the_null_condition_is_the_empty_prompt(clip: Clip) -> None:
    null = clip.null(3).tokens
    assert null is not None
    assert torch.equal(null, tokens(clip, "").expand(3, -1, -1))
