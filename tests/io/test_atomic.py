"""A reader sees all of a file or folder, or what was there before; nothing half-written stays."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sfumato.io import atomic


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


def refuse(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_file_is_written_and_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.bin"
    atomic.write_bytes(path, b"one")
    atomic.write_bytes(path, b"two, longer")
    assert path.read_bytes() == b"two, longer"
    assert names(path.parent) == ["file.bin"]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    path = tmp_path / "file.bin"
    atomic.write_bytes(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse) if broken == "fsync" else patch.setattr(Path, "replace", refuse)
        with pytest.raises(OSError, match=f"No space left on device: '{path}'$") as caught:
            atomic.write_bytes(path, b"new")
    assert caught.value.errno == 28
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


def test_a_full_disk_is_said_of_a_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", refuse)
    with (
        pytest.raises(OSError, match=f"No space left on device: '{tmp_path / 'model'}'$"),
        atomic.folder(tmp_path / "model") as folder,
    ):
        (folder / "a").write_text("a")
    assert names(tmp_path) == []


def test_errors_that_say_what_they_are_of_stay_as_they_are(tmp_path: Path) -> None:
    for error in (FileNotFoundError(2, "No such file or directory", "other"), OSError("a line of our own")):
        with pytest.raises(OSError, match=f"^{re.escape(str(error))}$"), atomic.file(tmp_path / "x"):
            raise error
    assert names(tmp_path) == []


LIMITED = """
import resource, signal, sys
from pathlib import Path
from sfumato.io import atomic
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for length in (2_000, 200_000):  # what is still in a buffer when the file is closed, and what is not
    try:
        atomic.write_bytes(Path(sys.argv[1]), bytes(length))
    except OSError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="files have no limit there")
def test_a_file_that_may_not_be_so_large_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    said = subprocess.run([sys.executable, "-c", LIMITED, path], capture_output=True, text=True, check=True)
    assert said.stdout == f"[Errno 27] File too large: '{path}'\n" * 2
    assert names(tmp_path) == []


def test_a_file_is_not_there_before_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "file.bin", []
    sync = os.fsync

    def look(descriptor: int) -> None:
        seen.append((path.exists(), len(names(tmp_path))))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    atomic.write_bytes(path, b"all")
    assert seen == [(False, 1), (True, 1)]  # to the disk under another name, then the folder's entry


def test_a_folder_takes_its_place_at_the_end(tmp_path: Path) -> None:
    home = tmp_path / "model"
    for content in ("one", "two"):
        with atomic.folder(home) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / content).write_text(content)
            assert not (home / "sub" / content).exists()
    assert names(home / "sub") == ["two"]
    assert names(tmp_path) == ["model"]


def half(path: Path) -> None:
    with atomic.folder(path) as folder:
        (folder / "a").write_text("bad")
        raise RuntimeError("half way")


def test_a_block_that_raises_leaves_what_was_there(tmp_path: Path) -> None:
    home = tmp_path / "model"
    for name in ("new", "model"):
        with atomic.folder(home) as folder:
            (folder / "a").write_text("good")
        with pytest.raises(RuntimeError, match="half way"):
            half(tmp_path / name)
        assert names(tmp_path) == ["model"]
        assert (home / "a").read_text() == "good"


def test_what_a_killed_process_left_is_no_obstacle(tmp_path: Path) -> None:
    left = tmp_path / f".model.{os.getpid()}.tmp"
    left.mkdir()
    (left / "junk").write_text("junk")
    with atomic.folder(tmp_path / "model") as folder:
        assert names(folder) == []
    assert names(tmp_path) == ["model"]


def test_where_nothing_can_be_written_is_said_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    for good in (tmp_path, tmp_path / "new" / "deep"):
        atomic.check_writable(good)
    for bad in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"/file is a file; choose another place$"):
            atomic.check_writable(bad)
    monkeypatch.setattr(os, "access", lambda *_: False)  # tests may run as root, who may do all
    with pytest.raises(ValueError, match=r"new cannot be written, .* does not allow it; choose another place$"):
        atomic.check_writable(tmp_path / "new")
    assert names(tmp_path) == ["file"]


def test_a_new_file_takes_no_place_of_another(tmp_path: Path) -> None:
    atomic.write_bytes(tmp_path / "a", b"first", new=True)
    with pytest.raises(FileExistsError):
        atomic.write_bytes(tmp_path / "a", b"second", new=True)
    assert (tmp_path / "a").read_bytes() == b"first"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    atomic.write_bytes(tmp_path / "a", b"third")
    assert (tmp_path / "a").read_bytes() == b"third"
