"""Whatever a layout file holds, it is a layout or one line that names the entry and what would be right."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.boxes import EDGE, Box, Layout, Modifier, described, largest
from sfumato.io import layout_file
from sfumato.io.layout_file import LayoutFile, parse, read

SIZE = (640, 480)
DOG = Box("dog", 0.1, 0.2, 0.6, 0.9)


def boxes(content: Any, size: tuple[float, float] = SIZE) -> Layout:
    return parse(json.dumps(content), size).boxes


def refused(text: str, size: tuple[float, float] = SIZE) -> str:
    """The one line of a refusal."""
    with pytest.raises(ValueError) as error:  # noqa: PT011
        parse(text, size)
    message = str(error.value)
    assert type(error.value) is ValueError
    assert message
    assert len(message.splitlines()) == 1
    assert len(message) < 700
    return message


# The ways to say it -----------------------------------------------------------------------------------------

SAME: dict[str, Any] = {
    "parts": [{"label": "dog", "box": [0.1, 0.2, 0.6, 0.9]}],
    "parts, said": [{"label": "dog", "box": [0.1, 0.2, 0.6, 0.9], "unit": "norm"}],
    "pixels": [{"label": "dog", "box": [64, 96, 384, 432], "unit": "px"}],
    "a sidecar": [{"label": "dog", "bbox": [0.1, 0.2, 0.6, 0.9]}],
    "a sidecar with a mask": [{"label": "dog", "bbox": [0.1, 0.2, 0.6, 0.9], "mask": "dog.png"}],
    "COCO with names": [{"category": "dog", "bbox": [64, 96, 320, 336]}],
    "an object": {"boxes": [{"label": "dog", "box": [0.1, 0.2, 0.6, 0.9]}]},
    "pixels of another size": {
        "boxes": [{"label": "dog", "box": [10, 20, 60, 90], "unit": "px"}],
        "size": [100, 100],
    },
    "COCO": {
        "info": {"year": 2017},
        "licenses": [],
        "images": [{"id": 9, "file_name": "9.jpg", "width": 320, "height": 240, "license": 3}],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 18, "bbox": [32, 48, 160, 168], "area": 26880, "iscrowd": 0}
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog", "supercategory": "animal"}],
    },
    "COCO's numbers among boxes": {
        "boxes": [{"category_id": 18, "bbox": [64, 96, 320, 336], "segmentation": [[1, 2, 3, 4, 5, 6]]}],
        "categories": [{"id": 18, "name": "dog"}],
    },
}


@pytest.mark.parametrize("way", SAME)
def test_the_same_box_in_each_way(way: str) -> None:
    (found,) = boxes(SAME[way])
    assert found.label == "dog"
    assert found[1:5] == pytest.approx(DOG[1:5], abs=1e-12)
    assert found.modifiers == 0


def test_lines_of_a_sidecar() -> None:
    rows = [{"label": "dog", "bbox": [0.1, 0.2, 0.6, 0.9]}, {"label": "a cat", "bbox": [0, 0, 1, 1]}]
    text = "\n" + "\n\n".join(map(json.dumps, rows)) + "\n"
    found = parse(text, SIZE)
    assert found.boxes == (DOG, Box("a cat", 0, 0, 1, 1))
    assert found.places == ("line 2", "line 4")
    alone = parse(f"\n{json.dumps(rows[0])}\n", SIZE)
    assert (alone.boxes, alone.places) == ((DOG,), ("line 2",))


def test_a_prompt_and_places() -> None:
    found = parse(json.dumps({"prompt": "a dog", "boxes": [described(DOG)] * 2}), SIZE)
    assert found == ((DOG, DOG), ("boxes[0]", "boxes[1]"), "a dog")
    assert parse("[]", SIZE) == ((), (), None)
    annotations = parse(json.dumps(SAME["COCO"]), SIZE)
    assert annotations.places == ("annotations[0]",)


def test_a_crowd_is_a_group() -> None:
    (found,) = boxes([{"category": "dog", "bbox": [0, 0, 10, 10], "iscrowd": 1}])
    assert found.modifiers == Modifier.GROUP
    (found,) = boxes([{"label": "dog", "box": [0, 0, 1, 1], "modifiers": ["group", "inside"]}])
    assert found.modifiers == Modifier.GROUP | Modifier.INSIDE


def test_rounding_at_the_edge_is_the_edge() -> None:
    (parts,) = boxes([{"label": "dog", "box": [-1e-7, 0, 1 + 1e-7, 1]}])
    (pixels,) = boxes([{"category": "dog", "bbox": [-0.4, 0, 640.8, 480.3]}])
    assert parts == pixels == Box("dog", 0, 0, 1, 1)


def test_ten_thousand_boxes_are_read() -> None:
    rows = [{"label": "dog", "box": [0, 0, (i + 1) / 10_000, 1]} for i in range(10_000)]
    found = boxes(rows)
    assert len(found) == 10_000
    assert largest(found, 3) == found[-3:]


# What is none -----------------------------------------------------------------------------------------------

ENTRY = {"label": "dog", "box": [0.1, 0.2, 0.6, 0.9]}
NONE: list[tuple[Any, str]] = [
    # the whole
    (3, "a layout is a list of boxes, as ["),
    ("dog", "a layout is a list of boxes"),
    (None, "a layout is a list of boxes"),
    ({}, "it has no list 'boxes', nor 'annotations' in its place"),
    ({"boxes": 3}, "it has no list 'boxes'"),
    ({"boxes": [], "annotations": []}, "it has no list 'boxes', nor 'annotations' in its place"),
    ({"boxs": []}, "unknown key 'boxs'; did you mean 'boxes'? known: boxes, prompt, size"),
    ({"boxes": [], "prompt": 3}, "'prompt' is no text; leave it out, or put it in quotes"),
    ({"boxes": [], "size": [640]}, "'size' is [width, height] in pixels, two numbers from 1 to 1,000,000"),
    ({"boxes": [], "size": [640, True]}, "'size' is [width, height] in pixels"),
    ({"boxes": [], "size": [640, 0]}, "'size' is [width, height] in pixels"),
    ({"boxes": [], "size": [math.nan, 480]}, "'size' is [width, height] in pixels"),
    ({"boxes": [], "images": [{}]}, "images[0] has a 'width' and a 'height' in pixels, two numbers"),
    ({"boxes": [], "images": []}, "'images' is a list of one; give the part of one picture, and its annotations"),
    ({"boxes": [], "categories": {}}, "'categories' is a list, as ["),
    ({"boxes": [], "categories": [{"id": 1}]}, "categories[0]: it has an 'id', a whole number or text, and a 'name'"),
    (
        {"boxes": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]},
        "categories[1]: another one has the same id already; keep one",
    ),
    # entries
    ([ENTRY, 3], 'boxes[1]: a box looks like {"label": "dog", "box": [0.1, 0.2, 0.6, 0.9]}'),
    ([ENTRY, {**ENTRY, "lable": "x"}], "boxes[1]: unknown key 'lable'; did you mean 'label'? known: label, box, unit"),
    ([{**ENTRY, "weight": 2}], "boxes[0]: unknown key 'weight'; known: label, box, unit, modifiers"),
    ([{**ENTRY, "\n" * 999: 2}], "boxes[0]: unknown key '????????????????????????????????????????'; known"),
    ([{**ENTRY, "bbox": [0, 0, 1, 1]}], "boxes[0]: unknown key 'bbox'; did you mean 'box'?"),
    ([{"box": [0, 0, 1, 1]}], "boxes[0]: a box's label is text of 1 to 200 characters in one line, and not blank"),
    ([{**ENTRY, "label": ""}], "boxes[0]: a box's label is text of 1 to 200 characters"),
    ([{**ENTRY, "label": " \t"}], "boxes[0]: a box's label is text of 1 to 200 characters"),
    ([{**ENTRY, "label": "x" * 201}], "boxes[0]: a box's label is text of 1 to 200 characters"),
    ([{**ENTRY, "label": "a\nb"}], "boxes[0]: a box's label is text of 1 to 200 characters in one line"),
    ([{**ENTRY, "label": "a\u2028b"}], "boxes[0]: a box's label is text of 1 to 200 characters in one line"),
    ([{**ENTRY, "label": "\ud800"}], "boxes[0]: a box's label is text of 1 to 200 characters"),
    ([{**ENTRY, "label": 17}], "boxes[0]: a box's label is text of 1 to 200 characters"),
    ([{"label": "dog"}], "boxes[0]: the box of 'dog' is four finite numbers: left, top, right, bottom"),
    ([{**ENTRY, "box": [0, 0, 1]}], "boxes[0]: the box of 'dog' is four finite numbers"),
    ([{**ENTRY, "box": [0, 0, 1, True]}], "boxes[0]: the box of 'dog' is four finite numbers"),
    ([{**ENTRY, "box": [0, 0, 1, "1"]}], "boxes[0]: the box of 'dog' is four finite numbers"),
    ([{**ENTRY, "box": [0, 0, 1, math.nan]}], "boxes[0]: the box of 'dog' is four finite numbers"),
    ([{**ENTRY, "box": [0, 0, math.inf, 1]}], "boxes[0]: the box of 'dog' is four finite numbers"),
    ([{**ENTRY, "box": [0, 0, 10**400, 1]}], "boxes[0]: the box of 'dog' is four finite numbers"),
    ([{**ENTRY, "box": {"x0": 1}}], "boxes[0]: the box of 'dog' is four finite numbers"),
    ([{**ENTRY, "box": [0.6, 0, 0.1, 1]}], "the box of 'dog' is [0.6, 0, 0.1, 1]; left comes before right, and top"),
    ([{**ENTRY, "box": [0.1, 0, 0.1, 1]}], "boxes[0]: the box of 'dog' is [0.1, 0, 0.1, 1], which has no area"),
    ([{**ENTRY, "box": [1, 0, 1 + EDGE / 2, 1]}], "which has no area"),
    ([{**ENTRY, "box": [0.1, 0, 0.1 + 1e-9, 1]}], "which has no area"),
    (
        [{**ENTRY, "box": [-0.1, 0, 1, 1]}],
        "the box of 'dog' is [-0.1, 0, 1, 1], outside the picture, which goes from 0",
    ),
    (
        [{**ENTRY, "box": [64, 96, 384, 432]}],
        "the box of 'dog' is [64, 96, 384, 432], outside the picture, which goes from 0 to 1; pixels are said as "
        '"box" with "unit": "px", or as COCO\'s "bbox" with a "category"',
    ),
    ([{"label": "dog", "bbox": [64, 96, 384, 432]}], "outside the picture, which goes from 0 to 1; pixels are said as"),
    ([{**ENTRY, "unit": "mm"}], 'boxes[0]: \'unit\' is "norm", parts of the picture from 0 to 1, or "px", pixels'),
    ([{**ENTRY, "unit": []}], "boxes[0]: 'unit' is \"norm\""),
    (
        [{**ENTRY, "box": [0, 0, 641, 480], "unit": "px"}],
        "the box of 'dog' is [0, 0, 641, 480], outside the picture, which has 640x480 pixels; if they are those of a "
        'larger one, an object with the list as "boxes" says its "size"',
    ),
    ([{**ENTRY, "modifiers": ["huge"]}], "boxes[0]: a box's modifiers are a list of some of: group, occluded, dep"),
    ([{"category": "dog", "bbox": [0, 0, 0, 9]}], "boxes[0]: 'bbox' is [0, 0, 0, 9]; its width and height, the last"),
    ([{"category": "dog", "bbox": [9, 9]}], "boxes[0]: 'bbox' is four finite numbers: left, top, width, height in pix"),
    ([{"category": "dog", "bbox": [1e308, 0, 1e308, 9]}], "boxes[0]: the box of 'dog' is four finite numbers"),
    ([{"category": "dog", "bbox": [600, 0, 50, 9]}], "outside the picture, which has 640x480 pixels"),
    ([{"category": "dog", "label": "dog", "bbox": [0, 0, 5, 9]}], "boxes[0]: unknown key 'label'; known: category, ca"),
    (
        [{"category_id": 18, "bbox": [0, 0, 5, 9]}],
        "boxes[0]: 'categories' beside the list says no name of this 'category_id'; or say it as 'category'",
    ),
    (
        {"annotations": [{"category": "a", "bbox": [0, 0, 5, 9], "image_id": i} for i in (4, 4, 5)]},
        "annotations[2]: it is of another picture ('image_id') than the others; give those of one",
    ),
    (
        {**SAME["COCO"], "images": [{"id": 8, "width": 320, "height": 240}]},
        "annotations[0]: it is of another picture",
    ),
]


@pytest.mark.parametrize(("content", "said"), NONE, ids=range(len(NONE)))
def test_what_is_no_layout_is_a_line(content: Any, said: str) -> None:
    assert said in refused(json.dumps(content))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: not JSON (Expecting value); a layout is a list of boxes"),
        ("[{\n  'label': 3}]", "line 2: not JSON ("),
        ("0 0.5 0.5 0.2 0.2\n", "line 1: not JSON (Extra data)"),  # YOLO's
        ("[" * 100_000, "it is nested too deep; a layout is a list"),
        ('{"a":' * 100_000, "it is nested too deep"),
        (f'[{{"label": "dog", "box": [0, 0, 1, {"9" * 5000}]}}]', "not JSON; a layout is a list"),
        (f"{json.dumps(ENTRY)}\n{json.dumps(ENTRY)}\n{{", "line 3: not JSON; each line is a box, as the first one"),
        (f"{json.dumps(ENTRY)}\n[1]", 'line 2: a box looks like {"label": "dog"'),
        (f"{json.dumps(ENTRY)}\n{json.dumps(ENTRY | {'box': 3})}", "line 2: the box of 'dog' is four finite numbers"),
    ],
)
def test_what_is_no_json_is_a_line(text: str, said: str) -> None:
    assert refused(text).startswith(said)


def test_a_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "layout.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([ENTRY]).encode())
    assert read(path, SIZE).boxes == (DOG,)
    os.mkfifo(tmp_path / "pipe")
    for name, content, said in (
        ("layout.json", json.dumps([ENTRY, 3]).encode(), ", boxes[1]: a box looks like"),
        ("layout.json", b"[\n3", ", line 2: not JSON"),
        ("layout.json", b"K\xe4se", ": not UTF-8 text; save the file again as UTF-8"),
        ("layout.json", "[]".encode("utf-16"), ": not UTF-8 text"),
        ("layout.json", b"3", ": a layout is a list of boxes"),
        ("nowhere.json", None, " cannot be opened (No such file or directory)"),
        (".", None, ": it is a folder, a pipe or a device; give a file"),
        ("pipe", None, ": it is a folder, a pipe or a device; give a file"),
        ("layout.json/below", None, " cannot be opened (Not a directory)"),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError) as error:  # noqa: PT011
            read(path, SIZE)
        assert str(error.value).startswith(f"{path}{said}")
    monkeypatch.setattr(layout_file, "LARGEST", 1_000_000)
    (tmp_path / "layout.json").write_text(" " * 1_000_001)
    with pytest.raises(ValueError, match=r"layout.json: the file has over 1 MB; give the layout of one picture"):
        read(tmp_path / "layout.json", SIZE)


# Anything ---------------------------------------------------------------------------------------------------

NUMBERS = st.integers() | st.floats() | st.floats(0, 1) | st.sampled_from([10**400, True, -0.0, 1e-320])
KEYS = st.sampled_from([*layout_file.OBJECT, *layout_file.OURS, *layout_file.SIDECAR, *layout_file.COCO]) | st.text()
FOUR = st.lists(NUMBERS, min_size=3, max_size=5)
ANY = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text() | st.sampled_from(["dog", "px", "norm"]) | FOUR,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)


def read_or_line(read: Callable[[], LayoutFile]) -> LayoutFile | str:
    """What was read, or the one line that says why not."""
    try:
        return read()
    except ValueError as error:
        line = str(error)
        kind = type(error)
    assert kind is ValueError
    assert len(line.splitlines()) == 1
    return line


def box_or_line(text: str, size: tuple[float, float] = SIZE) -> None:
    found = read_or_line(lambda: parse(text, size))
    if isinstance(found, str):
        return
    assert len(found.boxes) == len(found.places)
    for box in found.boxes:
        assert box.label.strip()
        assert 0 <= box.x0 < box.x1 <= 1
        assert 0 <= box.y0 < box.y1 <= 1
        assert min(box.x1 - box.x0, box.y1 - box.y0) >= EDGE


@given(ANY)
def test_any_json_is_a_layout_or_a_line(content: Any) -> None:
    box_or_line(json.dumps(content))


@given(
    st.lists(st.fixed_dictionaries({"label": st.text() | ANY, "box": FOUR | ANY}, optional={"unit": ANY}), max_size=3)
)
def test_anything_like_boxes_is_a_layout_or_a_line(content: Any) -> None:
    box_or_line(json.dumps(content))


@given(st.fixed_dictionaries({}, optional={key: ANY for key in layout_file.OBJECT}))
def test_anything_like_an_object_is_a_layout_or_a_line(content: Any) -> None:
    box_or_line(json.dumps(content))


@given(st.text() | st.lists(ANY.map(json.dumps)).map("\n".join))
def test_any_text_is_a_layout_or_a_line(text: str) -> None:
    box_or_line(text)


@given(st.binary())
def test_any_bytes_are_a_layout_or_a_line(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(data)
    found = read_or_line(lambda: read(path, SIZE))
    assert not isinstance(found, str) or found.startswith(str(path))


SIDES = st.tuples(st.floats(0, 0.999), st.floats(0.001, 1)).filter(lambda s: s[1] - s[0] >= 2 * EDGE)
TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=200).filter(str.strip)
BOXES = st.builds(
    lambda label, x, y, modifiers: Box(label, x[0], y[0], x[1], y[1], modifiers),
    *(TEXT, SIDES, SIDES, st.integers(0, 15)),
)


@given(st.lists(BOXES, max_size=4))
def test_boxes_come_back(layout: list[Box]) -> None:
    assert boxes([described(box) for box in layout]) == tuple(layout)


@given(st.lists(BOXES, max_size=4), st.integers(1, 3000), st.integers(1, 3000))
def test_boxes_come_back_from_pixels(layout: list[Box], width: int, height: int) -> None:
    pixels = [[box.x0 * width, box.y0 * height, box.x1 * width, box.y1 * height] for box in layout]
    ours = [{"label": b.label, "box": p, "unit": "px"} for b, p in zip(layout, pixels, strict=True)]
    coco = [
        {"category": b.label, "bbox": [x0, y0, x1 - x0, y1 - y0]}
        for b, (x0, y0, x1, y1) in zip(layout, pixels, strict=True)
    ]
    for content in (ours, coco, {"boxes": ours, "size": [width, height]}):
        found = boxes(content, (width, height))
        assert [box.label for box in found] == [box.label for box in layout]
        for one, other in zip(found, layout, strict=True):
            assert one[1:5] == pytest.approx(other[1:5], abs=1e-9)
