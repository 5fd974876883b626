"""Pictures for training: cut where the address says, mended where one is damaged, kept to the bit; parts are parts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fill import inp
from sfumato.data import Sample
from sfumato.data.part import LEAST, Part, split, spread
from sfumato.data.training import TrainingPictures, cut
from sfumato.diffusion.noise import Address, Stream


class Pictures:
    """Pictures of 8-bit levels that say who they are; those of `damaged` cannot be read."""

    fields = frozenset({"image"})

    def __init__(self, n: int, damaged: tuple[int, ...] = (), side: int = 4) -> None:
        self.n, self.damaged, self.side = n, damaged, side
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int, /) -> Sample:
        self.read.append(i)
        if i in self.damaged:
            raise ValueError(f"{i}.png: the picture is damaged")
        levels = torch.arange(3 * self.side**2).view(3, self.side, self.side) * 7 + i * 31
        return {"image": (levels % 256).float() / 127.5 - 1}


# Squares --------------------------------------------------------------------------------------------------

COUNTED = torch.arange(3 * 9 * 12.0).view(3, 9, 12)  # every number once
MANY = COUNTED.expand(4000, 3, 9, 12)
AT = Address.of(5, range(4000), 17)


def corners(squares: Tensor, *, flipped: Tensor | None = None) -> Tensor:
    """Row and column (B, 2) of the first pixel, of a square that was not flipped."""
    straight = squares if flipped is None else torch.where(flipped[:, None, None, None], squares.flip(3), squares)
    first = straight[:, 0, 0, 0].long()
    return torch.stack([first // 12, first % 12], dim=1)


def test_squares_are_windows_of_the_picture_at_the_place_of_the_address() -> None:
    squares = cut(MANY, AT, side=5, flips=False)
    assert squares.shape == (4000, 3, 5, 5)
    for square, (row, column) in zip(squares[:200], corners(squares).tolist(), strict=False):
        assert torch.equal(square, COUNTED[:, row : row + 5, column : column + 5])
    u = AT.uniform(Stream.AUGMENT, 3)
    assert torch.equal(corners(squares), torch.stack([(u[:, 0] * 5).long(), (u[:, 1] * 8).long()], dim=1))


def test_all_places_are_as_likely() -> None:
    """5 x 8 places of a square of 5 in 9 x 12, 100 times each: chi-squared of 39 degrees, to one in a million."""
    places = corners(cut(MANY, AT, side=5, flips=True), flipped=AT.uniform(Stream.AUGMENT, 3)[:, 2] < 0.5)
    counts = torch.bincount(places[:, 0] * 8 + places[:, 1], minlength=40)
    assert len(counts) == 40
    assert float(((counts - 100).square() / 100).sum()) < 95


def test_half_of_them_are_mirrored() -> None:
    squares = cut(MANY, AT, side=5, flips=True)
    plain = cut(MANY, AT, side=5, flips=False)
    same, mirrored = ((squares == other).flatten(1).all(1) for other in (plain, plain.flip(3)))
    assert bool((same ^ mirrored).all())
    assert abs(int(mirrored.sum()) - 2000) < 5 * 4000**0.5 / 2
    assert torch.equal(mirrored, AT.uniform(Stream.AUGMENT, 3)[:, 2] < 0.5)


def test_a_square_depends_on_its_own_address_alone() -> None:
    whole = cut(MANY[:6], Address.of(5, range(6), 17), side=5, flips=True)
    alone = cut(MANY[:2], Address.of(5, [4, 1], 17), side=5, flips=True)
    assert torch.equal(alone, whole[[4, 1]])
    for other in (Address.of(6, range(6), 17), Address.of(5, range(6), 18)):
        assert not torch.equal(cut(MANY[:6], other, side=5, flips=True), whole)


def test_whole_pictures_stay_whole() -> None:
    square = inp("x", 3, 3, 8, 8)
    assert torch.equal(cut(square, Address.of(0, [0, 1, 2]), side=8, flips=False), square)
    assert torch.equal(cut(MANY[:3], Address.of(0, [0, 1, 2]), side=None, flips=False), MANY[:3])
    assert cut(MANY[:3], Address.of(0, [0, 1, 2]), side=9, flips=False).shape == (3, 3, 9, 9)


def test_a_square_larger_than_the_picture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^a square of 10 pixels cannot be cut out of pictures of 12x9$"):
        cut(MANY[:2], Address.of(0, [0, 1]), side=10, flips=False)


# Damaged ones ---------------------------------------------------------------------------------------------


def test_in_the_place_of_a_damaged_one_stands_the_next() -> None:
    source = Pictures(300, damaged=(5, 6, 299))
    found = TrainingPictures(source)
    for asked, stands in ((4, 4), (5, 7), (6, 7), (7, 7), (299, 0), (298, 298)):
        assert torch.equal(found[asked], source[stands]["image"]), asked
    assert found.damaged == {i: f"{i}.png: the picture is damaged" for i in (5, 6, 299)}
    assert found.sound() == [i for i in range(300) if i not in source.damaged]
    assert torch.equal(found.stack([5, 8]), torch.stack([source[7]["image"], source[8]["image"]]))
    assert len(found) == 300


def test_a_damaged_one_is_tried_once() -> None:
    source = Pictures(200, damaged=(3,))
    found = TrainingPictures(source)
    for _ in range(3):
        found.sound()
        _ = found[3]
    assert sorted(source.read) == list(range(200))


def test_one_in_a_hundred_may_be_damaged_and_not_more() -> None:
    assert len(TrainingPictures(Pictures(200, damaged=(0, 100))).check()) == 198
    with pytest.raises(ValueError, match=r"^3 of 200 pictures are damaged, more than one in a hundred; ") as caught:
        TrainingPictures(Pictures(200, damaged=(0, 100, 150))).check()
    assert str(caught.value).endswith("; one of them is 0.png: the picture is damaged")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"^1 of 99 pictures are damaged"):
        TrainingPictures(Pictures(99, damaged=(7,))).check()
    assert TrainingPictures(Pictures(200, damaged=(1, 3, 5))).check(100) == list(range(0, 200, 2))


# What is kept ---------------------------------------------------------------------------------------------


def test_kept_pictures_are_the_decoded_ones_to_the_bit() -> None:
    source = Pictures(30, side=10)  # all 256 levels
    found = TrainingPictures(source)
    levels: set[float] = set()
    for i in range(30):
        first, again = found[i], found[i]
        assert first.dtype == again.dtype == torch.float32
        assert torch.equal(first, again)
        assert torch.equal(again, source[i]["image"])
        levels |= set(again.flatten().tolist())
    assert len(levels) == 256


def test_pictures_are_kept_as_long_as_there_is_room() -> None:
    source = Pictures(10)  # of 48 bytes each
    found = TrainingPictures(source, room=3 * 48 + 47)
    for _ in range(2):
        found.stack(range(10))
    assert source.read == [*range(10), *range(3, 10)]
    assert found.room == 47
    none = TrainingPictures(Pictures(4), room=0)
    assert torch.equal(none[1], none[1])
    assert none.whole.read == [1, 1]  # type: ignore[attr-defined]


def test_what_is_given_is_not_what_is_kept() -> None:
    found = TrainingPictures(Pictures(3))
    for _ in range(2):
        found[0].zero_()
    assert torch.equal(found[0], Pictures(3)[0]["image"])


# Parts ----------------------------------------------------------------------------------------------------


@given(n=st.integers(0, 400), every=st.integers(1, 60), most=st.none() | st.integers(1, 30))
def test_a_split_is_a_partition(n: int, every: int, most: int | None) -> None:
    rest, held = split(Pictures(n), every=every, most=most)
    out = [] if held is None else held.index
    assert sorted(rest.index + out) == list(range(n))
    assert rest.index == sorted(rest.index)
    assert len(set(out)) == len(out)
    if n < LEAST:
        assert held is None
    else:
        assert all(i % every == 0 for i in out)
        assert len(out) == min(-(-n // every), most or n)


def test_held_out_ones_are_spread_over_all() -> None:
    _, held = split(Pictures(1000), every=2, most=10)
    assert held is not None
    assert held.index == list(range(0, 1000, 100))


def test_a_part_gives_the_samples_of_its_indices() -> None:
    source = Pictures(60)
    part = Part(Part(source, [9, 3, 50]), [2, 0])
    assert len(part) == 2
    assert part.fields == source.fields
    assert torch.equal(part[0]["image"], source[50]["image"])
    assert torch.equal(part[1]["image"], source[9]["image"])


@given(n=st.integers(0, 200), first=st.integers(1, 50))
def test_to_spread_is_to_reorder(n: int, first: int) -> None:
    order = spread(n, first)
    assert sorted(order) == list(range(n))
    if first < n:
        gaps = [b - a for a, b in zip(order[:first], order[1:first], strict=False)]
        assert all(n // first <= gap <= -(-n // first) for gap in gaps)
        assert order[first:] == sorted(order[first:])
