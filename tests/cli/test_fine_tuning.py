"""A model that is there is trained further, painted with and merged from the command line; what cannot be is a line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from console import Run

import tiny
from files import single
from fill import inp
from sfumato.cli.main import main
from sfumato.diffusion.noise import Address
from sfumato.io import opening, pictures
from sfumato.io.model_folder import Loaded
from sfumato.recipes.told import Told

QUICK = [f"diffusion.plan.{s}" for s in ("steps=3", "batch=2", "warmup=1", "save=2", "rate=1e-2", "ema=0.5")]
LORA = ("train", "lora", "--out", "new", "--data", "captioned")
WORD = ("train", "textual-inversion", "--out", "new", "--data", "bare", "--model", "clip.safetensors")
BOOTH = ("train", "dreambooth", "--out", "new", "--data", "bare")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return single("clip", tmp_path_factory.mktemp("clip") / "clip.safetensors")


def painted(sfumato: Run, *arguments: object) -> torch.Tensor:
    said = sfumato("generate", "a red apple", "--seed", 1, "--out", "pictures", "--json", *arguments)
    assert said.code == 0, said.err
    return pictures.read(Path(json.loads(said.out)["pictures"][0]["file"]))


def test_a_lora_from_pictures_to_a_model_that_has_it(sfumato: Run, home: Path) -> None:
    said = sfumato(*LORA, "--set", "lora.rank=2", "lora.targets=all", *QUICK)
    assert said.code == 0, said.err
    assert "LoRA: new/model/lora.safetensors" in said.err
    file = "new/model/lora.safetensors"
    with_it, without = painted(sfumato, "--lora", file), painted(sfumato)
    assert (with_it - without).abs().max() > 0.05
    said = sfumato("convert", "emoji", "merged", "--to", "sfumato", "--lora", f"{file}:1")
    assert said.code == 0, said.err
    assert torch.equal(painted(sfumato, "--model", "merged"), with_it)
    assert opening.describe("merged").provenance["loras"][0]["file"] == "lora.safetensors"
    assert sfumato("convert", "emoji", "half", "--to", "sfumato", "--lora", f"{file}:0.5").code == 0
    assert torch.equal(painted(sfumato, "--model", "half"), painted(sfumato, "--lora", f"{file}:0.5"))
    said = sfumato("generate", "a red apple", "--model", "new")
    assert said.err == (
        "sfumato: new holds no model, but what was learnt for one; give --lora new/model/lora.safetensors to generate\n"
    )


def test_a_resume_finds_its_base_and_no_other(sfumato: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.folder(home / "mine")
    said = sfumato(*LORA, "--model", "mine", "--set", "lora.rank=2", *QUICK)
    assert said.code == 0, said.err
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home / "elsewhere")
    assert sfumato("train", "lora", "--out", home / "new", "--resume").code == 0
    shutil.rmtree(home / "mine")
    tiny.folder(home / "mine", seed=1)
    said = sfumato("train", "lora", "--out", home / "new", "--resume")
    assert said.code == 2
    assert "the run began with other weights of the base than there are now" in said.err
    said = sfumato("train", "lora", "--out", home / "new", "--resume", "--model", "emoji")
    assert "leave --set, --first-stage and --model out" in said.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "emoji", "--out", "new", "--model", "emoji"), "emoji begins from nothing, and --model says nothing"),
        (("train", "kl-f4", "--out", "new", "--model", "emoji"), "kl-f4 begins from nothing, and --model says nothing"),
        (("train", "lora", "--out", "new"), "pictures of yours; give their folder with --data"),
        ((*LORA, "--model", "nowhere"), "unknown model 'nowhere'; known: emoji"),
        ((*LORA, "--first-stage", "nowhere"), "lora trains no first stage, and --first-stage says nothing to it"),
        ((*LORA[:-1], "bare"), "the pictures have no captions (pictures without captions); add sidecars or a metadata"),
        ((*LORA, "--set", "lora.rank=0"), "lora.rank: input should be greater than or equal to 1 (given: 0)"),
        ((*LORA, "--set", "lora.rank=17"), "rank is 17, and the layer denoiser.net."),
        ((*LORA, "--set", "lora.alpha=0"), "lora.alpha: input should be greater than 0 (given: 0)"),
        ((*LORA, "--set", "lora.targets=some"), "lora.targets: input should be 'attention', 'transformer' or 'all'"),
        ((*LORA, "--set", "resolution=20"), "size 20x20 does not fit this model; both sides must divide by 8"),
        ((*LORA, "--set", "weights=raw"), "unknown weight set 'raw'; known: ema"),
        ((*LORA, "--set", "diffusion.loss.hybrid=0.1"), "hybrid is for a network that learns its variance"),
        (
            (*WORD[:-2], "--set", "token=<zog>"),
            "textual inversion is for models that are asked through CLIP, and emoji",
        ),
        (WORD, "token is ''; it must be a word with a letter or digit and no round or square brackets"),
        ((*WORD, "--set", "token=two words"), "token is 'two words'; it must be a word"),
        ((*WORD, "--set", "token=cat"), "token is 'cat', a word that the model knows; take one that it does not"),
        ((*WORD, "--set", "token=<zog>"), "initial is '', which is 0 tokens of the model; give a word that is one"),
        (
            (*WORD, "--set", "token=<zog>", "initial=shark fin"),
            "initial is 'shark fin', which is 2 tokens of the model; give a word",
        ),
        (BOOTH, 'nothing is said of the pictures; say what they show, as prompt="a zog mug"'),
        ((*BOOTH, "--set", "prompt=a zog"), 'there is no class to preserve; say what it is, as prior.prompt="a mug"'),
        (
            (*BOOTH, "--set", "prompt=a zog", "prior.prompt=a zebra"),
            "prior.prompt says words that the model was never shown (zebra); it paints no such class",
        ),
    ],
    ids=lambda x: " ".join(x[1:2] + x[6:]) if isinstance(x, tuple) else "",
)
def test_what_cannot_be_trained_is_a_line(
    arguments: tuple[str, ...], said: str, sfumato: Run, home: Path, clip: Path
) -> None:
    shutil.copy(clip, home / "clip.safetensors")
    found = sfumato(*arguments)
    assert found.code == 2, found
    assert said in found.err
    assert found.err.count("\n") == 1
    assert found.out == ""
    assert not (home / "new").exists()


@torch.no_grad()
def loss(loaded: Loaded, data: Path) -> float:
    """Of the pictures of a folder with the same noise, at six times each."""
    model = loaded.model
    told = Told(model, 0.0, "stratified")
    files = sorted(data.glob("*.png"))
    z = model.first_stage.encode(torch.stack([pictures.read(p) for p in files]))
    said = model.conditioner.collate([{"caption": p.with_suffix(".txt").read_text()} for p in files])
    losses = [told({"mean": z, **said}, Address.of(9, range(len(files)), k)).loss for k in range(6)]
    return float(torch.stack(losses).mean())


def test_the_bundled_model_learns_a_small_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All weights, few steps: the denoising loss of these pictures falls."""
    for k, colour in enumerate([(1.0, -0.5, 0.2), (-0.8, 0.1, 0.9), (0.2, 0.7, -0.9), (0.0, -1.0, 0.5)]):
        square = torch.ones(3, 64, 64)
        square[:, 16:48, 8 + 4 * k : 40 + 4 * k] = torch.tensor(colour)[:, None, None]
        pictures.save_png((square + 0.05 * inp(f"{k}", 3, 64, 64)).clamp(-1, 1), tmp_path / "data" / f"{k}.png", {})
        (tmp_path / "data" / f"{k}.txt").write_text(f"a square {k}, flat")
    out = tmp_path / "run"
    quick = ("steps=6", "batch=4", "warmup=1", "rate=3e-4", "ema=0.5")
    plan = [f"diffusion.plan.{s}" for s in quick]
    code = main(
        ["train", "finetune", "--data", str(tmp_path / "data"), "--out", str(out), "--set", "previews=0", *plan]
    )
    assert code == 0, capsys.readouterr().err
    before, after = (loss(opening.load(model), tmp_path / "data") for model in ("emoji", out))
    assert after < 0.95 * before, f"{before:.3f} before, {after:.3f} after"
    assert opening.describe(out).provenance["base"]["name"] == "emoji"
