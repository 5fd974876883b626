"""Open Images' tables: pictures by their ids, names for labels, four things that may be known of a box."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from folders import fill
from sfumato.boxes import Box, Layout, Modifier
from sfumato.data import opened
from sfumato.data.source import listed

HEAD = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
NAMES = '/m/1,Ant\n/m/2,"Bee, honey"\n'
A = "a,xclick,/m/1,1,0.25,0.75,0,0.5,1,1,0,0,-1\n"


def said(root: Path, part: str = "train") -> dict[str, Layout | None]:
    found = listed(root, part)
    assert found.problems == ()
    return {entry.name: entry.boxes for entry in found.entries}


def test_a_table_and_names(tmp_path: Path) -> None:
    table = f"{HEAD}{A}b,x,/m/2,1,0.5,1.0,0.0,1,0,1,1,1,1\na,x,/m/2,1,0,1,0,1,0,0,0,0,0\n"
    files = {"train-annotations-bbox.csv": table, "class-descriptions-boxable.csv": NAMES, "x/a.jpg": 1, "b.jpg": 2}
    fill(tmp_path, files | {"c.jpg": 3, "x/a.txt": "an ant"})
    assert said(tmp_path) == {
        "b.jpg": (Box("Bee, honey", 0.5, 0, 1, 1, Modifier.GROUP | Modifier.DEPICTION | Modifier.INSIDE),),
        "x/a.jpg": (Box("Ant", 0.25, 0, 0.75, 0.5, Modifier.OCCLUDED), Box("Bee, honey", 0, 0, 1, 1)),
    }
    found = listed(tmp_path)
    assert found.kind == "Open Images boxes"
    assert [entry.captions for entry in found.entries] == [(), ("an ant",)]
    assert found.left_out["c.jpg"] == "not named in train-annotations-bbox.csv"
    assert opened(tmp_path, size=4).labels == ("Ant", "Bee, honey")


def test_without_names_the_label_is_its_number(tmp_path: Path) -> None:
    """Another name of a file at the top, other columns, and in another order."""
    table = "\ufeffXMin,YMin,XMax,YMax,LabelName,ImageID\r\n0,0,.5,.5,/m/9,a\r\n"
    assert said(fill(tmp_path, {"a.png": 1, "boxes.csv": table, "other.csv": "x,y\n"})) == {
        "a.png": (Box("/m/9", 0, 0, 0.5, 0.5),)
    }


def test_parts(tmp_path: Path) -> None:
    """The same picture in two folders is that of the part."""
    files: dict[str, str | int] = {"train/a.jpg": 1, "validation/a.jpg": 2, "validation/b.jpg": 3}
    files |= {f"{part}-annotations-bbox.csv": HEAD + A for part in ("train", "validation")}
    fill(tmp_path, files)
    assert list(said(tmp_path)) == ["train/a.jpg"]
    assert list(said(tmp_path, "validation")) == list(said(tmp_path, "val")) == ["validation/a.jpg"]
    with pytest.raises(ValueError, match="there is no part 'test'; there are: train, val"):
        listed(tmp_path, "test")


def test_pictures_that_are_not_here_are_passed_over(tmp_path: Path) -> None:
    rows = "".join(A.replace("a,", f"{name},", 1) for name in "xyzaay")
    found = listed(fill(tmp_path, {"a.jpg": 1, "x-annotations-bbox.csv": HEAD + rows}))
    assert len(found.entries) == 1
    assert found.left_out == {"x.jpg": "named and not here, as 2 others are"}
    (tmp_path / "a.jpg").rename(tmp_path / "b.jpg")
    with pytest.raises(ValueError, match=r"there is none of the pictures that are named, first 'a.jpg'"):
        opened(tmp_path, size=4)


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (A.replace("/m/1", "/m/3"), "line 2: there is no name for the label '/m/3' in a class-descriptions file"),
        (A.replace("0.25", "nan"), "line 2: 'nan' is no place in a picture; it must be a number from 0 to 1"),
        (A.replace("0.25", "x"), "line 2: 'x' is no place"),
        (A.replace("0.75", "0.2"), "line 2: the box .* ends before it begins"),
        (A.replace("0.25,0.75", "1.1,1.2"), "line 2: the box .* lies outside"),
        (A.replace("0.25,0.75", "12,75"), "line 2: the box .* lies far outside"),
        (A.replace(",-1", ",yes"), "line 2: 'yes' is neither 1 nor 0 nor -1"),
        (A + "a,x\n", "line 3: it has 2 columns, and the first line 13"),
        (A + '"' + "x" * 200_000, "line 3: not CSV"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, rows: str, match: str) -> None:
    table = tmp_path / "x-annotations-bbox.csv"
    fill(tmp_path, {"a.jpg": 1, table.name: HEAD + rows, "class-descriptions.csv": NAMES})
    with pytest.raises(ValueError, match=match) as caught:
        opened(tmp_path, size=4)
    assert str(caught.value).startswith(f"{table}, line ")


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    fill(tmp_path, {"a.jpg": 1, "x-annotations-bbox.csv": "ImageID,LabelName\na,b\n"})
    with pytest.raises(ValueError, match="line 1: it must name the columns ImageID, LabelName, XMin, YMin, XMax, YMax"):
        opened(tmp_path, size=4)
    fill(tmp_path, {"x-annotations-bbox.csv": HEAD})
    with pytest.raises(ValueError, match=r": none of the pictures in here is named \(Open Images boxes\)"):
        opened(tmp_path, size=4)
    fill(tmp_path, {"x-annotations-bbox.csv": HEAD + A, "class-descriptions.csv": "/m/1\n"})
    with pytest.raises(ValueError, match=r"class-descriptions.csv, line 1: a label and its name are expected"):
        opened(tmp_path, size=4)
    fill(tmp_path, {"class-descriptions.csv": b"/m/1,\xff\n"})
    with pytest.raises(ValueError, match=r"class-descriptions.csv, line 1: not UTF-8"):
        opened(tmp_path, size=4)


def test_two_pictures_of_an_id(tmp_path: Path) -> None:
    fill(tmp_path, {"x/a.jpg": 1, "y/a.jpg": 2, "train-annotations-bbox.csv": HEAD + A})
    with pytest.raises(ValueError, match=r"line 2: 'a' may be 'x/a.jpg' or 'y/a.jpg'; a picture may be there once"):
        opened(tmp_path, size=4)


CELLS = st.sampled_from(["a", "/m/1", "/m/7", "0", "1", "-1", "0.5", "nan", "1e999", "", "x"]) | st.text(max_size=3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary() | st.lists(st.lists(CELLS, max_size=14), max_size=5), st.binary() | st.just(NAMES.encode()))
def test_any_table(tmp_path: Path, rows: bytes | Sequence[Sequence[str]], names: bytes) -> None:
    if not isinstance(rows, bytes):
        text = io.StringIO()
        csv.writer(text).writerows(rows)
        rows = (HEAD + text.getvalue()).encode("utf-8", "replace")
    fill(tmp_path, {"a.png": 1, "x-annotations-bbox.csv": rows, "class-descriptions.csv": names})
    found = listed(tmp_path)
    assert not any("\n" in problem for problem in found.problems)
    for entry in found.entries:
        assert all(0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1 for box in entry.boxes or ())


EDGES = st.tuples(st.floats(0, 0.5), st.floats(0.5, 1)).filter(lambda e: e[0] < e[1])
PARTS = st.tuples(EDGES, EDGES).map(lambda e: (e[0][0], e[1][0], e[0][1], e[1][1]))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from("ab"), PARTS, st.integers(0, 15)), min_size=1, max_size=8))
def test_every_row_is_read(tmp_path: Path, rows: list[tuple[str, tuple[float, float, float, float], int]]) -> None:
    table, wanted = HEAD, dict[str, list[Box]]()
    for name, (x0, y0, x1, y1), modifiers in rows:
        group, occluded, depiction, inside = (modifiers >> bit & 1 for bit in range(4))
        table += f"{name},x,/m/1,1,{x0},{x1},{y0},{y1},{occluded},0,{group},{depiction},{inside}\n"
        wanted.setdefault(f"{name}.jpg", []).append(Box("/m/1", x0, y0, x1, y1, modifiers))
    fill(tmp_path, {"a.jpg": 1, "b.jpg": 2, "x-annotations-bbox.csv": table})
    assert said(tmp_path) == {name: tuple(boxes) for name, boxes in wanted.items()}
