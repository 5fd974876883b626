"""What is wrong is one line that says what would be right, with exit code 2, and nothing is written."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from console import Run, Said

from sfumato.io import pictures

GENERATE = ("generate", "a red apple, 3d", "--seed", "7")
TRAIN = ("train", "emoji", "--out", "new")
SAMPLERS_LISTED = "known: cas, ddim, ddpm, ddpm_large, ddpm_learned, deis"

REFUSED: list[tuple[tuple[str, ...], str]] = [
    # commands and flags
    (("generat",), "unknown command 'generat'; did you mean 'generate'? known: generate, train, evaluate"),
    (("--frobnicate",), "unknown command '--frobnicate'; known: generate, train"),
    ((*GENERATE, "--stpes", "3"), "unrecognized options: --stpes, 3; perhaps --steps was meant; see: sfumato generate"),
    ((*GENERATE, "--steps", "many"), "--steps: 'many' is not a whole number; see: sfumato generate --help"),
    ((*GENERATE, "-n", "1.5"), "--n: '1.5' is not a whole number"),
    ((*GENERATE, "--guidance", "high"), "--guidance: 'high' is not a number"),
    ((*GENERATE, "--negative"), "--negative is given without a value"),
    (("train",), "RECIPE is missing; see: sfumato train --help"),
    (("samplers", "ddim", "all"), "unrecognized options: all; see: sfumato samplers --help"),
    # names
    ((*GENERATE, "--sampler", "dmpp_2m"), f"unknown sampler 'dmpp_2m'; did you mean 'dpmpp_2m'? {SAMPLERS_LISTED}"),
    ((*GENERATE, "--sampler", "DPM++ 2N"), f"unknown sampler 'DPM++ 2N'; did you mean 'dpmpp_2m'? {SAMPLERS_LISTED}"),
    (("samplers", "dmpp_2m"), f"unknown sampler 'dmpp_2m'; did you mean 'dpmpp_2m'? {SAMPLERS_LISTED}"),
    (
        (*GENERATE, "--sampler", "DPM++ 2M Karras", "--spacing", "trailing"),
        "sampler 'DPM++ 2M Karras' has its spacing in its name, and spacing is 'trailing'; say one",
    ),
    ((*GENERATE, "--sampler", "pndm", "--steps", "3"), "sampler 'pndm' needs at least 4 steps, and 3 are asked for"),
    ((*GENERATE, "--sampler", "unipc", "--steps", "1"), "sampler 'unipc' needs at least 2 steps, and 1 are asked for"),
    (
        (*GENERATE, "--sampler", "ddpm_learned"),
        "sampler 'ddpm_learned' needs a network that learnt its variance, which this one did not",
    ),
    ((*GENERATE, "--eta", "0.5"), "sampler 'dpmpp_2m' takes no eta; those that do: ddim, dpm2_a, dpmpp_2m_sde"),
    (
        (*GENERATE, "--churn", "5", "--sampler", "ddim"),
        "sampler 'ddim' takes no churn; those that do: dpm2, euler, heun",
    ),
    ((*GENERATE, "--eta", "1.5", "--sampler", "ddim"), "eta: input should be less than or equal to 1 (given: 1.5)"),
    ((*GENERATE, "--variation-seed", "3"), "--variation-seed says nothing without --variation-strength; give both or"),
    ((*GENERATE, "--init", "init.png", "--source", "x"), "--source says nothing without --inversion; give both or"),
    ((*GENERATE, "--init", "init.png", "--feather", "3"), "--feather says nothing without --mask or --extend; give"),
    ((*GENERATE, "--variation-strength", "-1"), "variation_strength: input should be greater than or equal to 0"),
    (
        (*GENERATE, "--spacing", "trail"),
        "unknown spacing 'trail'; did you mean 'trailing'? known: align_your_steps, exponential",
    ),
    ((*GENERATE, "--model", "emojo"), "unknown model 'emojo'; did you mean 'emoji'? known: emoji (or the path of a"),
    (
        (*GENERATE, "--model", "bare"),
        "bare holds no model.json, nor diffusers' model_index.json; a model is a folder that does",
    ),
    (("train", "shapes"), "unknown recipe 'shapes'; known: adm-128"),
    (("evaluate", "emojo"), "unknown model 'emojo'; did you mean 'emoji'?"),
    # sizes and numbers
    ((*GENERATE, "--size", "64"), "size '64' is not understood; write width x height, as 64x64"),
    ((*GENERATE, "--size", "axb"), "size 'axb' is not understood; write width x height, as 64x64"),
    ((*GENERATE, "--size", "-8x8"), "size '-8x8' is not understood; write width x height, as 64x64"),
    ((*GENERATE, "--size", "20x16"), "size 20x16 does not fit this model; both sides must divide by 8 (near: 16x16)"),
    ((*GENERATE, "--size", "0x16"), "size: 0x16 is out of range; each side has 1 to 2048 pixels"),
    ((*GENERATE, "--steps", "0"), "steps: input should be greater than or equal to 1 (given: 0)"),
    ((*GENERATE, "--steps", "1001"), "steps: input should be less than or equal to 1000 (given: 1001)"),
    (
        (*GENERATE, "--steps", "1000", "--spacing", "leading"),
        "1000 steps are out of range; this schedule takes 1",
    ),
    ((*GENERATE, "--guidance", "nan"), "guidance: input should be a finite number (given: nan)"),
    ((*GENERATE, "--guidance", "-1"), "guidance: input should be greater than or equal to 0"),
    ((*GENERATE[:2], "--seed", "-2"), "seed: input should be greater than or equal to 0 (given: -2)"),
    ((*GENERATE[:2], "--seed", str(2**64)), "seed: input should be less than 18446744073709551616"),
    ((*GENERATE, "-n", "0"), "n: input should be greater than or equal to 1"),
    ((*GENERATE, "-n", "65"), "n: input should be less than or equal to 64"),
    (("evaluate", "--n", "0"), "n is 0; at least one caption is needed"),
    # prompts
    (("generate",), 'there is no prompt; say what to paint, for instance: sfumato generate "a red apple, 3d"'),
    (("generate", "--from-file", "empty.txt"), "there is no prompt; say what to paint"),
    (("generate", "--from-file", "nowhere.txt"), "nowhere.txt cannot be read as text"),
    (("generate", "--from-file", "latin.txt"), "latin.txt cannot be read as text"),
    (("generate", "x" * 8001), "prompt: string should have at most 8000 characters"),
    (("generate", "\udcff"), "prompt: input should be a valid string"),
    # pictures to begin from
    ((*GENERATE, "--init", "nowhere.png"), "nowhere.png cannot be opened (No such file or directory)"),
    ((*GENERATE, "--init", "not-a-picture.png"), "not-a-picture.png: not a picture of a known kind; PNG, JPEG, WebP"),
    ((*GENERATE, "--init", "bare"), "bare cannot be opened (Is a directory)"),
    ((*GENERATE, "--strength", "0.5"), "--strength says how much of --init may change, and there is no --init"),
    ((*GENERATE, "--init", "init.png", "--strength", "-0.1"), "strength: input should be greater than or equal to 0"),
    ((*GENERATE, "--mask", "init.png"), "--mask says what of --init is painted anew, and there is no --init"),
    ((*GENERATE, "--extend", "0,0,8,0"), "--extend paints around --init, and there is no --init"),
    ((*GENERATE, "--inversion"), "--inversion begins from the noise that paints --init, and there is no --init"),
    ((*GENERATE, "--init", "init.png", "--mask", "wide.png"), "wide.png is 24x16 and init.png is "),
    ((*GENERATE, "--init", "init.png", "--mask", "wide.png"), "; a mask has the same size"),
    ((*GENERATE, "--init", "init.png", "--mask", "nowhere.png"), "nowhere.png: the file cannot be opened"),
    (
        (*GENERATE, "--init", "init.png", "--extend", "8"),
        "extend '8' is not understood; write pixels for left,top,right",
    ),
    (
        (*GENERATE, "--init", "init.png", "--extend", "0,0,0,0"),
        "on the left, top, right and bottom go 0 to 2048 pixels, not all 0",
    ),
    ((*GENERATE, "--init", "init.png", "--extend", "0,0,5,0"), "size 21x16 does not fit this model; both sides must"),
    (
        (*GENERATE, "--init", "init.png", "--inversion", "--sampler", "ddpm"),
        "sampler 'ddpm' adds fresh noise, so it cannot be run backwards; try ddim or dpmpp_2m",
    ),
    ((*GENERATE, "--init", "init.png", "--strength", "1.5"), "strength: input should be less than or equal to 1"),
    ((*GENERATE, "--init", "init.png", "--size", "16x24"), "--size 16x24 is none; ask for equal sides"),
    ((*GENERATE, "--init", "init.png", "--size", "12x12"), "both sides must divide by 8 (near: 16x16)"),
    # files
    ((*GENERATE, "--model", "cut"), "ema.safetensors is not the file that model.json describes (its hash differs)"),
    ((*GENERATE, "--out", "empty.txt"), "empty.txt is a file; choose another place"),
    ((*GENERATE, "--out", "empty.txt/below"), "empty.txt is a file; choose another place"),
    (("reproduce",), "FILE.png is missing; see: sfumato reproduce --help"),
    (("reproduce", "nowhere.png"), "nowhere.png cannot be opened"),
    (("reproduce", "not-a-picture.png"), "holds no sfumato parameters; only pictures that sfumato wrote do"),
    (("reproduce", "init.png"), "init.png holds no sfumato parameters; only pictures that sfumato wrote do"),
    # training
    ((*TRAIN, "--data", "nowhere"), "nowhere: there is no such folder"),
    ((*TRAIN, "--data", "run"), "run: no pictures in here; PNG, JPEG, WebP, GIF and BMP are looked for"),
    ((*TRAIN, "--data", "broken"), "metadata.jsonl, line 2: 'file_name' is missing; it is the path of a picture"),
    ((*TRAIN, "--data", "bare"), "the pictures have no captions (1 pictures of the folder bare); add sidecars or a"),
    (
        (*TRAIN, "--set", "plan=1"),
        "no setting 'plan'; here there are: name, model, first_stage, given, told_by, diffusion, defaults",
    ),
    ((*TRAIN, "--set", "diffusion.plan.stepz=1"), "no setting 'diffusion.plan.stepz'; here there are: steps, batch"),
    ((*TRAIN, "--set", "diffusion.plan.steps.x=1"), "there is no setting 'diffusion.plan.steps.x'"),
    ((*TRAIN, "--set", "diffusion.drop"), "'diffusion.drop' is not a setting; write key=value, for instance"),
    ((*TRAIN, "--set", "diffusion.plan.steps=x"), "diffusion.plan.steps: input should be a valid integer"),
    ((*TRAIN, "--set", "diffusion.plan.steps=true"), "diffusion.plan.steps is true; it must be a number"),
    ((*TRAIN, "--set", "name="), "name: string should have at least 1 character"),
    ((*TRAIN, "--set", "diffusion.plan.steps=0"), "diffusion.plan: steps is 0; it must be at least 1"),
    ((*TRAIN, "--set", "diffusion.plan.ema=1"), "diffusion.plan: ema is 1.0; it must be at least 0 and below 1"),
    ((*TRAIN, "--set", "diffusion.drop=2"), "diffusion.drop: input should be less than or equal to 1 (given: 2)"),
    ((*TRAIN, "--set", "diffusion.times=often"), "diffusion.times: input should be 'uniform', 'stratified' or"),
    ((*TRAIN, "--set", "model.unet.mult=[1,2"), "model.unet.mult: input should be a valid tuple (given: '[1,2')"),
    ((*TRAIN, "--set", "model.unet.channels=3"), "unet.channels must be 48, as the latent's"),
    ((*TRAIN, "--set", "model.resolution=66"), "resolution must divide by 32"),
    ((*TRAIN, "--set", "defaults.sampler=eulor"), f"unknown sampler 'eulor'; did you mean 'euler'? {SAMPLERS_LISTED}"),
    ((*TRAIN, "--set", "defaults.steps=0"), "defaults.steps: input should be greater than or equal to 1"),
    ((*TRAIN, "--set", "name=x", "--set", "plan=1"), "there is no setting 'plan'"),
    (("train", "emoji", "--out", "run"), "run already holds a run; add --resume to go on with it, or choose another"),
    (("train", "emoji", "--out", "empty.txt"), "empty.txt is a file; choose another place"),
    ((*TRAIN, "--resume"), "new holds no run to go on with; leave --resume out to begin one"),
    (
        ("train", "emoji", "--out", "run", "--resume"),
        "config.json is damaged, or of another version; it must be the file",
    ),
    (
        ("train", "emoji", "--out", "run", "--resume", "--set", "name=x"),
        "--resume goes on with the settings of the run; leave --set, --first-stage and --model out",
    ),
]


def files(home: Path) -> dict[str, bytes]:
    return {str(p.relative_to(home)): p.read_bytes() for p in home.rglob("*") if p.is_file()}


def refused(said: Said) -> str:
    """The one line of a refusal."""
    assert said.code == 2, said
    assert said.out == ""
    assert said.err.startswith("sfumato: ")
    assert said.err.count("\n") == 1
    assert said.err.endswith("\n")
    assert len(said.err) < 900
    return said.err


@pytest.mark.parametrize(("arguments", "said"), REFUSED, ids=lambda x: " ".join(x)[:60] if isinstance(x, tuple) else "")
def test_a_refusal_is_a_line(sfumato: Run, home: Path, arguments: tuple[str, ...], said: str) -> None:
    before, folders = files(home), sorted(home.rglob("*"))
    assert said in refused(sfumato(*arguments))
    assert files(home) == before
    assert sorted(home.rglob("*")) == folders


def test_a_console_without_box_characters_hears_the_same(sfumato: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """tyro draws another box where standard output is not UTF-8."""
    plain = sfumato(*GENERATE, "--stpes", "3")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
        assert sfumato(*GENERATE, "--stpes", "3") == plain


# Parameters inside pictures -------------------------------------------------------------------------------

GOOD: dict[str, Any] = {
    "format": 1,
    "model": {"name": "emoji", "weights": "ema", "sha256": "0" * 64},
    "request": {"prompt": "a red apple", "seed": 7, "size": [16, 16]},
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p.pop("request"), "are not complete; it must be as sfumato wrote it"),
        (lambda p: p.pop("model"), "are not complete"),
        (lambda p: p.update(model=3), "are not complete"),
        (lambda p: p.update(request=[]), "are not understood"),
        (lambda p: p["request"].update(sampler="rm -rf"), "are not understood: sampler: unknown sampler 'rm -rf'"),
        (lambda p: p["request"].update(steps=10**9), "are not understood: steps: input should be less than"),
        (lambda p: p["request"].update(code="x"), "are not understood: code: there is no such setting"),
        (lambda p: p["model"].update(name="other"), "was made by a model called 'other'; give its path with --model"),
        (lambda p: p["request"].update(size=[24, 16]), "was scaled after it was made; it cannot be compared"),
        (lambda p: p["request"].update(size=[17, 16]), "size 17x16 does not fit this model"),
        (lambda p: p.update(init={"file": "x", "sha256": "0"}), "began from a picture; give it with --init"),
    ],
)
def test_parameters_that_make_no_picture(
    sfumato: Run, home: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    parameters = json.loads(json.dumps(GOOD))
    change(parameters)
    pictures.save_png(torch.zeros(3, 16, 16), home / "made.png", parameters)
    assert said in refused(sfumato("reproduce", "made.png"))


def test_a_picture_is_not_made_again_from_another_picture(sfumato: Run, home: Path) -> None:
    for name, grey in (("mine.png", 0.0), ("other.png", 0.5)):
        pictures.save_png(torch.full((3, 16, 16), grey), home / name, {})
    made = sfumato(*GENERATE, "--init", "mine.png", "--out", "made", "--json")
    file = json.loads(made.out)["pictures"][0]["file"]
    again = ("reproduce", file, "--model", "emoji", "--init")
    assert "other.png is not the one that" in refused(sfumato(*again, "other.png"))
    assert sfumato(*again, "mine.png").code == 0
