"""Objects in metadata.jsonl: pixels of the picture as it is seen, under any of the keys that people use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from folders import encoded, fill, line, shade
from sfumato.boxes import Box
from sfumato.data import opened
from sfumato.data.source import listed


@pytest.mark.parametrize("key", ["categories", "category", "label", "labels"])
def test_objects(tmp_path: Path, key: str) -> None:
    rows = [
        line(
            file_name="x/a.png", text="two", objects={"bbox": [[0, 0, 3, 4], [3.0, 1, 9, 2]], key: ["ant", 7], "id": 1}
        ),
        line(file_name="x/b.png", text="none", objects={"bbox": [], key: []}),
    ]
    whole = opened(fill(tmp_path, {"x/a.png": 1, "x/b.png": 1, "metadata.jsonl": "".join(rows)}), size=4)
    assert whole.kind == "metadata.jsonl"
    assert whole.fields == {"image", "caption", "label", "boxes"}
    assert [entry.boxes for entry in listed(tmp_path).entries] == [
        (Box("ant", 0, 0, 0.5, 1), Box("7", 0.5, 0.25, 1, 0.75)),
        (),
    ]
    assert whole.labels == ("7", "ant")


def test_rows_without_objects_say_nothing(tmp_path: Path) -> None:
    rows = line(file_name="a.png", text="ant", objects={"bbox": [], "label": []}) + line(
        file_name="b.png", objects=None
    )
    whole = opened(fill(tmp_path, {"a.png": 1, "b.png": 1, "metadata.jsonl": rows}), size=4)
    assert whole.fields == {"image"}
    assert whole[0]["boxes"] == ()
    assert "boxes" not in whole[1]


def test_objects_of_a_turned_picture_are_as_it_is_seen(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    rows = line(file_name="a.png", objects={"bbox": [[0, 0, 10, 5]], "label": ["ant"]})
    fill(tmp_path, {"a.png": encoded(shade(1, (40, 10)), exif=exif), "metadata.jsonl": rows})
    assert listed(tmp_path).entries[0].boxes == (Box("ant", 0, 0, 1, 0.125),)


def test_pictures_that_cannot_be_read_are_no_concern_of_their_boxes(tmp_path: Path) -> None:
    rows = "".join(line(file_name=f"{i}.bmp", objects={"bbox": [[0, 0, 1, 1]], "label": ["x"]}) for i in range(120))
    fill(tmp_path, {f"{i}.bmp": i for i in range(120)} | {"7.bmp": b"broken", "metadata.jsonl": rows})
    assert len(opened(tmp_path, size=4)) == 119


@pytest.mark.parametrize(
    ("objects", "match"),
    [
        ([], "'objects' must be an object with the lists 'bbox' and 'categories'"),
        ({"bbox": [[0, 0, 1, 1]]}, "'objects' must be an object with"),
        ({"bbox": {}, "label": []}, "'objects' must be an object with"),
        ({"bbox": [[0, 0, 1, 1]], "label": []}, "'objects' has 1 boxes and 0 categories; each box has one"),
        ({"bbox": [[0, 0, 1]], "label": ["x"]}, r"'bbox' 0 of 'objects' is \[0, 0, 1\]; it must be a list of four"),
        ({"bbox": [[0, 0, 1, 1]], "label": [""]}, "a label is ''; it must be a name or a number"),
        ({"bbox": [[0, 0, 1, 1]], "label": [None]}, "a label is None; it must be"),
        ({"bbox": [[0, 0, -1, 1]], "label": ["x"]}, "ends before it begins"),
        ({"bbox": [[7, 0, 1, 1]], "label": ["x"]}, "lies outside of the picture, which is 6 x 4"),
    ],
)
def test_objects_that_cannot_be_used_are_a_line(tmp_path: Path, objects: object, match: str) -> None:
    rows = line(file_name="b.png") + line(file_name="a.png", objects=objects)
    fill(tmp_path, {"a.png": 1, "b.png": 1, "metadata.jsonl": rows})
    with pytest.raises(ValueError, match=match) as caught:
        opened(tmp_path, size=4)
    assert str(caught.value).startswith(f"{tmp_path / 'metadata.jsonl'}, line 2: ")
    assert "\n" not in str(caught.value)


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    max_leaves=6,
)
OBJECTS = JSON | st.fixed_dictionaries(
    {"bbox": st.lists(st.lists(st.floats() | st.integers(), max_size=5) | JSON, max_size=3) | JSON, "label": JSON}
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(OBJECTS)
def test_any_objects_are_boxes_inside_or_a_line(tmp_path: Path, objects: object) -> None:
    fill(tmp_path, {"a.png": 1, "metadata.jsonl": json.dumps({"file_name": "a.png", "objects": objects})})
    found = listed(tmp_path)
    assert not any("\n" in problem for problem in found.problems)
    for box in found.entries[0].boxes or ():
        assert 0 <= box.x0 < box.x1 <= 1
        assert 0 <= box.y0 < box.y1 <= 1


def test_a_column_of_a_csv_is_no_list_of_boxes(tmp_path: Path) -> None:
    """Whatever it is called; captions of such files were read before there were boxes."""
    fill(tmp_path, {"a.png": 1, "metadata.csv": "file_name,text,objects\na.png,an ant,3\n"})
    found = opened(tmp_path, size=4)
    assert found[0].get("caption") == "an ant"
    assert "boxes" not in found.fields
