"""A command line in a folder of its own, with a tiny model as the only bundled one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from console import Run, Said

import tiny
from fill import inp
from sfumato.cli.main import main
from sfumato.io import model_folder, pictures


@pytest.fixture(scope="session")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models, with one."""
    root = tmp_path_factory.mktemp("bundled")
    tiny.folder(root / "emoji")
    return root


@pytest.fixture
def home(bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a command runs in, with some files for it to read."""
    monkeypatch.setattr(model_folder, "BUNDLED", bundled)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    cut = Path(shutil.copytree(bundled / "emoji", tmp_path / "cut")) / "ema.safetensors"
    cut.write_bytes(cut.read_bytes()[:1000])
    picture = (0.5 * inp("init", 3, 16, 16)).clamp(-1, 1)
    for name in ("init.png", "captioned/0.png", "broken/0.png", "bare/0.png"):
        pictures.save_png(picture, tmp_path / name, {})
    pictures.save_png(torch.zeros(3, 16, 24), tmp_path / "wide.png", {})
    for name, text in {
        "empty.txt": "\n  \n",
        "not-a-picture.png": "hello",
        "captioned/0.txt": "a thing",
        "broken/metadata.jsonl": '{"file_name": "0.png", "text": "a thing"}\n{"file_name": 3}\n',
        "run/config.json": '{"recipe": "emoji"}',
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (tmp_path / "latin.txt").write_bytes(b"K\xe4se")
    return tmp_path


@pytest.fixture
def sfumato(home: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command: sfumato("generate", "a red apple", "--seed", 7)."""

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        return Said(code, *capsys.readouterr())

    return run
