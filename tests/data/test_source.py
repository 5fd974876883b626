"""A path is recognised for what it is, and its pictures have the same captions and addresses everywhere."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from folders import encoded, fill, line, shade, tar
from sfumato.data import Dataset, opened
from sfumato.data.listing import Entry
from sfumato.data.source import listed

COCO = {
    "images": [{"id": 1, "file_name": "a.png"}],
    "annotations": [{"image_id": 1, "caption": "an ant"}, {"image_id": 1, "caption": "an insect"}],
}
SHARD = tar({"a.png": encoded(shade(1)), "a.txt": "ant"})
KINDS: dict[str, Mapping[str, str | bytes | int]] = {
    "pictures without captions": {"a.png": 1, "x/b.png": 2},
    "folder of classes": {"ant/a.png": 1, "bee/b.png": 2},
    "folder of classes, train/ alone": {"train/ant/a.png": 1, "val/ant/b.png": 2},
    "captions beside the pictures": {"a.png": 1, "a.txt": "ant"},
    "captions beside the pictures, folder of classes": {"x/a.png": 1, "x/a.txt": "ant", "y/b.png": 2},
    "captions beside the pictures, train/ alone": {"train/a.png": 1, "train/a.txt": "ant"},
    "metadata.jsonl": {"a.png": 1, "metadata.jsonl": line(file_name="a.png", text="ant")},
    "metadata.csv": {"a.png": 1, "metadata.csv": "file_name,caption\na.png,ant\n"},
    "COCO captions": {"images/a.png": 1, "annotations/captions_x.json": json.dumps(COCO)},
    "WebDataset shards, 1 file": {"a.tar": SHARD},
    "WebDataset shards, 2 files": {"a.tar": SHARD, "b/b.tar": SHARD, "b/x.json": "{}"},
    "WebDataset shards, 1 file, train/ alone": {"train/a.tar": SHARD, "test/a.tar": SHARD},
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(tmp_path: Path, kind: str) -> None:
    whole = opened(fill(tmp_path, KINDS[kind]), size=4)
    assert isinstance(whole, Dataset)
    assert whole.kind == kind
    assert torch.equal(whole[0]["image"][0], torch.full((4, 4), 1 / 127.5 - 1))
    for i in range(len(whole)):
        sample = whole[i]
        assert sample.get("caption") == (sample.get("captions") or (None,))[0]


def test_a_single_shard_is_a_data_set(tmp_path: Path) -> None:
    whole = opened(fill(tmp_path, {"a.tar": SHARD}) / "a.tar", size=4)
    assert (whole.kind, whole[0]["captions"], whole[0].get("key")) == ("WebDataset shards, 1 file", ("ant",), "a.png")


def test_what_comes_first(tmp_path: Path) -> None:
    """Pictures before shards, COCO before sidecars, metadata before COCO."""
    fill(tmp_path, {"t.tar": SHARD, "a.png": 1, "a.txt": "sidecar"})
    assert opened(tmp_path, size=4)[0]["captions"] == ("sidecar",)
    fill(tmp_path, {"captions.json": json.dumps(COCO)})
    assert opened(tmp_path, size=4)[0]["captions"] == ("an ant", "an insect")
    fill(tmp_path, {"metadata.jsonl": line(file_name="a.png", text="row")})
    assert opened(tmp_path, size=4)[0]["captions"] == ("row",)


def test_other_paths_are_a_line(tmp_path: Path) -> None:
    fill(tmp_path, {"x.tar.gz": "", "y/z": ""})
    for name, match in {"x.tar.gz": "neither a folder nor a .tar", "z": "no such folder", "y": "no pictures"}.items():
        with pytest.raises(ValueError, match=match) as caught:
            opened(tmp_path / name, size=4)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")


# Splits ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("other", ["validation", "valid", "val", "test"])
def test_of_splits_train_alone_is_read(tmp_path: Path, other: str) -> None:
    rows = line(file_name="train/ant/a.png", text="an ant") + line(file_name=f"{other}/bee/c.png", text="no")
    files = {"train/ant/a.png": 1, "train/bee/b.png": 2, f"{other}/bee/c.png": 3, f"{other}/bee/metadata.csv": "no"}
    whole = opened(fill(tmp_path, files | {"metadata.jsonl": rows, "scripts/x.py": ""}), size=4)
    assert whole.kind == "metadata.jsonl, folder of classes, train/ alone"
    assert whole.classes == ("ant", "bee")
    assert [whole[i].get("key") for i in range(len(whole))] == ["train/ant/a.png", "train/bee/b.png"]
    assert [whole[i]["captions"] for i in range(len(whole))] == [("an ant",), ("bee",)]
    assert listed(tmp_path).left_out[f"{other}/bee/c.png"] == f"in {other}/"


@pytest.mark.parametrize(
    "files", [{"train/a.png": 1, "boat/b.png": 2}, {"train/a.png": 1, "val/b.png": 2, "c.png": 3}, {"test/a.png": 1}]
)
def test_folders_that_are_no_splits_are_all_read(tmp_path: Path, files: Mapping[str, int]) -> None:
    assert len(opened(fill(tmp_path, files), size=4)) == len(files)


# Metadata -------------------------------------------------------------------------------------------------
def test_the_column_may_be_called_caption(tmp_path: Path) -> None:
    rows = line(file_name="x/a.png", caption="ant") + line(file_name="b.png", text="bee", caption="no")
    fill(tmp_path, {"x/a.png": 1, "b.png": 2, "metadata.jsonl": rows})
    whole = opened(tmp_path, size=4)
    assert [whole[i]["captions"] for i in range(2)] == [("bee",), ("ant",)]


# Addresses ------------------------------------------------------------------------------------------------
@settings(max_examples=30, deadline=None)
@given(st.permutations(range(6)))
def test_addresses_do_not_depend_on_the_machine(order: list[int]) -> None:
    """The same files, written in another order to another place, are the same samples and the same fingerprint."""
    names = ["b/1.png", "a/2.png", "a/1.png", "c-d/x.png", "c.d/y.png", "z/ä.png"]
    facts = []
    for some in (range(6), order):
        with TemporaryDirectory() as root:
            data = opened(fill(Path(root), {names[i]: i for i in some}), size=2)
            facts.append(([data[i].get("key") for i in range(6)], data.classes, data.fingerprint))
    assert facts[0] == facts[1]
    assert facts[0][0] == sorted(names)


def test_the_fingerprint_is_that_of_names_sizes_and_captions(tmp_path: Path) -> None:
    fill(tmp_path, {"b.png": 1, "a.png": 2, "a.txt": "käse"})
    rows = [["a.png", (tmp_path / "a.png").stat().st_size, "käse"], ["b.png", (tmp_path / "b.png").stat().st_size, ""]]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    assert opened(tmp_path, size=4).fingerprint == (2, hashlib.sha256(text.encode()).hexdigest())


def test_the_fingerprint_changes_with_every_caption(tmp_path: Path) -> None:
    prints = set()
    for captions in (["a"], ["a", "b"], ["b", "a"], ["a b"], []):
        rows = [{"image_id": 1, "caption": caption} for caption in [*captions, ""]]
        fill(tmp_path, {"a.png": 1, "annotations/captions_x.json": json.dumps(COCO | {"annotations": rows})})
        prints.add(opened(tmp_path, size=4).fingerprint)
    assert len(prints) == 5


def test_names_that_are_no_text_are_read(tmp_path: Path) -> None:
    names = [b"new\nline.png", b"\xff\xfe.png", b"\xe2\x80\xa8.png"]
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(encoded(shade(1)))
    whole = opened(tmp_path, size=4)
    assert {whole[i].get("key") for i in range(3)} == set(map(os.fsdecode, names))
    assert whole.fingerprint.n == 3
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(b"")
    with pytest.raises(ValueError, match=r"3 of 3 pictures cannot be read") as caught:
        opened(tmp_path, size=4)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_data_set_goes_to_other_processes(tmp_path: Path, kind: str) -> None:
    whole = opened(fill(tmp_path, KINDS[kind]), size=4)
    again = pickle.loads(pickle.dumps(whole))
    assert torch.equal(again[0]["image"], whole[0]["image"])


# Bytes ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "file"
    path.write_bytes(bytes(range(256)) * 80)
    return path


@given(st.data())
def test_a_part_of_a_file_is_read_as_a_file_of_its_own(large: Path, draw: st.DataObject) -> None:
    start = draw.draw(st.integers(0, 20000))
    size = draw.draw(st.integers(0, 20480 - start))
    plain = io.BytesIO(large.read_bytes()[start : start + size])
    entry = Entry(large, "x", size, offset=start)
    assert entry.read() == plain.getvalue()
    with entry.open() as file:
        for _ in range(6):
            if draw.draw(st.booleans()):
                at = draw.draw(st.integers(0, size + 10))
                ends = draw.draw(st.booleans())
                where = (-min(at, size), io.SEEK_END) if ends else (at, io.SEEK_SET)
                assert file.seek(*where) == plain.seek(*where)
            n = draw.draw(st.integers(0, 9000))
            assert file.read(n) == plain.read(n)
            assert file.tell() == plain.tell()


def test_a_picture_that_has_gone_is_named(tmp_path: Path) -> None:
    whole = opened(fill(tmp_path, {"a.png": 1}), size=4)
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"a\.png: the file cannot be opened \(No such file"):
        whole[0]
