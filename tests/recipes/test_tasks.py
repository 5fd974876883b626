"""Super-resolution, inpainting and maps of classes: from a folder to a picture, by one way to train and to sample."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fill import inp
from held import Held
from sfumato.cli.main import main
from sfumato.diffusion.noise import Address
from sfumato.generate import Given, generate
from sfumato.io import opening, pictures
from sfumato.latents.canvas import Canvas
from sfumato.latents.maps import maps
from sfumato.models.config import SegmentationConfig
from sfumato.models.latent_diffusion import LatentDiffusion
from sfumato.recipes import RECIPES
from sfumato.recipes.diffusion import run
from sfumato.recipes.settings import DiffusionTraining
from sfumato.recipes.shown import shown_of
from sfumato.request import Request

SMALL = (
    *("model.unet.width=8", "model.unet.head_dim=8", "model.resolution=16", "model.first_stage.channels=4"),
    *("first_stage.losses.perceptual=0", "defaults.steps=2"),
    *(
        f"{stage}.plan.{part}"
        for stage in ("first_stage", "diffusion")
        for part in ("batch=3", "save=2", "warmup=1", "precision=fp32")
    ),
    *("first_stage.plan.steps=2", "diffusion.plan.steps=4"),
)


def folder(root: Path, n: int = 4, side: int = 20) -> Path:
    for i in range(n):
        pictures.save_png((0.4 * inp(f"{i}", 3, side, side)).clamp(-1, 1), root / "images" / f"{i}.png", {})
    return root


def mapped(root: Path, n: int = 4, side: int = 20) -> Path:
    folder(root, n, side)
    (root / "masks").mkdir()
    for i in range(n):
        save_map(torch.arange(side * side).view(side, side) % (2 + i % 2), root / "masks" / f"{i}.png")
    return root


def save_map(found: Tensor, path: Path, mode: str = "L") -> Path:
    image = Image.fromarray(found.numpy().astype(np.uint8))
    if mode == "P":
        image.putpalette([k % 256 for k in range(768)])
    (image if mode in ("L", "P") else image.convert(mode)).save(path)
    return path


def trained(recipe: str, data: Path, home: Path, changes: Sequence[str] = ()) -> Path:
    assert main(["train", recipe, "--data", str(data), "--out", str(home), "--set", *SMALL, *changes]) == 0
    return home


def settings(recipe: str, data: Path | None, **changes: object) -> DiffusionTraining:
    found = RECIPES[recipe].settings(data)
    assert isinstance(found, DiffusionTraining)
    return found.model_copy(update=changes)


def painted(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, object]:
    capsys.readouterr()
    assert main(["generate", *map(str, arguments), "--json"]) == 0, capsys.readouterr().err
    (found,) = json.loads(capsys.readouterr().out)["pictures"]
    return found


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


# Super-resolution -----------------------------------------------------------------------------------------
def test_small_pictures_become_four_times_as_large(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = trained("super-resolution", folder(tmp_path / "data"), tmp_path / "sr")
    assert opening.describe(home).config.upscale == 4
    small = tmp_path / "small.png"
    pictures.save_png(0.4 * inp("s", 3, 8, 6).clamp(-1, 1), small, {})
    found = painted(capsys, "--model", home, "--init", small, "--seed", "3", "--out", tmp_path / "made")
    assert found["request"]["size"] == [24, 32]
    assert pictures.read(found["file"]).shape == (3, 32, 24)
    assert main(["reproduce", found["file"], "--model", str(home), "--init", str(small)]) == 0
    assert "largest pixel difference: 0 of 255" in capsys.readouterr().out
    ask = ("generate", "--model", home)
    assert refused(capsys, *ask) == "sfumato: this model paints a given picture larger; give it as init"
    more = ("--init", small, "--size", "64x64")
    assert refused(capsys, *ask, *more).endswith("paints 4 times as large as --init; leave --size out")
    pictures.save_png(torch.zeros(3, 7, 6), tmp_path / "odd.png", {})
    line = refused(capsys, *ask, "--init", tmp_path / "odd.png")
    assert line.endswith("init is 6x7, to be painted 4 times as large; both its sides must divide by 2")
    whole = ("--init", small, "--strength", "0.5")
    assert "takes no mask, no inversion and no strength" in refused(capsys, *ask, *whole)


def test_the_factor_is_a_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = trained("super-resolution", folder(tmp_path / "data"), tmp_path / "sr", ["model.upscale=2"])
    small = tmp_path / "small.png"
    pictures.save_png(torch.zeros(3, 8, 8), small, {})
    found = painted(capsys, "--model", home, "--init", small, "--out", tmp_path / "made")
    assert found["request"]["size"] == [16, 16]
    odd = ("train", "super-resolution", "--out", tmp_path / "b", "--set", "model.upscale=3")
    assert refused(capsys, *odd) == "sfumato: model: resolution must divide by 3, as upscale says"
    other = ("train", "inpainting", "--out", tmp_path / "b", "--set", "model.upscale=2")
    assert "upscale is of maps 'low_resolution'" in refused(capsys, *other)


# What training shows is what sampling shows ---------------------------------------------------------------
@pytest.mark.parametrize("kind", ["inpainting", "inpainting_black", "low_resolution"])
def test_training_and_sampling_show_the_same(kind: str) -> None:
    name = "super-resolution" if kind == "low_resolution" else "inpainting"
    base = settings(name, None)
    size = base.model.first_stage.__dict__ | {"channels": 4}
    base = DiffusionTraining.model_validate(
        base.model_dump() | {"model": base.model.model_dump() | {"maps": kind, "first_stage": size, "resolution": 16}}
    )
    torch.manual_seed(0)
    model = LatentDiffusion(base.model)
    images = [(inp(f"{i}", 3, 16, 16) * 64 + 128).clamp(0, 255).round() / 127.5 - 1 for i in range(3)]
    shown = shown_of(base, model, Held(images))
    index = torch.tensor([2, 0])
    batch = shown(index, 5)["maps"]
    given = shown.make(torch.stack([images[2], images[0]]), Address.of(base.diffusion.plan.seed, index, 5))
    for k in range(2):
        canvas = Canvas.of(given.init[k], None if given.mask is None else given.mask[k])
        one = maps(kind, model.first_stage, canvas, larger=base.model.larger)
        torch.testing.assert_close(batch[k : k + 1], one, rtol=0, atol=1e-5)
    assert not torch.equal(batch, shown(index, 6)["maps"])
    assert torch.equal(batch, shown(index, 5)["maps"])


# Inpainting -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["inpainting_black", "inpainting"])
def test_a_hole_is_painted(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = trained("inpainting", folder(tmp_path / "data"), tmp_path / "run", [f"model.maps={kind}"])
    assert opening.describe(home).config.maps == kind
    hole = torch.full((3, 20, 20), -1.0)
    hole[:, 4:12, 5:9] = 1
    pictures.save_png(hole, tmp_path / "hole.png", {})
    init = tmp_path / "data" / "images" / "0.png"
    ask = ("--model", home, "--init", init, "--mask", tmp_path / "hole.png", "--out", tmp_path / "made")
    found = painted(capsys, *ask)
    inside = pictures.read_mask(tmp_path / "hole.png", of=init, size=16) > 0
    new, old = pictures.read(found["file"]), pictures.read(init, size=16)
    assert torch.equal(new[:, ~inside], old[:, ~inside])
    assert "give a mask" in refused(capsys, "generate", "--model", home, "--init", init)


def test_a_killed_run_that_is_shown_pictures_ends_with_the_same_bytes(tmp_path: Path) -> None:
    data = folder(tmp_path / "data")
    home = trained("inpainting", data, tmp_path / "a", ["diffusion.flips=true"])
    recipe = RECIPES["inpainting"]
    whole = DiffusionTraining.model_validate(json.loads((home / "config.json").read_text())["settings"])
    events = run(whole, recipe.material(data, whole), tmp_path / "b")
    while not any((tmp_path / "b" / "diffusion").glob("step-2/manifest.json")):
        next(events)
    events.close()  # type: ignore[attr-defined]
    list(run(whole, recipe.material(data, whole), tmp_path / "b"))
    for name in ("model/ema.safetensors", "model/model.json", "samples/step-4.png"):
        assert (home / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


# Maps of classes ------------------------------------------------------------------------------------------
def test_from_maps_to_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = mapped(tmp_path / "data")
    home = trained("semantic", data, tmp_path / "run")
    config = opening.describe(home).config
    assert config.conditioner == SegmentationConfig(classes=3, stages=2)
    ask = ("--model", home, "--map", data / "masks" / "1.png", "--seed", "5", "--out", tmp_path / "made")
    found = painted(capsys, *ask)
    assert found["map"]["file"] == "1.png"
    assert pictures.read(found["file"]).shape == (3, 16, 16)
    again = ("reproduce", found["file"], "--model", str(home))
    assert main([*again, "--map", str(data / "masks" / "1.png")]) == 0
    assert "largest pixel difference: 0 of 255" in capsys.readouterr().out
    assert "was asked with a map of classes; give it with --map" in refused(capsys, *again)
    assert "1.png was made with; its pixels differ" in refused(
        capsys, *again, "--map", data / "masks" / "0.png"
    ).replace(found["file"], "1.png")
    loaded = opening.load(home)
    one, other = (
        generate(loaded, Request(seed=1), map=torch.full((16, 24), k, dtype=torch.uint8)).images for k in (0, 1)
    )
    assert one.shape == (1, 3, 16, 24)
    assert (one - other).abs().max() > 1e-3
    plain = ("generate", "--model", home)
    assert refused(capsys, *plain).endswith("what a map of classes says, and nothing else; give it as map")
    strange = save_map(torch.full((16, 16), 7), tmp_path / "strange.png")
    line = refused(capsys, *plain, "--map", strange)
    assert line.endswith("a map has the class 7; this model knows 0 to 2, and 255 for nothing")
    colours = save_map(torch.zeros(16, 16), tmp_path / "colours.png", "RGB")
    assert "in 8 bits, grey or with a palette; this has the mode RGB" in refused(capsys, *plain, "--map", colours)
    assert "is not asked with a map of classes" in refused(
        capsys, "generate", "a red apple", "--map", data / "masks" / "1.png"
    )


def test_folders_that_are_no_maps_are_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ("train", "semantic", "--out", tmp_path / "run")
    assert refused(capsys, *ask) == (
        "sfumato: the bundled pictures have no maps of classes; give a folder that has, with --data DIR"
    )
    data = folder(tmp_path / "data")
    line = refused(capsys, *ask, "--data", data)
    assert line.endswith("there are no maps; put one for each picture, of its name and .png, into masks/")
    (data / "masks").mkdir()
    for i in range(3):
        save_map(torch.zeros(20, 20), data / "masks" / f"{i}.png")
    line = refused(capsys, *ask, "--data", data)
    assert line.endswith("1 of 4 pictures have no map, first images/3.png; give it one of its name and .png in masks/")
    save_map(torch.zeros(20, 21), data / "masks" / "3.png")
    line = refused(capsys, *ask, "--data", data)
    assert line.endswith("masks/3.png is 21x20 and images/3.png is 20x20; a map has the size of its picture")


@pytest.mark.parametrize(
    "given", [Given(init=torch.zeros(3, 16, 16)), Given(map=torch.zeros(16, 16, dtype=torch.uint8))]
)
def test_a_model_says_what_it_is_given_in_vain(given: Given, tmp_path: Path) -> None:
    home = trained("unconditional", folder(tmp_path / "data"), tmp_path / "run")
    loaded = opening.load(home)
    if given.map is None:
        assert generate(loaded, Request(), **given._asdict()).images.shape == (1, 3, 16, 16)
    else:
        with pytest.raises(ValueError, match="is not asked with a map of classes; leave it out"):
            generate(loaded, Request(), **given._asdict())
