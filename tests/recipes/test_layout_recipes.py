"""Layouts from a folder of COCO to a painted picture, through the doors that a user comes in by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sfumato.boxes import WHOLE, Box
from sfumato.cli.main import main
from sfumato.cli.parse import override
from sfumato.conditioning.boxes import Boxes
from sfumato.conditioning.layout import LayoutTokens
from sfumato.conditioning.vocabulary import vocabulary
from sfumato.data import opened
from sfumato.data.scenes import LABELS, Scenes
from sfumato.io import opening, pictures
from sfumato.models.latent_diffusion import LatentDiffusion
from sfumato.recipes import RECIPES, layout
from sfumato.recipes.material import held_out
from sfumato.recipes.settings import DiffusionTraining, Layouts

TINY = (
    *("model.unet.width=8", "model.unet.head_dim=8", "model.resolution=32", "model.first_stage.channels=4"),
    *("first_stage.crop=32", "first_stage.losses.perceptual=0", "defaults.steps=2", "diffusion.validation=0"),
    *(
        f"{stage}.plan.{part}"
        for stage in ("first_stage", "diffusion")
        for part in ("batch=3", "save=2", "warmup=1", "precision=fp32")
    ),
    *("first_stage.plan.steps=2", "diffusion.plan.steps=4"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("layouts") / "scenes"
    assert main(["data", "scenes", str(out), "-n", "44", "--size", "32", "--seed", "5"]) == 0
    return out


def settings(recipe: str, data: Path | None, **layouts: object) -> DiffusionTraining:
    found = RECIPES[recipe].settings(data)
    assert isinstance(found, DiffusionTraining)
    return found.model_copy(
        update={
            "diffusion": found.diffusion.model_copy(update={"layouts": Layouts.model_validate(layouts)}),
            "model": found.model.model_copy(update={"resolution": 32}),
        }
    )


@pytest.mark.parametrize("recipe", ["layout", "layout-perceiver", "layout-tokens"])
def test_from_a_folder_of_coco_to_a_picture(
    recipe: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, asked = tmp_path / "run", tmp_path / "layout.json"
    assert main(["train", recipe, "--data", str(folder), "--out", str(run), "--set", *TINY]) == 0
    assert "44 pictures of the folder scenes with boxes of" in capsys.readouterr().err
    kind = opening.load(run).model.conditioner
    assert isinstance(kind, LayoutTokens if recipe == "layout-tokens" else Boxes)
    labels = opened(folder, size=32).labels
    asked.write_text(json.dumps([{"label": labels[0], "box": [0, 0, 0.5, 0.5]}]))
    ask = ["generate", "--model", str(run), "--boxes", str(asked), "--seed", "3", "--out", str(tmp_path / "out")]
    assert main([*ask, "--json"]) == 0
    (made,) = json.loads(capsys.readouterr().out)["pictures"]
    assert made["boxes_dropped"] == 0
    assert made["request"]["boxes"] == [{"label": labels[0], "box": [0, 0, 0.5, 0.5]}]
    assert main(["reproduce", made["file"], "--model", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["largest_difference"] == 0
    asked.write_text(json.dumps([{"label": "a bandersnatch", "box": [0, 0, 0.5, 0.5]}]))
    assert main(ask) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{asked}, boxes[0]: unknown" in error


def test_limits_are_counted_and_said(folder: Path) -> None:
    whole = opened(folder, size=32)
    boxes = [whole[i].get("boxes", ()) for i in range(len(whole))]
    cut = settings("layout", folder, least_area=0.1, least=2, most=3)
    found = layout.material(folder, cut)
    large = [[box for box in each if box.area >= 0.1] for each in boxes]
    kept = [each for each in large if len(each) >= 2]
    small = sum(map(len, boxes)) - sum(map(len, large))
    over = sum(max(0, len(each) - 3) for each in kept)
    assert small
    (line,) = found.found
    assert line.startswith(f"{len(kept)} pictures")
    assert f"{small:,} boxes too small and {over:,} over the number" in line
    assert f"{44 - len(kept)} pictures with too few" in line
    assert len(found.told) + len(found.validation or ()) == len(kept)


def test_crops_move_the_boxes(folder: Path) -> None:
    found = layout.material(folder, settings("layout-tokens", folder, crops=3, windows="random-2d"))
    assert len(found.told) == 3 * len(found.pictures)
    (way,) = found.ways(found.told[0])
    assert way.keys() == {"boxes", "uncut", "window", "caption"}
    plain = layout.material(folder, settings("layout-tokens", folder))
    (whole,) = plain.ways(plain.told[0])
    assert whole.keys() == {"boxes", "caption"}


def test_the_scenes_are_learnt_from_where_no_folder_is_given() -> None:
    found = settings("layout", None)
    material = layout.material(None, found)
    assert torch.equal(material.told[7]["image"], Scenes(8, seed=0, side=32)[7]["image"])
    assert material.validation is not None
    assert not torch.equal(material.validation[7]["image"], material.told[7]["image"])
    assert settings("layout-tokens", None).model.conditioner.names == LABELS  # pyright: ignore


def test_pictures_without_boxes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(2):
        pictures.save_png(torch.zeros(3, 32, 32), tmp_path / "in" / f"{i}.png", {})
    assert main(["train", "layout", "--data", str(tmp_path / "in"), "--out", str(tmp_path / "run")]) == 2
    assert f"{tmp_path / 'in'}: no boxes are said of the pictures" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    (tmp_path / "in" / "1.bbox").write_text('[{"label": "cat", "bbox": [0, 0, 1, 1]}]')
    assert main(["train", "layout", "--data", str(tmp_path / "in"), "--out", str(tmp_path / "run")]) == 2
    assert "in: nothing is said of boxes in 1 of 2 pictures, first 0.png" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_picture_is_told_in_eight_ways() -> None:
    boxes = (Box("cat", *WHOLE),)
    told = layout.ways({"boxes": boxes, "caption": "a", "captions": ("a",)})
    assert len(told) == 8
    assert sum(way == {"boxes": boxes, "caption": "a"} for way in told) == 4
    assert sum(way == {"boxes": boxes, "caption": ""} for way in told) == 3
    assert sum(way == {"boxes": (), "caption": "a"} for way in told) == 1


def test_what_an_evaluation_measures_was_not_learnt_whatever_the_limits(folder: Path) -> None:
    """Which knows of no limits, and so of other numbers."""
    _, measured = held_out(opened(folder, size=32))
    assert measured is not None
    keys = {sample["key"] for sample in map(measured.__getitem__, range(len(measured)))}
    assert keys
    for least in (1, 2, 4):
        found = layout.material(folder, settings("layout", folder, least=least))
        learnt = {found.told[i]["key"] for i in range(len(found.told))}
        assert learnt
        assert not learnt & keys
        unseen = found.validation
        assert unseen is None or {unseen[i]["key"] for i in range(len(unseen))} <= keys


@pytest.mark.parametrize("recipe", ["layout", "layout-perceiver", "layout-tokens"])
def test_as_many_boxes_are_learnt_as_are_read(recipe: str) -> None:
    found = RECIPES[recipe].settings(None)
    assert isinstance(found, DiffusionTraining)
    kind = LatentDiffusion(found.model, vocabulary(LABELS)).conditioner
    assert isinstance(kind, Boxes | LayoutTokens)
    assert found.diffusion.layouts.most == kind.most


def test_labels_that_no_model_has_room_for_are_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures.save_png(torch.zeros(3, 32, 32), tmp_path / "in" / "a.png", {})
    (tmp_path / "in" / "a.bbox").write_text(json.dumps([{"label": "x" * 201, "bbox": [0, 0, 1, 1]}]))
    for recipe in ("layout-tokens", "ldm-layout2img"):
        assert main(["train", recipe, "--data", str(tmp_path / "in"), "--out", str(tmp_path / "run")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"{tmp_path / 'in'}: names.0" in error


def test_boxes_need_not_be_painted() -> None:
    """As docs/layouts.md says it."""
    changes = ["model.conditioner.painted=0", "model.unet.map_channels=0", "model.maps=none"]
    with pytest.raises(ValueError, match="map_short is a way of maps; there are none"):
        DiffusionTraining.model_validate(override(RECIPES["layout"].settings(None), changes))
    changes.append("model.unet.map_short=false")
    found = DiffusionTraining.model_validate(override(RECIPES["layout"].settings(None), changes))
    assert found.model.maps is None


def test_a_label_without_a_name_is_refused_before_anything_is_done(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["train", "layout", "--out", str(tmp_path / "run"), "--set", *TINY, "model.conditioner.names=[cat,dog]"]
    for data in ([], ["--data", str(folder)]):
        assert main([*named, *data]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "model.conditioner.names lacks one: unknown label '" in error
        assert not (tmp_path / "run").exists()
