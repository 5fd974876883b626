"""Classes by name, from a folder to a picture, and the classifier that pulls to one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fill import inp
from recipes.test_tasks import SMALL, painted, refused
from sfumato.cli.main import main
from sfumato.diffusion.samplers import SAMPLERS
from sfumato.generate import generate
from sfumato.io import classifier_folder, opening, pictures
from sfumato.recipes import RECIPES
from sfumato.recipes.classifier import right
from sfumato.request import Request

NAMES = ("cat", "dog", "old house")


def folder(root: Path, names: tuple[str, ...] = NAMES, n: int = 3) -> Path:
    for name in names:
        for i in range(n):
            image = 0.2 * inp(f"{name} {i}", 3, 16, 16) + 0.5 * (NAMES.index(name) - 1)
            pictures.save_png(image.clamp(-1, 1), root / name / f"{i}.png", {})
    return root


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of class-to-image, and one of a classifier for it, on the same folder."""
    root = tmp_path_factory.mktemp("classes")
    data = str(folder(root / "data"))
    assert main(["train", "class-to-image", "--data", data, "--out", str(root / "run"), "--set", *SMALL]) == 0
    small = [
        "body.width=8",
        "body.head_dim=8",
        "plan.steps=60",
        "plan.batch=9",
        "plan.warmup=1",
        "plan.rate=0.01",
        "plan.precision=fp32",
    ]
    small += [f"model={root / 'run'}", "plan.ema=0.9"]
    assert main(["train", "classifier", "--data", data, "--out", str(root / "reader"), "--set", *small]) == 0
    return root


