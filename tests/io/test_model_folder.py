"""A model folder comes back as it was saved, and whatever is wrong with one is said in a line that names the file."""

from __future__ import annotations

import functools
import json
import math
import operator
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from sfumato.generate import generate
from sfumato.io import model_folder, opening, tensors
from sfumato.request import Request


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def test_it_comes_back_as_it_was(saved: Path) -> None:
    loaded = opening.load(saved)
    original = tiny.model()
    assert loaded.file.config == tiny.CONFIG
    assert (loaded.file.name, loaded.weights, loaded.path) == ("tiny", "ema", saved)
    assert loaded.file.defaults.steps == 3
    assert loaded.file.provenance == {"material": "nothing"}
    assert not loaded.model.training
    state = loaded.model.state_dict()
    assert all(torch.equal(state[k], v) for k, v in original.state_dict().items())
    assert loaded.model.conditioner.tokenizer.to_str() == original.conditioner.tokenizer.to_str()
    assert sorted(p.name for p in saved.iterdir()) == ["ema.safetensors", "model.json", "tokenizer.json"]
    assert sorted(p.name for p in saved.parent.iterdir()) == ["model"]


def test_the_same_model_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    again = tiny.folder(tmp_path / "again")
    assert all((again / p.name).read_bytes() == p.read_bytes() for p in saved.iterdir())


def test_weight_sets_by_name(tmp_path: Path) -> None:
    sets = {"ema": ("average", tiny.model(seed=1).state_dict()), "raw": ("last", tiny.model(seed=2).state_dict())}
    net = tiny.model()
    model_folder.save(
        tmp_path / "two",
        model_folder.ModelFile(name="two", config=tiny.CONFIG),
        sets,
        tokenizer=net.conditioner.tokenizer,
    )
    for chosen, name in ((None, "ema"), ("raw", "raw")):
        loaded = opening.load(tmp_path / "two", weights=chosen)
        assert loaded.weights == name
        assert all(torch.equal(loaded.model.state_dict()[k], v) for k, v in sets[name][1].items())
    with pytest.raises(ValueError, match="unknown weight set 'row'; did you mean 'raw'"):
        opening.load(tmp_path / "two", weights="row")


def test_half_precision_files_are_computed_in_single(copy: Path) -> None:
    state = {k: v.half() for k, v in tensors.load(copy / "ema.safetensors").items()}
    rewrite(copy, state)
    model = opening.load(copy).model
    assert {v.dtype for v in model.parameters()} == {torch.float32}
    assert all(torch.equal(model.state_dict()[k], v.float()) for k, v in state.items())


@pytest.mark.parametrize("name", model_folder.names())
def test_every_bundled_model_loads_and_paints(name: str) -> None:
    loaded = opening.load(name)
    side = loaded.file.config.resolution
    result = generate(loaded, Request(prompt="a red apple, 3d", steps=2))
    assert result.images.shape == (1, 3, side, side)
    assert result.images.std() > 0.05
    assert (model_folder.BUNDLED / name / loaded.file.weights[loaded.weights].file).is_file()


# Where it is looked for -----------------------------------------------------------------------------------


def test_a_model_is_found_by_name_folder_and_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_folder, "BUNDLED", saved.parent)
    assert model_folder.names() == ["model"]
    assert model_folder.find("model") == saved
    assert model_folder.find(saved) == saved
    assert model_folder.find(str(saved / "model.json")) == saved
    with pytest.raises(ValueError, match=r"^unknown model 'modle'; did you mean 'model'\? known: model \(or the path"):
        model_folder.find("modle")
    assert model_folder.find(saved.parent) == saved  # as it lies in the folder of a training run
    with pytest.raises(ValueError, match=r"holds no model\.json, nor .* a model is a folder that does$"):
        model_folder.find(saved.parent.parent)
    with pytest.raises(ValueError, match=r"^unknown model ''"):
        model_folder.find("")


