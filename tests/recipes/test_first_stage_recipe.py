"""A first stage from a folder of anything: what is odd is read, what is broken is counted, what is killed goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fill import inp
from held import Held
from quick import features_are_means
from sfumato.data.fingerprint import Fingerprint
from sfumato.evaluate.first_stage import FirstStageScore
from sfumato.io import first_stages, pictures, tensors
from sfumato.latents.adversary import Adversary
from sfumato.latents.autoencoding import Losses
from sfumato.nets.autoencoder import AutoencoderSize
from sfumato.nets.patchgan import PatchGanSize
from sfumato.recipes import autoencoder, first_stage
from sfumato.recipes import report as reports
from sfumato.recipes.autoencoder import FirstStageRun
from sfumato.recipes.events import Event, Found, RolledBack, Stepped, Wrote
from sfumato.recipes.first_stage import FirstStageTraining, run
from sfumato.recipes.seen import Seen, seen
from sfumato.train.batches import indices
from sfumato.train.fit import Batch, Batches
from sfumato.train.plan import Plan

KL = AutoencoderSize(channels=4, mult=(1, 2), blocks=1, latent_channels=2, patch=2, shortcut="linear")
VQ = replace(KL, codebook=64)
PLAN = Plan(steps=6, batch=3, rate=1e-3, warmup=1, save=2, precision="fp32")
ADVERSARY = Adversary(critic=PatchGanSize(width=4, layers=1), start=2, warmup=2, weight=0.2)
SETTINGS = FirstStageTraining(
    name="small",
    size=KL,
    resolution=32,
    run=FirstStageRun(plan=PLAN, losses=Losses(squares=1.0, perceptual=0), adversary=ADVERSARY, crop=16, flips=True),
)
VQ_SETTINGS = SETTINGS.model_copy(
    update={"size": VQ, "run": SETTINGS.run.model_copy(update={"losses": Losses(perceptual=0, patience=3)})}
)
SEEING = SETTINGS.model_copy(
    update={"run": SETTINGS.run.model_copy(update={"losses": Losses(perceptual=0.1), "crop": None})}
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    features_are_means(monkeypatch)


def odd(root: Path) -> None:
    """One picture of each kind that a folder may hold."""
    levels = ((inp("odd", 40, 33, 4) / 2).clamp(-1, 1).numpy() * 127.5 + 127.5).astype(np.uint8)
    rgba = Image.fromarray(levels)
    rgba.save(root / "003.png")
    rgba.convert("L").save(root / "000.png")
    rgba.convert("RGB").convert("CMYK").save(root / "001.jpg")
    Image.fromarray(levels[..., 0].astype(np.uint16) * 257).save(root / "002.png")
    rgba.convert("RGB").quantize(16).save(root / "004.png")
    rgba.convert("RGB").resize((53, 37)).save(root / "005.png")
    Image.new("RGB", (32, 32)).save(root / "006.png")
    rgba.convert("1").save(root / "007.bmp")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 pictures that can be read, one whose header cannot, and one whose pixels cannot."""
    root = tmp_path_factory.mktemp("all kinds")
    odd(root)
    for i in range(8, 120):
        pictures.save_png((0.4 * inp(f"{i % 9}", 3, 20, 24)).clamp(-1, 1), root / f"{i:03}.png", {})
    (root / "no-header.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing of the kind")
    data = (root / "055.png").read_bytes()
    (root / "055b.png").write_bytes(data[: len(data) // 2])
    return root


@pytest.fixture
def material(folder: Path) -> Seen:
    return seen(folder, 32)


def metrics(home: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (home / "first-stage" / "metrics.jsonl").read_text().splitlines()]


def report(home: Path) -> dict[str, Any]:
    def refuse(value: str) -> None:
        raise AssertionError(f"{value} is no JSON")

    return json.loads((home / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)


def flat(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [x for one in value.values() for x in flat(one)]
    if isinstance(value, list):
        return [x for one in value for x in flat(one)]
    return [float(value)] if isinstance(value, int | float) else []


# A folder of all kinds ------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [SETTINGS, VQ_SETTINGS, SEEING], ids=["kl", "vq", "perceptual"])
def test_all_kinds_of_pictures_are_learnt_from_and_broken_ones_counted(
    settings: FirstStageTraining, material: Seen, tmp_path: Path
) -> None:
    events = list(run(settings, material, tmp_path))
    assert [e.progress.step for e in events if isinstance(e, Stepped)] == [1, 2, 3, 4, 5, 6]
    assert isinstance(events[0], Found)
    assert events[0].text.endswith("; 21 are held out, 1 were left out as unreadable")
    said = report(tmp_path)
    assert said["provenance"]["skipped"] == {"unreadable": 1, "damaged": 1, "steps": 0}
    assert said["provenance"]["pictures"] == {"training": 100, "held out": 21}
    assert said["provenance"]["rolled back"] == 0
    assert said["judged by pictures never trained on"] is True
    assert said["score"]["n"] == 21
    assert all(map(math.isfinite, flat(said)))
    lines = metrics(tmp_path)
    assert all(math.isfinite(x) for line in lines for x in flat(line))
    assert [("adversary" in line, "critic" in line) for line in lines] == [(step >= 2, step >= 2) for step in range(6)]
    assert all(("lpips" in line) == (settings is SEEING) for line in lines)
    loaded = first_stages.loaded(tmp_path)
    assert (loaded.name, loaded.resolution) == ("small", 32)
    assert all(p.isfinite().all() for p in loaded.stage.state_dict().values())
    kept = tensors.load(tmp_path / "first-stage" / "step-6" / "state.safetensors")
    assert all(torch.equal(p, kept[f"ema.{name}"]) for name, p in loaded.stage.net.named_parameters())
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Skipped: 1 unreadable files, 1 damaged pictures, 0 steps that were not finite, 0 held-out" in text
    assert isinstance(events[-1], Wrote)
    assert events[-1].path == tmp_path / "report.md"


def test_latents_of_what_was_trained_have_unit_variance(material: Seen, tmp_path: Path) -> None:
    """Over the training pictures, the posterior's own variance counted; the held-out ones are near."""
    list(run(SETTINGS, material, tmp_path))
    stage: Any = first_stages.loaded(tmp_path).stage
    learnt = autoencoder.TrainingPictures(material.training)
    mean, logvar = stage.moments(learnt.stack(learnt.sound()))
    torch.testing.assert_close(mean.mean((0, 2, 3)), torch.zeros(2), rtol=0, atol=1e-5)
    assert (mean.square() + logvar.exp()).mean().item() == pytest.approx(1, abs=1e-5)


def test_what_the_folder_lacks_is_one_line(folder: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"^2 of 2 pictures cannot be read, first ") as caught:
        seen(tmp_path, 32)
    assert "\n" not in str(caught.value)


def test_too_many_damaged_ones_are_one_line(tmp_path: Path) -> None:
    for i in range(60):
        pictures.save_png((0.4 * inp(f"{i}", 3, 20, 24)).clamp(-1, 1), tmp_path / "data" / f"{i:03}.png", {})
    data = (tmp_path / "data" / "021.png").read_bytes()
    (tmp_path / "data" / "021.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"^1 of 48 pictures are damaged, more than one in a hundred; ") as caught:
        list(run(SETTINGS, seen(tmp_path / "data", 32), tmp_path / "run"))
    assert "021.png" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "model").exists()


# Numbers that are not there -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [KL, VQ], ids=["kl", "vq"])
def test_black_batches_have_finite_gradients(size: AutoencoderSize, tmp_path: Path) -> None:
    """All pictures are black, and so is what features are compared of; the perceptual term and the adversary are on."""
    black = Seen(Held([torch.full((3, 32, 32), -1.0)] * 12), None, (), "black", Fingerprint.of(range(12)))
    settings = SEEING.model_copy(update={"size": size})
    list(run(settings, black, tmp_path))
    lines = metrics(tmp_path)
    assert len(lines) == 6
    assert all("lpips" in line for line in lines)
    assert all(math.isfinite(x) for line in lines for x in flat(line))
    said = report(tmp_path)
    assert said["provenance"]["skipped"]["steps"] == 0
    assert said["judged by pictures never trained on"] is False
    assert said["good enough"] is False


def spoilt(steps: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = autoencoder.batches

    def batches(*given: Any, **more: Any) -> Batches:
        source = plain(*given, **more)

        def batch(step: int) -> Batch:
            found = dict(source(step))
            if step in steps:
                found["image"] = found["image"].index_fill(0, torch.tensor([1]), math.nan)
            return found

        return batch

    monkeypatch.setattr(autoencoder, "batches", batches)


def test_a_batch_that_is_not_finite_is_skipped_and_counted(
    material: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt({1, 4}, monkeypatch)
    list(run(SETTINGS, material, tmp_path))
    said = report(tmp_path)
    assert said["provenance"]["skipped"] == {"unreadable": 1, "damaged": 1, "steps": 2}
    assert [math.isfinite(line["loss"]) for line in metrics(tmp_path)] == [True, False, True, True, False, True]
    assert "2 steps that were not finite" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert all(p.isfinite().all() for p in first_stages.loaded(tmp_path).stage.state_dict().values())


def test_batches_that_are_never_finite_stop_the_run(
    material: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one return to an earlier checkpoint with a weaker adversary."""
    spoilt({3, 4, 5}, monkeypatch)
    events: list[Event] = []
    with pytest.raises(FloatingPointError) as caught:
        events.extend(event for event in run(SETTINGS, material, tmp_path))
    samples = ", ".join(map(str, indices(5, batch=3, n=len(material.training), seed=0).tolist()))
    said = "the loss or its gradient was not finite three times in a row, at step 5"
    assert str(caught.value) == f"{said} (samples {samples})"
    back = json.loads((tmp_path / "first-stage" / "rollbacks.jsonl").read_text())
    assert (back["at"], back["step"]) == (5, 2)
    assert not (tmp_path / "model").exists()


def test_a_rollback_is_said_and_reported(material: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The critic's objective goes wrong as long as the adversary is strong."""
    plain = autoencoder.Autoencoding.forward

    def forward(self: Any, batch: Batch, at: Any) -> Any:
        found = plain(self, batch, at)
        worse = at.step >= 3 and float(self.strength) == 1
        return replace(found, loss=found.loss * (math.nan if worse else 1.0))

    monkeypatch.setattr(autoencoder.Autoencoding, "forward", forward)
    events = list(run(SETTINGS, material, tmp_path))
    (back,) = [e.rollback for e in events if isinstance(e, RolledBack)]
    assert (back.at, back.step) == (5, 2)
    said = report(tmp_path)["provenance"]
    assert said["rolled back"] == 1
    assert said["skipped"]["steps"] == 0
    assert "Rolled back: 1 times." in (tmp_path / "report.md").read_text(encoding="utf-8")
    kept = tensors.load(tmp_path / "first-stage" / "step-6" / "state.safetensors")
    assert kept["memory.strength"] == 0.25
    assert len(metrics(tmp_path)) == 6


# Killed ---------------------------------------------------------------------------------------------------


@pytest.fixture
def unjudged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report is a function of the weights, which are compared."""
    monkeypatch.setattr(first_stage, "report", lambda *_, **__: iter(()))


KINDS = {"kl": SETTINGS, "vq": VQ_SETTINGS}


IMAGES = [(0.4 * inp(f"{i}", 3, 32, 32)).clamp(-1, 1) for i in range(9)]
FEW = Seen(Held(IMAGES), None, (), "few", Fingerprint.of(range(9)))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(first_stage, "report", lambda *_, **__: iter(()))
        for kind, settings in KINDS.items():
            found[kind] = tmp_path_factory.mktemp(kind)
            list(run(settings, FEW, found[kind]))
    return found


def stop(events: Iterator[Event], after: int) -> None:
    for event in events:
        if isinstance(event, Stepped) and event.progress.step == after:
            events.close()  # type: ignore[attr-defined]
            return
    raise AssertionError(f"the run never came to step {after}")


@pytest.mark.usefixtures("unjudged")
@pytest.mark.parametrize("after", [(1,), (2,), (3,), (4,), (5,), (6,), (1, 3, 4, 6)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_ends_with_the_same_bytes(
    kind: str, after: tuple[int, ...], expected: dict[str, Path], tmp_path: Path
) -> None:
    for step in after:
        stop(run(KINDS[kind], FEW, tmp_path), step)
    list(run(KINDS[kind], FEW, tmp_path))
    for name in ("model/weights.safetensors", "model/first_stage.json", "first-stage/step-6/state.safetensors"):
        assert (tmp_path / name).read_bytes() == (expected[kind] / name).read_bytes(), name
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.usefixtures("unjudged")
def test_the_codes_that_were_brought_back_are_in_the_comparison(expected: dict[str, Path]) -> None:
    """A patience of three steps: some entry has been moved by hand, and the adversary has pulled."""
    kept = tensors.load(expected["vq"] / "first-stage" / "step-6" / "state.safetensors")
    assert {3, 5} <= set(kept["memory.last used"].tolist())  # put somewhere at step 3, and not chosen since
    assert "adversary" in metrics(expected["vq"])[-1]
    assert any(name.startswith("phase 2.optimizer.") for name in kept)


# What cannot be is said before anything is written --------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"resolution": 30}, "resolution is 30; it must divide by 4, the factor of the first stage"),
        ({"crop": 18}, "crop is 18; it must divide by 4, the factor of the first stage"),
        ({"crop": 36}, "crop is 36; it is cut out of pictures of 32 pixels a side"),
        ({"layers": 3}, "a critic of 3 layers needs 24 pixels a side, and sees 16; take fewer layers or larger"),
        ({"start": 6}, "adversary.start is 6, and the run ends at 6; begin earlier, or set the adversary to none"),
    ],
)
def test_settings_that_cannot_be_are_one_line(change: dict[str, int], said: str) -> None:
    tree = SETTINGS.model_dump()
    tree.update({k: v for k, v in change.items() if k == "resolution"})
    tree["run"].update({k: v for k, v in change.items() if k == "crop"})
    tree["run"]["adversary"].update({k: v for k, v in change.items() if k == "start"})
    tree["run"]["adversary"]["critic"].update({k: v for k, v in change.items() if k == "layers"})
    with pytest.raises(ValueError, match="1 validation error") as caught:
        FirstStageTraining.model_validate(tree)
    assert said in str(caught.value)


def test_a_loss_without_its_network_is_refused_before_anything_is_done(material: Seen, tmp_path: Path) -> None:
    nowhere = SEEING.run.model_copy(update={"features": tmp_path / "nowhere.safetensors"})
    with pytest.raises(ValueError, match=r"nowhere\.safetensors") as caught:
        run(SEEING.model_copy(update={"run": nowhere}), material, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


# The report -----------------------------------------------------------------------------------------------


def test_a_report_says_what_was_measured(material: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores: list[FirstStageScore] = []
    plain = reports._score

    def score(*given: Any) -> FirstStageScore:
        scores.append(plain(*given))
        return scores[-1]

    monkeypatch.setattr(reports, "_score", score)
    events = list(run(VQ_SETTINGS, material, tmp_path))
    said = report(tmp_path)
    assert said["score"] == json.loads(json.dumps(scores[0].as_dict()))
    assert len(flat(said["score"])) > 15
    found = [e.text for e in events if isinstance(e, Found)]
    findings = [f"{'good' if f['good'] else 'POOR'}: {f['text']}" for f in said["findings"]]
    assert [text for text in found if text.startswith(("good:", "POOR:"))] == findings
    assert said["good enough"] is all(f["good"] for f in said["findings"]) is False
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Not yet good enough to train on" in text
    assert text.count("**poor**") == sum(not f["good"] for f in said["findings"])
    stage = scores[0].stage
    assert f"| this first stage | {stage.psnr:.2f} ± {stage.psnr_std:.2f} | {stage.ssim:.4f} |" in text
    assert text.startswith("# small: a first stage (VQ of 64 codes, factor 4, 2 channels)\n")
    assert (tmp_path / "held-out.png").is_file()


@pytest.mark.parametrize("unseen", [True, False])
def test_it_says_not_yet_only_where_something_is_poor(
    unseen: bool, material: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = reports._score
    monkeypatch.setattr(reports, "verdict", lambda score: iter([reports.Finding(True, "all is well")]))
    assert plain is reports._score
    given = material if unseen else replace(material, held_out=None)
    list(run(SETTINGS, given, tmp_path))
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Not yet" not in text
    assert "Good enough to train on." in text
    assert ("It was judged by pictures that it was trained on" in text) is not unseen
    assert report(tmp_path)["good enough"] is True
