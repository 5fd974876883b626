"""The tool that builds the emoji world refuses what is not pinned, and leaves nothing half-written."""

from __future__ import annotations

import importlib.util
import io
import shutil
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "build_emoji.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_emoji", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_emoji"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def run(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What is said on failure; that it is one line with status 2 and nothing written is checked here."""
    out = tmp_path / "out" / "world"
    assert tool.main(["--cache", str(tmp_path / "cache"), "--out", str(out)]) == 2
    assert list(out.parent.iterdir()) == []
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


def test_a_wrong_hash(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = tool.STYLES["3d"]
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / package.filename).write_bytes(b"something else")
    assert f"{package.sha256} is pinned" in run(tool, tmp_path, capsys)


def test_no_npm(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(_: str) -> None: ...

    monkeypatch.setattr(shutil, "which", nothing)
    assert "no npm client" in run(tool, tmp_path, capsys)


def test_a_package_that_npm_cannot_get(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def false(_: str) -> str | None:
        return sys.executable  # knows no command "pack"

    monkeypatch.setattr(shutil, "which", false)
    assert "npm could not get @lobehub/fluent-emoji-3d@1.1.0" in run(tool, tmp_path, capsys)


def test_a_folder_of_something_else_is_not_replaced(tool: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(SystemExit, match="2"):
        tool.main(["--out", str(tmp_path)])
    assert (tmp_path / "letters.txt").read_text() == "dear"


def test_a_tarball_may_not_leave_its_folder(tool: ModuleType, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tgz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("package/../../x"), io.BytesIO())
    with pytest.raises(tool.BuildError, match="leaves its folder"):
        list(tool.members(tmp_path / "x.tgz"))


@pytest.mark.parametrize(
    ("codes", "key"),
    [("1F34E", "1f34e"), ("0023-FE0F-20E3", "0023-20e3"), ("23-20e3", "0023-20e3"), ("a9-fe0f", "00a9")],
)
def test_keys_are_the_same_however_written(tool: ModuleType, codes: str, key: str) -> None:
    assert tool.key(codes) == key


ICONS: dict[str, Any] = {
    "prefix": "x",
    "width": 32,
    "height": 20,
    "icons": {"left": {"body": "<path/>", "left": 1}},
    "aliases": {
        "right": {"parent": "left", "hFlip": True},
        "again": {"parent": "right", "hFlip": True, "rotate": 3, "top": 2},
        "loop": {"parent": "loop"},
    },
}


def test_aliases_add_up(tool: ModuleType) -> None:
    plain = {"body": "<path/>", "left": 1, "top": 0, "width": 32, "height": 20}
    assert tool.icon(ICONS, "left") == {**plain, "rotate": 0, "hFlip": 0, "vFlip": 0}
    assert tool.icon(ICONS, "right") == {**plain, "rotate": 0, "hFlip": 1, "vFlip": 0}
    assert tool.icon(ICONS, "again") == {**plain, "top": 2, "rotate": 3, "hFlip": 0, "vFlip": 0}
    for name in ("loop", "nothing"):
        with pytest.raises(tool.BuildError, match="no body"):
            tool.icon(ICONS, name)


def test_a_turned_box_keeps_its_centre(tool: ModuleType) -> None:
    assert 'viewBox="7.0 -4.0 20 32"' in tool.document(tool.icon(ICONS, "again"), 64)


def test_shards_are_the_same_bytes_in_any_order(tool: ModuleType, tmp_path: Path) -> None:
    files = {"b.txt": b"2", "a.txt": b"1"}
    tool.shard(tmp_path / "0.tar", files)
    tool.shard(tmp_path / "1.tar", dict(reversed(files.items())))
    assert (tmp_path / "0.tar").read_bytes() == (tmp_path / "1.tar").read_bytes()
