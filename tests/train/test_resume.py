"""A run that was stopped, anywhere and in any way, ends with the same files as one that was not."""

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
from sfumato.cond import Cond
from sfumato.data import opened
from sfumato.diffusion.noise import Address
from sfumato.io import opening, pictures, tensors
from sfumato.io.model_folder import Defaults
from sfumato.latents.autoencoding import Losses
from sfumato.recipes import emoji, told
from sfumato.recipes.autoencoder import FirstStageRun
from sfumato.recipes.diffusion import run
from sfumato.recipes.events import Begun, Event, Stepped, Wrote
from sfumato.recipes.material import Material
from sfumato.recipes.settings import DiffusionRun, DiffusionTraining
from sfumato.recipes.told import Told
from sfumato.train.plan import Plan

STEPS = {"first stage": 4, "diffusion": 8}
SETTINGS = DiffusionTraining(
    name="run",
    model=tiny.CONFIG,
    first_stage=FirstStageRun(
        plan=Plan(steps=4, batch=2, rate=1e-3, warmup=1, save=3), losses=Losses(perceptual=0.1, perceptual_from=2)
    ),
    diffusion=DiffusionRun(plan=Plan(steps=8, batch=3, rate=1e-3, warmup=1, save=3, preview=5), drop=0.3),
    defaults=Defaults(steps=1, guidance=1.0),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "things"
    for i, caption in enumerate([*tiny.CAPTIONS, "a blue house", "one cat, 3d"]):
        pictures.save_png((inp(f"picture {i}", 3, 16, 16) / 2).clamp(-1, 1), root / f"{i}.png", {})
        (root / f"{i}.txt").write_text(caption)
    return root


@pytest.fixture(scope="module")
def material(data: Path) -> Material:
    whole = emoji.material(data, 16)
    return replace(whole, held_out=opened(data, size=16))  # so that the first stage is measured


def results(home: Path) -> dict[str, bytes]:
    """Every file that a run leaves for its user."""
    parts = [p for part in ("model", "samples", "latents") for p in (home / part).rglob("*") if p.is_file()]
    return {str(p.relative_to(home)): p.read_bytes() for p in parts}


@pytest.fixture(scope="module")
def whole(material: Material, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event]]:
    home = tmp_path_factory.mktemp("whole") / "run"
    return home, list(run(SETTINGS, material, home))


def lines(home: Path, stage: str) -> list[int]:
    text = (home / stage.replace(" ", "-") / "metrics.jsonl").read_text()
    return [json.loads(line)["step"] for line in text.splitlines()]


def check(home: Path, expected: Path) -> None:
    mine, others = results(home), results(expected)
    assert mine.keys() == others.keys()
    assert [name for name in mine if mine[name] != others[name]] == []
    for stage, steps in STEPS.items():
        assert lines(home, stage) == list(range(1, steps + 1))


def test_a_run_says_what_it_does(whole: tuple[Path, list[Event]]) -> None:
    home, events = whole
    for stage, steps in STEPS.items():
        assert [e.step for e in events if isinstance(e, Begun) and e.stage == stage] == [0]
        assert [e.progress.step for e in events if isinstance(e, Stepped) and e.stage == stage] == [
            *range(1, steps + 1)
        ]
        assert lines(home, stage) == [*range(1, steps + 1)]
    last = events[-1]
    assert isinstance(last, Wrote)
    assert last.path == home / "model"
    assert sorted(p.name for p in (home / "samples").iterdir()) == ["step-5.png", "step-8.png"]
    names = ["diffusion", "first-stage", "latents", "model", "samples"]
    assert sorted(p.name for p in home.iterdir()) == names


def test_what_it_trained_is_what_it_saved(whole: tuple[Path, list[Event]], data: Path) -> None:
    """The average of the weights, calibrated on the data, with the vocabulary of the captions."""
    home, _ = whole
    loaded = opening.load(home / "model")
    fresh = tiny.model()
    moved = [k for k, v in loaded.model.state_dict().items() if not torch.equal(v, fresh.state_dict().get(k, v))]
    assert any(k.startswith("denoiser.net.conv_out") for k in moved)
    assert loaded.model.conditioner.tokenizer.encode("blue house").tokens[1:-1] == ["blue", "house"]
    (part,) = (home / "latents").rglob("part-*.safetensors")
    cache = tensors.load(part)
    stage = loaded.model.first_stage
    second = (cache["mean"] - stage.mean).square() + cache["logvar"].exp()
    assert second.mean().sqrt().item() == pytest.approx(stage.std.item(), rel=1e-5)
    assert loaded.file.provenance["steps"] == 8
    assert loaded.file.provenance["images"] == 24
    kept = tensors.load(home / "diffusion" / "step-8" / "state.safetensors")
    for part in ("denoiser", "conditioner"):
        for name, p in loaded.model.get_submodule(part).named_parameters():
            assert torch.equal(p, kept[f"ema.{part}.{name}"])
    kept = tensors.load(home / "first-stage" / "step-4" / "state.safetensors")
    for name, p in loaded.model.first_stage.net.named_parameters():
        assert torch.equal(p, kept[f"ema.{name}"])


