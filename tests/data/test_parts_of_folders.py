"""Which part of a data set is read, where it has several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from folders import encoded, fill, line, shade, tar
from sfumato.data import opened
from sfumato.data.source import listed

SHARD = tar({"a.png": encoded(shade(1)), "a.txt": "ant"})


def names(root: Path, part: str) -> list[str]:
    return [entry.name for entry in listed(root, part).entries]


@pytest.mark.parametrize("asked", ["val", "valid", "validation"])
@pytest.mark.parametrize("there", ["val", "valid", "validation"])
def test_a_part_by_any_of_its_names(tmp_path: Path, asked: str, there: str) -> None:
    fill(tmp_path, {"train/x/a.png": 1, f"{there}/y/b.png": 2, "test/z/c.png": 3})
    whole = opened(tmp_path, size=4, part=asked)
    assert whole.kind == f"folder of classes, {there}/ alone"
    assert (whole.names, whole.classes) == ((f"{there}/y/b.png",), ("y",))
    assert names(tmp_path, "train") == ["train/x/a.png"]
    assert names(tmp_path, "test") == ["test/z/c.png"]


def test_a_folder_of_exactly_that_name_comes_first(tmp_path: Path) -> None:
    fill(tmp_path, {"train/a.png": 1, "val/b.png": 2, "validation/c.png": 3})
    assert names(tmp_path, "val") == ["val/b.png"]
    assert names(tmp_path, "validation") == ["validation/c.png"]


def test_parts_of_shards_and_of_metadata(tmp_path: Path) -> None:
    fill(tmp_path / "a", {"train/a.tar": SHARD, "val/a.tar": SHARD})
    assert names(tmp_path / "a", "val") == ["val/a.tar/a.png"]
    rows = line(file_name="train/a.png", text="ant") + line(file_name="val/b.png", text="bee")
    fill(tmp_path / "b", {"train/a.png": 1, "val/b.png": 2, "metadata.jsonl": rows})
    assert [entry.captions for entry in listed(tmp_path / "b", "val").entries] == [("bee",)]


@pytest.mark.parametrize(
    ("files", "there"),
    [
        ({"train/a.png": 1, "test/b.png": 2}, "there are: test, train"),
        ({"train/a.png": 1, "boat/b.png": 2}, "it has no parts, and is read whole"),
        ({"a.png": 1}, "it has no parts"),
        ({}, "it has no parts"),
        ({"a.tar": SHARD}, "it has no parts"),
        ({"a.png": 1, "annotations/captions_train.json": "{}"}, "there are: train"),
        ({"a.png": 1, "annotations/captions.json": "{}"}, "it has no parts"),
    ],
)
def test_a_part_that_is_not_there(tmp_path: Path, files: Mapping[str, str | bytes | int], there: str) -> None:
    with pytest.raises(ValueError, match=there) as caught:
        listed(fill(tmp_path, files), "val")
    assert str(caught.value).startswith(f"{tmp_path}: there is no part 'val'; ")
    if "a.tar" in files:
        with pytest.raises(ValueError, match="there is no part 'val'"):
            listed(tmp_path / "a.tar", "val")