# What is wrong with it ------------------------------------------------------------------------------------


def edit(copy: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tree = json.loads((copy / "model.json").read_text())
    change(tree)
    (copy / "model.json").write_text(json.dumps(tree))


def rewrite(copy: Path, state: dict[str, torch.Tensor]) -> None:
    """Other weights, with the right hash."""
    tensors.write(copy / "ema.safetensors", state)
    edit(copy, lambda t: t["weights"]["ema"].update(sha256=tensors.sha256(copy / "ema.safetensors")))


def refused(copy: Path, *, names: str) -> str:
    with pytest.raises(ValueError, match=names) as caught:
        opening.load(copy)
    message = str(caught.value)
    assert str(copy / names) in message
    assert "\n" not in message
    assert len(message) < 400
    return message


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_cut_weights(copy: Path, keep: int) -> None:
    path = copy / "ema.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert "hash differs" in refused(copy, names="ema.safetensors")
    edit(copy, lambda t: t["weights"]["ema"].update(sha256=tensors.sha256(path)))
    assert "damaged or cut short" in refused(copy, names="ema.safetensors")


def test_one_other_bit(copy: Path) -> None:
    data = bytearray((copy / "ema.safetensors").read_bytes())
    data[-3] ^= 4
    (copy / "ema.safetensors").write_bytes(data)
    assert "copy it again" in refused(copy, names="ema.safetensors")


@pytest.mark.parametrize("name", ["ema.safetensors", "tokenizer.json"])
def test_a_missing_file(copy: Path, name: str) -> None:
    (copy / name).unlink()
    assert "the folder is not complete" in refused(copy, names=name)


def test_weights_are_looked_for_in_the_folder_alone(copy: Path) -> None:
    (copy.parent / "outside.safetensors").write_bytes((copy / "ema.safetensors").read_bytes())
    edit(copy, lambda t: t["weights"]["ema"].update(file="../outside.safetensors"))
    assert "not complete" in refused(copy, names="outside.safetensors")


def test_tensors_that_do_not_fit(copy: Path) -> None:
    state = tensors.load(copy / "ema.safetensors")
    first = sorted(state)[0]
    rewrite(copy, {k: v for k, v in state.items() if k != first})
    assert f"lacks tensor '{first}'" in refused(copy, names="ema.safetensors")
    rewrite(copy, state | {"spy": torch.zeros(1), "spy.2": torch.zeros(1)})
    assert "has an unknown tensor 'spy' and 1 more" in refused(copy, names="ema.safetensors")
    rewrite(copy, state | {first: torch.zeros(7)})
    assert f"has another shape for tensor '{first}'" in refused(copy, names="ema.safetensors")


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_statistics_that_are_none(copy: Path, value: float) -> None:
    state = tensors.load(copy / "ema.safetensors")
    rewrite(copy, state | {"first_stage.std": torch.tensor(value, dtype=torch.float64)})
    assert "the deviation of its latents is not a positive number" in refused(copy, names="ema.safetensors")
    rewrite(copy, state | {"first_stage.mean": torch.full((1, 4, 1, 1), math.nan)})
    assert "the mean of its latents is not finite" in refused(copy, names="ema.safetensors")


def test_a_description_of_another_size(copy: Path) -> None:
    edit(copy, lambda t: t["config"]["unet"].update(width=17))
    assert "has another shape for tensor 'denoiser.net." in refused(copy, names="ema.safetensors")


def part_of(tree: dict[str, Any], path: str) -> dict[str, Any]:
    return functools.reduce(operator.getitem, path.split("."), tree["config"])


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [("unet", "width", 2**20), ("first_stage", "channels", 2**10), ("conditioner.encoder", "dim_head", 2**20)],
)
def test_a_description_of_a_monstrous_size_is_refused_before_it_is_built(
    copy: Path, part: str, key: str, value: int
) -> None:
    edit(copy, lambda t: part_of(t, part).update({key: value}))
    assert "numbers, the model that model.json describes" in refused(copy, names="ema.safetensors")


