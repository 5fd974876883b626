"""Previews of a model that is asked with boxes show them, and ask for nothing that nobody could ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import laid
from sfumato.boxes import Box, Modifier
from sfumato.generate import generate
from sfumato.io import pictures
from sfumato.io.outlined import COLOURS, colour, outlined
from sfumato.recipes.delivered import PREVIEWS, VISIBLE, asked_of, preview
from sfumato.recipes.material import Way

WAY: dict[str, Any] = {"caption": "two dogs in the rain"}


@pytest.mark.parametrize("kind", laid.CONFIGS)
def test_a_preview_is_asked_with_the_boxes_of_pictures_far_apart(kind: str) -> None:
    one, two = laid.boxes(kind)
    most = laid.CONFIGS[kind].conditioner.most if kind != "ldm" else 3  # pyright: ignore
    strange = [
        Box("zog 7", 0, 0, 1, 1),
        one._replace(x1=one.x0 + 1e-9),
        one._replace(label="x" * 300),
    ]
    ways = [({**WAY, "boxes": (one,) * i}, {"boxes": (), "caption": "not this"}) for i in range(2 * PREVIEWS)]
    ways[0] = ({**WAY, "boxes": (two, *strange[: most - 1])},)
    asked = asked_of(laid.model(kind), ways)
    assert [len(r.boxes or ()) for r in asked] == [1, *(min(2 * i, most) for i in range(1, PREVIEWS))]
    assert asked[0].boxes == (two,)
    assert {r.prompt for r in asked} == {WAY["caption"] if kind == "words" else ""}
    assert [r.seed for r in asked] == list(range(PREVIEWS))


def test_modifiers_that_a_model_has_no_numbers_for_are_left_out_of_its_previews() -> None:
    """They are in its pictures, and in training they are not said."""
    loaded = laid.loaded("ldm", names=("7",), vocabulary=5)
    group, hidden = (Box("7", 0, 0, 1, 1, int(kind)) for kind in (Modifier.GROUP, Modifier.OCCLUDED))
    ways: list[tuple[Way, ...]] = [({"boxes": (group, hidden)},)] * PREVIEWS
    asked = asked_of(loaded.model, ways)
    assert asked[0].boxes == (group, hidden._replace(modifiers=0))
    assert len(generate(loaded, asked[:1]).images) == 1


def test_each_picture_of_a_preview_has_its_boxes_over_it(tmp_path: Path) -> None:
    loaded, boxes = laid.loaded("words"), laid.boxes("words")
    ways = [({**WAY, "boxes": boxes if i % 2 else ()},) for i in range(PREVIEWS)]
    asked = asked_of(loaded.model, ways)
    path = preview(loaded, asked, tmp_path / "preview.png")
    assert pictures.parameters_of(path) == {"captions": [WAY["caption"]] * PREVIEWS}
    larger = VISIBLE // 16
    images = generate(loaded, asked).images.repeat_interleave(larger, 2).repeat_interleave(larger, 3)
    drawn = [outlined(image, request.boxes or ()) for image, request in zip(images, asked, strict=True)]
    assert torch.equal(pictures.read(path), pictures.sheet(torch.stack(drawn), columns=8))
    same = torch.stack(drawn).sub(images).abs() < 1 / 127.5
    assert same[::2].all()
    assert not same[1::2].all()


def test_outlines_are_thin_and_names_are_for_pictures_with_room() -> None:
    grey, box = torch.zeros(3, 64, 64), Box("a dog", 0.25, 0.25, 0.75, 0.75)
    small = outlined(grey, [box])
    line = torch.tensor(colour("a dog")) / 127.5 - 1
    outline = torch.zeros(64, 64, dtype=torch.bool)
    outline[16:48, 16:48] = True
    outline[17:47, 17:47] = False
    found = ((small - line.view(3, 1, 1)).abs() < 1e-6).all(0)
    assert torch.equal(found, outline)
    assert ((small[:, ~outline]).abs() < 1 / 127.5).all()
    assert colour("a dog") in COLOURS
    large = outlined(grey, [box], side=512)
    assert large.shape == (3, 512, 512)
    assert (large[:, 130:140, 130:150] > 0.9).all(0).any()  # white letters


def changed(x: float, y: float, label: str = "a long name") -> int:
    """Pixels that a small box and its name take."""
    over = outlined(torch.zeros(3, 64, 64), [Box(label, x, y, x + 0.02, y + 0.02)], side=256)
    return int((over.abs() > 1 / 127.5).any(0).sum())


@pytest.mark.parametrize(("x", "y"), [(0.0, 0.0), (0.98, 0.0), (0.0, 0.98), (0.98, 0.98)])
def test_a_name_is_whole_in_each_corner(x: float, y: float) -> None:
    middle = changed(0.4, 0.4)
    assert 600 < middle < 1500
    assert middle - 20 <= changed(x, y) <= middle + 20  # the outline of the box lies under it, or beside


def test_any_label_can_be_drawn() -> None:
    assert changed(0, 0, "x" * 200) < 256 * 30  # not all of it
    assert changed(0, 0, "猫 🍎") > 100
