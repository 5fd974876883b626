"""What a training will take, by the recipe itself: phases in order, sums that agree, and nothing that stays behind."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fill import inp
from quick import features_are_means
from sfumato.cli.main import main
from sfumato.cli.train import chosen
from sfumato.io import pictures
from sfumato.recipes import RECIPES, planned
from sfumato.recipes.events import Event, Stepped
from sfumato.recipes.first_stage import FirstStageTraining
from sfumato.recipes.planned import STEPS, Cost

N = 9
WHOLE = (
    *("model.first_stage.channels=8", "model.first_stage.mult=[1,2]", "model.first_stage.latent_channels=4"),
    *(f"model.conditioner.encoder.{s}" for s in ("dim=16", "depth=1", "length=10", "heads=2")),
    *("model.unet.channels=4", "model.unet.width=16", "model.unet.mult=[1,2]", "model.unet.attention=[2]"),
    *("model.unet.context_dim=16", "model.unet.vector_dim=16", "model.unet.head_dim=8", "model.resolution=16"),
    *("first_stage.losses.perceptual=0", "first_stage.plan.batch=2", "diffusion.plan.batch=4"),
)
ALONE = (
    *("size.channels=4", "size.latent_channels=2", "resolution=32", "run.crop=16", "run.losses.perceptual=0"),
    *("run.adversary.critic.width=4", "run.adversary.critic.layers=1", "run.plan.batch=2", "run.plan.steps=5000"),
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Captioned pictures, beside a folder for what is temporary."""
    features_are_means(monkeypatch)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    for i in range(N):
        pictures.save_png((inp(f"{i}", 3, 32, 32) / 2).clamp(-1, 1), tmp_path / "data" / f"{i}.png", {})
        (tmp_path / "data" / f"{i}.txt").write_text("a thing")
    return tmp_path


def cost(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    capsys.readouterr()
    assert main(["plan", *arguments, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def left(home: Path) -> list[Path]:
    """What lies there beside what torch keeps."""
    return [p for p in (home / "temporary").iterdir() if not p.name.startswith("torchinductor")]


def test_a_whole_model(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planned, "PICTURES", 4)
    more = (f"diffusion.latents={home / 'kept'}", "diffusion.averages=[0.1]", "diffusion.snapshots=1000")
    found = cost(capsys, "emoji", "--data", "data", "--set", *WHOLE, *more)
    first, second = found["stages"]
    assert [(s["stage"], s["steps"], s["batch"]) for s in (first, second)] == [
        ("first stage", 2000, 2),
        ("diffusion", 9000, 4),
    ]
    assert all(s["checkpoint"] > 16 * s["weights"] for s in (first, second))  # with the average and two moments
    assert found["pictures"] == N
    assert 9 * 4 * second["weights"] < found["snapshots"] < 9 * 4 * second["weights"] + 500_000
    assert found["latents"] > N * 4 * 8 * 8 * 2  # a mean and a variance at least
    parts = found["read"] + found["encoded"] + first["seconds"] + second["seconds"]
    assert found["seconds"] == pytest.approx(parts)
    assert found["memory"] == max(first["memory"], second["memory"])
    assert found["disk"] == found["latents"] + found["snapshots"] + 2 * (first["checkpoint"] + second["checkpoint"])
    assert second["samples_a_second"] == pytest.approx(9000 * 4 / second["seconds"])
    assert sorted(p.name for p in home.iterdir()) == ["data", "temporary"]
    assert left(home) == []


def test_kinds_of_steps_of_a_first_stage(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The adversary begins after three steps, and is in the checkpoint; what is said is of the whole run."""
    found = cost(capsys, "kl-f4", "--data", "data", "--set", *ALONE)
    (stage,) = found["stages"]
    assert [(kind["begin"], kind["steps"]) for kind in stage["kinds"]] == [(0, 1360), (1360, 3640)]
    assert stage["seconds"] == pytest.approx(sum(kind["steps"] * kind["seconds"] for kind in stage["kinds"]))
    assert stage["critic"] > 0
    assert main(["plan", "kl-f4", "--data", "data", "--set", *ALONE]) == 0
    said = capsys.readouterr().out
    assert "from 1,360 on" in said
    assert f"{stage['weights']:,} weights and {stage['critic']:,} of the critic" in said
    last = said.splitlines()[-1]
    assert last.endswith("on this machine as it is now; previews and measures come on top.")
    assert left(home) == []


@pytest.mark.parametrize(
    ("changes", "starts", "steps"),
    [
        ({}, (3, 6), 9),
        ({"perceptual_from": 0}, (0, 3), 6),
        ({"perceptual_from": 1500}, (6, 3), 9),
        ({"perceptual_from": 1360}, (3, 3), 6),
        ({"perceptual": 0}, (None, 3), 6),
    ],
    ids=str,
)
def test_terms_begin_in_their_order(changes: dict[str, float], starts: tuple[int | None, int], steps: int) -> None:
    tree = RECIPES["kl-f4"].settings(None).model_dump()
    tree["run"]["losses"] |= changes
    short = planned._short(FirstStageTraining.model_validate(tree))
    assert isinstance(short, FirstStageTraining)
    FirstStageTraining.model_validate(short.model_dump())
    assert short.run.adversary is not None
    assert starts[0] in (None, short.run.losses.perceptual_from)
    assert (short.run.adversary.start, short.run.plan.steps) == (starts[1], steps)


def test_a_plan_that_is_given_up_leaves_nothing(home: Path) -> None:
    settings = chosen("kl-f4", home / "data", ALONE, None, called="a")
    material = RECIPES["kl-f4"].material(home / "data", settings)
    events: Iterator[Event | Cost] = planned.planned(RECIPES["kl-f4"].run, settings, material)
    steps = 0
    for event in events:
        steps += isinstance(event, Stepped)
        if steps == STEPS - 1:
            assert left(home) != []
            break
    events.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert left(home) == []


def test_what_cannot_be_trained_is_the_same_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (["plan"], ["train", "--out", "run"]):
        assert main([*verb, "kl-f4", "--data", "data", "--set", "run.crop=66"]) == 2
        said = capsys.readouterr().err
        assert said == "sfumato: crop is 66; it must divide by 4, the factor of the first stage\n"
    assert left(home) == []


def test_a_recipe_that_cannot_be_measured_is_refused_in_a_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "finetune", "--data", str(home / "data")]) == 2
    assert capsys.readouterr().err.startswith("sfumato: what this recipe will take cannot be measured yet")