@torch.no_grad()
def test_dropped_captions_are_read_as_the_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Cond] = []

    def loss(_: object, z: Tensor, cond: Cond, *rest: object, **more: object) -> Tensor:
        seen.append(cond)
        return z.flatten(1).mean(1)

    monkeypatch.setattr(told, "denoising_loss", loss)
    model = tiny.model()
    n = 1000
    latent = torch.zeros(n, 4, 4, 4)
    tokens = model.conditioner.collate([{"caption": "two dogs"}])
    batch = {k: v.expand(n, -1) for k, v in tokens.items()} | {"mean": latent, "logvar": latent}
    Told(model, 0.3, "uniform")(batch, Address.of(0, torch.arange(n), 5))
    vectors = seen[0].vector
    caption, null = model.conditioner.of(["two dogs"]).vector, model.conditioner.null(1).vector
    assert vectors is not None
    assert caption is not None
    assert null is not None
    dropped = (vectors - null).abs().amax(1) < 1e-5
    torch.testing.assert_close(vectors[~dropped], caption.expand((~dropped).sum(), -1), rtol=0, atol=1e-5)
    assert abs(dropped.sum().item() - 300) < 5 * (1000 * 0.3 * 0.7) ** 0.5  # five deviations


STOPS = [
    [("first stage", 1), ("first stage", 4)],
    [("diffusion", 1)],
    [("first stage", 2), ("diffusion", 3), ("diffusion", 5), ("diffusion", 8)],
]


@pytest.mark.parametrize("stops", STOPS, ids=lambda stops: "; ".join(f"{stage} {step}" for stage, step in stops))
def test_a_closed_run_goes_on(
    stops: list[tuple[str, int]], material: Material, whole: tuple[Path, list[Event]], tmp_path: Path
) -> None:
    home = tmp_path / "run"
    for stop in stops:
        events = run(SETTINGS, material, home)
        _until(events, stop)
    list(run(SETTINGS, material, home))
    check(home, whole[0])


def _until(events: Iterator[Event], stop: tuple[str, int]) -> None:
    for event in events:
        if isinstance(event, Stepped) and (event.stage, event.progress.step) == stop:
            events.close()
            return
    raise AssertionError(f"the run never came to {stop}")


@pytest.mark.parametrize("encode", ["once", "always"])
def test_workers_change_nothing(encode: str, material: Material, tmp_path: Path) -> None:
    """Nor does a stop in between."""

    def settings(workers: int) -> DiffusionTraining:
        tree = SETTINGS.model_dump()
        for part in ("first_stage", "diffusion"):
            tree[part]["plan"]["workers"] = workers
        tree["diffusion"]["encode"] = encode
        return DiffusionTraining.model_validate(tree)

    list(run(settings(0), material, tmp_path / "none"))
    _until(run(settings(2), material, tmp_path / "two"), ("diffusion", 4))
    list(run(settings(2), material, tmp_path / "two"))
    for home in (tmp_path / "none", tmp_path / "two"):
        assert lines(home, "diffusion") == [*range(1, 9)]
    names = ["model/ema.safetensors", "samples/step-8.png"]
    names += ["first-stage/step-4/state.safetensors", *(f"diffusion/step-{n}/state.safetensors" for n in (6, 8))]
    assert [n for n in names if (tmp_path / "none" / n).read_bytes() != (tmp_path / "two" / n).read_bytes()] == []


def test_a_damaged_checkpoint_costs_only_time(
    material: Material, whole: tuple[Path, list[Event]], tmp_path: Path
) -> None:
    home = tmp_path / "run"
    _until(run(SETTINGS, material, home), ("diffusion", 7))
    path = home / "diffusion" / "step-6" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with (home / "diffusion" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 8, "lo')  # the line that a kill cut short
    begun = [e.step for e in run(SETTINGS, material, home) if isinstance(e, Begun)]
    assert begun == [4, 3]
    check(home, whole[0])


def test_a_finished_run_does_nothing_more(material: Material, whole: tuple[Path, list[Event]]) -> None:
    home, _ = whole
    before = results(home)
    events = list(run(SETTINGS, material, home))
    assert not any(isinstance(e, Stepped) for e in events)
    assert [e.step for e in events if isinstance(e, Begun)] == [4, 8]
    assert results(home) == before
    check(home, home)
