"""A tiny decoder learns what a large one paints, changes nothing of it, and stands in for it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import files
import tiny
from fill import inp
from quick import features_are_means
from sfumato.cli.main import main
from sfumato.data import Sample
from sfumato.data.fingerprint import Fingerprint
from sfumato.diffusion.noise import Address, Stream
from sfumato.io import first_stage_folder, first_stages, opening, tensors
from sfumato.io.first_stage_folder import FirstStageFile
from sfumato.latents.distilling import Distilling
from sfumato.latents.kl import KLFirstStage
from sfumato.latents.tiny import TinyFirstStage
from sfumato.nets.autoencoder import AutoencoderSize, drawn
from sfumato.nets.tiny import TinyDecoder, TinySize
from sfumato.recipes import tiny_decoder
from sfumato.recipes.events import Stepped
from sfumato.recipes.seen import Seen
from sfumato.recipes.tiny_decoder import TinyDecoderTraining, run
from sfumato.train.plan import Plan

SIZE = AutoencoderSize(channels=8, mult=(1, 2), blocks=1, latent_channels=4)
PLAN = Plan(steps=6, batch=4, rate=3e-3, warmup=1, ema=0.5, save=2, precision="fp32")


class Held:
    """Pictures in memory; those of `damaged` cannot be read."""

    fields = frozenset({"image"})

    def __init__(self, n: int, damaged: tuple[int, ...] = ()) -> None:
        self.n, self.damaged = n, damaged

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int, /) -> Sample:
        if i in self.damaged:
            raise ValueError(f"{i}.png: the picture is damaged")
        smooth = nn.functional.interpolate(inp(f"{i % 12}", 1, 3, 4, 4), size=(16, 16), mode="bilinear")
        return {"image": (0.6 * smooth[0]).clamp(-1, 1)}


SEEN = Seen(Held(12), Held(3), (), "made up", Fingerprint.of(range(15)))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    features_are_means(monkeypatch)


def large(size: AutoencoderSize = SIZE) -> KLFirstStage:
    torch.manual_seed(0)
    stage = KLFirstStage(size)
    tiny.awake(stage)
    stage.mean.fill_(0.1)
    stage.std.fill_(0.8)
    return stage.eval().requires_grad_(False)


def kept(path: Path, size: AutoencoderSize = SIZE) -> Path:
    file = FirstStageFile(name="large", size=size, resolution=16)
    first_stage_folder.save(path, file, "made up", large(size).state_dict())
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kept(tmp_path_factory.mktemp("teacher") / "large")


def asked(teacher: Path, **more: Any) -> TinyDecoderTraining:
    given = {"plan": PLAN, "width": 8, "blocks": 1, "resolution": 16, "perceptual": 0, **more}
    return TinyDecoderTraining(teacher=str(teacher), **given)


def metrics(home: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (home / "tiny-decoder" / "metrics.jsonl").read_text().splitlines()]


# The loss -------------------------------------------------------------------------------------------------


def test_the_loss_is_the_sum_of_its_terms() -> None:
    """Between what both paint of a draw of the teacher's posterior, the teacher's clamped as it is saved."""
    torch.manual_seed(1)
    student, stage = TinyDecoder(TinySize(width=4, blocks=1, levels=1, encoder=False)), large()
    stage.net.decoder.conv_out.weight.mul_(20)  # so that there is something to clamp

    class Halved(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (a - b).abs().mean((1, 2, 3)) / 2

    lpips: Any = Halved()
    x, at = torch.stack([SEEN.training[i]["image"] for i in range(3)]), Address.of(4, [7, 8, 9], 3)
    outcome = Distilling(student, stage, lpips, squares=2.0, perceptual=0.5)({"image": x}, at)
    mean, logvar = stage.moments(x)
    z = drawn(mean, logvar, at.normal(mean, Stream.ENCODE))
    target = stage.decode(z)
    assert target.abs().max() > 1.5
    error = student(z) - target.clamp(-1, 1)
    l1, mse = error.abs().mean(), error.square().mean()
    torch.testing.assert_close(outcome.loss, l1 + 2 * mse + 0.25 * l1, rtol=1e-5, atol=0)
    torch.testing.assert_close(outcome.said["l1"], l1.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(outcome.said["mse"], mse.detach(), rtol=1e-5, atol=0)
    outcome.loss.backward()
    assert all(p.grad is not None for p in student.parameters())


# The recipe -----------------------------------------------------------------------------------------------


def test_a_student_learns_and_its_teacher_does_not(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught: list[first_stages.LoadedFirstStage] = []
    plain = first_stages.loaded

    def loaded(path: str | Path) -> first_stages.LoadedFirstStage:
        taught.append(plain(path))
        return taught[-1]

    monkeypatch.setattr(tiny_decoder.first_stages, "loaded", loaded)
    settings = asked(teacher, plan=replace(PLAN, steps=40, rate=1e-2, save=40))
    events = list(run(settings, SEEN, tmp_path))
    monkeypatch.undo()
    losses = [line["loss"] for line in metrics(tmp_path)]
    assert len([e for e in events if isinstance(e, Stepped)]) == 40
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    expected = large().state_dict()
    (one,) = taught
    assert all(torch.equal(t, expected[n]) for n, t in one.stage.state_dict().items())
    assert not any(p.requires_grad for p in one.stage.parameters())
    stage, x = one.stage, torch.stack([SEEN.training[i]["image"] for i in range(4)])
    student = plain(tmp_path).stage
    z = stage.encode(x)
    torch.manual_seed(0)
    fresh = TinyDecoder(TinySize(width=8, blocks=1, levels=1, encoder=False))
    apart = [(net(z) - stage.decode(z)).abs().mean().item() for net in (student.decode, fresh)]
    assert apart[0] < 0.5 * apart[1]
    said = json.loads((tmp_path / "report.json").read_text())
    assert said["provenance"]["teacher"] == "large"
    assert said["score"]["n"] == 3
    assert said["judged by pictures never trained on"] is True


def test_what_is_written_is_the_average_of_the_decoder_alone(teacher: Path, tmp_path: Path) -> None:
    list(run(asked(teacher, crop=8, flips=True), SEEN, tmp_path))
    file = first_stage_folder.describe(tmp_path / "model")
    assert file.tiny == TinySize(width=8, blocks=1, latent_channels=4, levels=1, encoder=False)
    stored = first_stage_folder.read(tmp_path / "model", file)
    state = tensors.load(tmp_path / "tiny-decoder" / "step-6" / "state.safetensors")
    names = {n.removeprefix("net.decoder.") for n in stored} - {"mean", "std"}
    assert names == {n.removeprefix("ema.") for n in state if n.startswith("ema.")}
    assert all(torch.equal(stored[f"net.decoder.{n}"], state[f"ema.{n}"]) for n in names)


@pytest.mark.parametrize("after", [(1,), (2,), (5,), (6,), (1, 3, 4)], ids=str)
def test_a_killed_run_ends_with_the_same_bytes(
    after: tuple[int, ...], teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what is said of the pictures that were damaged, which are not met again."""
    monkeypatch.setattr(tiny_decoder, "report", lambda *_, **__: iter(()))
    seen = Seen(Held(120, damaged=(33,)), None, (), "made up", Fingerprint.of(range(120)))
    list(run(asked(teacher), seen, tmp_path / "whole"))
    for step in after:
        events: Any = run(asked(teacher), seen, tmp_path / "killed")
        while not (isinstance(event := next(events), Stepped) and event.progress.step == step):
            pass
        events.close()
    list(run(asked(teacher), seen, tmp_path / "killed"))
    for name in ("model/weights.safetensors", "model/first_stage.json", "tiny-decoder/step-6/state.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    skipped = first_stage_folder.describe(tmp_path / "killed" / "model").provenance["skipped"]
    assert skipped == {"unreadable": 0, "damaged": 1, "steps": 0}


@pytest.mark.parametrize(
    ("size", "change", "said"),
    [
        (replace(SIZE, patch=3), {"resolution": 12}, "has the factor 6; a tiny decoder needs 2, 4, 8, ..."),
        (replace(SIZE, mult=(1,)), {}, "has the factor 1; a tiny decoder needs 2, 4, 8, ..."),
        (replace(SIZE, mult=(1, 1, 1)), {"resolution": 18}, "resolution is 18; it must divide by 4, the factor of the"),
        (SIZE, {"crop": 9}, "crop is 9; it must divide by 2, the factor of the teacher"),
        (SIZE, {"crop": 32}, "crop is 32; it is cut out of pictures of 16 pixels a side"),
    ],
)
def test_what_cannot_be_taught_is_a_line(
    size: AutoencoderSize, change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    settings = asked(kept(tmp_path / "teacher", size), **change)
    with pytest.raises(ValueError, match=r"\S") as caught:
        run(settings, SEEN, tmp_path / "run")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_decoder_alone_teaches_nothing(teacher: Path, tmp_path: Path) -> None:
    list(run(asked(teacher), SEEN, tmp_path / "first"))
    with pytest.raises(ValueError, match=r"is a decoder alone, and makes no latents to learn from$"):
        run(asked(tmp_path / "first"), SEEN, tmp_path / "second")


# Where it stands in ---------------------------------------------------------------------------------------


def test_it_stands_in_for_a_models_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Taught by the model's first stage, by the model's path; then at the command line."""
    path = files.single("clip", tmp_path / "model.safetensors")
    list(run(asked(path), SEEN, tmp_path / "run"))
    model = opening.load(path, precision="float32").model
    own = model.first_stage
    first_stages.put(model, tmp_path / "run")
    stage = model.first_stage
    assert isinstance(stage, TinyFirstStage)
    assert stage.encoder is own
    x = SEEN.training[0]["image"][None]
    assert torch.equal(stage.encode(x), own.encode(x))
    student = first_stages.loaded(tmp_path / "run").stage
    z = own.encode(x)
    assert torch.equal(stage.decode(z), student.decode(z))
    asking = ["generate", "a cat", "--model", str(path), "--steps", "2", "--size", "16x16", "--json"]
    assert main([*asking, "--vae", str(tmp_path / "run"), "--out", str(tmp_path / "made")]) == 0
    (found,) = json.loads(capsys.readouterr().out)["pictures"]
    assert found["model"]["vae"]
