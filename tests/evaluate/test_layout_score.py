"""The measure as a whole: of a painter that does what it is told, and of a model that was not trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import tiny_layout
from sfumato.boxes import Box
from sfumato.evaluate import crop_distance, layout
from sfumato.evaluate.asked import asked
from sfumato.evaluate.layout import LayoutScore, Step, Told, measure, painted, told
from sfumato.evaluate.reconstruction import as_saved
from sfumato.generate import generate
from sfumato.io import opening
from sfumato.io.model_folder import Loaded
from sfumato.request import Request
from tiny_layout import Patches


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return opening.load(tiny_layout.folder(tmp_path_factory.mktemp("layout") / "model"))


class Means:
    """The mean of each channel, which tells inks apart."""

    name, dim = "means", 3

    def __call__(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


@dataclass
class Painted:
    """What `generate` gives."""

    images: Tensor


class Painter:
    """Stands in for `generate`: draws the boxes that it is told, or nothing on white, and remembers the requests."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def __call__(self, loaded: Loaded, requests: Sequence[Request]) -> Painted:
        self.requests += requests
        return Painted(torch.stack([tiny_layout.drawn(request.boxes or ()) for request in requests]))


def score(loaded: Loaded, n: int = 30) -> LayoutScore:
    pictures = asked(Patches(n, first=100), n, seed=5, conditioner=loaded.model.conditioner)
    *steps, found = measure(loaded, pictures, Patches(60), Means(), seed=5)
    assert isinstance(found, LayoutScore)
    assert all(isinstance(step, Step) and step.done <= step.total for step in steps)
    assert steps[-1] == Step("pictures", 4 * n, 4 * n)
    return found


def test_a_painter_that_does_what_it_is_told(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    painter = Painter()
    monkeypatch.setattr(layout, "generate", painter)
    monkeypatch.setattr(crop_distance, "LEAST", 10)
    found = score(loaded)
    assert list(found.kinds) == ["real", "reconstructed", "boxes and prompt", "boxes alone", "prompt alone", "nothing"]
    assert found.pictures == 30
    assert found.labels == 4
    assert found.boxes == sum(len(Patches(30, first=100)[i]["boxes"]) for i in range(30)) == 50
    real = found.kinds["real"]
    assert real.right.all.share == 1
    assert real.placed.pictures == 30
    assert real.placed.boxes == 50
    assert real.placed.iou == pytest.approx(1)
    assert real.placed.half.share == 1
    assert found.kinds["boxes and prompt"] == found.kinds["boxes alone"] == real
    for name in ("prompt alone", "nothing"):  # all white: one label for all, and nothing is found
        kind = found.kinds[name]
        assert kind.right.all.hits <= found.commonest_share * 50
        assert kind.placed.iou == kind.placed.half.share == 0
        assert kind.placed.boxes == 50
    assert found.crop_distances is not None
    far = found.crop_distances.distances
    assert far["boxes and prompt"] == far["boxes alone"] == pytest.approx(far["real"], abs=1e-3)  # the levels of a file
    assert far["nothing"] == far["prompt alone"] > far["real"] + 0.1
    assert len(found.layouts) == len(found.real) == len(found.painted) == layout.KEPT
    assert torch.equal(as_saved(found.real), found.painted)


def test_each_way_to_ask_drops_what_it_says(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    painter = Painter()
    monkeypatch.setattr(layout, "generate", painter)
    score(loaded, n=3)
    samples = [Patches(3, first=100)[i] for i in range(3)]
    assert [(r.boxes, r.prompt, r.seed) for r in painter.requests] == [
        (sample["boxes"] if boxes else None, sample["caption"] if prompt else "", 5 + k)
        for boxes, prompt in ((True, True), (True, False), (False, True), (False, False))
        for k, sample in enumerate(samples)
    ]


def test_of_a_model_that_reads_no_prompts_there_are_two_ways() -> None:
    assert told(["", "a pear"]).keys() == {"boxes and prompt", "boxes alone", "prompt alone", "nothing"}
    assert told(["", ""]) == {"boxes": Told(True, False), "nothing": Told(False, False)}


def test_pictures_without_boxes_are_those_of_no_boxes(loaded: Loaded) -> None:
    """A model without training: what is dropped changes nothing, and what is not dropped does, by words or maps."""
    layouts = [[(Box("tomato", 0.1, 0.1, 0.6, 0.6),)] * 2, [(Box("frog", 0.3, 0.5, 0.9, 0.9),)] * 2]
    prompts = [["a tomato", "a frog"], ["a rose", "a carrot"]]

    def made(k: int, j: int, way: Told) -> Tensor:
        return painted(loaded, layouts[k], prompts[j], way, seed=2**64 - 1)

    bare = generate(loaded, [Request(seed=2**64 - 1), Request(seed=0)]).images
    assert torch.equal(made(0, 0, Told(False, False)), as_saved(bare))
    assert torch.equal(made(0, 0, Told(False, False)), made(1, 1, Told(False, False)))
    assert torch.equal(made(0, 0, Told(False, True)), made(1, 0, Told(False, True)))
    assert torch.equal(made(0, 0, Told(True, False)), made(0, 1, Told(True, False)))
    whole = [made(0, 0, way) for way in told(["words"]).values()]
    assert all((a - b).abs().max() > 0 for i, a in enumerate(whole) for b in whole[:i])


def test_a_mean_of_few_boxes_says_nothing(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "generate", Painter())
    found = score(loaded, n=4)
    assert 0 < found.kinds["real"].placed.boxes < layout.FEWEST
    assert found.kinds["real"].placed.iou is None
    assert found.crop_distances is None
    assert found.kinds["real"].right.all.share == 1


def test_a_classifier_with_too_little_to_learn_ends_it_before_a_picture_is_painted(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    painter = Painter()
    monkeypatch.setattr(layout, "generate", painter)
    pictures = asked(Patches(4), 4, seed=0, conditioner=loaded.model.conditioner)
    with pytest.raises(ValueError, match="boxes to learn labels from, and fewer than 2 labels with 5 of them"):
        list(measure(loaded, pictures, Patches(2), Means(), seed=0))
    assert not painter.requests
