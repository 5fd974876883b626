"""Conditions: typed bundles that are dropped, joined, batched and padded."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sfumato.cond import Cond


def numbers(*shape: int, start: float = 1.0) -> Tensor:
    return start + torch.arange(torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)


def full(n: int, length: int = 3, *, start: float = 1.0, mask: Tensor | None = None) -> Cond:
    return Cond(
        tokens=numbers(n, length, 2, start=start),
        mask=mask,
        vector=numbers(n, 4, start=start),
        maps=numbers(n, 1, 2, 2, start=start),
    )


def heard(cond: Cond) -> list[list[list[float]]]:
    """The tokens that count, for each sample: all that a network may hear of them."""
    assert cond.tokens is not None
    mask = torch.ones(cond.tokens.shape[:2], dtype=torch.bool) if cond.mask is None else cond.mask
    return [t[m].tolist() for t, m in zip(cond.tokens, mask, strict=True)]


def equal(one: Cond, two: Cond) -> bool:
    def same(a: Tensor | None, b: Tensor | None) -> bool:
        return a is b if a is None or b is None else a.dtype == b.dtype and torch.equal(a, b)

    return all(same(getattr(one, f), getattr(two, f)) for f in ("tokens", "mask", "vector", "maps"))


def test_where_takes_every_field_of_a_sample_from_one_side() -> None:
    mine, other = full(3), full(3, start=100.0)
    kept = mine.where(torch.tensor([True, False, True]), other)
    assert equal(kept.rows(slice(0, 1)), mine.rows(slice(0, 1)))
    assert equal(kept.rows(slice(1, 2)), other.rows(slice(1, 2)))
    assert equal(kept.rows(slice(2, 3)), mine.rows(slice(2, 3)))


def test_where_keeps_all_or_none() -> None:
    mine, other = full(2, mask=torch.tensor([[True, False, True]] * 2)), full(2, start=9.0)
    assert equal(mine.where(torch.tensor([True, True]), other), mine)
    assert heard(mine.where(torch.tensor([False, False]), other)) == heard(other)


def test_where_pads_and_masks_the_shorter_side() -> None:
    mine = Cond(tokens=numbers(2, 4, 2))
    null = Cond(tokens=numbers(2, 1, 2, start=50.0))
    dropped = mine.where(torch.tensor([True, False]), null)
    assert heard(dropped) == [heard(mine)[0], heard(null)[1]]
    assert dropped.mask is not None
    assert dropped.mask.tolist() == [[True] * 4, [True, False, False, False]]
    assert heard(null.where(torch.tensor([True, False]), mine)) == [heard(null)[0], heard(mine)[1]]


def test_where_refuses_conditions_with_different_fields() -> None:
    with pytest.raises(ValueError, match="one condition has vector and another has none; they cannot be batched"):
        Cond(vector=numbers(1, 2)).where(torch.tensor([True]), Cond())


def test_or_joins_tokens_adds_vectors_and_stacks_maps() -> None:
    one, two = full(2, 3), full(2, 1, start=100.0)
    both = one | two
    assert heard(both) == [a + b for a, b in zip(heard(one), heard(two), strict=True)]
    assert both.mask is None
    assert torch.equal(both.vector, one.vector + two.vector)
    assert torch.equal(both.maps, torch.cat([one.maps, two.maps], dim=1))


@pytest.mark.parametrize("masked", ["one", "two", "both"])
def test_or_keeps_what_counts_where_only_one_side_has_a_mask(masked: str) -> None:
    mask = torch.tensor([[True, False, True], [False, False, True]])
    one = full(2, mask=mask if masked in ("one", "both") else None)
    two = full(2, start=100.0, mask=~mask if masked in ("two", "both") else None)
    assert heard(one | two) == [a + b for a, b in zip(heard(one), heard(two), strict=True)]


def test_or_with_a_missing_field_keeps_the_present_one() -> None:
    tokens = Cond(tokens=numbers(1, 2, 2), mask=torch.tensor([[True, False]]))
    vector = Cond(vector=numbers(1, 4))
    for both in (tokens | vector, vector | tokens):
        assert equal(both, Cond(tokens=tokens.tokens, mask=tokens.mask, vector=vector.vector))
    assert equal(Cond() | Cond(), Cond())


lengths = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 5), st.booleans()), min_size=1, max_size=4)


@given(parts=lengths, seed=st.integers(0, 9))
def test_cat_says_the_same_to_every_sample_whatever_its_length_and_its_mates(
    parts: list[tuple[int, int, bool]], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    conds = [
        full(n, length, start=k * 1000.0, mask=torch.rand(n, length, generator=generator) < 0.5 if masked else None)
        for k, (n, length, masked) in enumerate(parts)
    ]
    together = Cond.cat(conds)
    assert heard(together) == [row for c in conds for row in heard(c)]
    assert torch.equal(together.vector, torch.cat([c.vector for c in conds]))
    assert torch.equal(together.maps, torch.cat([c.maps for c in conds]))
    needed = len({length for _, length, _ in parts}) > 1 or any(masked for *_, masked in parts)
    assert (together.mask is not None) == needed


def test_cat_pads_with_zeros_that_the_mask_hides() -> None:
    together = Cond.cat([Cond(tokens=numbers(1, 1, 2)), Cond(tokens=numbers(1, 3, 2))])
    assert together.mask is not None
    assert together.mask.tolist() == [[True, False, False], [True, True, True]]
    assert together.tokens is not None
    assert together.tokens[0, 1:].abs().sum() == 0


def test_cat_of_nothing_told_is_nothing_told() -> None:
    assert equal(Cond.cat([Cond(), Cond()]), Cond())


@pytest.mark.parametrize("name", ["tokens", "vector", "maps"])
def test_cat_refuses_conditions_with_different_fields_and_names_the_field(name: str) -> None:
    shapes = {"tokens": (1, 2, 2), "vector": (1, 4), "maps": (1, 1, 2, 2)}
    with_it, rest = Cond(**{name: numbers(*shapes[name])}), Cond()
    for pair in ([with_it, rest], [rest, with_it]):
        with pytest.raises(ValueError, match=f"one condition has {name} and another has none"):
            Cond.cat(pair)


def test_rows_of_a_batch_put_together_again_are_the_batch() -> None:
    cond = full(4, mask=torch.tensor([[True, True, False]] * 4))
    assert equal(Cond.cat([cond.rows(slice(0, 1)), cond.rows(slice(1, 4))]), cond)
    picked = cond.rows(torch.tensor([2, 0]))
    assert equal(picked, Cond.cat([cond.rows(slice(2, 3)), cond.rows(slice(0, 1))]))


def test_repeat_gives_each_sample_n_times_in_a_row() -> None:
    cond = full(2, mask=torch.tensor([[True, True, False], [True, False, False]]))
    one, two = cond.rows(slice(0, 1)), cond.rows(slice(1, 2))
    assert equal(cond.repeat(3), Cond.cat([one, one, one, two, two, two]))


def test_to_another_type_leaves_the_mask_alone() -> None:
    cond = full(1, mask=torch.tensor([[True, False, True]]))
    half = cond.to("cpu", torch.bfloat16)
    assert {half.tokens.dtype, half.vector.dtype, half.maps.dtype} == {torch.bfloat16}
    assert half.mask.dtype == torch.bool
    assert torch.equal(half.mask, cond.mask)
    assert equal(cond.to("cpu"), cond)


def test_a_condition_is_not_changed_by_what_is_made_of_it() -> None:
    mine, other = full(2, 3), full(2, 5, start=100.0)
    before = [t.clone() for t in (mine.tokens, mine.vector, mine.maps)]
    Cond.cat([mine, other])
    mine.where(torch.tensor([True, False]), other)
    _ = mine | other
    assert mine.mask is None
    assert all(torch.equal(a, b) for a, b in zip(before, (mine.tokens, mine.vector, mine.maps), strict=True))
    with pytest.raises(AttributeError):
        mine.vector = None
