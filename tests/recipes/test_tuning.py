"""Fine-tuning in all its ways: what learns and what does not, what is written and read back, and exact resumes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from files import single
from fill import inp
from sfumato.conditioning.clip_tokens import ids
from sfumato.diffusion.noise import Address
from sfumato.diffusion.objective import denoising_loss
from sfumato.generate import Model
from sfumato.io import model_folder, opening, pictures, tensors
from sfumato.io.embedding import read_embedding
from sfumato.io.lora import apply, read_lora
from sfumato.io.origin import Origin
from sfumato.nets.lora import Adapters
from sfumato.outcome import Outcome
from sfumato.recipes import RECIPES, base, preserved
from sfumato.recipes.base import _numbers
from sfumato.recipes.events import Event, Stepped, Wrote
from sfumato.recipes.lora import LowRankChange
from sfumato.recipes.preserved import FAR, Preserving, beside
from sfumato.recipes.textual_inversion import Word
from sfumato.recipes.told import Told
from sfumato.recipes.tuning import _batches
from sfumato.world import ALONE, World

PLAN = {"steps": 4, "batch": 3, "warmup": 1, "rate": 1e-2, "save": 2, "preview": 3, "ema": 0.5}
CHANGES: dict[str, dict[str, Any]] = {
    "finetune": {"conditioner": True},
    "lora": {"lora": {"rank": 2, "conditioner": True, "targets": "all"}},
    "textual-inversion": {"token": "<zog-1>", "vectors": 2, "initial": "cat"},
    "dreambooth": {"prompt": "two zog dogs", "prior": {"prompt": "two dogs", "pictures": 10, "steps": 1}},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, and a folder of five pictures with captions."""
    root = tmp_path_factory.mktemp("tuning")
    tiny.folder(root / "tiny")
    single("clip", root / "clip.safetensors")
    for i, caption in enumerate([*tiny.CAPTIONS, "a blue house", "one cat, 3d"]):
        pictures.save_png((inp(f"picture {i}", 3, 16, 16) / 2).clamp(-1, 1), root / "data" / f"{i}.png", {})
        (root / "data" / f"{i}.txt").write_text(caption)
    return root


def settings(name: str, model: Path, **changes: Any) -> Any:
    recipe = RECIPES[name]
    assert recipe.on is not None
    given = recipe.on(str(model))
    tree = given.model_dump()
    tree["diffusion"]["plan"] |= PLAN
    tree |= {"resolution": 16, "previews": 0}
    for key, value in {**CHANGES[name], **changes}.items():
        tree[key] = tree[key] | value if isinstance(value, dict) and isinstance(tree[key], dict) else value
    return type(given).model_validate(tree)


def events(name: str, home: Path, out: Path, model: str = "tiny", **changes: Any) -> Iterator[Event]:
    chosen = settings(name, home / model, **changes)
    return RECIPES[name].run(chosen, RECIPES[name].material(home / "data", chosen), out, ALONE)


def trained(name: str, home: Path, out: Path, model: str = "tiny", **changes: Any) -> Path:
    *_, last = events(name, home, out, model, **changes)
    assert isinstance(last, Wrote)
    return last.path


def kept(out: Path) -> dict[str, Tensor]:
    return tensors.load(out / "diffusion" / "step-4" / "state.safetensors")


def answer(loaded: model_folder.Loaded, prompt: str = "two dogs") -> Tensor:
    model = loaded.model
    told = model.conditioner.of([prompt])
    x = inp("x", 1, model.first_stage.channels, 8, 8)
    with torch.no_grad():
        return model.net(x, torch.tensor([300.0]), told.tokens, told.mask, told.vector)


# Resumes --------------------------------------------------------------------------------------------------


