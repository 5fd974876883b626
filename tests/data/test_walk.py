"""The files below a folder: each once, whatever links there are, and no name leads out."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from folders import fill
from sfumato.data.listing import shown
from sfumato.data.walk import leaves, walk


def test_files_by_name_with_their_sizes_and_without_hidden_ones(tmp_path: Path) -> None:
    fill(tmp_path, {"b/a.txt": "12", "b.txt": "1", "b-c/x": "123", ".git/x": "", "b/.x": "", "._a.png": ""})
    files = walk(tmp_path)
    assert list(files.sizes.items()) == [("b-c/x", 3), ("b.txt", 1), ("b/a.txt", 2)]
    assert files.left_out == {}


def test_links_that_go_round_are_left_out(tmp_path: Path) -> None:
    root = fill(tmp_path / "top" / "root", {"a/b/x": "1", "y": "2"})
    fill(tmp_path / "top", {"secret": "0"})
    links = {"a/b/up": "..", "a/root": root, "above": tmp_path, "all": "/", "self": "self", "gone": "nowhere"}
    for name, target in links.items():
        (root / name).symlink_to(target)
    files = walk(root)
    assert files.sizes == {"a/b/x": 1, "y": 1}
    assert files.left_out.keys() == links.keys()
    assert {files.left_out[name] for name in ("a/b/up", "a/root", "above", "all")} == {
        "a link to a folder that is read already, or that lies above"
    }


def test_links_to_files_and_folders_elsewhere_are_followed_once(tmp_path: Path) -> None:
    fill(tmp_path / "else", {"x": "1", "sub/z": "3"})
    (tmp_path / "else" / "back").symlink_to(tmp_path / "root")
    root = fill(tmp_path / "root", {"y": "22"})
    for name, target in {"a": "else", "b": "else", "c": "else/x", "d": "root/y"}.items():
        (root / name).symlink_to(tmp_path / target)
    files = walk(root)
    assert files.sizes == {"a/sub/z": 1, "a/x": 1, "c": 1, "d": 2, "y": 2}
    assert list(files.left_out) == ["a/back", "b"]


def test_the_root_may_be_a_link(tmp_path: Path) -> None:
    fill(tmp_path / "real", {"x": "1"})
    (tmp_path / "link").symlink_to("real")
    assert walk(tmp_path / "link").sizes == {"x": 1}


def test_pipes_are_left_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert walk(tmp_path).left_out == {"a.png": "a pipe or a device"}


def test_a_folder_that_cannot_be_opened_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, {"a/x": "1", "b/y": "1"})
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if path.name == "a":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    files = walk(tmp_path)
    assert files.sizes == {"b/y": 1}
    assert files.left_out == {"a": "a folder that cannot be opened (Permission denied)"}


def test_a_thousand_folders_deep(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(1000):
        deep /= "d"
        deep.mkdir()
    (deep / "x").touch()
    found = walk(tmp_path)
    (deep / "x").unlink()  # before others try to remove it all, who go down by recursion
    for folder in (deep, *deep.parents[:999]):
        folder.rmdir()
    assert list(found.sizes) == ["d/" * 1000 + "x"]


@given(st.text(st.sampled_from("ab./\\:C")))
@example("a/../../b")
@example("..\\a")
@example("C:a")
@example("//server/share/a")
def test_a_name_that_does_not_leave_stays(name: str) -> None:
    if leaves(name):
        return
    depth = 0
    for part in PurePosixPath(name).parts:
        depth += -1 if part == ".." else 1
        assert depth >= 0
    assert not name.startswith(("/", "\\"))
    assert not (name[:1].isalpha() and name[1:2] == ":")


@given(st.text() | st.binary().map(os.fsdecode))
@example("a\nb\udcff\x1b[31m\u2028")
def test_names_can_be_printed_in_one_line(name: str) -> None:
    said = shown(name)
    assert said.encode().decode() == said
    assert len(said.splitlines()) <= 1
    assert "\x1b" not in said
    if name.isprintable():
        assert said == name
