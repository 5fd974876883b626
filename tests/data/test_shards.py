"""Tar shards: what is written is read back by address, and a damaged shard is one line that names it."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from folders import tar
from sfumato.data import Dataset, Shards


def png(shade: int = 255) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def special(change: Callable[[tarfile.TarInfo], None]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        info = tarfile.TarInfo("a.png")
        change(info)
        file.addfile(info)
    return buffer.getvalue()


WHOLE = {
    "b.png": png(10),
    "b.json": json.dumps({"name": "bee", "tags": ["x", 2], "size": 3, "none": None}).encode(),
    "b.txt": b" a bee\n",
    "b.cls": b"7\n",
    "b.other": b"left alone",
    "dir/a.PNG": png(255),
    "dir/a.seg.png": b"left alone",
    "dir/a.txt": b"an ant",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "x-0.tar"
    file.write_bytes(tar(WHOLE))
    return file


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_round_trip(tmp_path: Path, layout: int) -> None:
    first, second = tmp_path / "0.tar", tmp_path / "1.tar"
    first.write_bytes(tar(WHOLE, layout))
    second.write_bytes(tar({"c" * 90 + ".png": png(), "c" * 90 + ".txt": b"c"}, layout))
    shards = Shards([first, second])
    assert isinstance(shards, Dataset)
    assert shards.keys == ("b", "dir/a", "c" * 90)
    assert shards.fields == {"image", "caption"}
    sample = shards[0]
    assert sample.get("caption") == "a bee"
    assert sample.get("label") == 7
    assert sample.get("meta") == {"name": "bee", "tags": ["x", "2"], "size": "3"}
    assert shards.meta(0) == sample.get("meta")
    assert shards.meta(1) == {}
    assert torch.equal(sample.get("image", torch.zeros(1))[0], torch.full((4, 4), 10 / 127.5 - 1))
    assert shards[-1].get("key") == "c" * 90
    assert shards.raw(0, "cls") == b"7\n"
    assert set(shards.kinds(1)) == {"png", "txt"}


def test_size_is_asked_for(path: Path) -> None:
    assert Shards([path], size=2)[0].get("image", torch.zeros(1)).shape == (3, 2, 2)


def test_pickled_shards_open_their_own_files(path: Path) -> None:
    shards = Shards([path])
    first = shards[0]
    again = pickle.loads(pickle.dumps(shards))
    assert torch.equal(again[0]["image"], first.get("image", torch.zeros(1)))
    assert shards[0].get("caption") == "a bee"


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine of one core
def test_worker_processes_do_not_disturb_each_other(tmp_path: Path) -> None:
    file = tmp_path / "many.tar"
    file.write_bytes(tar({f"{i}.cls": str(i).encode() for i in range(64)}))
    shards = Shards([file])
    assert shards[3].get("label") == 3  # opened before the workers fork
    loader = DataLoader(shards, batch_size=None, num_workers=2)
    assert [sample["label"] for sample in loader] == list(range(64))


def test_an_empty_shard_has_no_samples(tmp_path: Path) -> None:
    file = tmp_path / "empty.tar"
    file.write_bytes(tar({}))
    assert len(Shards([file])) == 0


def test_a_key_may_occur_once(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.tar"
    other.write_bytes(tar({"b.png": png()}))
    with pytest.raises(ValueError, match=r"other\.tar: sample 'b' is already in .*x-0\.tar"):
        Shards([path, other])
    other.write_bytes(tar({"b.png": png(), "b.jpg": b""}))
    with pytest.raises(ValueError, match=r"other\.tar: sample 'b' has more than one image"):
        Shards([other])


def link(info: tarfile.TarInfo) -> None:
    info.type, info.linkname = tarfile.SYMTYPE, "b.png"


def hard_link(info: tarfile.TarInfo) -> None:
    info.type, info.linkname = tarfile.LNKTYPE, "b.png"


def device(info: tarfile.TarInfo) -> None:
    info.type = tarfile.CHRTYPE


def absolute(info: tarfile.TarInfo) -> None:
    info.name = "/a.png"


def outside(info: tarfile.TarInfo) -> None:
    info.name = "x/../../a.png"


@pytest.mark.parametrize("change", [link, hard_link, device, absolute, outside])
def test_nothing_may_leave_a_shard(tmp_path: Path, change: Callable[[tarfile.TarInfo], None]) -> None:
    file = tmp_path / "bad.tar"
    file.write_bytes(special(change))
    with pytest.raises(ValueError, match=r"bad\.tar: .*(plain files only|leaves the shard)"):
        Shards([file])


def test_a_shard_cut_anywhere_is_noticed(path: Path) -> None:
    whole = path.read_bytes()
    body = sum(512 + -(-len(data) // 512) * 512 for data in WHOLE.values())
    for end in [0, 1, 511, 512, 700, 1024, 2048, body // 2, body - 512, body - 1, body]:
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"x-0\.tar: .*damaged"):
            Shards([path])


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.tar: there is no such shard"):
        Shards([tmp_path / "nothing.tar"])


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("a.png", b"no picture", "a.png: not a picture"),
        ("a.json", b"{", "a.json: not JSON"),
        ("a.json", b"[" * 100_000, "a.json: not JSON"),
        ("a.json", b"[1]", "must be a JSON object"),
        ("a.cls", b"seven", "must be a whole number"),
        ("a.txt", b"\xff", "a.txt: "),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, data: bytes, match: str) -> None:
    file = tmp_path / "x.tar"
    file.write_bytes(tar({name: data}))
    with pytest.raises(ValueError, match=match) as caught:
        Shards([file])[0]
    assert str(caught.value).startswith(str(file))


def test_a_shard_that_shrank_is_noticed(path: Path) -> None:
    shards = Shards([path])
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="became shorter"):
        shards[0]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_shards_raise_nothing_but_a_line(tmp_path: Path, draw: st.DataObject) -> None:
    layout = draw.draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    data = bytearray(tar({"b.txt": b"b", "d" * 60 + "/" + "n" * 90 + ".cls": b"1", "b.json": b"{}"}, layout))
    spot = st.one_of(st.integers(0, 5), st.integers(0, 511))
    for _ in range(draw.draw(st.integers(0, 5))):
        at = 512 * draw.draw(st.integers(0, 9)) + draw.draw(spot)
        data[at % len(data)] = draw.draw(st.sampled_from([0, 32, 48, 55, 57, 128, 255]))
    if draw.draw(st.booleans()):  # make the checksums right again, so that the fields themselves are read
        for at in range(0, len(data) - 512, 512):
            block = data[at : at + 512]
            if block[257:262] == b"ustar":
                total = sum(block) - sum(block[148:156]) + 8 * 32
                data[at + 148 : at + 156] = f"{total:06o}\0 ".encode()
    file = tmp_path / "mutated.tar"
    file.write_bytes(bytes(data[: draw.draw(st.integers(0, len(data)))] if draw.draw(st.booleans()) else data))
    try:
        shards = Shards([file])
        samples = [shards[i] for i in range(len(shards))]
    except ValueError as error:
        assert str(error).startswith(str(file))  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert all("key" in sample for sample in samples)
