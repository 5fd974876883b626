"""`x.bbox`: one object after the other in three forms, each read alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from folders import fill
from sfumato.boxes import Box
from sfumato.data import opened
from sfumato.data.bbox_file import read_text
from sfumato.data.source import listed

ROWS = [{"label": "bee", "bbox": [0.25, 0, 0.75, 0.5], "mask": "x.png"}, {"label": "ant", "bbox": [0.5, 0.5, 1.5, 1]}]
FORMS = {
    "array": json.dumps(ROWS, indent=1),
    "lines": "\ufeff" + "\n\n".join(map(json.dumps, ROWS)),
    "YOLO": "1 0.5 0.25 0.5 0.5\n0 1 0.75 1 0.5\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(tmp_path: Path, form: str) -> None:
    files = {"a.png": 1, "a.bbox": FORMS[form], "b.png": 2, "b.bbox": "", "a.txt": "two", "b.txt": "none"}
    whole = opened(fill(tmp_path, files | {"classes.txt": "ant\nbee"}), size=4)
    assert whole.kind == "captions beside the pictures, boxes beside the pictures"
    assert whole.fields == {"image", "caption", "boxes"}
    assert [entry.boxes for entry in listed(tmp_path).entries] == [
        (Box("bee", 0.25, 0, 0.75, 0.5), Box("ant", 0.5, 0.5, 1, 1)),
        (),
    ]


def test_a_picture_without_a_file_says_nothing(tmp_path: Path) -> None:
    found = listed(fill(tmp_path, {"a.png": 1, "a.bbox": "[]", "b.png": 2}))
    assert [entry.boxes for entry in found.entries] == [(), None]


def test_it_comes_before_labels_of_yolo(tmp_path: Path) -> None:
    files = {"a.png": 1, "a.bbox": FORMS["array"], "a.txt": "3 .5 .5 1 1", "b.png": 2, "b.txt": "3 .5 .5 1 1"}
    found = listed(fill(tmp_path, files))
    assert found.kind == "boxes beside the pictures, YOLO labels"
    assert [[box.label for box in entry.boxes or ()] for entry in found.entries] == [["bee", "ant"], ["3"]]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[3]", "entry 1: a int; an object with 'label' and 'bbox' is expected"),
        ("[{}]", "entry 1: a label is None; it must be a name or a number"),
        ('[{"label": "x"}]', "entry 1: 'bbox' is None; it must be"),
        ('[{"label": "x", "bbox": [0, 0, 1]}]', r"entry 1: 'bbox' is \[0, 0, 1\]; it must be"),
        (
            '{"label": "x", "bbox": [0, 0, 1, 1]}\n{"label": "x", "bbox": [1, 0, 0, 1]}',
            "line 2: the box .* ends before",
        ),
        ('[{"label": "x", "bbox": [10, 20, 100, 200]}]', "entry 1: the box .* lies far outside; it is in parts"),
        ("[", r"line 1: not JSON, though it begins with '\['"),
        ("{", "line 1: not JSON; a line looks like"),
        ("an ant", "line 1: it is no box; one is"),
        ("0 0.5 0.5 nan 1", "line 1: its box is .*; it must be"),
        (b"\xff", "not UTF-8 text"),
    ],
)
def test_what_cannot_be_used_is_a_line(tmp_path: Path, text: str | bytes, match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        opened(fill(tmp_path, {"a.png": 1, "a.bbox": text}), size=4)
    assert str(caught.value).startswith(str(tmp_path / "a.bbox"))
    assert "\n" not in str(caught.value)


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    max_leaves=6,
)
ROW = JSON | st.fixed_dictionaries({"label": JSON, "bbox": st.lists(st.floats(-1, 2) | JSON, max_size=5) | JSON})


@given(
    st.text()
    | st.lists(ROW).map(json.dumps)
    | st.lists(ROW.map(json.dumps) | st.text()).map("\n".join)
    | st.sampled_from(["[" * 10**5, '{"a":' * 10**5, f"[{'1' * 5000}]", f'{{"label": {"1" * 5000}}}'])
)
def test_anything_is_boxes_inside_or_a_line(text: str) -> None:
    for where, found in read_text(text, {}):
        assert where
        if isinstance(found, ValueError):
            assert len(str(found).splitlines()) == 1
        elif found is not None:
            assert 0 <= found.x0 < found.x1 <= 1
            assert 0 <= found.y0 < found.y1 <= 1


EDGES = st.tuples(st.floats(0, 0.5), st.floats(0.5, 1)).filter(lambda e: e[0] < e[1])
PARTS = st.tuples(EDGES, EDGES).map(lambda e: (e[0][0], e[1][0], e[0][1], e[1][1]))


@given(st.lists(st.tuples(st.sampled_from(["ant", "a bee", "ü"]), PARTS)), st.booleans())
def test_every_row_is_read(rows: list[tuple[str, tuple[float, ...]]], lines: bool) -> None:
    objects = [{"label": label, "bbox": list(corners)} for label, corners in rows]
    text = "\n".join(map(json.dumps, objects)) if lines else json.dumps(objects)
    assert [found for _, found in read_text(text, {})] == [Box(label, *corners) for label, corners in rows]
