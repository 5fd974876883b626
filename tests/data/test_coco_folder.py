"""What is written in the form of COCO is read back: every pixel, every caption, every box."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sfumato.boxes import Box, Layout, Modifier
from sfumato.data import opened
from sfumato.data.coco_folder import written
from sfumato.data.sample import Sample
from sfumato.data.scenes import Scenes


class Made:
    """Two wide pictures, the second without a box; captions or none."""

    fields = frozenset({"image", "boxes"})
    classes = ("ant", "bee")

    def __init__(self, boxes: Layout, captions: tuple[str, ...] = ()) -> None:
        self.boxes, self.captions = boxes, captions

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int, /) -> Sample:
        image = torch.full((3, 4, 12), i / 127.5)
        sample: Sample = {"image": image, "boxes": () if i else self.boxes}
        if self.captions:
            sample["captions"] = self.captions
        return sample


def test_scenes_there_and_back(tmp_path: Path) -> None:
    scenes = Scenes(12, seed=3, side=64)
    assert list(written(scenes, tmp_path / "x")) == list(range(1, 13))
    whole = opened(tmp_path / "x", size=64)
    assert whole.kind == "COCO captions and boxes"
    assert whole.fields == {"image", "caption", "boxes"}
    assert whole.skipped == []
    for i in range(12):
        mine, there = scenes[i], whole[i]
        assert torch.equal(there["image"], mine["image"])
        assert there["captions"] == mine["captions"]
        assert len(there["boxes"]) == len(mine["boxes"])
        for a, b in zip(there["boxes"], mine["boxes"], strict=True):
            assert a == pytest.approx(b, abs=1e-9)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x"]


def test_what_the_files_say(tmp_path: Path) -> None:
    boxes = (Box("bee", 0.25, 0.5, 0.75, 1, Modifier.GROUP | Modifier.INSIDE), Box("ant", 0, 0, 1, 0.25))
    assert list(written(Made(boxes), tmp_path / "x")) == [1, 2]
    assert not (tmp_path / "x/annotations/captions.json").exists()
    found = json.loads((tmp_path / "x/annotations/instances.json").read_text())
    assert found["categories"] == [{"id": 1, "name": "ant"}, {"id": 2, "name": "bee"}]
    assert found["images"][1] == {"id": 1, "file_name": "000001.png", "width": 12, "height": 4}
    assert [(row["category_id"], row["bbox"], row["iscrowd"]) for row in found["annotations"]] == [
        (2, [3, 2, 6, 2], 1),
        (1, [0, 0, 12, 1], 0),
    ]
    whole = opened(tmp_path / "x", size=4).shaped([(12, 4)], least=1)
    assert whole[0]["boxes"] == (boxes[0]._replace(modifiers=Modifier.GROUP), boxes[1])
    assert whole[1]["boxes"] == ()


def test_several_captions(tmp_path: Path) -> None:
    list(written(Made((), ("an ant", "an insect")), tmp_path / "x"))
    assert opened(tmp_path / "x", size=4)[1]["captions"] == ("an ant", "an insect")


def test_whole_or_not_at_all(tmp_path: Path) -> None:
    events = written(Scenes(9, side=32), tmp_path / "x")
    assert [next(events), next(events)] == [1, 2]
    assert not (tmp_path / "x").exists()
    events.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="a box has the label 'cow', which is none of the classes"):
        list(written(Made((Box("cow", 0, 0, 1, 1),)), tmp_path / "x"))
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(ValueError, match="x is there already; choose another place"):
        next(written(Scenes(1), tmp_path / "x"))
    plain = Made(())
    plain.fields = frozenset({"image"})
    with pytest.raises(ValueError, match="have no boxes to write"):
        next(written(plain, tmp_path / "y"))
