"""Shards as a data set: the same pictures as in a folder, captions and labels from beside them, damage in a line."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from folders import encoded, fill, shade, tar
from sfumato.data import opened
from sfumato.data.source import listed


def png(level: int) -> bytes:
    return encoded(shade(level))


def facts(**said: object) -> str:
    return json.dumps(said)


def test_a_shard_gives_what_a_folder_of_its_files_gives(tmp_path: Path) -> None:
    kinds = {"a": "PNG", "b": "JPEG", "dir/c": "WEBP"}
    pictures = {
        f"{name}.{kind.lower()}": encoded(shade(k, (9, 7)), kind) for k, (name, kind) in enumerate(kinds.items())
    }
    files = pictures | {f"{name}.txt": f" a picture\nof {name} " for name in kinds}
    fill(tmp_path / "folder", files)
    folder = opened(tmp_path / "folder", size=4)
    for layout in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        fill(tmp_path, {"x.tar": tar(files, layout)})
        shard = opened(tmp_path / "x.tar", size=4)
        assert (shard.fields, shard.fingerprint, len(shard)) == (folder.fields, folder.fingerprint, 3)
        for i in range(3):
            assert torch.equal(shard[i]["image"], folder[i]["image"])
            assert {k: v for k, v in shard[i].items() if k != "image"} == {
                k: v for k, v in folder[i].items() if k != "image"
            }


def test_a_key_may_be_used_again_in_another_shard(tmp_path: Path) -> None:
    fill(tmp_path, {f"{i}.tar": tar({"0.png": png(i), "0.txt": str(i)}) for i in range(3)})
    whole = opened(tmp_path, size=4)
    assert [(whole[i].get("key"), whole[i]["captions"]) for i in range(3)] == [
        (f"{i}.tar/0.png", (str(i),)) for i in range(3)
    ]


@pytest.mark.parametrize(
    ("beside", "captions"),
    [
        ({"a.txt": "ant", "a.json": facts(caption="no")}, ("ant",)),
        ({"a.json": facts(caption="ant", text="no", width=3)}, ("ant",)),
        ({"a.json": facts(text=["ant", " an\ninsect ", ""])}, ("ant", "an insect")),
        ({"a.json": facts(width=3)}, ()),
        ({"a.txt": " \n"}, ()),
        ({"a.txt": b"\xef\xbb\xbfant"}, ("ant",)),
        ({}, ()),
    ],
)
def test_captions_are_beside_the_picture(tmp_path: Path, beside: dict[str, str | bytes], captions: tuple[str]) -> None:
    fill(tmp_path, {"x.tar": tar({"a.png": png(1), **beside})})
    assert listed(tmp_path).entries[0].captions == captions


def test_labels_are_the_numbers_that_they_are(tmp_path: Path) -> None:
    files = {"a.png": png(1), "a.cls": "5", "b.png": png(2), "b.cls": "2\n"}
    whole = opened(fill(tmp_path, {"x.tar": tar(files)}), size=4)
    assert whole.fields == {"image", "label"}
    assert [whole[i].get("label") for i in range(2)] == [5, 2]
    assert whole.classes == ("0", "1", "2", "3", "4", "5")
    for more in ({"c.png": png(3)}, {"c.png": png(3), "c.cls": "999999999"}):
        whole = opened(fill(tmp_path, {"x.tar": tar(files | more)}), size=4)
        assert (whole.classes, whole.fields) == ((), {"image"})


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    fill(tmp_path, {"x.tar": tar({"a.png": png(1), "b.txt": "bee", "c.seg.png": png(2)}), "x_stats.json": "{}"})
    found = listed(tmp_path)
    assert [entry.name for entry in found.entries] == ["x.tar/a.png"]
    assert found.left_out == {"x.tar/b": "a sample without a picture", "x_stats.json": "not a picture"}


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (tar({"a.png": png(1)})[:700], "the shard is damaged"),
        (tar({"../a.png": png(1)}), "leaves the shard"),
        (tar({"/a.png": png(1)}), "leaves the shard"),
        (tar({"a.png": png(1), "a.jpg": png(1)}), "more than one image"),
        (tar({"a.png": png(1), "a.txt": b"\xff"}), r"a: its \.txt is not UTF-8"),
        (tar({"a.png": png(1), "a.json": "{"}), "a: not JSON"),
        (tar({"a.png": png(1), "a.cls": "ant"}), "a: the label is 'ant'"),
    ],
)
def test_damage_is_a_line(tmp_path: Path, data: bytes, match: str) -> None:
    fill(tmp_path, {"0.tar": tar({"a.png": png(1)}), "1.tar": data})
    with pytest.raises(ValueError, match=match) as caught:
        opened(tmp_path, size=4)
    assert str(caught.value).startswith(f"{tmp_path / '1.tar'}: ")
    assert len(listed(tmp_path).entries) in (1, 2)  # what can be read is still there for a report


def test_a_broken_picture_in_a_shard_is_named_with_its_shard(tmp_path: Path) -> None:
    files = {f"{i:03}.png": png(i) for i in range(120)} | {"050.png": b"broken"}
    whole = opened(fill(tmp_path, {"x.tar": tar(files)}), size=4)
    assert len(whole) == 119
    assert whole.skipped == [
        (tmp_path / "x.tar/050.png", "not a picture of a known kind; PNG, JPEG, WebP, GIF and BMP can be read")
    ]
    data = bytearray((tmp_path / "x.tar").read_bytes())
    at = listed(tmp_path).entries[7].offset or 0
    data[at + 45 : at + 60] = bytes(15)
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.tar/007\.png: the picture is damaged"):
        whole[7]
    (tmp_path / "x.tar").write_bytes(data[: at + 10])
    with pytest.raises(ValueError, match=r"x\.tar/008\.png: the shard became shorter"):
        whole[8]


def test_a_header_is_read_without_the_rest_of_its_shard(tmp_path: Path) -> None:
    """Pictures lie one behind the other: none sees bytes of the next."""
    sizes = [(3, 2), (40, 30), (5, 7)]
    pictures = {f"{i}.webp": encoded(Image.new("RGB", size), "WEBP") for i, size in enumerate(sizes)}
    whole = opened(fill(tmp_path, {"x.tar": tar(pictures)}), size=2)
    data = (tmp_path / "x.tar").read_bytes()
    for entry, picture in zip(listed(tmp_path).entries, pictures.values(), strict=True):
        assert entry.read() == picture == data[entry.offset : (entry.offset or 0) + entry.size]
    assert len(whole) == 3


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_shards_are_listed_or_named(tmp_path: Path, draw: st.DataObject) -> None:
    data = bytearray(tar({"b.png": png(1), "b.txt": "b", "b.cls": "1", "c.png": png(2), "c.json": '{"text": "c"}'}))
    for _ in range(draw.draw(st.integers(0, 5))):
        at = 512 * draw.draw(st.integers(0, 9)) + draw.draw(st.integers(0, 511))
        data[at % len(data)] = draw.draw(st.sampled_from([0, 10, 32, 48, 55, 57, 128, 255]))
    for at in range(0, len(data) - 512, 512):  # right checksums, so that the fields themselves are read
        block = data[at : at + 512]
        if block[257:262] == b"ustar":
            total = sum(block) - sum(block[148:156]) + 8 * 32
            data[at + 148 : at + 156] = f"{total:06o}\0 ".encode()
    found = listed(fill(tmp_path, {"x.tar": bytes(data)}))
    assert all(len(problem.splitlines()) == 1 for problem in found.problems)
    for entry in found.entries:
        assert entry.read() == bytes(data[entry.offset : (entry.offset or 0) + entry.size])
