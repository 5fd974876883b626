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
from sfumato.data.source import listed
from sfumato.data.training import TrainingPictures


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
