"""Tensors come out of a file as they went in, without being read; whatever is wrong is said in a line that names it."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save, save_file

from hostile import DATA, field, headed, opened, pickled, refusal, table, tensor, zipped
from sfumato.io import ckpt, safetensors_file
from sfumato.io.head import FREE
from sfumato.io.stored import open_stored

SOURCES = Path(ckpt.__file__).parents[1]
TYPES = sorted(safetensors_file.TYPES.values(), key=str)


def numbers(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Random bytes of a type; no NaN matters, for bits are compared."""
    generator = torch.Generator().manual_seed(1)
    many = torch.randint(0, 2 if dtype is torch.bool else 100, shape, generator=generator)
    return many.to(dtype)


def bits(value: torch.Tensor) -> bytes:
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some file.bin"  # an ending that says nothing


# What is in the file --------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("writer", ["safetensors", "torch"])
def test_every_type_comes_back_bit_by_bit(path: Path, dtype: torch.dtype, writer: str) -> None:
    tensors = {
        "a": numbers(dtype, 3, 5),
        "b.c": numbers(dtype),
        "empty": numbers(dtype, 0, 4),
        "long": numbers(dtype, 7),
    }
    save_file(tensors, path) if writer == "safetensors" else torch.save(tensors, path)
    stored = open_stored(path)
    assert stored.path == path
    assert stored.entries.keys() == tensors.keys()
    for name, value in tensors.items():
        found = stored.tensor(name)
        assert (stored.entries[name].shape, stored.entries[name].dtype) == (tuple(value.shape), dtype)
        assert (found.shape, found.dtype, found.stride()) == (value.shape, dtype, value.stride())
        assert bits(found) == bits(value)


def test_metadata_of_safetensors_are_its_texts(path: Path) -> None:
    save_file({"a": torch.ones(1)}, path, metadata={"format": "pt", "ss_tag": '{"a": [1, 2]}', "日": "本"})
    assert open_stored(path).metadata == {"format": "pt", "ss_tag": '{"a": [1, 2]}', "日": "本"}


def test_numbers_that_lie_across_their_alignment_are_copied(path: Path) -> None:
    header = {"odd": field("U8", (1,), 0, 1), "w": field("F32", (2, 3), 1, 25)}
    stored = opened(path, headed(header, b"\x07" + DATA))
    assert bits(stored.tensor("w")) == DATA
    assert stored.tensor("w").data_ptr() % 4 == 0
    assert stored.tensor("odd").item() == 7


@pytest.mark.parametrize("writer", ["safetensors", "torch"])
def test_writing_into_a_tensor_leaves_the_file_alone(path: Path, writer: str) -> None:
    tensors = {"a": torch.arange(6.0), "b": torch.ones(2, 2)}
    save_file(tensors, path) if writer == "safetensors" else torch.save(tensors, path)
    before = path.read_bytes()
    found = open_stored(path).tensor("a")
    found.mul_(-1)
    assert torch.equal(found, -torch.arange(6.0))
    assert path.read_bytes() == before
    assert torch.equal(open_stored(path).tensor("a"), torch.arange(6.0))


def test_a_tensor_outlives_the_file_and_what_opened_it(path: Path) -> None:
    save_file({"a": torch.arange(10_000.0)}, path)
    found = open_stored(path).tensor("a")
    path.unlink()
    assert torch.equal(found, torch.arange(10_000.0))
    assert torch.equal(copy.deepcopy(found), found)
    assert found.untyped_storage().nbytes() == 40_000  # a copy or a save of it is not one of the file


def test_nothing_is_copied(path: Path) -> None:
    """Both reads see one piece of memory."""
    save_file({"a": torch.zeros(4)}, path)
    stored = open_stored(path)
    stored.tensor("a").fill_(3)
    assert torch.equal(stored.tensor("a"), torch.full((4,), 3.0))


def test_the_default_device_is_not_asked(path: Path) -> None:
    save_file({"a": torch.ones(2), "e": torch.ones(0)}, path)
    with torch.device("meta"):
        stored = open_stored(path)
        assert all(stored.tensor(name).device.type == "cpu" for name in stored.entries)


