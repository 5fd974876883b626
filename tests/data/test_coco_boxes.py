"""COCO's boxes: labels by name, pixels to parts, beside captions or alone; any JSON is read or is a line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from folders import encoded, fill
from sfumato.boxes import Box, Layout, Modifier
from sfumato.data import opened
from sfumato.data.coco import read
from sfumato.data.source import listed

NAMES = {1: "ant", 90: "bee", "7": "traffic light"}


def coco(
    names: Sequence[str], rows: Sequence[dict[str, Any]], *, sides: tuple[int, int] | None = (6, 4), **others: Any
) -> str:
    """Pictures have the numbers 0, 1, ... as ids."""
    said = {} if sides is None else {"width": sides[0], "height": sides[1]}
    images = [{"id": i, "file_name": name, **said} for i, name in enumerate(names)]
    categories = [{"id": ident, "name": name, "supercategory": "thing"} for ident, name in NAMES.items()]
    return json.dumps({"annotations": rows, "images": images, "categories": categories, **others})


def row(i: int, category: object, bbox: object, **others: object) -> dict[str, Any]:
    return {"image_id": i, "category_id": category, "bbox": bbox, "segmentation": [[1, 2, 3, 4]], **others}


def said(root: Path) -> dict[str, Layout | None]:
    found = listed(root)
    assert found.problems == ()
    return {entry.name: entry.boxes for entry in found.entries}


ROWS = [row(0, 90, [3, 1, 3, 2]), row(0, "7", [0, 0, 1.5, 4], iscrowd=1), row(1, 1, [-3, 2, 6, 9], iscrowd=0)]
TWO = {
    "a.png": (Box("bee", 0.5, 0.25, 1, 0.75), Box("traffic light", 0, 0, 0.25, 1, Modifier.GROUP)),
    "b.png": (Box("ant", 0, 0.5, 0.5, 1),),
    "c.png": (),
}


def test_sides_that_no_picture_has_are_a_line(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": 1, "instances.json": coco(["a.png"], [row(0, 1, [0, 0, 1, 1])], sides=(10**400, 4))})
    (problem,) = listed(tmp_path).problems
    assert "instances.json, images[0]: its width and height are 1000000" in problem
    assert len(problem) < 300


def test_a_row_that_is_no_object_is_asked_to_be_a_box(tmp_path: Path) -> None:
    """And in a file of captions a caption."""
    rows: list[Any] = ["a box", row(1, 1, [0, 0, 1, 1])]
    fill(tmp_path, {"a.png": 1, "b.png": 1, "instances.json": coco(["a.png", "b.png"], rows)})
    (problem,) = listed(tmp_path).problems
    looks = "one has an 'image_id', a 'category_id' and a 'bbox'"
    assert problem == f"{tmp_path / 'instances.json'}, annotations[0]: it is no object; {looks}"
    (problem,) = read(b'{"images": [], "annotations": [3]}').problems
    assert problem == "annotations[0]: it has an 'image_id' and a 'caption', a string"


@pytest.mark.parametrize("name", ["annotations/instances_x.json", "annotations/instances.json", "instances_val.json"])
@pytest.mark.parametrize("sides", [(6, 4), None])
def test_boxes(tmp_path: Path, name: str, sides: tuple[int, int] | None) -> None:
    """Categories are of any ids, a box beyond the edge is cut, a picture without a row has no boxes."""
    fill(tmp_path, {**{picture: 1 for picture in TWO}, "d.png": 1, name: coco(list(TWO), ROWS, sides=sides)})
    assert said(tmp_path) == TWO
    whole = opened(tmp_path, size=4)
    assert whole.kind == "COCO boxes"
    assert whole.fields == {"image", "boxes"}
    assert whole.labels == ("ant", "bee", "traffic light")
    assert listed(tmp_path).left_out["d.png"] == f"not named in {Path(name).name}"


def test_captions_and_boxes_of_one_part(tmp_path: Path) -> None:
    captions = {"images": [{"id": 5, "file_name": "a.png"}], "annotations": [{"image_id": 5, "caption": "an ant"}]}
    stuff = coco(["a.png"], [row(0, 1, [0, 0, 6, 4])])
    fill(
        tmp_path,
        {
            "train2017/a.png": 1,
            "val2017/a.png": 2,
            "annotations/captions_train2017.json": json.dumps(captions),
            "annotations/instances_train2017.json": coco(["a.png"], [row(0, 90, [0, 0, 3, 4])]),
            "annotations/stuff_train2017.json": stuff,
            "annotations/instances_val2017.json": coco(["a.png"], []),
        },
    )
    found = listed(tmp_path)
    assert found.kind == "COCO captions and boxes, train alone"
    assert [(entry.name, entry.captions) for entry in found.entries] == [("train2017/a.png", ("an ant",))]
    assert found.entries[0].boxes == (Box("bee", 0, 0, 0.5, 1), Box("ant", 0, 0, 1, 1))
    other = listed(tmp_path, "val")
    assert (other.kind, said_of(other)) == ("COCO boxes, val alone", {"val2017/a.png": ()})
    assert opened(tmp_path, size=4).fields == {"image", "boxes", "caption"}


def said_of(found: Any) -> dict[str, Layout | None]:
    return {entry.name: entry.boxes for entry in found.entries}


def test_pictures_of_captions_alone_say_nothing_of_boxes(tmp_path: Path) -> None:
    captions = {"images": [{"id": 5, "file_name": "b.png"}], "annotations": [{"image_id": 5, "caption": "a bee"}]}
    files = {"annotations/captions_x.json": json.dumps(captions), "annotations/instances_x.json": coco(["a.png"], [])}
    fill(tmp_path, {**files, "a.png": 1, "b.png": 1})
    assert said(tmp_path) == {"a.png": (), "b.png": None}
    assert opened(tmp_path, size=4).fields == {"image"}


def test_one_file_of_captions_and_boxes(tmp_path: Path) -> None:
    rows = [row(0, 1, [0, 0, 3, 4]), {"image_id": 0, "caption": "an ant"}]
    whole = opened(fill(tmp_path, {"a.png": 1, "annotations.json": coco(["a.png"], rows)}), size=4)
    assert (whole.kind, whole[0]["captions"]) == ("COCO captions and boxes", ("an ant",))


def test_without_captions_of_coco_those_beside_are_read(tmp_path: Path) -> None:
    files = {"x/a.png": 1, "x/b.png": 2, "x/a.txt": "an ant", "instances.json": coco(["a.png", "b.png"], [])}
    assert [entry.captions for entry in listed(fill(tmp_path, files)).entries] == [("an ant",), ()]
    fill(tmp_path, {"x/a.txt": "0 .5 .5 .1 .1"})  # of another program, and no caption
    assert [entry.captions for entry in listed(tmp_path).entries] == [(), ()]


def test_boxes_without_area_are_counted(tmp_path: Path) -> None:
    rows = [row(0, 1, [1, 1, 0, 2]), row(0, 1, [1, 1, 2, 0]), row(0, 90, [1, 1, 2, 2])]
    found = listed(fill(tmp_path, {"a.png": 1, "instances.json": coco(["a.png"], rows)}))
    assert (found.flat, found.problems, len(found.entries[0].boxes or ())) == (2, (), 1)


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([row(0, 1, [0, 0, 1, 1]), row(0, 2, [0, 0, 1, 1])], r"annotations\[1\]: there is no category with the id 2"),
        ([row(3, 1, [0, 0, 1, 1])], r"annotations\[0\]: there is no image with the id 3"),
        ([row(0, 1, [0, 0, -1, 1])], r"annotations\[0\]: the box from \(0, 0\) to \(-1, 1\) ends before it begins"),
        ([row(0, 1, [6, 0, 1, 1])], r"annotations\[0\]: the box .* lies outside of the picture, which is 6 x 4"),
        ([row(0, 1, [0, 0, float("nan"), 1])], r"annotations\[0\]: 'bbox' is \[0, 0, nan, 1\]; it must be"),
        ([row(0, 1, [0, 0, float("inf"), 1])], r"annotations\[0\]: 'bbox' is .*; it must be"),
        ([row(0, 1, [1e308, 0, 1e308, 1])], r"annotations\[0\]: the box .* lies outside"),
        ([row(0, 1, ["0", 0, 1, 1])], r"annotations\[0\]: 'bbox' is .*; it must be"),
        ([row(0, 1, None)], r"annotations\[0\]: 'bbox' is None; it must be"),
        ([row(0, [], [0, 0, 1, 1])], r"annotations\[0\]: it has an 'image_id', a 'category_id' and a 'bbox'"),
        ([{"image_id": 0}], r"annotations\[0\]: it has an 'image_id'"),
        ([3], r"annotations\[0\]: it is no object; one has an 'image_id'"),
    ],
)
def test_rows_that_cannot_be_used_are_a_line(tmp_path: Path, rows: Sequence[Any], match: str) -> None:
    fill(tmp_path, {"a.png": 1, "annotations/instances_x.json": coco(["a.png"], rows)})
    with pytest.raises(ValueError, match=match) as caught:
        opened(tmp_path, size=4)
    assert str(caught.value).startswith(f"{tmp_path / 'annotations/instances_x.json'}, ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[", "not JSON"),
        ('{"images": []}', "no boxes of COCO; it is an object with the lists 'images' and 'annotations'"),
        (coco(["a.png"], [], categories=[{"id": 1}]), r"categories\[0\]: it has an 'id', a number or a string, and a"),
        (coco(["a.png"], [], categories=[{"id": 1, "name": x} for x in "ab"]), r"categories\[1\]: the id 1 is that of"),
        (coco(["a.png"], [row(0, 1, [0, 0, 1, 1])], categories=[]), r"annotations\[0\]: there is no category"),
        (coco(["a.png"], [], sides=(0, 4)), r"images\[0\]: its width and height are 0 and 4; they are whole numbers"),
        (coco(["a.png"], []).replace('"width": 6', '"width": "6"'), r"images\[0\]: its width and height are '6' and 4"),
    ],
)
def test_files_that_cannot_be_used_are_a_line(tmp_path: Path, text: str, match: str) -> None:
    fill(tmp_path, {"a.png": 1, "annotations/instances_x.json": text})
    with pytest.raises(ValueError, match=match):
        opened(tmp_path, size=4)


def test_a_file_that_says_nothing_is_left_alone(tmp_path: Path) -> None:
    assert opened(fill(tmp_path, {"x/a.png": 1, "annotations/instances_x.json": "{}"}), size=4).classes == ("x",)


# Sides ----------------------------------------------------------------------------------------------------
def test_boxes_of_a_picture_of_other_sides_are_a_line(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": 1, "instances.json": coco(["a.png"], [], sides=(60, 40))})
    with pytest.raises(ValueError, match=r"'a\.png' is 60 x 40 there and 6 x 4 in its file") as caught:
        opened(tmp_path, size=4)
    assert str(caught.value).startswith(f"{tmp_path / 'instances.json'}: ")
    fill(tmp_path, {"instances.json": coco(["a.png"], [], sides=(4, 6))})
    with pytest.raises(ValueError, match="is 4 x 6 there and 6 x 4 in its file"):
        opened(tmp_path, size=4)


def test_two_files_agree_about_sides(tmp_path: Path) -> None:
    files = {
        "annotations/instances_x.json": coco(["a.png"], []),
        "annotations/stuff_x.json": coco(["a.png"], [], sides=(4, 6)),
    }
    with pytest.raises(ValueError, match=r"stuff_x.json: 'a.png' is 4 x 6, and 6 x 4 in .*instances_x.json"):
        opened(fill(tmp_path, {"a.png": 1, **files}), size=4)


def turned(turn: int) -> bytes:
    """A picture that is black but for a white rectangle, and the same for its number in EXIF."""
    picture = Image.new("RGB", (60, 30))
    picture.paste((255, 255, 255), (5, 10, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = turn
    return encoded(picture, exif=exif)


@pytest.mark.parametrize("turn", range(5, 9))
def test_boxes_are_turned_as_exif_turns_the_picture(tmp_path: Path, turn: int) -> None:
    """Where they were measured in the file as it is. Exactly the white pixels are in the box."""
    text = coco(["a.png"], [row(0, 1, [5, 10, 15, 10])], sides=(60, 30))
    whole = opened(fill(tmp_path, {"a.png": turned(turn), "instances.json": text}), size=30).shaped([(30, 60)], least=1)
    image, (box,) = whole[0]["image"], whole[0]["boxes"]
    assert image.shape == (3, 60, 30)
    seen = (image[0] > 0).nonzero().tolist()
    rows, columns = [y for y, _ in seen], [x for _, x in seen]
    edges = (min(columns), min(rows), max(columns) + 1, max(rows) + 1)
    assert (box.x0 * 30, box.y0 * 60, box.x1 * 30, box.y1 * 60) == pytest.approx(edges, abs=1e-9)


@pytest.mark.parametrize("turn", range(1, 9))
def test_boxes_of_a_turned_picture(tmp_path: Path, turn: int) -> None:
    """Where they were measured in the picture as people see it, which is what counts where no sides are said."""
    upright = (30, 60) if turn > 4 else (60, 30)
    for sides in (upright, None):
        fill(
            tmp_path,
            {"a.png": turned(turn), "instances.json": coco(["a.png"], [row(0, 1, [3, 3, 15, 6])], sides=sides)},
        )
        (box,) = opened(tmp_path, size=30).shaped([upright], least=1)[0]["boxes"]
        assert box == pytest.approx(Box("ant", 3 / upright[0], 3 / upright[1], 18 / upright[0], 9 / upright[1]))


# Anything -------------------------------------------------------------------------------------------------
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    max_leaves=6,
)
IDS = st.sampled_from([1, 2, "1", True, 1.0, None]) | JSON
NUMBERS = st.sampled_from([0, 1, 2.5, -1, 1e308, float("nan")])
BOXES = st.lists(NUMBERS, min_size=4, max_size=4) | JSON
IMAGES = st.fixed_dictionaries(
    {"id": IDS, "file_name": st.sampled_from(["a.png", "x/a.png", "../a.png", ""]) | st.text()},
    optional={"width": st.sampled_from([6, 0, None]) | JSON, "height": st.sampled_from([4]) | JSON},
)
ANNOTATIONS = st.fixed_dictionaries(
    {"image_id": IDS, "category_id": IDS, "bbox": BOXES}, optional={"iscrowd": JSON, "caption": JSON}
)
CATEGORIES = st.fixed_dictionaries({"id": IDS, "name": st.text() | JSON})
DOCUMENTS = JSON | st.fixed_dictionaries(
    {
        "images": st.lists(IMAGES | JSON, max_size=3) | JSON,
        "annotations": st.lists(ANNOTATIONS | JSON, max_size=4) | JSON,
        "categories": st.lists(CATEGORIES | JSON, max_size=3) | JSON,
    }
)


@settings(max_examples=150, deadline=None)
@given(DOCUMENTS.map(json.dumps).map(str.encode) | st.binary())
@example(json.dumps({"images": [], "annotations": [row(0, 1, 10**4000)], "categories": []}).encode())
def test_any_file_is_read_or_is_a_line(data: bytes) -> None:
    try:
        told = read(data, boxes=True)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    assert (told.boxes or {}).keys() <= told.pictures.keys()
    for text in (*told.problems, *(mine.label for rows in (told.boxes or {}).values() for mine in rows)):
        assert text.encode().decode().splitlines() == [text]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(DOCUMENTS.map(json.dumps))
def test_any_file_gives_boxes_inside_of_pictures(tmp_path: Path, text: str) -> None:
    fill(tmp_path, {"x/a.png": 1, "b.png": 2, "annotations/instances_x.json": text})
    found = listed(tmp_path)
    assert not any("\n" in problem for problem in found.problems)
    for entry in found.entries:
        for box in entry.boxes or ():
            assert 0 <= box.x0 < box.x1 <= 1
            assert 0 <= box.y0 < box.y1 <= 1
    try:
        opened(tmp_path, size=4)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017


PIXELS = st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(1, 6), st.integers(1, 4))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from(sorted(NAMES, key=str)), PIXELS, st.booleans()), max_size=12)
)
def test_every_row_is_read(tmp_path: Path, rows: list[tuple[int, int | str, tuple[int, ...], bool]]) -> None:
    names = ["a.png", "b.png", "c.png"]
    text = coco(names, [row(i, category, list(bbox), iscrowd=int(crowd)) for i, category, bbox, crowd in rows])
    fill(tmp_path, {"a.png": 1, "b.png": 1, "c.png": 1, "instances.json": text})
    wanted: dict[str, list[Box]] = {name: [] for name in names}
    for i, category, (x, y, w, h), crowd in rows:
        corners = (x / 6, y / 4, min((x + w) / 6, 1), min((y + h) / 4, 1))
        wanted[names[i]].append(Box(NAMES[category], *corners, int(crowd)))
    assert said(tmp_path) == {name: tuple(boxes) for name, boxes in wanted.items()}