def files(out: Path) -> dict[str, bytes]:
    """All but the log, whose seconds differ."""
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.suffix != ".jsonl"}


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_that_was_stopped_ends_with_the_same_bytes(name: str, home: Path, tmp_path: Path) -> None:
    model = "clip.safetensors" if name == "textual-inversion" else "tiny"
    trained(name, home, tmp_path / "whole", model, previews=1)
    for stop in (1, 2):
        run = events(name, home, tmp_path / "parts", model, previews=1)
        for event in run:
            if isinstance(event, Stepped) and event.progress.step == stop:
                break
        run.close()
    trained(name, home, tmp_path / "parts", model, previews=1)
    whole, parts = files(tmp_path / "whole"), files(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert {"samples/step-3.png", "samples/step-4.png", "diffusion/step-4/state.safetensors"} <= whole.keys()
    assert [n for n in whole if whole[n] != parts[n]] == []


def test_pictures_of_the_class_are_painted_in_the_same_company(home: Path, tmp_path: Path) -> None:
    """After a kill in between those that are missing are painted again, with those that they were painted with."""
    chosen = settings("dreambooth", home / "tiny")
    loaded = base.opened(chosen)
    whole = list_of(tmp_path / "whole", loaded, chosen.prior)
    assert sorted(whole) == [f"{k:05d}.png" for k in range(10)]
    list_of(tmp_path / "parts", loaded, chosen.prior)
    for k in (3, 9):
        (tmp_path / "parts" / f"{k:05d}.png").unlink()
    assert list_of(tmp_path / "parts", loaded, chosen.prior) == whole
    alone = Model(loaded).generate(prompt="two dogs", seed=9 + 5, steps=1, size=(16, 16)).images[0]
    found = pictures.read(tmp_path / "whole" / "00009.png")
    assert (found - alone).abs().max() <= 1 / 127.5


def list_of(out: Path, loaded: model_folder.Loaded, prior: preserved.Prior) -> dict[str, bytes]:
    for _ in preserved.painted(loaded, prior, out, side=16, seed=5):
        pass
    return {p.name: p.read_bytes() for p in out.iterdir()}


# LoRA -----------------------------------------------------------------------------------------------------


def test_the_file_is_what_was_trained(home: Path, tmp_path: Path) -> None:
    path = trained("lora", home, tmp_path / "run")
    chosen = settings("lora", home / "tiny")
    hooked = base.opened(chosen)
    change = LowRankChange(chosen, hooked, chosen.lora)
    before = answer(hooked)
    state = kept(tmp_path / "run")
    change.learnt.load_state_dict({k[len("ema.") :]: v for k, v in state.items() if k.startswith("ema.")})
    with_file = opening.load(home / "tiny")
    apply(with_file.model, read_lora(path), origin=Origin())
    torch.testing.assert_close(answer(with_file), answer(hooked), rtol=0, atol=1e-5)
    assert (answer(hooked) - before).abs().mean() > 0.01
    assert {k.split(".")[0] for k in state} == {"module", "ema", "optimizer"}
    assert not any("net.conv_in" in k for k in state)


def test_what_is_painted_with_the_file_is_the_preview(home: Path, tmp_path: Path) -> None:
    path = trained("lora", home, tmp_path / "run", previews=2)
    loaded = opening.load(home / "tiny")
    apply(loaded.model, read_lora(path), origin=Origin())
    images = [
        Model(loaded).generate(prompt=prompt, seed=i, size=(16, 16)).images[0]
        for i, prompt in enumerate([tiny.CAPTIONS[0], tiny.CAPTIONS[2]])
    ]
    sheet = pictures.read(tmp_path / "run" / "samples" / "step-4.png")
    pictures.save_png(larger(torch.stack(images)), tmp_path / "again.png", {})
    assert (pictures.read(tmp_path / "again.png") - sheet).abs().max() <= 1 / 127.5


def larger(images: Tensor) -> Tensor:
    """A sheet as previews are."""
    return pictures.sheet(images.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3), columns=8)


