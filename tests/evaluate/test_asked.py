"""Which layouts are asked for."""

from __future__ import annotations

from typing import cast

import pytest
import torch

from sfumato.boxes import Box, Modifier
from sfumato.conditioning.boxes import Boxes
from sfumato.conditioning.layout import LayoutTokens
from sfumato.data.part import Part
from sfumato.data.sample import Sample
from sfumato.data.scenes import Scenes
from sfumato.evaluate.asked import asked
from sfumato.nets.transformer import TransformerSize
from sfumato.registry import unknown


class Reader:
    """Stands in for a conditioner: it knows three labels and reads two boxes."""

    most = 2

    def __init__(self, *, captions: bool = True) -> None:
        self.captions = captions

    def check(self, label: str) -> None:
        if label not in ("pear", "apple", "fig"):
            raise ValueError(unknown("label", label, ["pear", "apple", "fig"]))


def reader(*, captions: bool = True) -> Boxes:
    return cast(Boxes, Reader(captions=captions))


def box(label: str, side: float = 0.5) -> Box:
    return Box(label, 0.0, 0.0, side, side)


class Pictures:
    """Pictures by their boxes; None is a damaged one."""

    fields = frozenset({"image", "boxes"})

    def __init__(self, *layouts: tuple[Box, ...] | None) -> None:
        self.layouts = layouts

    def __len__(self) -> int:
        return len(self.layouts)

    def __getitem__(self, i: int, /) -> Sample:
        boxes = self.layouts[i]
        if boxes is None:
            raise ValueError(f"{i}.png: the picture is damaged")
        return {"image": torch.full((3, 4, 4), float(i)), "boxes": boxes, "key": f"{i}.png", "caption": f"no. {i}"}


def test_those_with_boxes_are_asked_for_in_their_order() -> None:
    pictures = Pictures((box("pear"),), (), None, (box("fig"), box("apple")), (box("fig"),))
    found = asked(pictures, 100, seed=3, conditioner=reader())
    assert found.index == (0, 3, 4)
    assert len(found) == 3
    assert found.layouts == ((box("pear"),), (box("fig"), box("apple")), (box("fig"),))
    assert found.prompts == ("no. 0", "no. 3", "no. 4")
    assert found.skipped == ("2.png: the picture is damaged",)
    assert found.owners().tolist() == [0, 1, 1, 2]
    assert found.real(1, 3)[:, 0, 0, 0].tolist() == [3, 4]
    assert asked(pictures, 100, seed=3, conditioner=reader(captions=False)).prompts == ("", "", "")


def test_some_are_drawn_by_seed() -> None:
    pictures = Pictures(*[(box("pear"),)] * 50)
    first, again, other = (asked(pictures, 8, seed=seed, conditioner=reader()) for seed in (0, 0, 1))
    assert first.index == again.index
    assert first.index != other.index
    assert len(set(first.index)) == 8


def test_the_smallest_that_are_not_read_are_not_asked_for() -> None:
    found = asked(Pictures((box("fig", 0.2), box("pear", 0.9), box("apple", 0.4))), 1, seed=0, conditioner=reader())
    assert found.layouts == ((box("pear", 0.9), box("apple", 0.4)),)
    assert found.unread == 1


def test_labels_that_the_model_never_saw_are_not_asked_for() -> None:
    """As in a folder where a rare label is in held-out pictures alone; a label may be too long to be said, too."""
    pictures = Pictures((box("plum"), box("fig")), (box("x" * 300),), (box("apple"),))
    found = asked(pictures, 3, seed=0, conditioner=reader())
    assert (found.index, found.layouts) == ((0, 2), ((box("fig"),), (box("apple"),)))
    assert len(found.refused) == 2
    assert any(why.startswith("a box of 0.png cannot be asked for: unknown label 'plum';") for why in found.refused)


def test_modifiers_that_are_not_read_are_not_asked_for() -> None:
    """With two names there is room in ten numbers for a group, and for no more."""
    tokens = LayoutTokens(10, TransformerSize(dim=8, depth=1, length=5, heads=1, dim_head=8), names=("pear", "fig"))
    whole = box("pear")._replace(modifiers=int(Modifier.GROUP | Modifier.OCCLUDED))
    (layout,) = asked(Pictures((whole,)), 1, seed=0, conditioner=tokens).layouts
    assert layout == (whole._replace(modifiers=Modifier.GROUP),)


@pytest.mark.parametrize(
    ("pictures", "line"),
    [
        (Pictures((box("plum"),)), r"a box of 0\.png cannot be asked for: unknown label 'plum'; known: pear, "),
        (Pictures((Box("fig", 0.5, 0.0, 0.5, 1.0),)), r"a box of 0\.png cannot be asked for: boxes.0: the box of"),
        (Pictures((), ()), r"none of 2 pictures has a box; layouts need some"),
    ],
)
def test_what_cannot_be_asked_for_is_a_line(pictures: Pictures, line: str) -> None:
    with pytest.raises(ValueError, match=f"^{line}") as caught:
        asked(pictures, 2, seed=0, conditioner=reader())
    assert "\n" not in str(caught.value)


def test_pictures_without_boxes_are_refused() -> None:
    part = Part(Scenes(3), [0, 2])
    part.fields = frozenset({"image", "caption"})
    with pytest.raises(ValueError, match=r"^nothing is said of where things are in these pictures; layouts need boxes"):
        asked(part, 2, seed=0, conditioner=reader())
