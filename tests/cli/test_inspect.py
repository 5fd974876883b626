"""What is said of runs, of first stages and of parts of them, by `inspect` and by those who take them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from console import Run, Said

import tiny
from fill import inp
from quick import features_are_means
from sfumato.io import first_stage_folder, pictures, tensors
from sfumato.io.first_stage_folder import FirstStageFile
from sfumato.latents.kl import KLFirstStage


@pytest.fixture
def runs(home: Path) -> Path:
    """The run of a first stage, that of a whole model, and one that has not ended."""
    size = tiny.CONFIG.first_stage
    assert size is not None
    torch.manual_seed(0)
    stage = KLFirstStage(size)
    stage.std.fill_(1.7)
    file = FirstStageFile(name="mine", size=size, resolution=16)
    first_stage_folder.save(home / "first" / "model", file, "made up", stage.state_dict())
    tiny.folder(home / "whole" / "model", seed=3)
    for name, recipe in (("first", "kl-f4"), ("whole", "emoji"), ("begun", "kl-f4")):
        (home / name).mkdir(exist_ok=True)
        (home / name / "config.json").write_text(json.dumps({"recipe": recipe, "data": None, "settings": {}}))
    for i in range(3):
        pictures.save_png((0.4 * inp(f"{i}", 3, 32, 32)).clamp(-1, 1), home / "many" / f"{i}.png", {})
    return home


def refused(said: Said) -> str:
    assert said.code == 2, said
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


TAKES = {
    "generate": ("generate", "a pear", "--steps", 2, "--vae"),
    "reconstruct": ("reconstruct", "many/0.png", "--vae"),
    "reconstruct a model": ("reconstruct", "many/0.png", "--model"),
    "evaluate": ("evaluate", "--first-stage", "--data", "many", "--size", 16),
}


@pytest.mark.parametrize("path", ["whole", "whole/model", "whole/model/model.json", "first", "first/model"])
@pytest.mark.parametrize("verb", TAKES)
def test_a_first_stage_is_taken_wherever_it_is(
    verb: str, path: str, sfumato: Run, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features_are_means(monkeypatch)
    said = sfumato(*TAKES[verb], path)
    assert said.code == 0, said


@pytest.mark.parametrize("verb", [*TAKES, "train", "inspect", "a model", "evaluate a model"])
@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("begun", "begun is a run that is not finished; go on with: sfumato train kl-f4 --out begun --resume"),
        (
            "first/model/weights.safetensors",
            "first/model/weights.safetensors holds the weights alone, and not what they are of; give its folder, fi",
        ),
        (
            "whole/model/ema.safetensors",
            "whole/model/ema.safetensors holds the weights alone, and not what they are of; give its folder, whole/mod",
        ),
    ],
)
def test_what_is_no_whole_is_one_line_to_all(verb: str, path: str, line: str, sfumato: Run, runs: Path) -> None:
    more = {
        "train": ("train", "emoji", "--out", "new", "--data", "captioned", "--first-stage"),
        "inspect": ("inspect",),
        "a model": ("generate", "a pear", "--model"),
        "evaluate a model": ("evaluate",),
    }
    assert line in refused(sfumato(*(TAKES | more)[verb], path))


@pytest.mark.parametrize("verb", [("evaluate",), ("generate", "a pear", "--model")])
def test_a_first_stage_is_no_model(verb: tuple[str, ...], sfumato: Run, runs: Path) -> None:
    line = "first is a first stage alone: give it with --vae beside a model, or measure it with evaluate --first-stage"
    assert line in refused(sfumato(*verb, "first"))


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan"), float("inf")])
def test_a_deviation_that_is_none_is_refused_by_all(std: float, sfumato: Run, runs: Path) -> None:
    shutil.rmtree(runs / "whole")
    path = runs / "first" / "model" / "weights.safetensors"
    tensors.write(path, tensors.load(path) | {"std": torch.tensor(std, dtype=torch.float64)})
    described = runs / "first" / "model" / "first_stage.json"
    tree = json.loads(described.read_text())
    tree["weights"]["sha256"] = tensors.sha256(path)
    described.write_text(json.dumps(tree))
    for verb in (*TAKES.values(), ("inspect",)):
        line = refused(sfumato(*verb, "first"))
        assert "first/model/weights.safetensors is damaged: the deviation of its latents is not a positive" in line


def test_inspect_says_what_a_run_made(sfumato: Run, runs: Path) -> None:
    first, whole = (json.loads(sfumato("inspect", name, "--json").out) for name in ("first", "whole"))
    assert (first["kind"], first["name"], first["latents times"]) == ("first stage", "mine", 0.58824)
    assert whole["name"] == "tiny"
    assert whole["first stage"] == first["first stage"] == "KL, f4, 4 channels"


@pytest.mark.parametrize(("verb", "flag"), [("generate", "--vae"), ("inspect", "PATH")])
def test_help_says_that_runs_can_be_given(
    verb: str, flag: str, sfumato: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        sfumato(verb, "--help")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "runs/kl-f4" in text.split(flag, 2)[-1][:400]
