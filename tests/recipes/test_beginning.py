"""A resume goes on with what the run began with, or says what has changed; two never train in one folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from fill import inp
from quick import features_are_means
from sfumato.cli.main import main
from sfumato.data.fingerprint import Fingerprint
from sfumato.io import first_stages, pictures, tensors
from sfumato.nets.autoencoder import AutoencoderSize
from sfumato.recipes import beginning, pixels
from sfumato.recipes.beginning import rests_on
from sfumato.recipes.settings import DiffusionTraining

SMALL = (
    *("size.channels=4", "size.mult=[1,2]", "size.latent_channels=2", "resolution=32", "run.crop=16"),
    *("run.plan.steps=4", "run.plan.batch=3", "run.plan.save=2", "run.losses.perceptual=0", "run.adversary=none"),
)
TINY = (
    *("width=4", "blocks=1", "resolution=32", "crop=16", "perceptual=0"),
    *("plan.steps=4", "plan.batch=3", "plan.save=2"),
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    features_are_means(monkeypatch)
    monkeypatch.chdir(tmp_path)
    for i in range(6):
        pictures.save_png((0.4 * inp(f"{i}", 3, 32, 40)).clamp(-1, 1), tmp_path / "data" / f"{i}.png", {})
    return tmp_path


def train(*arguments: str | Path) -> int:
    return main(["train", *map(str, arguments)])


def begun(out: str, *changes: str) -> None:
    assert train("kl-f4", "--data", "data", "--out", out, "--set", *SMALL, *changes) == 0


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert train(*arguments) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("sfumato: ")
    return said


def files(home: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in home.rglob("*") if p.is_file() and p.name != beginning.LOCK}


# Pictures -------------------------------------------------------------------------------------------------


def added(data: Path) -> None:
    shutil.copy(data / "0.png", data / "7.png")


def removed(data: Path) -> None:
    (data / "3.png").unlink()


def renamed(data: Path) -> None:
    (data / "3.png").rename(data / "9.png")


def replaced(data: Path) -> None:
    (data / "3.png").write_bytes((data / "3.png").read_bytes() + b"\0")


def described(data: Path) -> None:
    (data / "3.txt").write_text("a thing")


@pytest.mark.parametrize("change", [added, removed, renamed, replaced, described])
def test_other_pictures_are_refused(change: object, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun("run")
    before = files(home / "run")
    assert callable(change)
    change(home / "data")
    said = refused(capsys, "kl-f4", "--out", "run", "--resume")
    assert "the run began with other pictures than there are now (6, sha256 " in said
    assert files(home / "run") == before


def test_pictures_that_moved_are_the_same(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun("run")
    before = files(home / "run")
    (home / "data").rename(home / "moved")
    assert train("kl-f4", "--out", "run", "--resume", "--data", "moved") == 0, capsys.readouterr().err
    weights = str(home / "run" / "model" / "weights.safetensors")
    assert files(home / "run")[weights] == before[weights]


def test_the_same_pictures_are_not(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun("run")
    before = files(home / "run")
    assert train("kl-f4", "--out", "run", "--resume") == 0, capsys.readouterr().err
    assert files(home / "run") == before


# Other files ----------------------------------------------------------------------------------------------


def test_another_teacher_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where it has the same shape as where it has another."""
    begun("large")
    begun("other", "run.plan.seed=1")
    asked = ("tiny-decoder", "--data", "data", "--out", "run", "--set", "teacher=large", *TINY)
    assert train(*asked) == 0, capsys.readouterr().err
    shutil.rmtree(home / "large" / "model")
    shutil.copytree(home / "other" / "model", home / "large" / "model")
    said = refused(capsys, "tiny-decoder", "--out", "run", "--resume")
    assert "the run began with other weights of the first stage than there are now" in said


def test_a_teacher_is_found_from_any_folder(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun("large")
    asked = ("tiny-decoder", "--data", "data", "--out", "run", "--set", "teacher=large", *TINY)
    assert train(*asked) == 0, capsys.readouterr().err
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home / "elsewhere")
    assert train("tiny-decoder", "--out", home / "run", "--resume") == 0, capsys.readouterr().err
    stored = json.loads((home / "run" / "config.json").read_text())
    assert stored["settings"]["teacher"] == str(home / "large")


def test_files_and_weights_have_fingerprints(tmp_path: Path) -> None:
    """Of what they hold: the same tensors have the same one in any order, others another."""
    (tmp_path / "features").write_bytes(b"abc")
    some, same, others = (first_stages.stage_of(AutoencoderSize(channels=4, mult=(1,), blocks=1)) for _ in range(3))
    same.load_state_dict(some.state_dict())
    prints = [rests_on(Fingerprint(1000, "f"), tmp_path / "features", s) for s in (some, same, others)]
    assert prints[0] == prints[1]
    assert prints[0]["pictures"] == "1,000, sha256 f"
    assert prints[0]["features"] == "sha256 ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert {k for k in prints[0] if prints[0][k] != prints[2][k]} == {"weights of the first stage"}
    state = some.state_dict()
    assert tensors.digest(dict(reversed(state.items()))) == tensors.digest(state)
    assert tensors.digest({k: v.double() for k, v in state.items()}) != tensors.digest(state)


# Two at once, and what was refused ------------------------------------------------------------------------


def test_two_do_not_train_in_one_folder(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun("run")
    with FileLock(home / "run" / beginning.LOCK):
        said = refused(capsys, "kl-f4", "--out", "run", "--resume")
    assert "another process trains in run; wait for it, or choose another --out" in said
    assert train("kl-f4", "--out", "run", "--resume") == 0


def test_a_run_that_is_refused_leaves_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Too many damaged pictures are found by decoding them; the folder is free for another try."""
    data = (home / "data" / "3.png").read_bytes()
    (home / "data" / "3.png").write_bytes(data[: len(data) // 2])
    said = refused(capsys, "kl-f4", "--data", "data", "--out", "run", "--set", *SMALL)
    assert "1 of 6 pictures are damaged" in said
    assert not (home / "run").exists()
    (home / "data" / "3.png").write_bytes(data)
    begun("run")


def test_a_run_from_before_validation_holds_nothing_out(tmp_path: Path) -> None:
    """Else it would go on with other pictures."""
    settings = pixels.settings(None)
    stored = settings.model_dump(mode="json")
    for validation, expected in ((None, None), (7, 7)):
        stored["diffusion"]["validation"] = validation
        said = {"recipe": "pixels", "data": None, "rests on": {}, "settings": stored}
        (tmp_path / beginning.NAME).write_text(json.dumps(said))
        assert beginning.read(tmp_path, "pixels", DiffusionTraining).settings.diffusion.validation == expected
    del stored["diffusion"]["validation"]
    (tmp_path / beginning.NAME).write_text(json.dumps(said))
    assert beginning.read(tmp_path, "pixels", DiffusionTraining).settings.diffusion.validation == 0