def test_a_name_that_is_not_there(path: Path) -> None:
    stored = opened(path, save({"a": torch.ones(1)}))
    with pytest.raises(ValueError, match=r"holds no tensor 'b\\nc'$"):
        stored.tensor("b\nc")


@given(
    st.dictionaries(
        st.text(max_size=5).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(TYPES), st.lists(st.integers(0, 4), max_size=3)),
        min_size=1,
        max_size=6,
    )
)
def test_what_is_read_is_what_the_library_reads(
    tmp_path_factory: pytest.TempPathFactory, made: dict[str, tuple[torch.dtype, list[int]]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "drawn"
    path.write_bytes(save({name: numbers(dtype, *shape) for name, (dtype, shape) in made.items()}))
    stored = open_stored(path)
    with safe_open(path, "pt") as theirs:
        assert set(theirs.keys()) == set(stored.entries)
        for name in stored.entries:
            mine, other = stored.tensor(name), theirs.get_tensor(name)
            assert (mine.shape, mine.dtype, bits(mine)) == (other.shape, other.dtype, bits(other))


GROWTH = """
import sys, resource
from pathlib import Path
from sfumato.io.stored import open_stored
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
def mapped(): return int(Path("/proc/self/statm").read_text().split()[0]) // 256
for path in sys.argv[1:]:
    before, space = peak(), mapped()
    stored = open_stored(Path(path))
    found = stored.tensor("big")
    assert found.nbytes == 4 << 30, found.nbytes
    assert found[-1] == 0
    found[12345] = 1
    print(peak() - before, mapped() - space)
    del stored, found
"""


def test_four_gigabytes_cost_no_memory(tmp_path: Path) -> None:
    size, paths = 4 << 30, (tmp_path / "a.safetensors", tmp_path / "a.ckpt")
    paths[0].write_bytes(headed({"big": field("U8", (size,), 0, size)}, b""))
    os.truncate(paths[0], paths[0].stat().st_size + size)
    sparse_checkpoint(paths[1], size)
    environment = {**os.environ, "PYTHONPATH": str(SOURCES.parent)}
    run = subprocess.run(
        [sys.executable, "-c", GROWTH, *map(str, paths)], capture_output=True, text=True, env=environment, check=True
    )
    for line in run.stdout.splitlines():
        resident, space = map(int, line.split())
        assert resident < 20  # MiB
        assert 4096 <= space < 4096 + 100
    assert len(run.stdout.splitlines()) == 2


def sparse_checkpoint(path: Path, size: int) -> None:
    """A storage of zeros that takes no room on the disk: the zip of a small one, with its end moved."""
    of = b"(" + b"X\x07\0\0\0storage" + b"ctorch\nByteStorage\n" + b"X\x01\0\0\x000X\x03\0\0\0cpu"
    index = pickled(table(big=tensor((size,), (1,), of=of + b"\x8a\x05" + size.to_bytes(5, "little") + b"tQ")))
    small = zipped(index, {"0": b""})
    directory = small.index(b"PK\x01\x02")
    first, second = small[directory:].split(b"PK\x01\x02")[1:]
    second, end = second.split(b"PK\x05\x06")
    wide = b"\x01\0\x10\0" + 2 * size.to_bytes(8, "little")
    record = bytearray(b"PK\x01\x02" + second + wide)
    record[20:28], record[30:32] = b"\xff" * 8, len(wide).to_bytes(2, "little")
    local = bytearray(small[:directory])
    at = local.rindex(b"PK\x03\x04")
    local[at + 18 : at + 26] = b"\xff" * 8
    records = b"PK\x01\x02" + first + bytes(record)
    start = directory + size
    end64 = b"PK\x06\x06" + (44).to_bytes(8, "little") + bytes(12) + 2 * (2).to_bytes(8, "little")
    end64 += len(records).to_bytes(8, "little") + start.to_bytes(8, "little")
    locator = b"PK\x06\x07" + bytes(4) + (start + len(records)).to_bytes(8, "little") + (1).to_bytes(4, "little")
    tail = bytearray(b"PK\x05\x06" + end)
    tail[12:20] = len(records).to_bytes(4, "little") + b"\xff" * 4
    with path.open("wb") as file:
        file.write(local)
        file.seek(start)
        file.write(records + end64 + locator + tail)


# What is wrong with it ------------------------------------------------------------------------------------
def test_a_missing_file_a_folder_and_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path / "none", r"cannot be opened \(No such file"),
        (tmp_path, "is a folder; give the"),
        (tmp_path / "pipe", "is a pipe or a device"),
        (Path("/dev/zero"), "is a pipe or a device"),
        (tmp_path / "a\0b", "null byte"),
    ):
        with pytest.raises(ValueError, match=words):
            open_stored(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(path: Path) -> None:
    path.write_bytes(save({"a": torch.ones(1)}))
    path.chmod(0)
    with pytest.raises(ValueError, match=r"cannot be opened \(Permission denied\)"):
        open_stored(path)


def test_what_else_is_called_a_checkpoint(path: Path, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "old", _use_new_zipfile_serialization=False)
    with tarfile.open(tmp_path / "tar", "w") as tar:
        tar.add(tmp_path / "old", "data.pkl")
    whole = zipped(pickled(table(a=tensor())))
    for data, words in (
        (b"", "is empty; get it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a", "is a git-lfs pointer"),
        (b"<!DOCTYPE html><html><head><title>Sign in</title>", "is a web page"),
        (b"\xef\xbb\xbf \n<html>", "is a web page"),
        ((tmp_path / "old").read_bytes(), "was saved by torch before 1.6"),
        (pickled(b"}"), "is a bare pickle"),
        ((tmp_path / "tar").read_bytes(), "is a tar archive"),
        (b"\x1f\x8b\x08" + whole, "is compressed with gzip"),
        (b"GGUF\x03\0\0\0" + bytes(100), "is a GGUF file"),
        (b'{"error": "not found"}', "is neither a safetensors file nor"),
        (b"\0", "is neither a safetensors file nor"),
        (bytes(1000), "is neither a safetensors file nor"),
        (b"PK\x05\x06" + bytes(18), "is an empty zip"),
    ):
        assert refusal(path, data).startswith(words)


WHOLE = {
    "safetensors": headed({"a": field(end=12, shape=(3,)), "b": field(start=12, shape=(3,))}),
    "zip": zipped(pickled(table(a=tensor())), byteorder=b"little", version=b"3\n"),
}


def saved(tmp_path: Path) -> bytes:
    torch.save({"a": torch.arange(6.0), "b": torch.ones(3)}, tmp_path / "saved")
    return (tmp_path / "saved").read_bytes()


@pytest.mark.parametrize("kind", ["safetensors", "zip", "torch"])
def test_no_part_of_a_file_is_taken_for_the_whole(path: Path, tmp_path: Path, kind: str) -> None:
    whole = WHOLE[kind] if kind in WHOLE else saved(tmp_path)
    assert opened(path, whole).entries
    for length in {*range(0, len(whole), 7), *range(len(whole) - 120, len(whole))}:
        refusal(path, whole[:length])
    for surplus in (b"\0", b"\n", whole[:50], whole[-22:], whole, b"PK\x05\x06" + bytes(18)):
        refusal(path, whole + surplus)
        refusal(path, surplus + whole)


@pytest.mark.parametrize("kind", ["safetensors", "zip", "torch"])
def test_no_shuffled_file_passes_for_another(path: Path, tmp_path: Path, kind: str) -> None:
    """Blocks in another order: refused, unless only numbers moved, which nothing can tell."""
    whole = WHOLE[kind] if kind in WHOLE else saved(tmp_path)
    names = opened(path, whole).entries
    step = 16
    blocks = [whole[i : i + step] for i in range(0, len(whole), step)]
    refused = 0
    for i in range(len(blocks) - 1):
        moved = [*blocks[:i], blocks[i + 1], blocks[i], *blocks[i + 2 :]]
        try:
            assert opened(path, b"".join(moved)).entries == names
        except ValueError:
            refused += 1
    assert refused >= 4


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (
            b'{"a":' + json.dumps(field()).encode() + b',"a":' + json.dumps(field()).encode() + b"}",
            "it holds 'a' twice",
        ),
        (b'{"a":{"dtype":"F32","dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}', "it holds 'dtype' twice"),
        (b'{"__metadata__":{"x":"1","x":"2"},"a":' + json.dumps(field()).encode() + b"}", "it holds 'x' twice"),
        ({"__metadata__": {"x": 1}, "a": field()}, "its metadata are not texts"),
        ({"__metadata__": None, "a": field()}, "its metadata are not texts"),
        ({"a": field("F33")}, r"holds 'a' as 'F33'; the types read are F64, F32"),
        ({"a": field(shape=(2, 4))}, "the size of 'a' is not that of its data"),
        ({"a": field(start=24, end=0)}, "the size of 'a' is not that of its data"),
        ({"a": field(start=0, end=-24)}, "its header holds the number '-24'"),
        (b'{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24.0]}}', "describes 'a' wrongly"),
        (b'{"a":{"dtype":"F32","shape":[2,true],"data_offsets":[0,8]}}', "describes 'a' wrongly"),
        (b'{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,NaN]}}', "its header holds NaN"),
        (b'{"a":{"dtype":["F32"],"shape":[2,3],"data_offsets":[0,24]}}', "describes 'a' wrongly"),
        ({"a": {**field(), "more": 1}}, "describes 'a' wrongly"),
        ({"a": []}, "describes 'a' wrongly"),
        ({"a": {**field(), "data_offsets": [0]}}, "the size of 'a' is not that of its data"),
        ({"a": field(shape=(9**18, 9**18))}, "a tensor in it is larger than any memory"),
        ({"a": field(), "b": field()}, "'b' does not begin where the tensor before it ends"),
        ({"a": field(start=4, shape=(5,))}, "'a' does not begin where the tensor before it ends"),
        ({"a": field(end=20, shape=(5,))}, "has 4 bytes behind its last tensor"),
        ({"a": field(end=28, shape=(7,))}, "is cut short: it should have"),
        (b'{"\\ud800":' + json.dumps(field()).encode() + b"}", "half a character beside '\\ud800'"),
        (b'{"__metadata__":{"x":"\\udfff"}}', "half a character beside 'x'"),
        ({}, "has 24 bytes behind its last tensor"),
        (b"{}" + b"[0]", "its header is not JSON"),
        (b"{" + b"[" * 100_000, "its header is not JSON"),
        (b'{"a' + b"\xff" + b'":1}', "its header is not JSON"),
        (b'{"a\n":1}', "its header is not JSON"),
        (b'{"a":1}]', "its header is not JSON"),
        (b'{"\\', "its header is not JSON"),
    ],
)
def test_headers_that_contradict_themselves(path: Path, header: object, words: str) -> None:
    assert words in refusal(path, headed(header))


