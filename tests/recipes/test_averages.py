"""Averages beside the main one: kept through any stop, delivered as weight sets, and lengths chosen afterwards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from painter import SETTINGS, Captioned, of
from sfumato.cli.main import main
from sfumato.io import checkpoint, opening, tensors
from sfumato.recipes.diffusion import run
from sfumato.recipes.events import Stepped
from sfumato.recipes.material import Material
from sfumato.recipes.settings import DiffusionRun, DiffusionTraining
from sfumato.train.plan import Plan
from sfumato.train.posthoc import PowerEma, Profile, coefficients, misfit
from sfumato.train.snapshots import decay_name, power_name, read

STEPS = 9


def settings(**more: Any) -> DiffusionTraining:
    plan = {**SETTINGS.diffusion.plan.__dict__, "steps": STEPS, "save": 2, "precision": "fp32"}
    given = {"averages": (0.05, 0.2), "decays": (0.5,), "snapshots": 4} | more
    diffusion = DiffusionRun.model_validate({"plan": plan, "validation": 0, **given})
    return SETTINGS.model_copy(update={"diffusion": diffusion})


@pytest.fixture(scope="module")
def material() -> Material:
    return of(Captioned(8), None)


@pytest.fixture(scope="module")
def whole(material: Material, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Tensor]]]:
    """A run, and its live weights after each step."""
    home = tmp_path_factory.mktemp("whole") / "run"
    path: list[dict[str, Tensor]] = []
    plain = PowerEma.update

    def update(self: PowerEma) -> None:
        if self.sigma_rel == 0.05:
            path.append({name: p.detach().clone() for name, p in self._live.items()})
        plain(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PowerEma, "update", update)
        list(run(settings(), material, home))
    (home / "config.json").write_text(json.dumps({"recipe": "emoji"}))
    return home, path


def files(home: Path) -> dict[str, bytes]:
    found = [*(home / "diffusion" / "snapshots").iterdir(), *(home / "diffusion" / f"step-{STEPS}").iterdir()]
    found += [*(home / "model").glob("*.safetensors")]
    return {str(p.relative_to(home)): p.read_bytes() for p in found}


def test_snapshots_are_the_averages_of_the_weights(whole: tuple[Path, list[dict[str, Tensor]]]) -> None:
    home, path = whole
    kept = read(home / "diffusion")
    assert [(k.step, k.snapshot.step, k.snapshot.sigma_rel) for k in kept] == [
        (step, step, sigma) for step in (4, 8, 9) for sigma in (0.05, 0.2)
    ]
    names = sorted(p.name for p in (home / "diffusion" / "snapshots").iterdir())
    assert names == [f"step-{n}_power-{x}.safetensors" for n in (4, 8, 9) for x in ("0_05", "0_2")]
    for k in kept:
        net = torch.nn.Linear(1, 1)
        average = PowerEma(net, k.snapshot.sigma_rel)
        mean = path[0]
        for n in range(2, k.step + 1):
            mean = {name: v.lerp(path[n - 1][name], 1 - average.decay_at(n)) for name, v in mean.items()}
        for name, v in k.snapshot.tensors.items():
            torch.testing.assert_close(v, mean[name], rtol=1e-5, atol=1e-6)


def test_other_decays_are_weight_sets(whole: tuple[Path, list[dict[str, Tensor]]]) -> None:
    home, path = whole
    mean = dict(path[0])
    started = tensors.load(home / "model" / "decay-0_5.safetensors")
    loaded = opening.load(str(home), weights="decay-0_5")
    assert loaded.file.default == "ema"
    assert loaded.file.weights["decay-0_5"].about == "average of the weights, decay 0.5 with warm-up, 9 updates"
    for n in range(2, STEPS + 1):  # the first weights are all but forgotten, and left out
        mean = {name: v.lerp(path[n - 1][name], 1 - min(0.5, (1 + n) / (10 + n))) for name, v in mean.items()}
    for name, v in mean.items():
        torch.testing.assert_close(started[name], v, rtol=0.02, atol=2e-3)
    assert any(not torch.equal(started[name], v) for name, v in opening.load(str(home)).model.state_dict().items())


# Stops ----------------------------------------------------------------------------------------------------


def test_a_stopped_run_has_the_same_files(
    whole: tuple[Path, list[dict[str, Tensor]]], material: Material, tmp_path: Path
) -> None:
    events = run(settings(), material, tmp_path)
    for event in events:
        if isinstance(event, Stepped) and event.progress.step == 5:
            break
    events.close()  # pyright: ignore[reportAttributeAccessIssue]
    list(run(settings(), material, tmp_path))
    assert files(tmp_path) == files(whole[0])


def test_so_has_one_killed_between_a_snapshot_and_its_checkpoint(
    whole: tuple[Path, list[dict[str, Tensor]]], material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = checkpoint.save

    def save(home: Path, step: int, *rest: Any) -> Path:
        if step == 8:
            raise KeyboardInterrupt
        return plain(home, step, *rest)

    monkeypatch.setattr(checkpoint, "save", save)
    with pytest.raises(KeyboardInterrupt):
        list(run(settings(), material, tmp_path))
    monkeypatch.undo()
    kept = tmp_path / "diffusion" / "snapshots"
    (kept / "step-8_power-0_2.safetensors").write_bytes(b"of another run")
    shutil.copy(kept / "step-4_power-0_2.safetensors", kept / "step-7_power-0_2.safetensors")
    list(run(settings(), material, tmp_path))
    assert files(tmp_path) == files(whole[0])


def test_they_change_nothing_of_the_training(
    whole: tuple[Path, list[dict[str, Tensor]]], material: Material, tmp_path: Path
) -> None:
    list(run(settings(averages=(), decays=(), snapshots=None), material, tmp_path))
    assert not (tmp_path / "diffusion" / "snapshots").exists()
    kept = tensors.load(tmp_path / "diffusion" / f"step-{STEPS}" / "state.safetensors")
    more = tensors.load(whole[0] / "diffusion" / f"step-{STEPS}" / "state.safetensors")
    assert {name for name in more if name not in kept} == {name for name in more if name.startswith("averages.")}
    assert all(torch.equal(v, more[name]) for name, v in kept.items())
    assert (tmp_path / "model" / "ema.safetensors").read_bytes() == (whole[0] / "model/ema.safetensors").read_bytes()


# Afterwards -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sigma", "at"), [(0.2, 9), (0.05, 4), (0.1, 9), (0.15, 6)])
def test_any_length_is_what_posthoc_makes_of_the_snapshots(
    sigma: float,
    at: int,
    whole: tuple[Path, list[dict[str, Tensor]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    home, _ = whole
    out = tmp_path / "model"
    assert main(["average", str(home), "--sigma-rel", str(sigma), "--at", str(at), "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    kept = [k.snapshot for k in read(home / "diffusion")]
    profiles = [Profile(s.step, s.sigma_rel) for s in kept]
    assert said["misfit"] == pytest.approx(misfit(profiles, sigma_rel=sigma, at=at), abs=1e-9)
    assert (said["weights"], said["step"], said["snapshots"]) == (power_name(sigma), at, 6)
    parts = coefficients(profiles, sigma_rel=sigma, at=at)
    loaded = opening.load(str(out))
    assert loaded.weights == power_name(sigma)
    assert [*loaded.file.weights] == [power_name(sigma)]
    assert f"sigma_rel {sigma:g} at step {at}, of 6 snapshots" in loaded.file.weights[power_name(sigma)].about
    stored = loaded.model.state_dict()
    for name in kept[0].tensors:
        mean = sum(c * s.tensors[name].double() for c, s in zip(parts, kept, strict=True))
        assert torch.equal(stored[name], mean.float())
    if at in (4, 9) and sigma in (0.05, 0.2):
        assert said["misfit"] < 1e-6
        one = next(s for s in kept if (s.step, s.sigma_rel) == (at, sigma))
        for name, v in one.tensors.items():
            torch.testing.assert_close(stored[name], v, rtol=0, atol=1e-6)


def test_it_says_how_near_it_is(
    whole: tuple[Path, list[dict[str, Tensor]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for sigma, near in (("0.2", "exactly"), ("0.1", "within 0.")):
        assert main(["average", str(whole[0]), "--sigma-rel", sigma, "--out", str(tmp_path / sigma)]) == 0
        said = capsys.readouterr().out
        assert f"of sigma_rel {sigma} at step 9, {near}" in said
        assert said.endswith("from 6 snapshots\n") or "that is far from it" in said


@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        (None, ("--sigma-rel", "0.3"), "sigma_rel is 0.3; it must be above 0 and at most 0.2886"),
        (
            None,
            ("--sigma-rel", "0.1", "--at", "10"),
            "step 10 is not within the snapshots, the last of which is of step 9",
        ),
        (None, ("--sigma-rel", "0.1", "--at", "0"), "step 0 is not within the snapshots"),
        ("there", ("--sigma-rel", "0.1"), "is already there; choose another --out"),
        (
            "none",
            ("--sigma-rel", "0.1"),
            "has no snapshots of averages; a run keeps them with --set diffusion.averages",
        ),
        ("damaged", ("--sigma-rel", "0.1"), "step-8_power-0_2.safetensors is damaged; remove it"),
        ("early", ("--sigma-rel", "0.1"), "is a run that is not finished; go on with: sfumato train emoji"),
    ],
    ids=str,
)
def test_what_cannot_be_averaged_is_a_line(
    change: str | None,
    arguments: tuple[str, ...],
    said: str,
    whole: tuple[Path, list[dict[str, Tensor]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    home = Path(shutil.copytree(whole[0], tmp_path / "run"))
    out = tmp_path / "out"
    if change == "there":
        out.mkdir()
    elif change == "none":
        shutil.rmtree(home / "diffusion" / "snapshots")
    elif change == "early":
        shutil.rmtree(home / "model")
    elif change == "damaged":
        path = home / "diffusion" / "snapshots" / "step-8_power-0_2.safetensors"
        data = path.read_bytes()
        path.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    assert main(["average", str(home), *arguments, "--out", str(out)]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert out.exists() == (change == "there")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"averages": (0.3,)}, "sigma_rel is 0.3; it must be above 0 and at most 0.2886"),
        ({"averages": (0.1, 0.1)}, "of 0.1, 0.1 two are the same average; leave one out"),
        ({"decays": (1.0,)}, "decays has 1.0; a decay is at least 0 and below 1"),
        ({"snapshots": 5}, "snapshots are of averages, and there are none; set averages="),
    ],
    ids=str,
)
def test_settings_that_make_no_averages(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DiffusionRun.model_validate({"plan": Plan(steps=1, batch=1, rate=1.0), **given})


def test_names_have_no_full_stop() -> None:
    assert (power_name(0.05), decay_name(0.9999)) == ("power-0_05", "decay-0_9999")
