"""Pictures of several shapes: each is seen in its own, a batch is of one, a run that was stopped goes on the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
from fill import inp
from sfumato.data.part import Part
from sfumato.io import pictures, tensors
from sfumato.io.model_folder import Defaults
from sfumato.latents.autoencoding import Losses
from sfumato.outcome import Outcome
from sfumato.recipes import emoji
from sfumato.recipes.autoencoder import FirstStageRun
from sfumato.recipes.diffusion import run
from sfumato.recipes.events import Stepped, Validated
from sfumato.recipes.material import bucketed
from sfumato.recipes.settings import DiffusionRun, DiffusionTraining
from sfumato.recipes.told import Told
from sfumato.recipes.translated import super_resolution
from sfumato.train.plan import Plan

SIZES = ((48, 24), (24, 48), (32, 32))  # of the files
PLAN = Plan(steps=8, batch=2, rate=1e-3, warmup=1, save=3, preview=8, precision="fp32")


def settings(resolution: int = 32, **more: object) -> DiffusionTraining:
    return DiffusionTraining(
        name="run",
        model=tiny.CONFIG.model_copy(update={"resolution": resolution}),
        first_stage=FirstStageRun(plan=PLAN, losses=Losses(perceptual=0)),
        diffusion=DiffusionRun.model_validate({"plan": PLAN, "drop": 0.3, "buckets": True, **more}),
        defaults=Defaults(steps=1, guidance=1.0),
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "things"
    for i in range(9):
        w, h = SIZES[i % 3]
        pictures.save_png((inp(f"picture {i}", 3, h, w) / 2).clamp(-1, 1), root / f"{i}.png", {})
        (root / f"{i}.txt").write_text(tiny.CAPTIONS[i % 3])
    return root


def test_a_batch_is_of_one_shape(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All three shapes are trained on; a run that was stopped has the losses of one that was not."""
    seen: list[tuple[int, ...]] = []
    real = Told.forward

    def forward(self: Told, batch: Mapping[str, Tensor], at: object) -> Outcome:
        seen.append(tuple(batch["mean"].shape[2:]))
        assert len(batch["mean"]) == PLAN.batch
        return real(self, batch, at)  # type: ignore[arg-type]

    monkeypatch.setattr(Told, "forward", forward)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    list(run(settings(), emoji.material(data, 32), whole))
    assert {(4 * h, 4 * w) for h, w in seen} == {(32, 32), (24, 40), (40, 24)}
    for event in run(settings(), emoji.material(data, 32), parts):
        if isinstance(event, Stepped) and event.stage == "diffusion" and event.progress.step == 5:
            break
    list(run(settings(), emoji.material(data, 32), parts))
    losses = [(home / "diffusion" / "metrics.jsonl").read_text().splitlines() for home in (whole, parts)]
    assert [[json.loads(line)["loss"] for line in each] for each in losses] == [
        [json.loads(line)["loss"] for line in losses[0]]
    ] * 2
    files = sorted((whole / "latents").rglob("part-*.safetensors"))
    assert sorted(tuple(tensors.load(path)["mean"].shape) for path in files) == [
        (3, 4, 6, 10),
        (3, 4, 8, 8),
        (3, 4, 10, 6),
    ]
    assert torch.isfinite(tensors.load(whole / "model" / "ema.safetensors")["denoiser.net.conv_in.weight"]).all()


def test_what_has_one_shape_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^buckets take their latents from the cache; "):
        list(run(settings(encode="always"), emoji.material(data, 32), tmp_path / "run"))
    with pytest.raises(ValueError, match=r"^buckets are for a folder of pictures of several shapes; "):
        list(run(settings(), emoji.material(None, 32), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_what_is_learnt_in_several_shapes_is_measured(data: Path, tmp_path: Path) -> None:
    """Beside pictures that are held out: one shape at a time."""
    material = emoji.material(data, 32)
    whole = replace(material, validation=Part(material.told, [0, 1, 2, 3]))
    found = [event for event in run(settings(), whole, tmp_path / "run") if isinstance(event, Validated)]
    assert [(event.step, event.pictures) for event in found] == [(PLAN.steps, 4)]


def test_a_part_of_a_part_has_shapes_too(data: Path) -> None:
    part = Part(Part(emoji.material(data, 32).told, [2, 1, 0]), [1, 2])
    among = [(40, 24), (24, 40), (32, 32)]
    assert [bucketed(part, among, least=1)[i]["image"].shape[1:] for i in range(2)] == [(40, 24), (24, 40)]


def test_what_is_shown_a_picture_learns_squares(data: Path, tmp_path: Path) -> None:
    chosen = super_resolution(None)
    chosen = chosen.model_copy(update={"diffusion": chosen.diffusion.model_copy(update={"buckets": True})})
    with pytest.raises(ValueError, match=r"^a model that is shown a map of kind 'low_resolution' learns squares; "):
        run(chosen, emoji.material(data, 64), tmp_path / "run")
