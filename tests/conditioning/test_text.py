"""A caption means the same beside any other, however long; the empty one is the null condition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.cond import Cond
from sfumato.conditioning.text import Text
from sfumato.conditioning.vocabulary import vocabulary
from sfumato.nets.transformer import TransformerSize
from tiny import CAPTIONS, awake


def make() -> Text:
    torch.manual_seed(0)
    size = TransformerSize(dim=16, depth=2, length=10, heads=2, dim_head=8)
    text = Text(vocabulary(CAPTIONS), size).requires_grad_(False)
    text.encoder.tokens.weight.mul_(10)  # at its start the encoder hardly tells words apart
    text.encoder.positions.weight.mul_(10)
    awake(text)
    return text.eval()


TEXT = make()


def agree(a: Cond, b: Cond, *, length: int) -> None:
    """Both mean the same on the first `length` tokens, which are all that count."""
    for cond in (a, b):
        assert cond.mask is not None
        assert cond.mask[:, :length].all()
        assert not cond.mask[:, length:].any()
    assert a.tokens is not None
    assert b.tokens is not None
    torch.testing.assert_close(a.tokens[:, :length], b.tokens[:, :length], rtol=0, atol=1e-5)
    torch.testing.assert_close(a.vector, b.vector, rtol=0, atol=1e-5)


@pytest.mark.parametrize("caption", ["", "a red apple, 3d"])
def test_padding_never_changes_a_caption(caption: str) -> None:
    (length,) = TEXT.count([caption])
    longer = "two dogs in the rain in the green"
    assert TEXT.count([longer])[0] > length
    agree(TEXT.of([caption, longer]).rows(slice(0, 1)), TEXT.of([caption]), length=length)


def test_a_batch_is_its_singles() -> None:
    batch = TEXT.of([*CAPTIONS, ""])
    for i, (caption, length) in enumerate(zip([*CAPTIONS, ""], TEXT.count([*CAPTIONS, ""]), strict=True)):
        agree(batch.rows(slice(i, i + 1)), TEXT.of([caption]), length=length)


def test_captions_are_told_apart() -> None:
    vectors = TEXT.of([*CAPTIONS, ""]).vector
    assert vectors is not None
    assert (torch.cdist(vectors, vectors) + torch.eye(4)).min() > 0.05


def test_the_null_condition_is_the_empty_caption() -> None:
    null, empty = TEXT.null(3), TEXT.of(["", "", ""])
    assert torch.equal(null.mask, empty.mask)
    torch.testing.assert_close(null.tokens, empty.tokens, rtol=0, atol=1e-6)
    torch.testing.assert_close(null.vector, empty.vector, rtol=0, atol=1e-6)


def test_the_vector_is_the_mean_of_the_tokens_that_count() -> None:
    cond = TEXT.of(["a red apple, 3d", "dogs"])
    assert cond.tokens is not None
    assert cond.vector is not None
    for i, length in enumerate(TEXT.count(["a red apple, 3d", "dogs"])):
        torch.testing.assert_close(cond.vector[i], cond.tokens[i, :length].mean(0))


def test_what_is_too_long_is_cut_and_can_be_counted() -> None:
    words = "red " * 30
    assert TEXT.count([words]) == [32]
    batch = TEXT.collate([{"caption": words}, {"caption": "red"}])
    assert batch["ids"].shape == (2, 10)
    assert batch["mask"].sum(1).tolist() == [10, 3]
    agree(TEXT.of([words]), TEXT.of([words + "dogs"]), length=10)


@settings(max_examples=30)
@given(st.lists(st.text(), min_size=1, max_size=4))
def test_any_captions_have_a_finite_condition(captions: list[str]) -> None:
    cond = TEXT.of(captions)
    assert cond.tokens is not None
    assert cond.vector is not None
    assert cond.tokens.isfinite().all()
    assert cond.vector.isfinite().all()
    assert cond.tokens.shape[1] == min(10, max(TEXT.count(captions)))
