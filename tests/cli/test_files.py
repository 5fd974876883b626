"""`inspect`, `convert`, and what `generate` takes beside a model, as a person gives them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from console import Run

from files import KINDS, original, single
from sfumato.io import pictures, tensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("files")
    for kind in ("sd1", "labels", "adm", "sd2"):
        single(kind, home / f"{kind}.safetensors")
    state = {n.removeprefix("first_stage_model."): v.clone() for n, v in original("sd1").items() if "first_stage" in n}
    torch.save({"state_dict": state | {"loss.logvar": torch.zeros(())}}, home / "vae.ckpt")
    torch.save({"string_to_param": {"*": torch.randn(2, 64)}, "name": "zog"}, home / "zog.pt")
    g = torch.Generator().manual_seed(0)
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    lora = {f"{key}.lora_down.weight": torch.randn(4, 32, generator=g), f"{key}.alpha": torch.tensor(4.0)}
    lora |= {f"{key}.lora_up.weight": torch.randn(32, 4, generator=g)}
    tensors.write(home / "ink.safetensors", lora, {"ss_network_dim": "4"})
    return home


def told(sfumato: Run, *arguments: object) -> dict[str, Any]:
    """The one JSON object that a command says."""
    said = sfumato(*arguments, "--json")
    assert said.code == 0, said.err
    return json.loads(said.out)


@pytest.mark.parametrize("kind", ["sd1", "labels", "adm", "sd2"])
def test_inspect_says_what_a_file_is(kind: str, folder: Path, sfumato: Run) -> None:
    found = told(sfumato, "inspect", str(folder / f"{kind}.safetensors"))
    config = KINDS[kind][0]
    assert found["config"] == config.model_dump(mode="json")
    assert found["stored as"] == ["float16"]
    assert found["asked with"] == {"sd1": "prompts", "sd2": "prompts"}.get(kind, "a label")


@pytest.mark.parametrize(
    ("name", "kind", "what"),
    [
        ("vae.ckpt", "first stage", {"first stage": "KL, f2, 4 channels"}),
        ("zog.pt", "embedding", {"word": "zog", "vectors": "2 of 64 numbers"}),
        ("ink.safetensors", "lora", {"changes": {"layers of the unet": 1}, "ranks": [4]}),
    ],
)
def test_inspect_says_what_is_no_model(name: str, kind: str, what: dict[str, Any], folder: Path, sfumato: Run) -> None:
    found = told(sfumato, "inspect", str(folder / name))
    assert found["kind"] == kind
    assert what.items() <= found.items()


def test_inspect_of_a_bundled_model_in_words(sfumato: Run) -> None:
    words = sfumato("inspect", "emoji").out
    assert "a model folder of sfumato, format 1" in words
    assert "captions" in words


def test_convert_and_what_is_painted_by_each(folder: Path, sfumato: Run, tmp_path: Path) -> None:
    source = str(folder / "sd2.safetensors")
    say = ("--precision", "float32", "--init", tmp_path / "i.png", "--mask", tmp_path / "m.png", "--steps", 2)
    pictures.save_png(torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1, tmp_path / "i.png", {})
    pictures.save_png(torch.ones(3, 64, 64).index_fill(1, torch.arange(32), -1), tmp_path / "m.png", {})
    assert sfumato("convert", source, tmp_path / "ours", "--to", "sfumato").code == 0
    done = told(sfumato, "convert", str(tmp_path / "ours"), str(tmp_path / "pipe"), "--to", "diffusers")
    assert done["passed_over"] == []
    images = []
    for model in (source, str(tmp_path / "ours"), str(tmp_path / "pipe")):
        found = told(sfumato, "generate", "a cat", "--model", model, *say, "--seed", 1, "--out", tmp_path / "o")
        images.append(pictures.read(found["pictures"][0]["file"]))
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])


def test_what_is_put_on_a_model_is_in_the_picture_and_wanted_again(folder: Path, sfumato: Run, tmp_path: Path) -> None:
    single("clip", tmp_path / "clip.safetensors")
    model, put = str(tmp_path / "clip.safetensors"), ("--lora", str(folder / "ink.safetensors") + ":0.5")
    plain, inked = (
        told(sfumato, "generate", "a zog", "--model", model, "--steps", 2, "--seed", 1, "--out", name, *more)[
            "pictures"
        ][0]
        for name, more in (("a", ()), ("b", (*put, "--embedding", folder / "zog.pt")))
    )
    assert [(one["file"], one["weight"]) for one in inked["model"]["loras"]] == [("ink.safetensors", 0.5)]
    assert inked["model"]["embeddings"][0]["word"] == "zog"
    assert not torch.equal(pictures.read(plain["file"]), pictures.read(inked["file"]))
    missing = sfumato("reproduce", inked["file"], "--model", model)
    assert missing.code == 2
    assert "was made with --lora ink.safetensors" in missing.err
    more = (*put, "--embedding", folder / "zog.pt")
    assert told(sfumato, "reproduce", inked["file"], "--model", model, *more)["largest_difference"] == 0
    assert "was made with no --lora" in sfumato("reproduce", plain["file"], "--model", model, *more).err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("inspect", "nothing.safetensors"), "there is no file nothing.safetensors"),
        (("convert", "{}/sd1.safetensors", "{}/adm.safetensors", "--to", "ldm"), "is there already"),
        (("convert", "{}/sd1.safetensors", "{}/new.ckpt", "--to", "ldm"), "must end in .safetensors"),
        (
            ("convert", "{}/labels.safetensors", "{}/new", "--to", "diffusers"),
            "its first stage is not KL",
        ),
        (("convert", "{}/sd1.safetensors", "{}/new", "--to", "onnx"), "invalid choice 'onnx'"),
        (("convert", "{}/ink.safetensors", "{}/new", "--to", "sfumato"), "is a LoRA, which changes a model"),
        (("generate", "a", "--model", "{}/vae.ckpt"), "is a first stage alone"),
        (("generate", "a", "--model", "{}/zog.pt"), "is an embedding for a word"),
        (("generate", "a", "--model", "{}/sd1.safetensors", "--weights", "ema"), "unknown weight set 'ema'"),
        (("generate", "a", "--model", "{}/sd1.safetensors", "--lora", "{}/vae.ckpt"), "vae.ckpt"),
        (
            ("generate", "a", "--model", "{}/labels.safetensors", "--label", "1", "--embedding", "{}/zog.pt"),
            "not asked through CLIP",
        ),
        (("generate", "a", "--model", "{}/adm.safetensors", "--label", "1", "--vae", "{}/vae.ckpt"), "paints pixels"),
        (("generate", "--model", "{}/labels.safetensors"), "is asked with a label alone, from 0 to 9"),
        (("generate", "--model", "{}/sd1.safetensors"), "there is no prompt"),
    ],
)
def test_what_cannot_be_is_one_line(arguments: tuple[str, ...], line: str, folder: Path, sfumato: Run) -> None:
    before = sorted(p.name for p in folder.iterdir())
    said = sfumato(*(a.format(folder) for a in arguments))
    assert said.code == 2
    assert line in said.err
    assert said.err.count("\n") == 1
    assert sorted(p.name for p in folder.iterdir()) == before
