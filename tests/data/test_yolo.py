"""YOLO's labels, beside the pictures or in labels/; and captions where any line is something else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from folders import fill, line
from sfumato.boxes import Box, Layout
from sfumato.data import opened
from sfumato.data.class_names import yaml_names
from sfumato.data.source import listed
from sfumato.data.yolo import mirror

LINE = "1 0.5 0.25 0.5 0.5\n"
HALF = (0.25, 0, 0.75, 0.5)


def said(root: Path, part: str = "train") -> dict[str, Layout | None]:
    found = listed(root, part)
    assert found.problems == ()
    return {entry.name: entry.boxes for entry in found.entries}


@pytest.mark.parametrize(
    ("names", "text", "label"),
    [
        ("classes.txt", "ant\nbee\n", "bee"),
        ("obj.names", "ant\r\nbee", "bee"),
        ("data.yaml", "nc: 2\nnames: [ant, bee]\n", "bee"),
        ("labels/classes.txt", "\ufeffant\nbee", "bee"),
        ("data.yaml", "path: x\n", "1"),
        ("x.txt", "", "1"),
    ],
)
def test_names_of_classes(tmp_path: Path, names: str, text: str, label: str) -> None:
    fill(tmp_path, {"a.png": 1, "a.txt": LINE, names: text})
    assert said(tmp_path) == {"a.png": (Box(label, *HALF),)}


LAYOUTS: dict[str, tuple[Mapping[str, str | int], Mapping[str, tuple[str, ...]]]] = {
    "beside": (
        {"a.png": 1, "a.txt": LINE, "b.png": 2, "b.txt": "", "c.png": 3},
        {"a.png": ("1",), "b.png": (), "c.png": ()},
    ),
    "mirrored": (
        {"images/a.png": 1, "labels/a.txt": LINE * 2, "images/b.png": 2, "labels/b.txt": "\n \n", "images/c.png": 3},
        {"images/a.png": ("1", "1"), "images/b.png": (), "images/c.png": ()},
    ),
    "parts below": (
        {f"images/{part}/a.png": 1 for part in ("train", "val")}
        | {f"labels/{part}/a.txt": LINE for part in ("train", "val")},
        {"images/train/a.png": ("1",)},
    ),
    "parts above": (
        {f"{part}/images/a.png": 1 for part in ("train", "valid")}
        | {f"{part}/labels/a.txt": LINE for part in ("train", "valid")},
        {"train/images/a.png": ("1",)},
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path: Path, name: str) -> None:
    files, wanted = LAYOUTS[name]
    whole = opened(fill(tmp_path, files), size=4)
    assert whole.kind.startswith("YOLO labels")
    assert whole.fields == {"image", "boxes"}  # neither is images/ a class, nor its name a caption
    assert {name: tuple(box.label for box in boxes or ()) for name, boxes in said(tmp_path).items()} == wanted
    if name.startswith("parts"):
        (other,) = said(tmp_path, "val")
        assert other.replace("valid", "val") == next(iter(wanted)).replace("train", "val")
        with pytest.raises(ValueError, match=r"there is no part 'test'; there are: train, val"):
            listed(tmp_path, "test")


def test_classes_in_images(tmp_path: Path) -> None:
    files = {"images/ant/a.png": 1, "labels/ant/a.txt": LINE, "images/bee/b.png": 2}
    whole = opened(fill(tmp_path, files), size=4)
    assert (whole.kind, whole.classes) == ("folder of classes, YOLO labels", ("ant", "bee"))
    assert [whole[i]["caption"] for i in range(2)] == ["ant", "bee"]


def test_how_sure_somebody_was_is_passed_over(tmp_path: Path) -> None:
    assert said(fill(tmp_path, {"a.png": 1, "a.txt": f"{LINE.strip()} 0.93"})) == {"a.png": (Box("1", *HALF),)}


@pytest.mark.parametrize("other", ["an ant", "1 2 3 4", "1 2 3 4 5 6 7", "1 2 3 4 x", f"{LINE}an ant", b"\xff"])
def test_if_any_line_is_something_else_all_are_captions(tmp_path: Path, other: str | bytes) -> None:
    found = listed(fill(tmp_path, {"a.png": 1, "a.txt": LINE, "b.png": 2, "b.txt": other}))
    assert found.kind == "captions beside the pictures"
    assert found.entries[0].captions == (LINE.strip(),)
    assert [entry.boxes for entry in found.entries] == [None, None]


def test_empty_files_alone_are_captions(tmp_path: Path) -> None:
    found = listed(fill(tmp_path, {"a.png": 1, "a.txt": "\n"}))
    assert (found.kind, found.entries[0].boxes) == ("captions beside the pictures", None)


def test_captions_and_labels_each_in_their_place(tmp_path: Path) -> None:
    files = {
        "images/a.png": 1,
        "images/a.txt": "an ant",
        "labels/a.txt": LINE,
        "images/b.png": 1,
        "images/b.txt": "1 2 3 4 5",
    }
    whole = opened(fill(tmp_path, files), size=4)
    assert whole.kind == "captions beside the pictures, YOLO labels"
    assert [whole[i]["caption"] for i in range(2)] == ["an ant", "1 2 3 4 5"]


def test_captions_of_metadata_beside_labels(tmp_path: Path) -> None:
    rows = line(file_name="a.png", text="ant", objects={"bbox": [], "label": []}) + line(file_name="b.png", text="bee")
    files = {"a.png": 1, "a.txt": LINE, "b.png": 2, "b.txt": LINE, "metadata.jsonl": rows}
    whole = opened(fill(tmp_path, files), size=4)
    assert [(whole[i]["caption"], len(whole[i]["boxes"])) for i in range(2)] == [("ant", 0), ("bee", 1)]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("1 0.5 0.5 nan 0.5", "line 2: its box is .*; it must be a list of four finite numbers"),
        ("1 0.5 0.5 inf 0.5", "line 2: its box is .*; it must be"),
        ("1.5 0.5 0.5 0.5 0.5", "line 2: it begins with 1.5, which must be the number of a class"),
        ("-1 0.5 0.5 0.5 0.5", "line 2: it begins with -1"),
        ("nan 0.5 0.5 0.5 0.5", "line 2: it begins with nan"),
        ("2 0.5 0.5 0.5 0.5", "line 2: there is no name for the class 2"),
        ("1 0.5 0.5 -0.5 0.5", "line 2: the box .* ends before it begins"),
        ("1 1.5 0.5 0.5 0.5", "line 2: the box .* lies outside"),
        ("1 320 200 100 50", "line 2: the box .* lies far outside"),
    ],
)
@pytest.mark.parametrize("place", [("a.png", "a.txt"), ("images/a.png", "labels/a.txt")])
def test_lines_that_cannot_be_used(tmp_path: Path, text: str, match: str, place: tuple[str, str]) -> None:
    fill(tmp_path, {place[0]: 1, place[1]: LINE + text, "classes.txt": "ant\nbee"})
    with pytest.raises(ValueError, match=match) as caught:
        opened(tmp_path, size=4)
    assert str(caught.value).startswith(f"{tmp_path / place[1]}, line 2: ")


def test_other_lines_in_labels_are_problems(tmp_path: Path) -> None:
    """Nothing else can be meant there."""
    fill(tmp_path, {"images/a.png": 1, "labels/a.txt": f"{LINE}an ant", "images/b.png": 1, "labels/b.txt": b"\xff"})
    assert [problem.removeprefix(f"{tmp_path}/") for problem in listed(tmp_path).problems] == [
        "labels/a.txt, line 2: it is no box; one is a class and four numbers, 'class x y width height'",
        "labels/b.txt: not UTF-8 text; save it again as UTF-8",
    ]


def test_boxes_without_area_are_counted(tmp_path: Path) -> None:
    found = listed(fill(tmp_path, {"a.png": 1, "a.txt": "0 .5 .5 0 .5\n0 .5 .5 .5 0\n0 .5 .5 1 1\n"}))
    assert (found.flat, found.entries[0].boxes) == (2, (Box("0", 0, 0, 1, 1),))


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("images/a.jpg", "labels/a.txt"),
        ("x/images/y/a.b.jpg", "x/labels/y/a.b.txt"),
        ("images/images/a.jpg", "images/labels/a.txt"),
        ("a.jpg", ""),
        ("images.jpg", ""),
    ],
)
def test_mirrors(name: str, other: str) -> None:
    assert mirror(name) == other


# Names ----------------------------------------------------------------------------------------------------
NAME = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp", "Zs", "Cf"]), min_size=1, max_size=6)


@given(st.lists(NAME, min_size=1, max_size=6), st.sampled_from([None, True, False]), st.booleans(), st.booleans())
def test_what_a_yaml_library_writes(names: list[str], flow: bool | None, mapping: bool, plain: bool) -> None:
    facts = {"nc": len(names), "names": dict(enumerate(names)) if mapping else names, "train": "../train/images"}
    text = yaml.safe_dump(facts, default_flow_style=False if flow is None else flow, allow_unicode=plain, width=10**6)
    if flow:  # all of it in braces, of which "names" is not the beginning
        text = f"names: {yaml.safe_dump(facts['names'], default_flow_style=True, allow_unicode=plain, width=10**6)}"
    found = yaml_names(text)
    assert found == dict(enumerate(names))


@pytest.mark.parametrize(
    "text",
    [
        "names: [ant, 'bee # 1', \"c: d\"]  # three",
        "names:\n- ant\n- 'bee # 1'   # the second\n\n- \"c: d\"\nnc: 3",
        "# x\nnames:   # of classes\n  0: ant\n  1: bee # 1\n  2: 'c: d'\nroboflow:\n  a: b",
        "names: {0: ant, 1: 'bee # 1', 2: 'c: d'}",
        "names: [\n  'ant',   # first\n  'bee # 1',\n  'c: d',\n]\n",
    ],
)
def test_forms_of_names(text: str) -> None:
    found = yaml_names(text)
    assert found == {0: "ant", 1: "bee" if "bee # 1\n" in text else "bee # 1", 2: "c: d"}
    assert found == {i: name for i, name in enumerate(_loaded(text))}


def _loaded(text: str) -> list[str]:
    names = yaml.safe_load(text)["names"]
    return list(names.values()) if isinstance(names, dict) else names


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("names: ant", "'names' is neither a list nor a mapping"),
        ("names: [ant", r"'names' begins with '\[' and is not closed"),
        ("names: [[ant]]", r"'names' begins with '\[' and is not closed, or has more than names"),
        ("names: {a: b}", "'names' has 'a: b', which is no number with its name"),
        ("names:\n  ant: 0", "'names' has the line 'ant: 0', which is no name"),
        ('names: ["a\\q"]', r"'names' has \\q in a name, which cannot be read"),
    ],
)
def test_names_that_cannot_be_read(tmp_path: Path, text: str, match: str) -> None:
    fill(tmp_path, {"a.png": 1, "a.txt": LINE, "data.yaml": text})
    with pytest.raises(ValueError, match=match) as caught:
        opened(tmp_path, size=4)
    assert str(caught.value).startswith(f"{tmp_path / 'data.yaml'}: ")


@given(
    st.text()
    | st.lists(st.sampled_from(["names:", "[", "]", "{", "}", ",", "'", '"', "#", "\n", "-", "0", "a", " ", "\t"])).map(
        "".join
    )
)
@example("names: " + "[" * 10**5)
@example("names: [" + " " * 10**5)
@example("names: [" + "'" * 10**5)
def test_any_names(text: str) -> None:
    for begun in (text, f"names:{text}", f"names: [{text}"):
        try:
            found = yaml_names(begun)
        except ValueError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017
        else:
            assert all(isinstance(name, str) and len(name.splitlines()) <= 1 for name in found.values())


# Anything -------------------------------------------------------------------------------------------------
NUMBER = st.floats().map(str) | st.integers(-2, 9).map(str) | st.sampled_from(["0.5", "0.1", "x", "1_0"])
LINES = st.lists(NUMBER, max_size=7).map(" ".join) | st.text(max_size=9)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(LINES, max_size=4).map("\n".join).map(lambda text: text.encode("utf-8", "replace")) | st.binary(),
    st.booleans(),
)
def test_any_file(tmp_path: Path, data: bytes, mirrored: bool) -> None:
    for name in ("a.txt", "labels/a.txt"):
        (tmp_path / name).unlink(missing_ok=True)
    fill(tmp_path, {"images/a.png": 1, "labels/a.txt" if mirrored else "images/a.txt": data, "classes.txt": "ant\nbee"})
    found = listed(tmp_path)
    assert not any("\n" in problem for problem in found.problems)
    for box in found.entries[0].boxes or ():
        assert box.label in ("ant", "bee")
        assert 0 <= box.x0 < box.x1 <= 1
        assert 0 <= box.y0 < box.y1 <= 1


BOXES = st.tuples(st.integers(0, 5), *[st.integers(1, 99).map(lambda n: n / 100)] * 4)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(BOXES, min_size=1, max_size=9))
def test_every_line_is_read(tmp_path: Path, rows: list[tuple[int, float, float, float, float]]) -> None:
    fill(tmp_path, {"a.png": 1, "a.txt": "\n".join(" ".join(map(json.dumps, row)) for row in rows)})
    wanted = [
        (str(number), max(x - w / 2, 0), max(y - h / 2, 0), min(x + w / 2, 1), min(y + h / 2, 1))
        for number, x, y, w, h in rows
    ]
    assert [tuple(box[:5]) for box in said(tmp_path)["a.png"] or ()] == wanted