def test_a_class_is_asked_for_by_its_name(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert opening.describe(home / "run").classes == NAMES
    ask = ("--model", home / "run", "--seed", "3", "--out", tmp_path)
    by_name, by_number = (painted(capsys, *ask, "--label", label) for label in ("old house", "2"))
    assert by_name["request"]["label"] == by_number["request"]["label"] == 2
    assert (Path(by_name["file"])).read_bytes() == (Path(by_number["file"])).read_bytes()
    plain = ("generate", "--model", home / "run")
    assert refused(capsys, *plain, "--label", "bird") == "sfumato: unknown label 'bird'; known: cat, dog, old house"
    assert refused(capsys, *plain) == "sfumato: this model is asked with a label: cat, dog, old house"
    assert refused(capsys, *plain, "--label", "7").endswith("label 7 is out of range; this model has labels 0 to 2")
    assert "is not a whole number, and this model knows no names" in refused(
        capsys, "generate", "a cat", "--label", "cat"
    )


def test_a_name_that_is_a_number_is_a_name(home: Path) -> None:
    loaded = opening.load(home / "run")
    named = opening.Loaded(loaded.model, loaded.file.model_copy(update={"classes": ("2", "1", "0")}), Path(), "ema")
    asked = {"seed": 1, "steps": 2}
    found = generate(named, Request(label="2", **asked))
    assert found.requests[0].label == 0
    assert torch.equal(found.images, generate(named, Request(label=0, **asked)).images)


def test_a_classifier_reads_what_it_was_trained_on(home: Path) -> None:
    loaded, reader = opening.load(home / "run"), classifier_folder.load(home / "reader")
    settings = RECIPES["classifier"].settings(None).model_copy(update={"model": str(home / "run")})
    known = RECIPES["classifier"].material(home / "data", settings).told
    shares = [right(reader, loaded.model.denoiser.schedule, loaded.model.first_stage, known, p) for p in (0.0, 0.99)]
    assert shares[0] == 1
    assert shares[1] < 1
    said = reader.file.provenance["model"]
    assert said == {"name": "run", "sha256": loaded.file.weights["ema"].sha256}


def test_it_pulls_to_its_class(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded, reader = opening.load(home / "run"), classifier_folder.load(home / "reader")
    asked = [Request(label=label, seed=5, steps=4, guidance=1.0, classifier_scale=3.0) for label in (0, 2)]
    plain = [r.model_copy(update={"classifier_scale": None}) for r in asked]
    pulled, alone = generate(loaded, asked, classifier=reader), generate(loaded, plain)
    t, labels = torch.zeros(2), torch.tensor([0, 2])
    sure = [reader.net(r.latents, t).log_softmax(1).gather(1, labels[:, None]).mean() for r in (pulled, alone)]
    assert sure[0] > sure[1] + 1e-3
    idle = [r.model_copy(update={"classifier_scale": 0.0}) for r in asked]
    assert torch.equal(generate(loaded, idle, classifier=reader).images, alone.images)
    single = [generate(loaded, r, classifier=reader).images for r in asked]
    torch.testing.assert_close(torch.cat(single), pulled.images, rtol=0, atol=2e-3)  # each to its own label
    with pytest.raises(ValueError, match="classifier_scale says how far a classifier pulls, and there is none"):
        generate(loaded, asked)
    ask = ("--model", home / "run", "--label", "cat", "--seed", "1", "--out", tmp_path)
    found = painted(capsys, *ask, "--classifier", home / "reader", "--classifier-scale", "2")
    assert found["request"]["classifier_scale"] == 2
    again = ("reproduce", found["file"], "--model", str(home / "run"))
    assert main([*again, "--classifier", str(home / "reader")]) == 0
    assert "largest pixel difference: 0 of 255" in capsys.readouterr().out
    assert "was made with --classifier reader; give the same" in refused(capsys, *again)
    assert "says nothing without --classifier" in refused(capsys, "generate", *ask, "--classifier-scale", "2")


@pytest.mark.parametrize("sampler", [name for name, entry in SAMPLERS.items() if not entry.needs_spread][:3])
def test_samplers_take_the_pull(home: Path, sampler: str) -> None:
    loaded, reader = opening.load(home / "run"), classifier_folder.load(home / "reader")
    asked = Request(label="dog", steps=max(4, SAMPLERS[sampler].least), sampler=sampler)
    assert generate(loaded, asked, classifier=reader).images.isfinite().all()


def test_a_model_of_nothing_said_is_pulled_too(home: Path, tmp_path: Path) -> None:
    """As ADM's unconditional one: the label is the classifier's alone."""
    given = ("--first-stage", str(home / "run"))
    data = str(home / "data")
    run = ("train", "unconditional", "--data", data, "--out", str(tmp_path / "run"), *given, "--set", *SMALL[:3])
    plan = (c for c in SMALL if c.startswith("diffusion"))
    assert main([*run, "defaults.steps=2", *plan]) == 0
    loaded, reader = opening.load(tmp_path / "run"), classifier_folder.load(home / "reader")
    one, other = (
        generate(loaded, Request(label=k, seed=1, classifier_scale=9.0), classifier=reader).images for k in (0, 2)
    )
    assert (one - other).abs().max() > 1e-4
    with pytest.raises(ValueError, match="a classifier pulls to a class; give its label"):
        generate(loaded, Request(seed=1), classifier=reader)


def test_what_does_not_fit_is_a_line(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ("generate", "--model", home / "run", "--label", "cat")
    line = refused(capsys, *run, "--classifier", home / "run")
    assert "holds no classifier; train one: sfumato train classifier --set model=RUN" in line
    line = refused(capsys, *run, "--size", "32x32", "--classifier", home / "reader")
    assert "the classifier 'reader' reads pictures of 16x16 alone" in line
    line = refused(capsys, "generate", "a red apple", "--label", "1", "--classifier", home / "reader")
    assert "the classifier 'reader' reads other latents" in line
    train = ("train", "classifier", "--out", tmp_path / "x")
    assert refused(capsys, *train) == "sfumato: a classifier is for a model; say which: --set model=runs/x"
    other = folder(tmp_path / "other", ("cat", "dog"))
    line = refused(capsys, *train, "--data", other, "--set", f"model={home / 'run'}")
    assert "the model was trained on other classes than these" in line
    assert line.endswith("it knows cat, dog, old house")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for name in ("classifier.json", "weights.safetensors"):
        (damaged / name).write_bytes((home / "reader" / "model" / name).read_bytes())
    (damaged / "weights.safetensors").write_bytes(b"")
    assert "its hash differs" in refused(capsys, *run, "--classifier", damaged)


def test_more_classes_than_a_model_has_room_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder(tmp_path / "data")
    changes = ("model.conditioner.classes=3", "model.conditioner.null=2")
    line = refused(capsys, "train", "class-to-image", "--data", data, "--out", tmp_path / "x", "--set", *changes)
    assert line == "sfumato: the pictures have 3 classes, and the model room for 2"
    nothing = ("model.conditioner.null=none", "defaults.guidance=1")
    line = refused(capsys, "train", "class-to-image", "--data", data, "--out", tmp_path / "x", "--set", *nothing)
    assert line == "sfumato: no label stands for none, so none can be left out; set diffusion.drop=0"


def test_a_classifier_run_goes_on_to_the_same_bytes(home: Path, tmp_path: Path) -> None:
    recipe = RECIPES["classifier"]
    stored = json.loads((home / "reader" / "config.json").read_text())["settings"]
    settings = type(recipe.settings(None)).model_validate(stored)
    settings = settings.model_copy(update={"plan": replace(settings.plan, steps=6, save=2)})
    material = recipe.material(home / "data", settings)
    list(recipe.run(settings, material, tmp_path / "a"))
    events = recipe.run(settings, material, tmp_path / "b")
    while not any((tmp_path / "b" / "classifier").glob("step-2/manifest.json")):
        next(events)
    events.close()
    list(recipe.run(settings, material, tmp_path / "b"))
    for name in ("model/weights.safetensors", "model/classifier.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