@pytest.mark.parametrize(
    ("model", "low", "expected"),
    [
        ("tiny", {"targets": "attention", "conditioner": False}, {"attn1", "attn2"}),
        ("clip.safetensors", {"targets": "attention", "conditioner": True}, {"attn1", "attn2", "self_attn"}),
        (
            "clip.safetensors",
            {"targets": "transformer", "conditioner": True},
            {"attn1", "attn2", "self_attn", "ff", "mlp", "proj"},
        ),
    ],
)
def test_only_what_was_asked_for_changes(
    model: str, low: dict[str, Any], expected: set[str], home: Path, tmp_path: Path
) -> None:
    path = trained("lora", home, tmp_path / "run", model, lora=low)
    lora = read_lora(path)
    kinds = {
        kind for p in lora.patches for kind in ("attn1", "attn2", "self_attn", "ff", "mlp") if f"_{kind}_" in p.layer
    }
    kinds |= {"proj" for p in lora.patches if p.layer.endswith(("attentions_0_proj_in", "attentions_0_proj_out"))}
    assert kinds == expected
    assert {p.part for p in lora.patches} == ({"unet"} if model == "tiny" else {"unet", "text"})
    loaded = opening.load(home / model, precision="float32")
    before = {n: p.clone() for n, p in loaded.model.named_parameters()}
    applied = apply(loaded.model, lora, origin=loaded.file.origin or Origin())
    moved = {n for n, p in loaded.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == applied.names
    assert len(moved) == len(lora.patches)


def test_the_file_says_where_it_is_from(home: Path, tmp_path: Path) -> None:
    path = trained("lora", home, tmp_path / "run", "clip.safetensors", lora={"rank": 2, "alpha": 1.0})
    said = read_lora(path).metadata
    assert (said["ss_network_dim"], said["ss_network_alpha"], said["modelspec.resolution"]) == ("2", "1", "64x64")
    from_ = json.loads(said["sfumato.trained"])
    assert from_["base"]["name"] == "clip"
    assert from_["steps"] == 4
    with pytest.raises(
        ValueError, match=r"holds no model, but what was learnt for one; give --lora \S+lora.safetensors"
    ):
        opening.load(tmp_path / "run")


# All weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conditioner", [False, True])
def test_all_weights_and_the_conditioners_if_asked(conditioner: bool, home: Path, tmp_path: Path) -> None:
    before = (home / "tiny" / "ema.safetensors").read_bytes()
    path = trained("finetune", home, tmp_path / "run", conditioner=conditioner)
    loaded, was = opening.load(path), opening.load(home / "tiny")
    same = {k for k, v in loaded.model.state_dict().items() if torch.equal(v, was.model.state_dict()[k])}
    parts = {"denoiser", "conditioner"} if conditioner else {"denoiser"}
    still = {k for k in same if k.split(".")[0] in parts}
    assert {k for k in still if not k.endswith("positions.weight")} == set()  # positions beyond any caption rest
    assert {k for k in was.model.state_dict() if k.split(".")[0] not in parts} <= same
    assert (loaded.weights, loaded.file.name) == ("ema", "finetune")
    assert loaded.file.defaults == was.file.defaults
    assert (home / "tiny" / "ema.safetensors").read_bytes() == before
    state = kept(tmp_path / "run")
    assert torch.equal(loaded.model.net.conv_in.weight, state["ema.denoiser.net.conv_in.weight"])


def test_a_model_of_another_program_becomes_a_folder_of_ours(home: Path, tmp_path: Path) -> None:
    path = trained("finetune", home, tmp_path / "run", "clip.safetensors", conditioner=False)
    loaded, was = opening.load(path, precision="float32"), opening.load(home / "clip.safetensors", precision="float32")
    assert loaded.file.config == was.file.config
    assert loaded.file.origin == was.file.origin
    assert torch.equal(loaded.model.first_stage.std, was.model.first_stage.std)
    assert (answer(loaded) - answer(was)).abs().mean() > 1e-4


# Textual inversion ----------------------------------------------------------------------------------------


def test_a_word_is_all_that_learns(home: Path, tmp_path: Path) -> None:
    path = trained("textual-inversion", home, tmp_path / "run", "clip.safetensors", previews=1)
    assert path.name == "zog-1.safetensors"
    found = read_embedding(path)
    assert (found.name, found.vectors.shape) == ("<zog-1>", (2, 64))
    state = kept(tmp_path / "run")
    assert {k for k in state if k.startswith(("module.", "ema."))} == {"module.vectors", "ema.vectors"}
    assert torch.equal(found.vectors, state["ema.vectors"])
    loaded = opening.load(home / "clip.safetensors", precision="float32")
    clip = loaded.model.conditioner
    cat = clip.encoder.tokens.weight[ids(clip.tokenizer, "cat")]
    moved = (found.vectors - cat).abs()
    assert moved.max() < 10 * 1e-2  # steps times rate, at most
    assert bool((moved.amax(1) > 1e-3).all())
    clip.learn(found.name, found.vectors)
    asked = {"prompt": "<zog-1>", "seed": 0, "size": (16, 16)}
    pictures.save_png(larger(Model(loaded).generate(**asked).images), tmp_path / "again.png", {})
    sheets = [pictures.read(path) for path in (tmp_path / "again.png", tmp_path / "run" / "samples" / "step-4.png")]
    assert (sheets[0] - sheets[1]).abs().max() <= 1 / 127.5


def test_the_gradient_is_that_of_the_words_rows(home: Path, tmp_path: Path) -> None:
    """One step of one picture by hand: the rows of the vocabulary's table where the words stand, by autograd."""
    chosen = settings("textual-inversion", home / "clip.safetensors", vectors=1)
    material = RECIPES["textual-inversion"].material(home / "data", chosen)
    assert {way["caption"].count("<zog-1>") for way in material.ways({})} == {1}
    loaded = base.opened(chosen)
    model = loaded.model
    told = Told(model, 0.0, "uniform")
    z, at = inp("z", 2, 4, 8, 8), Address.of(1, [0, 1], 3)
    word = Word(chosen, loaded)
    say = lambda token: model.conditioner.collate([{"caption": f"a picture of {token}"}] * 2)  # noqa: E731
    loss = word.objective(told)({"mean": z, **say("<zog-1>")}, at).loss
    loss.backward()
    table = model.conditioner.encoder.tokens.weight.requires_grad_(True)
    as_cat = told({"mean": z, **say("cat")}, at).loss
    as_cat.backward()
    torch.testing.assert_close(loss, as_cat)
    torch.testing.assert_close(word.learnt.vectors.grad, table.grad[ids(model.conditioner.tokenizer, "cat")])


# Prior preservation ---------------------------------------------------------------------------------------


def test_the_loss_is_the_sum_of_both() -> None:
    model = tiny.model()
    told = Told(model, 0.0, "uniform")

    def batches(name: str, caption: str) -> Any:
        said = model.conditioner.collate([{"caption": caption}] * 2)
        return lambda _: {"index": torch.tensor([0, 1]), "mean": inp(name, 2, 4, 4, 4), **said}

    instance, prior = batches("own", "two zog dogs"), batches("class", "two dogs")
    at = Address.of(7, [0, 1], 4)
    found = Preserving(told, 0.7)(beside(instance, prior)(0), at)
    losses = [
        denoising_loss(model.denoiser, batch(0)["mean"], model.conditioner(batch(0)), where).mean()
        for batch, where in ((instance, at), (prior, Address.of(7, [FAR, FAR + 1], 4)))
    ]
    torch.testing.assert_close(found.loss, losses[0] + 0.7 * losses[1])
    torch.testing.assert_close(found.said["instance"], losses[0])
    torch.testing.assert_close(found.said["prior"], losses[1])
    assert (losses[0] - losses[1]).abs() > 1e-3


@pytest.mark.parametrize("lora", [True, False])
def test_dreambooth_is_written_as_what_it_changes(lora: bool, home: Path, tmp_path: Path) -> None:
    path = trained("dreambooth", home, tmp_path / "run", **({} if lora else {"lora": None}))
    assert path.name == ("lora.safetensors" if lora else "model")
    lines = (tmp_path / "run" / "diffusion" / "metrics.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        assert line["loss"] == pytest.approx(line["instance"] + line["prior"], rel=1e-6)
    if not lora:
        assert not any("/" in k for k in kept(tmp_path / "run"))


def test_a_picture_that_is_in_a_batch_twice_has_other_noise(home: Path, tmp_path: Path) -> None:
    """Five pictures, and eleven a step."""
    chosen = settings("lora", home / "tiny")
    plan = dict(chosen.diffusion.plan.__dict__) | {"batch": 11}
    chosen = type(chosen).model_validate(chosen.model_dump() | {"diffusion": {"plan": plan}})
    model = tiny.model()
    source = _batches(chosen, model, lambda index: {"mean": index[:, None]}, [({"caption": "two dogs"},)] * 5)
    for step in range(3):
        batch = source(step)
        assert len(set(batch["index"].tolist())) == 11
        assert torch.equal(batch["index"] % 5, batch["mean"][:, 0])


def test_adapters_say_their_pairs_by_the_names_of_layers() -> None:
    a, b = torch.zeros(1), torch.ones(1)
    assert Adapters.pairs({"changes.x/y/z.down": a, "changes.x/y/z.up": b}) == {"x.y.z": (a, b)}


def test_several_processes_are_refused(home: Path, tmp_path: Path) -> None:
    chosen = settings("lora", home / "tiny")
    recipe = RECIPES["lora"]
    with pytest.raises(ValueError, match="goes on in one process yet; leave torchrun out"):
        next(recipe.run(chosen, recipe.material(home / "data", chosen), tmp_path / "run", World(size=2)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["finetune", "lora", "textual-inversion", "dreambooth"])
def test_settings_that_say_nothing_here_are_refused(name: str) -> None:
    given = RECIPES[name].settings(None)
    for setting, value in (("buckets", True), ("validation", 100), ("decays", (0.9,)), ("flips", True)):
        changed = {**dict(given), "diffusion": given.diffusion.model_copy(update={setting: value})}
        with pytest.raises(ValueError, match=f"diffusion.{setting} is not of a model that goes on; leave it out"):
            type(given).model_validate(changed)


def test_classes_are_those_of_their_names(home: Path, tmp_path: Path) -> None:
    """A folder of some of a model's classes teaches it these, and not its first ones."""
    for name in ("pear", "dog"):
        pictures.save_png(torch.zeros(3, 16, 16), tmp_path / "data" / name / "0.png", {})
    whole = base.folder(tmp_path / "data", 16)
    assert _numbers(whole.classes, ("apple", "dog", "pear"), "x") == [1, 2]
    with pytest.raises(ValueError, match=r"^x knows no class 'pear'; it knows apple, dog$"):
        _numbers(whole.classes, ("apple", "dog"), "x")


def test_a_word_learns_from_parts_of_a_batch(home: Path, tmp_path: Path) -> None:
    """Its vectors are no picture's, and are not cut."""
    plan = {"plan": {**settings("textual-inversion", home / "clip.safetensors").model_dump()["diffusion"]["plan"]}}
    found = []
    for n in (1, 3):
        plan["plan"] |= {"accumulate": n, "precision": "fp32"}
        path = trained("textual-inversion", home, tmp_path / f"run-{n}", "clip.safetensors", diffusion=plan)
        found.append(read_embedding(path).vectors)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-4)


def test_the_class_has_the_places_of_its_part_of_a_batch() -> None:
    """So that times that are spread over a batch are spread over all of its parts."""
    seen: list[Address] = []

    def objective(_: object, at: Address) -> Outcome:
        seen.append(at)
        return Outcome(torch.zeros(()))

    index = torch.arange(4)
    for part, at in zip(index.chunk(2), Address.of(3, index, 7).chunks(2), strict=True):
        Preserving(objective, 1.0)({"index": part, "prior.index": part}, at)
    assert [at.place.tolist() for at in seen if at.place is not None] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert {at.batch for at in seen} == {4}