@pytest.mark.parametrize(
    ("part", "key"), [("unet", "depth"), ("conditioner.encoder", "depth"), ("first_stage", "blocks")]
)
def test_a_description_of_countless_layers_is_refused(copy: Path, part: str, key: str) -> None:
    edit(copy, lambda t: part_of(t, part).update({key: 10**9}))
    assert f"config: {part}.{key} is 1000000000; at most" in refused(copy, names="model.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.update(code="os.system"), "code: there is no such setting"),
        (lambda t: t["config"]["unet"].update(target="x.Y"), "target"),
        (lambda t: t.update(format=2), "format: input should be 1"),
        (lambda t: t.pop("name"), "name: field required"),
        (lambda t: t["config"]["unet"].update(width="wide"), "config.unet.width: input should be a valid integer"),
        (lambda t: t["config"]["unet"].update(channels=5), "config: unet.channels must be 4, as the latent's"),
        (
            lambda t: t["config"]["conditioner"]["encoder"].update(heads=0),
            "config: conditioner.encoder.heads is 0; it must be positive",
        ),
        (lambda t: t["config"]["first_stage"].update(mult=[]), "config: first_stage.mult is (); it must be positive"),
        (lambda t: t["config"]["schedule"].update(kind="flow", steps=3), "schedule 'flow' does not take steps"),
    ],
)
def test_a_description_that_is_not_one(copy: Path, change: Callable[[dict[str, Any]], object], said: str) -> None:
    edit(copy, change)
    assert said in refused(copy, names="model.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"name": "x"', "\ud83d", "\x00"])
def test_broken_json(copy: Path, text: str) -> None:
    (copy / "model.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    refused(copy, names="model.json")


def test_a_broken_tokenizer(copy: Path) -> None:
    path = copy / "tokenizer.json"
    tree = json.loads(path.read_text())
    for text in ("", "{}", path.read_text()[:300], "\n\n"):
        path.write_text(text)
        assert "is not a tokenizer" in refused(copy, names="tokenizer.json")
    vocab = tree["model"]["vocab"]
    vocab["[PADDING]"] = vocab.pop("[PAD]")
    path.write_text(json.dumps(tree))
    assert "it has no [PAD]" in refused(copy, names="tokenizer.json")


def test_a_tokenizer_of_another_model(copy: Path) -> None:
    (copy / "tokenizer.json").write_text(tiny.model(["other words entirely"]).conditioner.tokenizer.to_str())
    assert "another shape for tensor 'conditioner.encoder.tokens.weight'" in refused(copy, names="ema.safetensors")


LEAVES = st.none() | st.booleans() | st.integers(-3, 70) | st.floats() | st.text(max_size=5) | st.just([])


@settings(max_examples=60)
@given(st.data())
def test_any_edit_of_a_description_loads_or_is_a_line(saved: Path, data: st.DataObject) -> None:
    """A value somewhere is replaced by another; nothing but a ValueError of one line may come of it."""
    tree = json.loads((saved / "model.json").read_text())
    node, key = {"": tree}, ""
    while isinstance(node[key], dict) and node[key] and (node[key] is tree or data.draw(st.integers(0, 9))):
        node = node[key]
        key = data.draw(st.sampled_from(sorted(node)))
    node[key] = data.draw(LEAVES)
    copy = saved.parent / "edited"
    shutil.copytree(saved, copy, dirs_exist_ok=True)
    (copy / "model.json").write_text(json.dumps(tree))
    try:
        opening.load(copy)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
    finally:
        shutil.rmtree(copy)


def test_a_save_that_fails_leaves_the_model_before(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = {p.name: p.read_bytes() for p in copy.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(tensors, "sha256", full)
        with pytest.raises(OSError, match="No space"):
            tiny.folder(copy, seed=5)
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == before
    assert [p.name for p in copy.parent.iterdir()] == ["model"]