def test_a_header_cannot_ask_for_memory(path: Path) -> None:
    """Lengths beyond the file, beyond the library's limit, and 20 MB that would be gigabytes of lists."""
    assert "points past its end" in refusal(path, (1 << 20).to_bytes(8, "little") + b"{}")
    path.write_bytes((101_000_000).to_bytes(8, "little") + b"{}")
    os.truncate(path, 200_000_000)
    with pytest.raises(ValueError, match="at most 100,000,000 are read"):
        open_stored(path)
    for header, words in (
        (b'{"a":[' + b"[]," * 7_000_000 + b"[]]}", "describes far more"),
        (b'{"a":"' + b'","' * 7_000_000 + b'"}', "describes far more"),
        (b'{"' + b'\\"' * 5_000_000, "its header is not JSON"),
        ('{"__metadata__":{"x":"😀'.encode() + b"x" * 5_000_000 + b'"}}', "has 24 bytes behind"),
    ):
        path.write_bytes(headed(header))
        tracemalloc.start()
        with pytest.raises(ValueError, match=words):
            open_stored(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * path.stat().st_size + FREE


def test_names_from_a_file_do_not_break_the_line(path: Path) -> None:
    name = "a\n\x1b[31m" + "x" * 10_000
    line = refusal(path, headed({name: []}))
    assert len(line) < 300
    assert "\x1b" not in line


def test_no_source_reads_pickles_otherwise() -> None:
    for file in SOURCES.rglob("*.py"):
        source = file.read_text()
        for word in ("pickle.load", "torch.load", "import pickle", "Unpickler", "from pickle", "pickletools.genops"):
            assert word not in source, f"{file} has {word}"
