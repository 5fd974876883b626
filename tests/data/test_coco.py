"""COCO's captions: all of a picture in order, every row used or named, and any JSON a line at worst."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from folders import fill
from sfumato.data import opened
from sfumato.data.coco import read
from sfumato.data.source import listed
from sfumato.data.walk import leaves
from sfumato.recipes import emoji


def coco(names: Sequence[str], captions: Sequence[tuple[int, str]]) -> str:
    """Pictures have the numbers 0, 1, ... as ids."""
    images = [{"id": i, "file_name": name, "width": 6, "height": 4} for i, name in enumerate(names)]
    annotations = [{"id": k, "image_id": i, "caption": caption} for k, (i, caption) in enumerate(captions)]
    return json.dumps({"info": {}, "images": images, "annotations": annotations})


def said(root: Path) -> dict[str, tuple[str, ...]]:
    return {entry.name: entry.captions for entry in listed(root).entries}


@given(st.lists(st.tuples(st.integers(0, 4), st.text("ab \n", max_size=4)), max_size=30))
def test_captions_keep_their_order(rows: list[tuple[int, str]]) -> None:
    told = read(coco([f"{i}.png" for i in range(5)], rows).encode())
    assert told.problems == []
    for i in range(5):
        mine = [" ".join(text.split()) for j, text in rows if i == j]
        assert told.captions.get(i, []) == [text for text in mine if text]


def test_pictures_are_found_anywhere_below(tmp_path: Path) -> None:
    names = ["a.png", "val/b.png", "c.png"]
    rows = [(2, "cat"), (0, "ant"), (1, "bee"), (0, " an\n insect ")]
    fill(tmp_path, {"captions_x.json": coco(names, rows), "images/a.png": 1, "x/val/b.png": 2, "c.png": 3, "d.png": 4})
    assert said(tmp_path) == {"c.png": ("cat",), "images/a.png": ("ant", "an insect"), "x/val/b.png": ("bee",)}
    assert listed(tmp_path).left_out == {"d.png": "not named in captions_x.json"}
    assert opened(tmp_path, size=4).fields == {"image", "caption"}


def test_the_layout_that_coco_is_published_in(tmp_path: Path) -> None:
    """Both parts side by side, the same numbers in both, other annotations beside: those for training are read."""
    fill(
        tmp_path,
        {
            "annotations/captions_train2017.json": coco(["1.jpg"], [(0, "ant")]),
            "annotations/captions_val2017.json": coco(["1.jpg", "2.jpg"], [(0, "bee"), (1, "cat")]),
            "annotations/instances_train2017.json": "{}",
            "train2017/1.jpg": 1,
            "val2017/1.jpg": 2,
            "val2017/2.jpg": 3,
        },
    )
    found = listed(tmp_path)
    assert found.kind == "COCO captions, train alone"
    assert said(tmp_path) == {"train2017/1.jpg": ("ant",)}
    assert found.left_out["val2017/1.jpg"] == "not named in captions_train2017.json"


def test_a_training_is_shown_all_captions(tmp_path: Path) -> None:
    fill(tmp_path, {"captions.json": coco(["a.png"], [(0, "ant"), (0, "an insect")]), "a.png": 1})
    material = emoji.material(tmp_path, 4)
    assert material.ways(material.told[0]) == ({"caption": "ant"}, {"caption": "an insect"})
    assert material.told[0].get("caption") == "ant"


def test_several_files_add_up(tmp_path: Path) -> None:
    files = {f"annotations/captions_{x}.json": coco(["a.png"], [(0, x)]) for x in "cab"}
    assert said(fill(tmp_path, files | {"a.png": 1})) == {"a.png": ("a", "b", "c")}


@pytest.mark.parametrize("name", ["captions.json", "captions_all.json", "annotations.json"])
@pytest.mark.parametrize("text", ["{}", "[", '{"a.png": "ant"}', coco(["a.png"], []), "[" * 100_000])
def test_other_files_of_that_name_are_left_alone(tmp_path: Path, name: str, text: str) -> None:
    whole = opened(fill(tmp_path, {name: text, "a.png": 1, "a.txt": "ant"}), size=4)
    assert (whole.kind, whole[0]["captions"]) == ("captions beside the pictures", ("ant",))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", r"captions_x\.json, not JSON"),
        ("[]", "no captions of COCO; it is an object with"),
        ('{"images": [], "annotations": {}}', "no captions of COCO"),
        ('{"images": [3], "annotations": []}', r"images\[0\]: it has an 'id'"),
        ('{"images": [{"id": 1}], "annotations": []}', r"images\[0\]: it has .* 'file_name'"),
        ('{"images": [{"id": [], "file_name": "a.png"}], "annotations": []}', r"images\[0\]: it has an 'id'"),
        (coco(["a.png"], []).replace("}]", '}, {"id": 0, "file_name": "b"}]', 1), r"images\[1\]: the id 0 is that of"),
        (coco(["a.png"], [(0, "x"), (7, "x")]), r"annotations\[1\]: there is no image with the id 7"),
        ('{"images": [], "annotations": [3]}', r"annotations\[0\]: it has an 'image_id' and"),
        ('{"images": [], "annotations": [{"caption": 3}]}', r"annotations\[0\]: it has an 'image_id' and"),
        (coco(["../a.png"], []), r"'\.\./a\.png', which leaves the folder"),
        (coco(["/etc/a.png"], []), "which leaves the folder"),
        (coco(["C:\\a.png"], []), "which leaves the folder"),
        (coco(["two.png"], []), r"'two\.png' may be 'p/two\.png' or 'q/two\.png'"),
        (coco(["a.png", *map(str, range(9))], []), r"9 of 10 pictures that it names are not below .*, first '0'"),
    ],
)
def test_rows_that_cannot_be_used_are_a_line(tmp_path: Path, text: str, match: str) -> None:
    fill(tmp_path, {"a.png": 1, "p/two.png": 1, "q/two.png": 2, "annotations/captions_x.json": text})
    with pytest.raises(ValueError, match=match) as caught:
        opened(tmp_path, size=4)
    assert str(caught.value).startswith(str(tmp_path / "annotations/captions_x.json"))
    assert "\n" not in str(caught.value)


def test_a_picture_in_a_hundred_may_be_missing(tmp_path: Path) -> None:
    files = {f"{i}.bmp": i for i in range(99)} | {"captions.json": coco([f"{i}.bmp" for i in range(100)], [(0, "x")])}
    assert len(opened(fill(tmp_path, files), size=4)) == 99
    (tmp_path / "0.bmp").unlink()
    with pytest.raises(ValueError, match="2 of 100 pictures that it names"):
        opened(tmp_path, size=4)


def test_annotations_of_another_kind_are_passed_over(tmp_path: Path) -> None:
    rows = [{"image_id": 0, "caption": "ant"}, {"image_id": 0, "bbox": [0, 0, 2, 2], "category_id": 1}]
    text = json.dumps({"images": [{"id": 0, "file_name": "a.png"}], "annotations": rows})
    assert said(fill(tmp_path, {"a.png": 1, "annotations.json": text})) == {"a.png": ("ant",)}


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    max_leaves=8,
)
NAMES = st.sampled_from(["a.png", "x/a.png", "../a.png", "b.png", "", "a\0.png", "\ud800.png"]) | st.text()
IDS = st.sampled_from([1, 2, "1", True, 1.0]) | JSON
IMAGES = st.lists(st.fixed_dictionaries({"id": IDS, "file_name": NAMES}) | JSON, max_size=4)
ROWS = st.lists(st.fixed_dictionaries({"image_id": IDS, "caption": st.text() | JSON}) | JSON, max_size=4)
DOCUMENTS = JSON | st.fixed_dictionaries({"images": IMAGES | JSON, "annotations": ROWS | JSON})


@settings(max_examples=150, deadline=None)
@given(DOCUMENTS.map(json.dumps).map(str.encode) | st.binary())
@example(b"1" * 5000)
@example(b"\xff\xfe[\x00]\x00")
@example(b'{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "caption": "\\ud800\\u2028"}]}')
def test_any_file_is_read_or_is_a_line(data: bytes) -> None:
    try:
        told = read(data)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    assert told.captions.keys() <= told.pictures.keys()
    for text in (*told.problems, *(caption for some in told.captions.values() for caption in some)):
        assert text
        assert text.encode().decode().splitlines() == [text]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(DOCUMENTS.map(json.dumps))
def test_any_file_gives_a_listing_inside_the_folder(tmp_path: Path, text: str) -> None:
    root = fill(tmp_path / "root", {"x/a.png": 1, "x/b.png": 2, "annotations/captions_x.json": text})
    found = listed(fill(tmp_path, {"a.png": 1}) / "root")
    assert {entry.name for entry in found.entries} <= {"x/a.png", "x/b.png"}
    assert all(entry.path == root / entry.name and not leaves(entry.name) for entry in found.entries)
    assert not any("\n" in problem for problem in found.problems)
