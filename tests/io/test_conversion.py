"""Models go from one kind of file to another and back without a bit changed, and damaged ones are refused in a line."""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from files import KINDS, original, single
from sfumato.boxes import Box
from sfumato.conditioning.layout import LayoutTokens
from sfumato.io import model_folder, opening, tensors
from sfumato.io.conversion import convert
from sfumato.io.model_folder import ModelFile
from sfumato.io.recognise import FIRST_STAGE, UNET, ema_name
from sfumato.io.stored import open_stored
from sfumato.models.config import BoxesConfig, LayoutConfig
from sfumato.models.latent_diffusion import LatentDiffusion
from sfumato.nets.transformer import TransformerSize


def same(path: Path, expected: dict[str, Tensor]) -> None:
    """The file has these tensors and no other, to the bit."""
    stored = open_stored(path)
    assert stored.entries.keys() == expected.keys()
    for name, value in expected.items():
        found = stored.tensor(name)
        assert found.dtype == value.dtype, name
        assert torch.equal(found, value), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_file_through_ours_and_back(kind: str, tmp_path: Path) -> None:
    source = single(kind, tmp_path / "a.safetensors")
    convert(source, tmp_path / "ours", "sfumato")
    convert(tmp_path / "ours", tmp_path / "b.safetensors", "ldm")
    same(tmp_path / "b.safetensors", original(kind))
    assert opening.describe(tmp_path / "b.safetensors").config == KINDS[kind][0]


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_a_single_file_through_ours_and_diffusers_and_back(kind: str, tmp_path: Path) -> None:
    source = single(kind, tmp_path / "a.safetensors")
    convert(source, tmp_path / "ours", "sfumato")
    convert(tmp_path / "ours", tmp_path / "pipe", "diffusers")
    back = convert(tmp_path / "pipe", tmp_path / "b.safetensors", "ldm")
    same(tmp_path / "b.safetensors", original(kind))
    assert back.passed == ()
    convert(tmp_path / "b.safetensors", tmp_path / "again", "diffusers")
    for part in ("unet", "vae", "text_encoder"):
        names = ["config.json", *(p.name for p in (tmp_path / "pipe" / part).glob("*.safetensors"))]
        for name in names:
            one, two = (tmp_path / folder / part / name for folder in ("pipe", "again"))
            assert one.read_bytes() == two.read_bytes(), f"{part}/{name}"


def test_folders_from_before_layouts_had_names_open_and_take_numbers(tmp_path: Path) -> None:
    convert(single("layout", tmp_path / "a.safetensors"), tmp_path / "ours", "sfumato")
    path = tmp_path / "ours" / "model.json"
    tree = json.loads(path.read_text())
    kind = tree["config"]["conditioner"]
    tree["config"]["conditioner"] = {key: kind[key] for key in ("kind", "encoder", "vocabulary")}
    path.write_text(json.dumps(tree))
    loaded = opening.load(tmp_path / "ours")
    assert loaded.file.config.conditioner == LayoutConfig(**tree["config"]["conditioner"])
    assert isinstance(loaded.model.conditioner, LayoutTokens)
    named = opening.load(tmp_path / "a.safetensors").model.conditioner
    assert isinstance(named, LayoutTokens)
    sides = (0.1, 0.2, 0.7, 0.9)
    assert loaded.model.conditioner.sequence([Box("1", *sides)]) == named.sequence([Box("dog", *sides)])
    convert(tmp_path / "ours", tmp_path / "b.safetensors", "ldm")
    same(tmp_path / "b.safetensors", original("layout"))


def full_checkpoint(kind: str, path: Path) -> dict[str, Tensor]:
    """As LDM's training leaves it: buffers, the average under names without dots, the loss's networks."""
    trained = original(kind)
    average = {ema_name(n): v * 2 for n, v in trained.items() if n.startswith(UNET)}
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square().float()
    rest = {
        "betas": betas,
        "alphas_cumprod": (1 - betas).cumprod(0),
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(7, dtype=torch.int32),
        "first_stage_model.loss.logvar": torch.zeros(()),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    }
    state = {**trained, **average, **rest}
    torch.save({"state_dict": state, "global_step": 470000, "epoch": 12}, path)
    return average


