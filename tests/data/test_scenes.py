"""Scenes: each is a function of its seed and number; every box is exactly where its object is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.boxes import Box
from sfumato.data.scenes import (
    COLOURS,
    COVERED,
    LABELS,
    LARGEST_SIZE,
    LEAST_SIZE,
    MOST,
    NAMES,
    PATTERNS,
    SEEN,
    STYLES,
    TOGETHER,
    TRIES,
    Background,
    Plan,
    Scenes,
    _cut_out,  # pyright: ignore[reportPrivateUsage]
    _ground,  # pyright: ignore[reportPrivateUsage]
    _numbers,  # pyright: ignore[reportPrivateUsage]
    _sprite,  # pyright: ignore[reportPrivateUsage]
    caption,
)
from sfumato.diffusion.noise import Address, Stream


def hidden(box: Box, by: Box) -> float:
    """The part of the smaller of two boxes that both have."""
    wide, high = min(box.x1, by.x1) - max(box.x0, by.x0), min(box.y1, by.y1) - max(box.y0, by.y0)
    return max(0, wide) * max(0, high) / min(box.area, by.area)


def test_a_scene_does_not_depend_on_how_many_there_are() -> None:
    few, many = Scenes(3, seed=7), Scenes(1_000_000_000, seed=7)
    for i in range(3):
        assert torch.equal(few[i]["image"], many[i]["image"])
        assert few[i]["boxes"] == many[i]["boxes"]
        assert few[i]["caption"] == many[i]["caption"]
    assert many[999_999_999]["boxes"]
    with pytest.raises(IndexError, match="3 scenes"):
        few[3]


def test_seeds_and_numbers_give_other_scenes() -> None:
    layouts = {Scenes(40, seed=seed)[i]["boxes"] for seed in (0, 1, 2**64 - 1) for i in range(40)}
    assert len(layouts) == 120
    assert Scenes(5, seed=1).fingerprint != Scenes(5, seed=2).fingerprint


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 2), st.sampled_from([64, 96]))
def test_every_box_holds_its_object_and_nothing_is_hidden(seed: int, i: int, side: int) -> None:
    plan, picture = Scenes(2**32 - 1, seed=seed, side=side).painted(i)
    assert 1 <= len(plan.boxes) <= MOST
    assert picture.size == (side, side)
    for k, box in enumerate(plan.boxes):
        assert box.label in LABELS
        assert 0 <= box.x0 < box.x1 <= 1
        assert 0 <= box.y0 < box.y1 <= 1
        longer = max(box.x1 - box.x0, box.y1 - box.y0)
        assert LEAST_SIZE - 2.5 / side <= longer <= LARGEST_SIZE + 0.5 / side
        assert all(hidden(box, other) <= COVERED + 1e-9 for other in plan.boxes[:k])


@pytest.mark.parametrize("i", range(12))
def test_what_is_outside_the_boxes_is_the_background_and_each_side_of_a_box_is_touched(i: int) -> None:
    side = 96
    plan, picture = Scenes(100, seed=3, side=side).painted(i)
    ground = np.array(_ground(plan.background, side).convert("RGB"))
    changed = (np.array(picture) != ground).any(axis=2)
    outside = np.ones((side, side), dtype=bool)
    for box in plan.boxes:
        x0, y0, x1, y1 = (round(n * side) for n in box[1:5])
        assert all(abs(round(n * side) - n * side) < 1e-9 for n in box[1:5])  # boxes lie on pixels
        outside[y0:y1, x0:x1] = False
    assert not changed[outside].any()
    last = plan.boxes[-1]  # nothing lies in front of it
    x0, y0, x1, y1 = (round(n * side) for n in last[1:5])
    sprite = _sprite(NAMES[LABELS.index(last.label)], plan.style, max(x1 - x0, y1 - y0))
    if sprite.size == (x1 - x0, y1 - y0):
        alpha = np.array(sprite.getchannel("A"))
        assert all((edge >= SEEN).any() for edge in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]))


def test_all_labels_styles_and_backgrounds_come() -> None:
    scenes = Scenes(700, seed=5, side=32)
    plans = [scenes.painted(i)[0] for i in range(700)]
    assert {box.label for plan in plans for box in plan.boxes} == set(LABELS)
    assert {plan.style for plan in plans} == set(STYLES)
    assert {plan.background.colour for plan in plans} == set(COLOURS)
    assert {plan.background.pattern for plan in plans} == set(PATTERNS)
    assert {len(plan.boxes) for plan in plans} == set(range(1, MOST + 1))
    plain = sum(plan.background.pattern == "plain" for plan in plans) / 700
    assert abs(plain - 0.5) < 4 * (0.25 / 700) ** 0.5  # half of them, within four deviations


def test_scenes_of_some_labels_have_no_others_and_all_of_these() -> None:
    asked = ("red apple", "cat", "pizza")
    few = Scenes(60, seed=5, side=32, labels=asked)
    plans = [few.painted(i)[0] for i in range(60)]
    assert {box.label for plan in plans for box in plan.boxes} == set(asked) == set(few.classes)
    assert few.classes == tuple(label for label in LABELS if label in asked)
    assert few.fingerprint == Scenes(60, seed=5, side=32, labels=asked[::-1]).fingerprint
    assert few.fingerprint != Scenes(60, seed=5, side=32).fingerprint
    with pytest.raises(ValueError, match="unknown label 'cta'; did you mean 'cat'"):
        Scenes(1, labels=("cat", "cta"))
    with pytest.raises(ValueError, match="no labels"):
        Scenes(1, labels=())


@pytest.mark.parametrize("i", [0, 255, 256, 2**32 - 2])
def test_numbers_that_are_drawn_together_are_those_of_each(i: int) -> None:
    alone = Address.of(2**64 - 1, [i]).uniform(Stream.SCENE, 6 + 2 * MOST * (1 + TRIES))
    together = _numbers(2**64 - 1, i // TOGETHER)
    assert torch.equal(together[i % TOGETHER], alone[0])


def test_there_is_one_picture_of_each_name_in_each_style() -> None:
    assert set(_cut_out()) == {(name, style) for name in NAMES for style in STYLES}
    assert len(set(LABELS)) == len(NAMES) == 64


def test_captions_say_style_things_and_background() -> None:
    def said(*labels: str, pattern: str = "plain") -> str:
        return caption(Plan("3d", Background("blue", pattern), tuple(Box(label, 0, 0, 1, 1) for label in labels)))

    assert said("cat") == "3d: a cat on a blue background"
    assert said("cat", "owl") == "3d: a cat and an owl on a blue background"
    striped = said("cat", "cat", "popcorn", pattern="striped")
    assert striped == "3d: a cat, a cat and popcorn on a striped blue background"


def test_so_many_scenes_cannot_be_asked_for() -> None:
    for n in (0, 2**32):
        with pytest.raises(ValueError, match="ask for 1 to"):
            Scenes(n)
