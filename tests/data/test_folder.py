"""Folders of pictures: where captions and labels come from, and what is said about broken ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from folders import fill, line
from sfumato.data import Dataset, Listed, opened
from sfumato.data.metadata import read_json_line


def captions(folder: Listed) -> dict[str, str | None]:
    return {folder[i].get("key", ""): folder[i].get("caption") for i in range(len(folder))}


def test_sidecars(tmp_path: Path) -> None:
    folder = opened(fill(tmp_path, {"b.png": 1, "b.txt": "\ufeffa bee,\n yellow ", "a.png": 2, "a.txt": "ant"}), size=4)
    assert isinstance(folder, Dataset)
    assert folder.fields == {"image", "caption"}
    assert captions(folder) == {"a.png": "ant", "b.png": "a bee, yellow"}
    assert folder[0].get("image") is not None
    assert folder[0]["image"].shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "metadata.jsonl",
            line(file_name="x/a.png", text="ant") + "\n" + line(file_name="b.png", text="bee", n=1),
        ),
        ("metadata.csv", 'text,file_name\nant,x/a.png\n"bee","./b.png"\n'),
    ],
)
def test_metadata_comes_before_sidecars(tmp_path: Path, name: str, text: str) -> None:
    folder = opened(fill(tmp_path, {"x/a.png": 1, "b.png": 2, "b.txt": "no", name: text}), size=4)
    assert captions(folder) == {"b.png": "bee", "x/a.png": "ant"}


def test_metadata_in_a_sub_folder_is_about_that_folder(tmp_path: Path) -> None:
    folder = opened(fill(tmp_path, {"x/a.png": 1, "x/metadata.jsonl": line(file_name="a.png", text="ant")}), size=4)
    assert captions(folder) == {"x/a.png": "ant"}


def test_classes(tmp_path: Path) -> None:
    files = {
        "old_house/1.png": 1,
        "10_cat/sub/2.png": 2,
        "10_cat/3.png": 3,
        "10_cat/3.txt": "a cat",
        ".x/4.png": 4,
    }
    folder = opened(fill(tmp_path, files), size=4)
    assert folder.fields == {"image", "caption", "label"}
    assert folder.classes == ("10_cat", "old_house")
    assert captions(folder) == {
        "10_cat/3.png": "a cat",
        "10_cat/sub/2.png": "cat",
        "old_house/1.png": "old house",
    }
    assert [folder[i].get("label") for i in range(3)] == [0, 0, 1]


def test_no_classes_when_a_picture_lies_at_the_top(tmp_path: Path) -> None:
    folder = opened(fill(tmp_path, {"x/a.png": 1, "b.png": 2}), size=4)
    assert folder.fields == {"image"}
    assert captions(folder) == {"b.png": None, "x/a.png": None}


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("metadata.jsonl", "{}\n", r"metadata\.jsonl, line 1: 'file_name' is missing"),
        ("metadata.jsonl", line(file_name="a.png") + "{oops\n", r"line 2: not JSON"),
        ("metadata.jsonl", "[1]", "line 1: a list; an object"),
        ("metadata.jsonl", "[" * 100_000, "line 1: not JSON"),
        ("metadata.jsonl", line(file_name="a.png", text=3), "line 1: 'text' is a int; it must be"),
        ("metadata.jsonl", line(file_name=3), "line 1: 'file_name' is missing"),
        ("metadata.jsonl", line(file_name="z.png"), "line 1: there is no picture 'z.png'"),
        ("metadata.jsonl", line(file_name="../a.png"), r"line 1: .*without '\.\.'"),
        ("metadata.jsonl", line(file_name="/a.png"), "line 1: .*relative"),
        ("metadata.jsonl", line(file_name="C:\\a.png"), "line 1: .*relative"),
        ("metadata.jsonl", line(file_name="x\\..\\a.png"), r"line 1: .*without '\.\.'"),
        ("metadata.jsonl", 2 * line(file_name="a.png"), "line 2: .*second time"),
        ("metadata.jsonl", b"\n\n\xff", "line 3: not UTF-8"),
        ("metadata.csv", "name,text\na.png,x\n", "line 1: the first line must name"),
        ("metadata.csv", "", "line 1: the first line must name"),
        ("metadata.csv", "file_name,text\n,x\n", "line 2: 'file_name' is missing"),
        ("metadata.csv", "file_name,text\na.png,x\n../a.png,x\n", "line 3: .*relative"),
        ("metadata.csv", "file_name,text\na.png," + "x" * 200_000, "line 2: not CSV"),
        ("a.txt", b"\xff", r"a\.txt: not UTF-8"),
    ],
)
def test_broken_descriptions_are_one_line(tmp_path: Path, name: str, text: str | bytes, match: str) -> None:
    fill(tmp_path, {"a.png": 1, name: text})
    with pytest.raises(ValueError, match=match) as caught:
        opened(tmp_path, size=4)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no pictures in here"):
        opened(fill(tmp_path, {"a.txt": "x"}), size=4)
    with pytest.raises(ValueError, match="no such folder"):
        opened(tmp_path / "x", size=4)


def test_a_few_unreadable_pictures_are_skipped(tmp_path: Path) -> None:
    fill(tmp_path, {f"{i:03}.bmp": i for i in range(120)} | {"050.bmp": b"broken"})
    folder = opened(tmp_path, size=4)
    assert len(folder) == 119
    assert [(path.name, why[:13]) for path, why in folder.skipped] == [("050.bmp", "not a picture")]
    fill(tmp_path, {"051.bmp": b""})
    with pytest.raises(ValueError, match=r"2 of 120 pictures cannot be read, first .*050\.bmp: not a picture"):
        opened(tmp_path, size=4)


def test_a_picture_damaged_behind_its_header_is_named(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": 1})
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[:50])
    folder = opened(tmp_path, size=4)
    with pytest.raises(ValueError, match=r"a\.png: the picture is damaged"):
        folder[0]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda x: st.lists(x) | st.dictionaries(st.text(), x),
)
LINES = st.one_of(
    st.text(),
    JSON.map(json.dumps),
    st.fixed_dictionaries({"file_name": JSON, "text": JSON}).map(json.dumps),
    st.fixed_dictionaries({"file_name": st.text(), "text": st.text()}).map(json.dumps),
)


@given(LINES)
@example('{"file_name": "\\ud800", "text": "\\u0000"}')
@example("1" * 5000)
def test_a_line_is_read_or_is_a_value_error(text: str) -> None:
    try:
        row = read_json_line(text)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert row.file_name
        assert ".." not in row.file_name.split("/")
        assert not row.file_name.startswith("/")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["metadata.jsonl", "metadata.csv"]),
    st.one_of(st.binary(), st.lists(LINES).map("\n".join)),
)
@example("metadata.csv", 'file_name,text\na.png,\x00\r\n"')
@example("metadata.jsonl", '{"file_name": "a\\u0000.png"}')
def test_metadata_is_read_or_is_a_value_error(tmp_path: Path, name: str, text: str | bytes) -> None:
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    for other in ("metadata.jsonl", "metadata.csv"):
        (tmp_path / other).unlink(missing_ok=True)
    fill(tmp_path, {"a.png": 1, name: data})
    try:
        assert len(opened(tmp_path, size=4)) == 1
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
