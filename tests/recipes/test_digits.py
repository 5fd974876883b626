"""The recipe `pixels`, from a folder of classes to pictures of the class that is asked for."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fill import inp
from sfumato.cli.main import main
from sfumato.generate import generate
from sfumato.io import opening, pictures
from sfumato.models.config import LabelsConfig
from sfumato.recipes import RECIPES
from sfumato.recipes.diffusion import run
from sfumato.request import Request

HOME = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def digits() -> ModuleType:
    """The benchmark, which is what the documents cite."""
    spec = importlib.util.spec_from_file_location("digits", HOME / "benchmarks" / "digits.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def folder(root: Path, sides: tuple[int, ...] = (11, 12, 13), classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    for name in classes:
        for i, side in enumerate(sides):
            image = (0.4 * inp(f"{name} {i}", 3, side, side + 2)).clamp(-1, 1)
            pictures.save_png(image, root / name / f"{i}.png", {})
    return root


@pytest.mark.parametrize(("sides", "expected"), [((3, 5), 8), ((13, 14, 15), 12), ((50, 60, 70), 32)])
def test_the_side_is_that_of_the_pictures(sides: tuple[int, ...], expected: int, tmp_path: Path) -> None:
    assert RECIPES["pixels"].settings(folder(tmp_path, sides)).model.resolution == expected


def test_classes_are_counted_and_one_more_stands_for_none(tmp_path: Path) -> None:
    settings = RECIPES["pixels"].settings(folder(tmp_path / "classes"))
    assert settings.model.conditioner == LabelsConfig(classes=3, dim=64, null=2)
    pictures.save_png(inp("x", 3, 9, 9).clamp(-1, 1), tmp_path / "plain" / "a.png", {})
    assert RECIPES["pixels"].settings(tmp_path / "plain").model.conditioner is None


SMALL = (
    *("model.unet.width=8", "model.unet.head_dim=8"),
    *("diffusion.plan.steps=4", "diffusion.plan.batch=3", "diffusion.plan.save=2", "diffusion.plan.warmup=1"),
    *("defaults.steps=2", "model.conditioner.dim=16", "model.unet.context_dim=16"),
)


def test_from_a_folder_to_a_picture_of_a_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder(tmp_path / "data")
    home = tmp_path / "run"
    assert main(["train", "pixels", "--data", str(data), "--out", str(home), "--set", *SMALL]) == 0
    loaded = opening.load(home)
    assert loaded.file.provenance["material"] == "6 pictures of the folder data, classes 0 cat, 1 dog"
    assert loaded.file.provenance["pictures"]["diffusion"] == 6
    assert not (home / "latents").exists()
    asked = ["generate", "--model", str(home), "--label", "1", "--json", "--out", str(tmp_path / "made")]
    capsys.readouterr()
    assert main(asked) == 0, capsys.readouterr().err
    (found,) = json.loads(capsys.readouterr().out)["pictures"]
    assert found["request"]["label"] == 1
    again = generate(loaded, [Request(label=1, seed=found["request"]["seed"])]).images[0]
    torch.testing.assert_close(pictures.read(Path(found["file"])), again.clamp(-1, 1), rtol=0, atol=1 / 255)
    assert main(["generate", "--model", str(home), "--label", "7"]) == 2
    assert "label 7 is out of range" in capsys.readouterr().err


def test_a_killed_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    data = folder(tmp_path / "data")
    assert main(["train", "pixels", "--data", str(data), "--out", str(tmp_path / "a"), "--set", *SMALL]) == 0
    recipe = RECIPES["pixels"]
    settings = type(recipe.settings(data)).model_validate(
        json.loads((tmp_path / "a" / "config.json").read_text())["settings"]
    )
    events = run(settings, recipe.material(data, settings), tmp_path / "b")
    while not any((tmp_path / "b" / "diffusion").glob("step-2/manifest.json")):
        next(events)
    events.close()  # type: ignore[attr-defined]
    list(run(settings, recipe.material(data, settings), tmp_path / "b"))
    for name in ("model/ema.safetensors", "model/model.json", "samples/step-4.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_classes_that_are_not_there_are_asked_for_in_a_line(tmp_path: Path) -> None:
    settings = RECIPES["pixels"].settings(folder(tmp_path / "classes"))
    plain = RECIPES["pixels"].material(None, settings)
    with pytest.raises(ValueError, match=r"^the pictures have no classes \(emoji world, all styles\); put those of a"):
        run(settings, plain, tmp_path / "run")


@pytest.mark.slow
def test_digits_are_read_as_they_were_asked_for(digits: ModuleType, tmp_path: Path) -> None:
    """By a classifier that learnt from real ones. 90 % is the promise; and they are no copies of the real ones."""
    data = digits.written(tmp_path / "data")
    digits.trained(data, tmp_path / "run", [])
    found = digits.judged(opening.load(tmp_path / "run"), data, 500)
    assert found["real digits read right"] > 0.95
    assert found["read as asked"] >= 0.9
    assert found["distance to the nearest real digit"] > 0.5 * found["of a real one to the nearest other"]
