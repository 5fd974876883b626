"""The validation loss: the objective at fixed addresses, beside a training that it does not change, in exact lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
from fill import inp
from folders import fill
from given import given
from painter import SETTINGS, Captioned, of
from sfumato.data import Emoji
from sfumato.data.part import Part
from sfumato.diffusion.noise import Address, Stream
from sfumato.diffusion.objective import Loss, denoising_loss
from sfumato.io import checkpoint
from sfumato.recipes import RECIPES, emoji
from sfumato.recipes.diffusion import run
from sfumato.recipes.events import Event, Measured, Stepped, Validated
from sfumato.recipes.material import Material
from sfumato.recipes.told import Told
from sfumato.recipes.validation import BINS, LAST, SEED, Pictures, measured, placed
from sfumato.train.fit import Batch


@pytest.fixture(scope="module")
def material() -> Material:
    whole = Captioned(12)
    return of(Part(whole, list(range(8))), Part(whole, list(range(8, 12))))


def results(home: Path) -> dict[str, bytes]:
    names = ["validation.jsonl", "step-5/state.safetensors", "step-5/manifest.json"]
    return {name: (home / "diffusion" / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def whole(material: Material, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event]]:
    home = tmp_path_factory.mktemp("whole") / "run"
    return home, list(run(SETTINGS, material, home))


# The loss -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [Loss(), Loss(distance="huber", weighting="min_snr")], ids=["simple", "weighted"])
def test_it_is_the_loss_at_these_times_with_this_noise(loss: Loss) -> None:
    model, n = tiny.model(), 5
    z = inp("latents", 9, 4, 4, 4)
    index = [8, 0, 3, 4, 2]

    def batch(rows: Tensor) -> Batch:
        told = model.conditioner.collate([{"caption": tiny.CAPTIONS[i % 3]} for i in rows.tolist()])
        return {"index": rows, "mean": z[rows], **told}

    found = measured(Told(model, 0.0, "uniform", loss), Pictures(batch, 9), index, together=2, bf16=False)
    for bin, value in enumerate(found.bins):
        at = placed(bin, n)
        assert ((at.part >= bin / BINS) & (at.part < (bin + 1) / BINS)).all()
        noise = Address.of(SEED, range(n), LAST - bin).normal(z[:n], Stream.NOISE)
        cond = model.conditioner.of([tiny.CAPTIONS[i % 3] for i in index])
        with torch.no_grad():
            each = denoising_loss(model.denoiser, z[index], cond, given(at.part, noise), loss=loss)
        assert value == pytest.approx(each.double().mean().item(), rel=1e-5)
    assert found.loss == pytest.approx(sum(found.bins) / BINS, rel=1e-12)


def test_pictures_share_out_each_bin() -> None:
    """A picture in each n-th of it, and not the same one at the same place in all."""
    n = 11
    orders = [(placed(bin, n).part * BINS * n).floor().long() - bin * n for bin in range(BINS)]
    assert all(sorted(order.tolist()) == list(range(n)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == BINS


def test_no_training_step_has_its_noise() -> None:
    ours = {LAST - bin for bin in range(BINS)}
    assert min(ours) > 2**32 - 100
    assert len(ours) == BINS


# The run --------------------------------------------------------------------------------------------------


def test_a_line_each_so_many_steps_and_at_the_end(whole: tuple[Path, list[Event]]) -> None:
    home, events = whole
    said = [json.loads(line) for line in (home / "diffusion" / "validation.jsonl").read_text().splitlines()]
    found = [e for e in events if isinstance(e, Validated)]
    assert [line["step"] for line in said] == [e.step for e in found] == [2, 4, 5]
    assert [(e.held_out, e.trained_on) for e in found] == [
        tuple(Measured(line[part]["loss"], tuple(line[part]["bins"])) for part in ("held out", "trained on"))
        for line in said
    ]
    assert all(line["pictures"] == 4 for line in said)
    order = [type(e) for e in events]
    assert order.index(Validated) == [e.progress.step if isinstance(e, Stepped) else 0 for e in events].index(2) + 1


def test_it_changes_nothing_of_the_training(
    whole: tuple[Path, list[Event]], material: Material, tmp_path: Path
) -> None:
    assert not any(isinstance(e, Validated) for e in run(SETTINGS, replace(material, validation=None), tmp_path))
    assert not (tmp_path / "diffusion" / "validation.jsonl").exists()
    for name in ("step-5/state.safetensors", "step-5/manifest.json"):
        assert (tmp_path / "diffusion" / name).read_bytes() == results(whole[0])[name]


def until(events: Iterator[Event], step: int) -> None:
    for event in events:
        if isinstance(event, Stepped) and event.progress.step == step:
            events.close()
            return
    raise AssertionError(f"the run never came to step {step}")


@pytest.mark.parametrize("stops", [[2], [3, 4]], ids=str)
def test_a_stopped_run_has_the_same_lines(
    stops: list[int], whole: tuple[Path, list[Event]], material: Material, tmp_path: Path
) -> None:
    for stop in stops:
        until(run(SETTINGS, material, tmp_path), stop)
    list(run(SETTINGS, material, tmp_path))
    assert results(tmp_path) == results(whole[0])


@pytest.mark.parametrize("at", [4, 5])
def test_so_has_one_that_was_killed_while_it_saved(
    at: int, whole: tuple[Path, list[Event]], material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = checkpoint.save

    def save(home: Path, step: int, *rest: object) -> Path:
        if step == at:
            raise KeyboardInterrupt
        return plain(home, step, *rest)

    monkeypatch.setattr(checkpoint, "save", save)
    with pytest.raises(KeyboardInterrupt):
        list(run(SETTINGS, material, tmp_path))
    monkeypatch.undo()
    with (tmp_path / "diffusion" / "validation.jsonl").open("a") as log:
        log.write('{"step": 5, "lo')  # of another program that cuts lines
    list(run(SETTINGS, material, tmp_path))
    assert results(tmp_path) == results(whole[0])


def test_a_line_that_cannot_be_written_says_where_to_go_on(material: Material, tmp_path: Path) -> None:
    (tmp_path / "diffusion" / "validation.jsonl").mkdir(parents=True)
    with pytest.raises(OSError, match=r"validation\.jsonl cannot be written to .*; no checkpoint was written before"):
        list(run(SETTINGS, material, tmp_path))


# What is held out -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "held"), [(39, []), (40, [0, 20]), (61, [0, 20, 40, 60])])
@pytest.mark.parametrize("recipe", ["emoji", "pixels"])
def test_one_in_twenty_of_a_folder(recipe: str, n: int, held: list[int], tmp_path: Path) -> None:
    files: dict[str, str | bytes | int] = {f"{i:03}.png": i for i in range(n)}
    fill(tmp_path, files | {f"{i:03}.txt": f"number {i}" for i in range(n)})
    settings = RECIPES[recipe].settings(tmp_path)
    found = RECIPES[recipe].material(tmp_path, settings)
    seen = {found.told[i]["key"] for i in range(len(found.told))}
    kept = [] if found.validation is None else [found.validation[i]["key"] for i in range(len(found.validation))]
    assert kept == [f"{i:03}.png" for i in held]
    assert seen == {f"{i:03}.png" for i in range(n)} - {*kept}
    off = settings.model_copy(update={"diffusion": settings.diffusion.model_copy(update={"validation": 0})})
    none = RECIPES[recipe].material(tmp_path, off)
    assert none.validation is None
    assert len(none.told) == n


def test_of_the_emoji_world_nothing_is_taken_away() -> None:
    """Concepts never trained on, in the styles that are, and all pictures of the others are learnt from."""
    found = emoji.material()
    assert isinstance(found.told, Emoji)
    assert isinstance(found.validation, Emoji)
    assert len(found.told) == 622
    assert {*found.told.ids}.isdisjoint(found.validation.ids)
    styles = {found.validation.meta(i)["style"] for i in range(len(found.validation))}
    assert styles == {*emoji.STYLES}
    assert len(found.validation) > 20
