"""The report before a training: every number exact, and its last line the one that a training stops with."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from folders import encoded, fill, line, shade, tar
from sfumato.data import opened
from sfumato.data.check import FEW, Report, examine
from sfumato.data.contact import contact_sheet
from sfumato.data.limits import Counted, Limits
from sfumato.data.source import listed
from sfumato.data.training import TrainingPictures
from sfumato.io.outlined import colour


def looked(root: Path, *, thorough: bool = False) -> Report:
    *_, report = examine(listed(root), thorough=thorough)
    assert isinstance(report, Report)
    return report


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(shade(1, (30, 20)), exif=exif)


ALL: dict[str, str | bytes | int] = {
    "a/1.png": encoded(shade(1, (10, 50))),
    "a/2.png": encoded(shade(1, (10, 50))),
    "a/3.png": turned(6),
    "a/3.txt": "three words here",
    "a/4.png": turned(1),
    "b/5.png": encoded(Image.new("RGBA", (40, 40))),
    "b/6.jpg": encoded(Image.new("CMYK", (64, 8)), "JPEG"),
    "b/7.png": encoded(Image.fromarray(np.zeros((16, 16), np.uint16))),
    "b/8.png": b"no picture",
    "b/9.png": encoded(shade(9))[:50],
    "b/LICENCE": "",
    "c.md": "",
    "d.md": "",
    ".hidden.md": "",
}


def test_what_headers_say(tmp_path: Path) -> None:
    report = looked(fill(tmp_path, ALL))
    assert report == Report(
        path=str(tmp_path),
        kind="folder of classes, captions beside the pictures",
        pictures=8,
        width=(6, 16, 64),
        height=(4, 20, 50),
        captioned=8,
        captions=8,
        words=10 / 8,
        classes={"a": 4, "b": 4},
        turned=1,
        alpha=1,
        deep=1,
        cmyk=1,
        broken=(("b/8.png", "not a picture of a known kind; PNG, JPEG, WebP, GIF and BMP can be read"),),
        duplicates=None,
        problems=(),
        others={".md": 2, "": 1},
        left_out={},
        refusal=report.refusal,
    )
    assert report.refusal.startswith(f"1 of 9 pictures cannot be read, first {tmp_path / 'b/8.png'}: not a picture")


def test_what_decoding_finds_beside(tmp_path: Path) -> None:
    fill(tmp_path, ALL)
    (tmp_path / "b/8.png").unlink()
    report = looked(tmp_path, thorough=True)
    assert report.pictures == 7
    assert report.duplicates == (("a/2.png", "a/1.png"),)
    assert [(name, why[:22]) for name, why in report.broken] == [("b/9.png", "the picture is damaged")]
    assert looked(tmp_path).refusal == ""
    assert report.refusal.startswith("1 of 8 pictures are damaged, more than one in a hundred; one of them is")


REFUSED: dict[str, Mapping[str, str | bytes | int]] = {
    "nothing": {"a.txt": ""},
    "unreadable": {"a.png": 1, "b.png": b""},
    "metadata": {"a.png": 1, "metadata.jsonl": line(file_name="a.png", text="x") + "{oops\n{"},
    "COCO": {"a.png": 1, "annotations/captions_x.json": "{"},
    "shard": {"x.tar": tar({"a.png": encoded(shade(1))})[:700]},
    "shards": {"x.tar": tar({"a.png": encoded(shade(1)), "b.png": b""})},
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_refusal_is_the_line_that_opening_stops_with(tmp_path: Path, name: str) -> None:
    report = looked(fill(tmp_path, REFUSED[name]))
    with pytest.raises(ValueError, match=r".") as caught:
        opened(tmp_path, size=4)
    assert report.refusal == str(caught.value)
    assert looked(tmp_path, thorough=True).refusal == report.refusal


def test_the_refusal_is_the_line_that_a_training_stops_with(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": 1, "b.png": ALL["b/9.png"]})
    with pytest.raises(ValueError, match="damaged") as caught:
        TrainingPictures(opened(tmp_path, size=4)).check()
    assert looked(tmp_path, thorough=True).refusal == str(caught.value)


def test_nothing_is_said_against_what_can_be_trained_on(tmp_path: Path) -> None:
    fill(tmp_path, {f"{i}.bmp": i for i in range(199)} | {"199.bmp": b"", "2.png": ALL["b/9.png"]})
    assert looked(tmp_path, thorough=True).refusal == ""
    assert TrainingPictures(opened(tmp_path, size=4)).check()


def test_an_empty_folder_has_a_report(tmp_path: Path) -> None:
    lines = list(looked(tmp_path).lines())
    assert lines[:2] == [f"{tmp_path}: pictures without captions", "pictures         0"]


def test_the_report_of_a_person(tmp_path: Path) -> None:
    fill(tmp_path, ALL | {f"b/x{i:02}.png": b"" for i in range(FEW)} | {f"c{i}/0.png": i for i in range(9)})
    (tmp_path / "up").symlink_to("..")
    lines = list(looked(tmp_path, thorough=True).lines())
    assert lines[:9] == [
        f"{tmp_path}: folder of classes, captions beside the pictures",
        "pictures         16",
        "width            6 to 64, median 6",
        "height           4 to 50, median 4",
        "captions         16 of 16 pictures have one; 16 in all, of 1.1 words each",
        "classes          11: a 4, b 3, c0 1, c1 1, c2 1 and 6 more",
        "of these         1 turned by EXIF, 1 with alpha, 1 of 16 bits, 1 CMYK",
        "not pictures     2 .md, 1 without ending",
        "broken           b/8.png: not a picture of a known kind; PNG, JPEG, WebP, GIF and BMP can be read",
    ]
    assert lines[9].startswith("broken           b/9.png: the picture is damaged")
    assert lines[8 + FEW :] == [
        f"{'':16} … and 2 more",
        "the same bytes   a/2.png as a/1.png",
        "left out         up: a link to a folder that is read already, or that lies above",
    ]


def test_metadata_that_cannot_be_used_is_all_listed(tmp_path: Path) -> None:
    rows = "".join(line(file_name=f"{i}.png") for i in range(25))
    report = looked(fill(tmp_path, {"0.png": 1, "metadata.jsonl": rows}))
    assert len(report.problems) == 24
    assert report.refusal == report.problems[0]
    assert list(report.lines())[-1].strip() == "… and 4 more"


def test_a_report_of_names_that_are_no_text(tmp_path: Path) -> None:
    for name in (b"new\nline.png", b"\xff.png", b"x.\xfe\n"):
        (tmp_path / os.fsdecode(name)).write_bytes(b"")
    (tmp_path / os.fsdecode(b"\xfd")).symlink_to("nowhere")
    report = looked(tmp_path)
    for text in (*report.lines(), report.refusal):
        assert len(text.encode().splitlines()) == 1
    assert json.loads(json.dumps(report.as_dict()))["broken"][1][0] == "\udcff.png"


@pytest.mark.parametrize("thorough", [False, True])
def test_a_look_changes_nothing_and_says_how_far_it_is(tmp_path: Path, thorough: bool) -> None:
    fill(tmp_path, {f"{i}.bmp": i % 200 for i in range(250)} | {"x.tar": b"", "0.txt": "x"})
    before = {path: path.stat() for path in (tmp_path, *tmp_path.rglob("*"))}
    *seen, _ = examine(listed(tmp_path), thorough=thorough)
    assert seen == [100, 200]
    after = {path: path.stat() for path in (tmp_path, *tmp_path.rglob("*"))}
    assert before.keys() == after.keys()
    assert all((before[p].st_mtime_ns, before[p].st_size) == (after[p].st_mtime_ns, after[p].st_size) for p in before)


def test_shards_are_looked_at_like_folders(tmp_path: Path) -> None:
    files = {name: data for name, data in ALL.items() if isinstance(data, bytes)}
    shard = looked(fill(tmp_path / "tars", {"x.tar": tar(files)}), thorough=True)
    folder = looked(fill(tmp_path / "folder", files), thorough=True)
    for what in ("pictures", "width", "height", "turned", "alpha", "deep", "cmyk"):
        assert getattr(shard, what) == getattr(folder, what)
    assert shard.broken == tuple((f"x.tar/{name}", why) for name, why in folder.broken)


# Boxes ----------------------------------------------------------------------------------------------------
def boxed(name: str, *boxes: list[float]) -> str:
    """A row of metadata; the boxes have the labels x, y, x, y, ..."""
    return line(file_name=name, objects={"bbox": list(boxes), "label": [("x", "y")[i % 2] for i in range(len(boxes))]})


MANY = [[2, 0, 1 + i % 2, 1] for i in range(33)]


def test_what_is_said_of_boxes(tmp_path: Path) -> None:
    """All pictures are 6 x 4: of 24 pixels a box of 0.0001 has less than the least; one at the left is not seen."""
    rows = [
        boxed("a.png", [2, 0, 2, 2], [3, 0, 0, 2], [3, 1, 0.01, 0.01]),
        boxed("b.png"),
        boxed("c.png", [0, 0, 1, 4]),
        boxed("d.png", *MANY),
    ]
    report = looked(
        fill(tmp_path, dict.fromkeys(["a.png", "b.png", "c.png", "d.png"], 1) | {"metadata.jsonl": "".join(rows)})
    )
    assert report.refusal == ""
    found = report.boxes
    assert found is not None
    assert (found.said, found.first_unsaid, found.pictures, found.boxes, found.most) == (4, None, 3, 36, 33)
    assert found.labels == {"x": 20, "y": 16}
    assert list(found.labels) == ["x", "y"]
    assert (found.flat, found.small, found.over, found.few) == (1, 1, 3, 2)
    assert list(report.lines())[5:9] == [
        "boxes            3 of 4 pictures have some; 36 in all, 9.0 a picture, 33 at most",
        "labels           2: x 20, y 16",
        "limits drop      1 boxes without area, 1 smaller than 1e-05 of the picture, "
        "3 of more than 30 in its middle square",
        "and leave out    2 pictures with fewer than 1 in their middle square",
    ]
    limited = opened(tmp_path, size=4).limited(Limits())
    assert (limited.counted, len(limited)) == (Counted(found.small, found.over, found.few), 2)
    said = json.loads(json.dumps(report.as_dict()))["boxes"]
    assert (said["labels"], said["limits"]) == ({"x": 20, "y": 16}, {"least_area": 1e-5, "least": 1, "most": 30})


def test_pictures_of_which_nothing_is_said(tmp_path: Path) -> None:
    report = looked(fill(tmp_path, {"a.png": 1, "b.png": 2, "metadata.jsonl": boxed("b.png", [2, 0, 1, 1])}))
    assert report.boxes is not None
    assert (report.boxes.said, report.boxes.first_unsaid) == (1, "a.png")
    assert "not said         of 1 pictures nothing is said of boxes, first a.png; boxes need all" in list(
        report.lines()
    )


def test_boxes_of_another_picture(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "a.png", "width": 9, "height": 9}]
    text = json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": "x"}]})
    report = looked(fill(tmp_path, {"a.png": 1, "instances.json": text}))
    assert report.problems == (report.refusal,)
    with pytest.raises(ValueError, match="is 9 x 9 there and 6 x 4 in its file") as caught:
        opened(tmp_path, size=4)
    assert report.refusal == str(caught.value)
    assert looked(tmp_path, thorough=True).refusal == report.refusal


def test_a_contact_sheet_has_pictures_of_any_size_whole(tmp_path: Path) -> None:
    """A large one, a small one that is made larger, and a damaged one that is passed over."""
    rows = boxed("a.png", [0, 0, 300, 100]) + boxed("b.png", [0, 0, 3, 4]) + boxed("c.png")
    files = {"a.png": encoded(shade(255, (600, 100))), "b.png": 255, "c.png": ALL["b/9.png"], "metadata.jsonl": rows}
    sheet = contact_sheet(listed(fill(tmp_path, files)).entries, side=120)
    assert sheet.shape == (3, 124, 246)
    wide, tall = sheet[:, 2:122, 2:122], sheet[:, 2:122, 124:244]
    for image, rows_seen in ((wide, range(50, 70)), (tall, range(20, 100))):
        white = (image == 1).all(0).all(1)
        assert [y for y in range(120) if not white[y]] == list(rows_seen)
        outline = tuple(x / 127.5 - 1 for x in colour("x"))
        middle = (rows_seen.start + rows_seen.stop) // 2
        assert image[:, middle, 59].tolist() == pytest.approx(outline)
        assert image[:, middle, 61].tolist() == [1, -1, -1]
    with pytest.raises(ValueError, match="none of the pictures can be drawn"):
        contact_sheet(listed(tmp_path).entries[2:])


def test_a_contact_sheet_is_spread_over_the_data_set(tmp_path: Path) -> None:
    entries = listed(fill(tmp_path, {f"{i:03}.bmp": i for i in range(100)})).entries
    sheet = contact_sheet(entries, most=4, side=6)
    assert sheet.shape == (3, 10, 34)
    seen = [round(float(sheet[0, 5, 2 + 8 * k + 3] + 1) * 127.5) for k in range(4)]
    assert seen == [0, 25, 50, 75]
