"""What the commands write and print, and what they are told in which way."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from console import Run
from PIL import Image

import tiny
from sfumato import __version__
from sfumato.cli import main as entry
from sfumato.cli.main import VERBS
from sfumato.diffusion.samplers import SAMPLERS
from sfumato.io import model_folder, pictures, tensors
from sfumato.recipes import RECIPES
from sfumato.recipes.events import Ready
from sfumato.recipes.settings import DiffusionTraining

HEARD = ("file", "tokens", "tokens_dropped", "words_unknown", "boxes_dropped")


def made(home: Path, folder: str = "pictures") -> list[str]:
    return sorted(p.name for p in (home / folder).iterdir())


# generate -------------------------------------------------------------------------------------------------


def test_pictures_are_written_and_named(sfumato: Run, home: Path) -> None:
    said = sfumato("generate", "A red apple, 3d!", "two dogs", "-n", 2, "--seed", 7)
    assert said.code == 0
    assert said.err == ""
    names = ["a-red-apple-3d-7.png", "a-red-apple-3d-8.png", "two-dogs-7.png", "two-dogs-8.png"]
    assert made(home) == names
    seeds = [7, 8, 7, 8]
    assert said.out.splitlines() == [f"pictures/{n}  (seed {s})" for n, s in zip(names, seeds, strict=True)]
    again = sfumato("generate", "A red apple, 3d!", "--seed", 7)
    assert again.out == "pictures/a-red-apple-3d-7_2.png  (seed 7)\n"
    first, second = (pictures.read(home / "pictures" / f"a-red-apple-3d-7{x}.png") for x in ("", "_2"))
    assert (first - second).abs().max() < 1.5 / 127.5  # one level: a batch of another size rounds differently


def test_a_seed_that_is_drawn_is_said(sfumato: Run, home: Path) -> None:
    outs = [sfumato("generate", "x").out for _ in range(2)]
    seeds = [re.search(r"x-(\d+)\.png  \(seed (\d+)\)", out) for out in outs]
    assert all(match and match[1] == match[2] for match in seeds)
    assert outs[0] != outs[1]


def test_prompts_from_a_file(sfumato: Run, home: Path) -> None:
    (home / "prompts.txt").write_text("ein Stück Käse\n\n  two dogs  \n", encoding="utf-8")
    assert sfumato("generate", "first", "--from-file", "prompts.txt", "--seed", 1, "--out", "a/b").code == 0
    assert made(home, "a/b") == ["ein-stück-käse-1.png", "first-1.png", "two-dogs-1.png"]
    found = pictures.parameters_of(home / "a/b/ein-stück-käse-1.png")
    assert found["request"]["prompt"] == "ein Stück Käse"


def test_an_empty_prompt_is_a_prompt(sfumato: Run, home: Path) -> None:
    assert sfumato("generate", "", "--seed", 1).code == 0
    assert made(home) == ["picture-1.png"]


def test_a_picture_says_how_it_was_made(sfumato: Run, home: Path) -> None:
    sfumato("generate", "a red apple, 3d", "--seed", 7, "--negative", "dogs", "--size", "24X16", "--steps", 2)
    path = home / "pictures" / "a-red-apple-3d-7.png"
    found = pictures.parameters_of(path)
    file = model_folder.describe("emoji")
    assert found == {
        "format": 1,
        "model": {"name": "tiny", "weights": "ema", "sha256": file.weights["ema"].sha256},
        "request": {
            "prompt": "a red apple, 3d",
            "negative": "dogs",
            "sampler": "dpmpp_2m",
            "spacing": "trailing",
            "steps": 2,
            "guidance": 2.0,
            "seed": 7,
            "n": 1,
            "size": [24, 16],
            "rescale": 0.0,
            "variation_seed": 0,
            "variation_strength": 0.0,
            "tiling": False,
            "feather": 2,
            "inversion": False,
            "source": "",
        },
    }
    with Image.open(path) as picture:
        assert picture.size == (24, 16)
        assert picture.info["parameters"].splitlines()[0] == "a red apple, 3d"


def test_json_is_one_object_and_nothing_else(sfumato: Run, home: Path) -> None:
    said = sfumato("generate", "ein Käse", "-n", 2, "--seed", 7, "--json", "--init", "init.png")
    assert said.code == 0
    assert said.err == "words that the model was never shown: ein, kase\n"
    found: dict[str, Any] = json.loads(said.out)
    assert said.out.count("\n") == 1
    assert found["weights"] == "ema"
    assert [p["request"]["seed"] for p in found["pictures"]] == [7, 8]
    for one in found["pictures"]:
        inside = pictures.parameters_of(home / one["file"])
        assert {k: v for k, v in one.items() if k not in HEARD} == inside
        assert one["words_unknown"] == ["ein", "kase"]
        assert inside["init"]["file"] == "init.png"
    assert len(made(home)) == 2


def test_what_was_not_read_of_a_prompt_is_said_beside(sfumato: Run, home: Path) -> None:
    said = sfumato("generate", "red " * 20, "--seed", 7, "--json")
    assert " ".join(said.err.split()) == "the last 12 tokens of the prompt were not read; the model reads 10"
    (one,) = json.loads(said.out)["pictures"]
    assert (one["tokens"], one["tokens_dropped"]) == (10, 12)


def test_dashes_and_underscores_are_alike(sfumato: Run, home: Path) -> None:
    (home / "prompts.txt").write_text("two dogs")
    dashed = sfumato("generate", "--from-file", "prompts.txt", "--seed", 3, "--out", "a")
    scored = sfumato("generate", "--from_file", "prompts.txt", "--seed", 3, "--out", "b")
    assert (dashed.code, scored.code) == (0, 0)
    assert made(home, "a") == made(home, "b") == ["two-dogs-3.png"]


# reproduce ------------------------------------------------------------------------------------------------


def test_a_picture_can_be_made_again(sfumato: Run, home: Path) -> None:
    sfumato("generate", "a red apple, 3d", "--seed", 7, "--sampler", "ddpm", "--guidance", 3)
    path = "pictures/a-red-apple-3d-7.png"
    said = sfumato("reproduce", path, "--model", "emoji", "--out", "again.png")
    assert (said.code, said.out, said.err) == (0, "largest pixel difference: 0 of 255\n", "")
    assert pictures.parameters_of(home / "again.png") == pictures.parameters_of(home / path)
    said = sfumato("reproduce", path, "--model", "emoji", "--json")
    assert json.loads(said.out) == {"largest_difference": 0, "of": 255, "same_model": True}


def test_a_picture_of_a_batch_can_be_made_again_alone(sfumato: Run, home: Path) -> None:
    """To a level of 255: another batch size rounds differently (`tests/generate` shows that it is rounding)."""
    sfumato("generate", "two dogs", "--seed", 7, "-n", 4)
    for seed in (7, 10):
        said = sfumato("reproduce", f"pictures/two-dogs-{seed}.png", "--model", "emoji", "--json")
        assert json.loads(said.out)["largest_difference"] <= 1


def test_a_picture_from_a_picture_can_be_made_again(sfumato: Run, home: Path) -> None:
    sfumato("generate", "two dogs", "--seed", 7, "--init", "init.png", "--strength", 0.5)
    said = sfumato("reproduce", "pictures/two-dogs-7.png", "--model", "emoji", "--init", "init.png")
    assert said.out == "largest pixel difference: 0 of 255\n"


def test_another_model_is_noticed(sfumato: Run, home: Path) -> None:
    sfumato("generate", "two dogs", "--seed", 7)
    tiny.folder(home / "other", seed=5)
    said = sfumato("reproduce", "pictures/two-dogs-7.png", "--model", "other", "--json")
    found = json.loads(said.out)
    assert found["same_model"] is False
    assert found["largest_difference"] > 5
    said = sfumato("reproduce", "pictures/two-dogs-7.png", "--model", "other")
    assert said.out.splitlines()[0] == "the model is not the one that made the picture (its weights differ)"


def test_a_changed_picture_is_noticed(sfumato: Run, home: Path) -> None:
    sfumato("generate", "two dogs", "--seed", 7)
    path = home / "pictures" / "two-dogs-7.png"
    image = pictures.read(path)
    image[0, 3, 4] += 40 / 127.5 if image[0, 3, 4] < 0 else -40 / 127.5
    pictures.save_png(image, path, pictures.parameters_of(path))
    assert sfumato("reproduce", path, "--model", "emoji").out == "largest pixel difference: 40 of 255\n"


def test_a_masked_and_extended_picture_keeps_its_pixels_and_is_made_again(sfumato: Run, home: Path) -> None:
    picture, white = pictures.read(home / "init.png"), torch.full((3, 16, 16), -1.0)
    white[:, 4:9, 4:9] = 1
    pictures.save_png(white, home / "mask.png", {})
    common = ("generate", "x", "--seed", 1, "--init", "init.png", "--mask", "mask.png", "--steps", 3)
    assert sfumato(*common).code == 0
    assert sfumato(*common, "--extend", "0,8,8,0", "--out", "wide").code == 0
    for path, place in (("pictures/x-1.png", (0, 0)), ("wide/x-1.png", (8, 0))):
        top, left = place
        made_ = pictures.read(home / path)[:, top : top + 16, left : left + 16]
        kept = white < 0
        assert torch.equal(made_[kept], picture[kept])
        assert not torch.equal(made_, picture)
        again = ("reproduce", path, "--model", "emoji", "--init", "init.png")
        assert sfumato(*again, "--mask", "mask.png").out == "largest pixel difference: 0 of 255\n"
        assert "was painted through a mask; give it with --mask" in sfumato(*again).err
        assert "its pixels differ" in sfumato(*again, "--mask", "init.png").err
    assert pictures.read(home / "wide/x-1.png").shape == (3, 24, 24)


def test_variations_of_a_seed_are_told_apart(sfumato: Run, home: Path) -> None:
    said = sfumato("generate", "x", "--seed", 1, "-n", 2, "--variation-strength", 0.3, "--variation-seed", 5)
    assert re.findall(r"\(seed 1, variation (\d)\)", said.out) == ["5", "6"]
    with Image.open(home / "pictures/x-1_2.png") as picture:
        assert "Variation seed: 6, Variation seed strength: 0.3" in picture.info["parameters"]
    assert sfumato("reproduce", home / "pictures/x-1_2.png", "--model", "emoji").out.startswith(
        "largest pixel difference: "
    )


def test_a_sampler_by_another_tools_name(sfumato: Run, home: Path) -> None:
    assert sfumato("generate", "x", "--seed", 1, "--sampler", "DPM++ 2M Karras", "--tiling").code == 0
    found = pictures.parameters_of(home / "pictures/x-1.png")["request"]
    assert (found["sampler"], found["spacing"], found["tiling"]) == ("dpmpp_2m", "karras", True)
    assert "too smooth" in sfumato("generate", "x", "--seed", 1, "--sampler", "LCM").err
    few = sfumato("generate", "x", "--seed", 1, "--steps", 3, "--spacing", "Karras").err
    assert (
        few
        == "with less than 10 steps, trailing and linspace paint best; the spacing is karras\n" + few.split("\n", 1)[1]
    )
    assert "paint best" not in sfumato("generate", "x", "--seed", 1, "--steps", 3).err


# Lists ----------------------------------------------------------------------------------------------------


def test_samplers(sfumato: Run) -> None:
    rows = json.loads(sfumato("samplers", "--json").out)
    assert [row["name"] for row in rows] == list(SAMPLERS)
    assert all(row["order"] == SAMPLERS[row["name"]].order and row["about"] for row in rows)
    table = sfumato("samplers").out
    assert re.findall(r"^(\w+) +[\d-]+ +(?:\d+|varies) +(?:none|fresh) +from \d+", table, re.MULTILINE) == list(
        SAMPLERS
    )
    names = {"dpmpp_2m": "DPMSolverMultistepScheduler", "euler_a": "Euler a", "dpm2_a": "dpm_2_ancestral"}
    for name, other in names.items():
        assert other in next(row["also"] for row in rows if row["name"] == name)
        assert sfumato("samplers", other).out.split("\n")[1].startswith(f"{name} ")
    for name in ("DPM++ 2M", "DPM++ 2M Karras"):
        assert "Lu et al. 2022b, alg. 2" in sfumato("samplers", name).out
    assert sfumato("samplers", "ddim").out.endswith("It takes --eta.\n")
    assert "its spacing is karras" in sfumato("samplers", "DPM++ 2M Karras").out


def test_models(sfumato: Run) -> None:
    (row,) = json.loads(sfumato("models", "--json").out)
    assert row["name"] == "emoji"  # by which it is found, whatever it calls itself
    assert row["config"]["resolution"] == 16
    table = sfumato("models").out.splitlines()
    assert [row.split()[:3] for row in table if row.split()[:1] == ["emoji"]] == [["emoji", "16x16", "ema"]]


def test_doctor(sfumato: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = sfumato("doctor")
    assert said.code == 0
    found = dict(row.split(maxsplit=1) for row in said.out.splitlines())
    assert found["sfumato"] == __version__
    assert found["torch"].startswith("2.")
    assert re.search(r"emoji\s+works, \d+\.\d+ s for a picture in 4 steps", said.out)
    monkeypatch.setattr(model_folder, "BUNDLED", home)  # where a cut one lies
    said = sfumato("doctor", "--json")
    report = json.loads(said.out)
    assert said.code == 1
    assert "hash differs" in report["model cut"]


# train ----------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> list[DiffusionTraining]:
    """What the recipe would be run with; it is not run."""
    seen: list[DiffusionTraining] = []

    def run(settings: DiffusionTraining, *_: object) -> list[object]:
        seen.append(settings)
        return [Ready({})]

    monkeypatch.setitem(RECIPES._things, "emoji", replace(RECIPES["emoji"], run=run))
    return seen


TRAIN = ("train", "emoji", "--data", "captioned", "--out")


def test_settings_are_changed_and_kept(sfumato: Run, home: Path, settings: list[DiffusionTraining]) -> None:
    changes = ["diffusion.plan.steps=20", "first-stage.losses.kl=1e-2", "model.unet.attention=[1, 2]"]
    said = sfumato(*TRAIN, "a/run", "--set", *changes, "--set", "diffusion.times=stratified")
    assert said.code == 0, said.err
    (used,) = settings
    assert used.name == "run"
    assert used.diffusion.plan.steps == 20
    assert used.first_stage.losses.kl == 0.01
    assert used.model.unet.attention == (1, 2)
    assert used.diffusion.times == "stratified"
    stored = json.loads((home / "a/run/config.json").read_text())
    assert DiffusionTraining.model_validate(stored["settings"]) == used
    assert stored["data"] == str(home / "captioned")
    assert sfumato("train", "emoji", "--out", "a/run", "--resume").code == 0
    assert settings == [used, used]


@pytest.mark.parametrize("name", ["7", "1e5", "true", "none", "[1,2]", "x=y"])
def test_a_run_may_have_any_name(sfumato: Run, settings: list[DiffusionTraining], name: str) -> None:
    said = sfumato(*TRAIN, name)
    assert said.code == 0, said.err
    assert settings[0].name == name


# The frame ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["--help", "-h", "help", None])
def test_help(sfumato: Run, asked: str | None) -> None:
    said = sfumato(asked) if asked else sfumato()
    assert said.code == 0
    assert all(re.search(rf"^  {verb} +\S", said.out, re.MULTILINE) for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_each_command_has_its_help(sfumato: Run, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    with pytest.raises(SystemExit) as stop:
        sfumato(verb, "--help")
    assert stop.value.code in (0, None)
    assert f"usage: sfumato {verb}" in capsys.readouterr().out


def test_version(sfumato: Run) -> None:
    assert sfumato("--version").out == f"sfumato {__version__}\n"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("two\nlines"), 2, "sfumato: two lines\n"),
        (OSError(28, "No space left on device"), 1, "sfumato: failed: [Errno 28] No space left on device\n"),
        (FloatingPointError("not finite"), 1, "sfumato: failed: not finite\n"),
        (MemoryError(), 1, "sfumato: failed: MemoryError\n"),
        (RuntimeError("a\n  b"), 1, "sfumato: failed: a b\n"),
        (KeyboardInterrupt(), 130, "sfumato: interrupted\n"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_exit_codes(sfumato: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(entry, "_run", fail)
    assert sfumato("samplers") == (code, "", said)


LIGHT = """
import sys
import sfumato
from sfumato.cli.main import main
assert main(["--help"]) == 0 and main(["--version"]) == 0 and main(["generat"]) == 2
print([name for name in ("torch", "pydantic", "numpy", "tyro", "rich", "PIL") if name in sys.modules])
"""


def test_help_loads_nothing_heavy() -> None:
    found = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True, env=environment())
    assert found.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_has_gone_is_no_failure() -> None:
    """`sfumato --help | true`: no traceback, whether output is buffered or not."""
    for extra in ({}, {"PYTHONUNBUFFERED": "1"}):
        command = [sys.executable, "-m", "sfumato.cli.main", "--help"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment() | extra
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 1


def environment() -> dict[str, str]:
    return {"PYTHONPATH": str(Path(tensors.__file__).resolve().parents[2])}
