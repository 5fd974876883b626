"""Buckets: shapes of one area, the nearest for each picture, none that hardly any picture has."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import folders
from sfumato.data import opened
from sfumato.data.buckets import LONGEST, filled, nearest, ratio, shapes
from sfumato.train.batches import Grouped

SIDES = st.tuples(st.integers(1, 4000), st.integers(1, 4000))


def test_the_shapes_of_stable_diffusion() -> None:
    """512 pixels, steps of 64, no side more than twice the other."""
    assert shapes(512, step=64) == [(640, 384), (576, 448), (512, 512), (448, 576), (384, 640)]


@given(side=st.integers(1, 40).map(lambda n: n * 16), step=st.sampled_from([8, 16]), longest=st.floats(1, 4))
def test_shapes(side: int, step: int, longest: float) -> None:
    found = shapes(side, step=step, longest=longest)
    assert (side, side) in found
    assert len(set(found)) == len(found)
    for w, h in found:
        assert w % step == h % step == 0
        assert 0 < w * h <= side**2
        assert 1 / longest <= w / h <= longest
    assert [ratio(s) for s in found] == sorted((ratio(s) for s in found), reverse=True)


@given(sides=SIDES)
def test_the_nearest_cuts_least(sides: tuple[int, int]) -> None:
    """What is kept of a picture is as large a part as with any other shape, and turned pictures get turned shapes."""
    among = shapes(256, step=32)

    def kept(shape: tuple[int, int]) -> float:
        return min(ratio(shape) / ratio(sides), ratio(sides) / ratio(shape))

    found = nearest(sides, among)
    assert kept(found) >= max(map(kept, among)) - 1e-12
    turned = nearest((sides[1], sides[0]), among)
    assert kept(found) == pytest.approx(min(ratio(turned) * ratio(sides), 1 / (ratio(turned) * ratio(sides))), rel=1e-9)


@given(sides=st.lists(SIDES, min_size=1, max_size=40), least=st.integers(1, 12))
def test_no_shape_has_few_pictures(sides: list[tuple[int, int]], least: int) -> None:
    among = shapes(256, step=32)
    chosen = filled(sides, among, least=least)
    counts = Counter(chosen)
    assert len(chosen) == len(sides)
    assert len(counts) == 1 or min(counts.values()) >= least
    assert chosen == [nearest(each, sorted(counts)) for each in sides]
    if least == 1:
        assert chosen == [nearest(each, among) for each in sides]


def test_pictures_of_a_folder(tmp_path: Path) -> None:
    """A wide picture keeps its sides' ratio: what a square would cut off is there."""
    picture = Image.new("RGB", (80, 40), (255, 255, 255))
    picture.paste((255, 0, 0), (0, 0, 14, 40))
    picture.paste((0, 0, 255), (66, 0, 80, 40))
    turned = picture.rotate(90, expand=True)
    folders.fill(tmp_path, {f"{i}.png": folders.encoded(picture if i % 2 else turned) for i in range(8)})
    squares = opened(tmp_path, size=32)
    assert {tuple(squares[i]["image"].shape) for i in range(8)} == {(3, 32, 32)}
    assert not bool((squares[1]["image"][0] > squares[1]["image"][2]).any())  # no red is left
    found = squares.shaped(shapes(32, step=8), least=4)
    assert found.shapes == [(24, 40), (40, 24)] * 4
    wide, tall = found[1]["image"], found[0]["image"]
    assert (wide.shape, tall.shape) == ((3, 24, 40), (3, 40, 24))
    assert float(wide[2, :, 0].mean()) < -0.9  # red at the left end
    assert float(wide[0, :, -1].mean()) < -0.9  # blue at the right one
    assert found.fingerprint == squares.fingerprint


# Batches --------------------------------------------------------------------------------------------------
@given(
    groups=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    batch=st.integers(1, 9),
    seed=st.integers(0, 2**64 - 1),
)
def test_batches_of_one_group(groups: list[int], batch: int, seed: int) -> None:
    """In an epoch each sample is seen, none more than once more than its group's last batch needs."""
    order = Grouped(groups, batch=batch, seed=seed)
    steps = sum(-(-n // batch) for n in Counter(groups).values())
    found = [order(step).tolist() for step in range(2 * steps)]
    for epoch in (found[:steps], found[steps:]):
        seen = Counter(i for each in epoch for i in each)
        assert set(seen) == set(range(len(groups)))
        for group, n in Counter(groups).items():
            times = [seen[i] for i, g in enumerate(groups) if g == group]
            assert sum(times) == -(-n // batch) * batch
            assert max(times) - min(times) <= 1
    assert all(len({groups[i] for i in each}) == 1 for each in found)
    again = Grouped(groups, batch=batch, seed=seed)
    assert [again(step).tolist() for step in reversed(range(2 * steps))] == found[::-1]


def test_epochs_differ() -> None:
    order = Grouped([0] * 32 + [1] * 32, batch=8, seed=3)
    epochs = [torch.stack([order(step) for step in range(8 * e, 8 * e + 8)]) for e in range(3)]
    assert not any(torch.equal(a, b) for a, b in ((epochs[0], epochs[1]), (epochs[1], epochs[2])))


def test_the_longest() -> None:
    assert LONGEST == 2
    assert max(map(ratio, shapes(1024, step=64))) <= LONGEST