def test_a_full_checkpoint_has_two_weight_sets(tmp_path: Path) -> None:
    path = tmp_path / "full.ckpt"
    average = full_checkpoint("sd1", path)
    found = opening.opened(path)
    assert found.sets == ("ema", "raw")
    raw = convert(path, tmp_path / "raw.safetensors", "ldm", weights="raw")
    same(raw.path, original("sd1"))
    assert len(raw.passed) == len(average) + 5
    kept = convert(path, tmp_path / "ema.safetensors", "ldm")
    assert kept.weights == "ema"
    stored = open_stored(kept.path)
    for name in original("sd1"):
        value = average.get(ema_name(name), original("sd1")[name])
        assert torch.equal(stored.tensor(name), value), name


def test_a_factor_of_latents_in_the_file_is_taken(tmp_path: Path) -> None:
    state = original("sd1") | {"scale_factor": torch.tensor(0.31)}
    torch.save({"state_dict": state}, tmp_path / "own.ckpt")
    loaded = opening.load(tmp_path / "own.ckpt")
    assert (1 / loaded.model.first_stage.std).float() == torch.tensor(0.31)
    convert(tmp_path / "own.ckpt", tmp_path / "again.safetensors", "ldm")
    same(tmp_path / "again.safetensors", state)


def test_a_part_in_several_files_or_in_half_precision_alone(tmp_path: Path) -> None:
    convert(single("sd1", tmp_path / "a.safetensors"), tmp_path / "pipe", "diffusers")
    part = tmp_path / "pipe" / "unet"
    whole = part / "diffusion_pytorch_model.safetensors"
    stored = open_stored(whole)
    names = sorted(stored.entries)
    files = [f"diffusion_pytorch_model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    for k, file in enumerate(files):
        tensors.write(part / file, {n: stored.tensor(n) for n in names[k::2]})
    index = {"metadata": {}, "weight_map": {n: files[i % 2] for i, n in enumerate(names)}}
    (part / f"{whole.name}.index.json").write_text(json.dumps(index))
    whole.unlink()
    text = tmp_path / "pipe" / "text_encoder" / "model.safetensors"
    text.rename(text.with_name("model.fp16.safetensors"))
    convert(tmp_path / "pipe", tmp_path / "b.safetensors", "ldm")
    same(tmp_path / "b.safetensors", original("sd1"))
    (part / files[1]).unlink()
    with pytest.raises(ValueError, match=re.escape(files[1])):
        opening.load(tmp_path / "pipe")


def test_attention_over_pixels_by_its_names_of_old(tmp_path: Path) -> None:
    convert(single("sd1", tmp_path / "a.safetensors"), tmp_path / "pipe", "diffusers")
    path = tmp_path / "pipe" / "vae" / "diffusion_pytorch_model.safetensors"
    stored = open_stored(path)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name in stored.entries:
        old = functools.reduce(lambda n, pair: n.replace(f".{pair[0]}.", f".{pair[1]}."), names.items(), name)
        state[old] = stored.tensor(name).clone()
    assert sum(name not in stored.entries for name in state) == 2 * 8
    path.unlink()
    tensors.write(path, state)
    convert(tmp_path / "pipe", tmp_path / "b.safetensors", "ldm")
    same(tmp_path / "b.safetensors", original("sd1"))


# What is wrong with a file is said in a line that names it ----------------------------------------------------


def damaged(data: bytes) -> dict[str, bytes]:
    shuffled = bytearray(data)
    random.Random(0).shuffle(shuffled)
    return {
        "cut short": data[: len(data) // 2],
        "cut by a byte": data[:-1],
        "too long": data + b"\0" * 8,
        "twice": data + data,
        "shuffled": bytes(shuffled),
        "empty": b"",
    }


@pytest.mark.parametrize("how", damaged(b"0123456789"))
@pytest.mark.parametrize(
    "file",
    [
        "ldm.safetensors",
        "ldm.ckpt",
        *(pytest.param(f, marks=pytest.mark.slow) for f in ("pipe/unet", "pipe/text_encoder", "ours")),
    ],
)
def test_a_damaged_file_is_refused_in_a_line(file: str, how: str, tmp_path: Path) -> None:
    if file.startswith("ldm"):
        source = path = tmp_path / file
        if file.endswith(".ckpt"):
            torch.save({"state_dict": original("sd1")}, path)
        else:
            single("sd1", path)
    else:
        single("sd1", tmp_path / "a.safetensors")
        source = tmp_path / file.split("/", maxsplit=1)[0]
        convert(tmp_path / "a.safetensors", source, "sfumato" if file == "ours" else "diffusers")
        (path,) = (tmp_path / file).glob("*.safetensors")
    path.write_bytes(damaged(path.read_bytes())[how])
    with pytest.raises(ValueError, match=path.name) as error:
        opening.load(source)
    assert "\n" not in str(error.value)


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    (first, second), rest = list(state)[:2], list(state)[2:]
    return {first: state[second], second: state[first], **{n: state[n] for n in rest}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: {n: v for n, v in s.items() if n != f"{UNET}out.0.bias"}, f"lacks tensor '{UNET}out.0.bias"),
        (lambda s: s | {f"{UNET}spy.weight": torch.zeros(1)}, f"fits nothing, '{UNET}spy"),
        (lambda s: s | {f"{FIRST_STAGE}encoder.spy": torch.zeros(1)}, f"fits nothing, '{FIRST_STAGE}encoder.spy"),
        (lambda s: s | {f"{UNET}out.0.bias": torch.zeros(3)}, f"'{UNET}out.0.bias' is 3"),
        (lambda s: {n: v for n, v in s.items() if ".input_blocks." not in n}, "its U-Net is not whole"),
        (lambda s: {n: v for n, v in s.items() if ".decoder." not in n}, "its first stage is not whole"),
    ],
)
def test_a_key_too_many_or_too_few_is_named(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], said: str, tmp_path: Path
) -> None:
    tensors.write(tmp_path / "a.safetensors", change(original("sd1")))
    with pytest.raises(ValueError, match=r"a\.safetensors") as error:
        opening.load(tmp_path / "a.safetensors")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_boxes_that_are_no_numbers_have_no_room_in_ldms_files(tmp_path: Path) -> None:
    reader = TransformerSize(dim=32, depth=1)
    config = KINDS["layout"][0].model_copy(update={"conditioner": BoxesConfig(encoder=reader, names=("cat",))})
    torch.manual_seed(0)
    weights = {"ema": ("made up", LatentDiffusion(config).state_dict())}
    model_folder.save(tmp_path / "boxes", ModelFile(name="boxes", config=config), weights, tokenizer=None)
    with pytest.raises(ValueError, match="no room for boxes that are no sequence of numbers"):
        convert(tmp_path / "boxes", tmp_path / "boxes.safetensors", "ldm")


def test_nothing_is_overwritten_or_half_written(tmp_path: Path) -> None:
    source = single("sd1", tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="is there already"):
        convert(source, source, "ldm")
    with pytest.raises(ValueError, match=r"must end in .safetensors"):
        convert(source, tmp_path / "b.ckpt", "ldm")
    with pytest.raises(ValueError, match="this is none: its first stage is not KL"):
        convert(single("text2img", tmp_path / "t.safetensors"), tmp_path / "pipe", "diffusers")
    with pytest.raises(ValueError, match="no room for an autoencoder with shortcuts"):
        convert("emoji", tmp_path / "emoji.safetensors", "ldm")
    assert {p.name for p in tmp_path.iterdir()} == {"a.safetensors", "t.safetensors"}
