"""A first stage on disk is read as it was written, or refused with a line; and so is everybody else's."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import files
import tiny
from fill import inp
from sfumato.io import first_stages, model_folder, opening, tensors
from sfumato.io.conversion import convert
from sfumato.io.first_stage_folder import NAME, WEIGHTS, FirstStageFile, describe, find, read, save
from sfumato.io.layouts import taesd
from sfumato.io.layouts.rules import Layout
from sfumato.latents.kl import KLFirstStage
from sfumato.latents.tiny import TinyFirstStage
from sfumato.latents.vq import VQFirstStage
from sfumato.nets.autoencoder import AutoencoderSize
from sfumato.nets.tiny import TinySize

KL = replace(files.KL, channels=8)
VQ = replace(KL, codebook=16)
TINY = TinySize(width=4, blocks=1, levels=1)
SIZES = {"kl": KL, "vq": VQ, "tiny": TINY, "decoder": replace(TINY, encoder=False)}
IMAGES = (0.5 * inp("img", 2, 3, 8, 8)).clamp(-1, 1)
Size = AutoencoderSize | TinySize


def stage_of(size: Size, *, seed: int = 0) -> first_stages.Stage:
    torch.manual_seed(seed)
    stage = first_stages.stage_of(size)
    tiny.awake(stage.net)
    if not isinstance(stage, TinyFirstStage):
        stage.mean.copy_(inp("mean", *stage.mean.shape))
        stage.std.fill_(1.7)
    return stage.eval().requires_grad_(False)


def described(size: Size, **more: Any) -> FirstStageFile:
    which = {"tiny": size} if isinstance(size, TinySize) else {"size": size}
    return FirstStageFile(
        name="mine", resolution=48, provenance={"material": "nothing", "ünder": [1, 2.5]}, **which, **more
    )


def written(path: Path, size: Size = KL, *, seed: int = 0) -> first_stages.Stage:
    stage = stage_of(size, seed=seed)
    save(path, described(size), "made up", stage.state_dict())
    return stage


def same(a: nn.Module, b: nn.Module) -> None:
    mine, theirs = a.state_dict(), b.state_dict()
    assert mine.keys() == theirs.keys()
    assert [n for n in mine if not torch.equal(mine[n], theirs[n])] == []


def change(folder: Path, how: Callable[[dict[str, Any]], object]) -> None:
    tree = json.loads((folder / NAME).read_text())
    how(tree)
    (folder / NAME).write_text(json.dumps(tree))


def refused(folder: Path) -> str:
    with pytest.raises(ValueError, match=r"\S") as caught:
        first_stages.loaded(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


# Ours -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SIZES)
def test_what_was_written_is_read(kind: str, tmp_path: Path) -> None:
    stage = written(tmp_path / "a", SIZES[kind])
    file = describe(tmp_path / "a")
    assert file.weights is not None
    assert file.weights.about == "made up"
    assert file.model_copy(update={"weights": None}) == described(SIZES[kind])
    assert file.built == SIZES[kind]
    stored = read(tmp_path / "a", file)
    assert stored.keys() == stage.state_dict().keys()
    assert all(
        torch.equal(t, stage.state_dict()[n]) and t.dtype == stage.state_dict()[n].dtype for n, t in stored.items()
    )
    loaded = first_stages.loaded(tmp_path / "a")
    assert type(loaded.stage) is type(stage)
    assert (loaded.name, loaded.resolution) == ("mine", 48)
    same(loaded.stage, stage)
    assert not loaded.stage.training
    assert not any(p.requires_grad for p in loaded.stage.parameters())
    assert "ünder" in (tmp_path / "a" / NAME).read_text(encoding="utf-8")


def test_it_is_found_by_the_names_of_its_places(tmp_path: Path) -> None:
    stage = written(tmp_path / "run" / "model")
    model = tmp_path / "run" / "model"
    for path in (tmp_path / "run", model, model / NAME):
        assert find(path) == model
        same(first_stages.loaded(path).stage, stage)
    assert find(tmp_path) is None
    assert find(tmp_path / "nowhere") is None


def test_writing_again_leaves_nothing_of_before(tmp_path: Path) -> None:
    written(tmp_path / "a", VQ)
    stage = written(tmp_path / "a", KL, seed=1)
    same(first_stages.loaded(tmp_path / "a").stage, stage)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", NAME, WEIGHTS]


def test_other_weights_are_refused(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        written(tmp_path / name, seed=seed)
    (tmp_path / "b" / WEIGHTS).replace(tmp_path / "a" / WEIGHTS)
    assert "is not the file that first_stage.json describes (its hash differs)" in refused(tmp_path / "a")
    (tmp_path / "a" / WEIGHTS).unlink()
    assert "cannot be read" in refused(tmp_path / "a")
    written(tmp_path / "c")
    change(tmp_path / "c", lambda t: t.pop("weights"))
    assert "its hash differs" in refused(tmp_path / "c")


def forged(folder: Path, how: Callable[[dict[str, Tensor]], object]) -> None:
    """Other tensors, with the hash that belongs to them."""
    stored = tensors.load(folder / WEIGHTS)
    how(stored)
    tensors.write(folder / WEIGHTS, stored)
    change(folder, lambda t: t["weights"].update(sha256=tensors.sha256(folder / WEIGHTS)))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda t: t.pop("net.encoder.conv_in.bias"), "lacks tensor 'net.encoder.conv_in.bias'"),
        (lambda t: t.pop("mean"), "lacks tensor 'mean'"),
        (lambda t: t.pop("std"), "lacks tensor 'std'"),
        (lambda t: t.update(more=torch.zeros(1)), "has an unknown tensor 'more'"),
        (lambda t: t.update(mean=torch.zeros(1, 5, 1, 1)), "has another shape for tensor 'mean'"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(how: Callable[..., object], said: str, tmp_path: Path) -> None:
    written(tmp_path / "a")
    forged(tmp_path / "a", how)
    assert said in refused(tmp_path / "a")


DEVIATION, MEAN = "the deviation of its latents is not a positive number", "the mean of its latents is not finite"
STATISTICS = [
    *(("std", torch.tensor(value, dtype=torch.float64), DEVIATION) for value in (0.0, -1.7, math.nan, math.inf)),
    *(("mean", torch.tensor([0, value, 0, 0]).view(1, 4, 1, 1), MEAN) for value in (math.nan, math.inf, -math.inf)),
]


@pytest.mark.parametrize("kind", ["kl", "vq", "tiny"])
@pytest.mark.parametrize(("name", "value", "said"), STATISTICS)
def test_statistics_that_are_none_are_refused(kind: str, name: str, value: Tensor, said: str, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    written(folder, SIZES[kind])
    forged(folder, lambda t: t.update({name: value}))
    assert refused(folder) == f"{folder / WEIGHTS} is damaged: {said}; copy it again, or train anew"
    model = opening.load(files.single("sd1", tmp_path / "m.safetensors"), precision="float32").model
    if kind != "vq":
        with pytest.raises(ValueError, match=said):
            first_stages.put(model, folder)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda t: t.pop("size"), "one of 'size' and 'tiny' must be there, and not both"),
        (lambda t: t.update(tiny={}), "one of 'size' and 'tiny' must be there, and not both"),
        (lambda t: t.update(code="x"), "code: there is no such setting"),
        (lambda t: t["size"].update(depth=3), "size.depth: unexpected keyword argument"),
        (lambda t: t.update(format=2), "format: input should be 1"),
        (lambda t: t.update(resolution=0), "resolution: input should be greater than or equal to 1"),
        (lambda t: t["size"].update(mult=[]), "size.mult is (); it must be positive"),
        (lambda t: t["size"].update(channels=-8), "size.channels is -8; it must be positive"),
        (lambda t: t["size"].update(blocks=10**9), "size.blocks is 1000000000; at most 16 can be built"),
        (lambda t: t["size"].update(channels=16), "has another shape for tensor"),
        (lambda t: t.pop("name"), "name: field required"),
    ],
)
def test_descriptions_of_nothing_are_refused(how: Callable[..., object], said: str, tmp_path: Path) -> None:
    written(tmp_path / "a")
    change(tmp_path / "a", how)
    assert said in refused(tmp_path / "a")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("damaged") / "a"
    written(path)
    return path


EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), st.binary(max_size=6)), min_size=1, max_size=4)


@settings(max_examples=150)
@given(edits=EDITS)
def test_damaged_text_is_a_line_at_most(edits: list[tuple[float, int, bytes]], folder: Path) -> None:
    path = folder / NAME
    text = whole = path.read_bytes()
    for place, gone, put in edits:
        at = int(place * len(text))
        text = text[:at] + put + text[at + gone :]
    try:
        path.write_bytes(text)
        first_stages.loaded(folder)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert str(error)  # noqa: PT017
    finally:
        path.write_bytes(whole)


@settings(max_examples=25)
@given(text=st.text(max_size=40) | st.sampled_from(["[" * 5000, "{}", "null", '{"size": 1e999}', "1" * 5000]))
def test_any_text_is_a_line(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("text")
    (path / NAME).write_text(text, encoding="utf-8", errors="surrogatepass")
    refused(path)


# Others' --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One first stage as all programs have it: of a model, alone, and a tiny one in its place."""
    home = tmp_path_factory.mktemp("theirs")
    files.single("sd1", home / "model.safetensors")
    convert(home / "model.safetensors", home / "pipe", "diffusers")
    prefix = "first_stage_model."
    alone = {n.removeprefix(prefix): t for n, t in files.original("sd1").items() if n.startswith(prefix)}
    tensors.write(home / "alone.safetensors", alone)
    tensors.write(home / "loss.safetensors", {**alone, "loss.logvar": torch.zeros(())})
    small = stage_of(replace(TINY, latent_channels=4))
    layout = Layout(tuple(taesd.autoencoder(small.net, original=False)))
    tensors.write(home / "taesd.safetensors", layout.write(small.net.state_dict()))
    return home


def weights(stage: nn.Module) -> dict[str, Tensor]:
    return {n: t for n, t in stage.state_dict().items() if n.startswith("net.")}


@pytest.mark.parametrize(
    ("name", "std", "resolution"),
    [
        ("model.safetensors", 1 / 0.18215, 64),
        ("pipe", 1 / 0.18215, 64),
        ("pipe/vae", 1 / 0.18215, 256),
        ("alone.safetensors", 1.0, 256),
        ("loss.safetensors", 1.0, 256),
    ],
)
def test_one_first_stage_by_all_its_names(name: str, std: float, resolution: int, theirs: Path) -> None:
    expected = opening.load(theirs / "model.safetensors", precision="float32").model.first_stage
    found = first_stages.loaded(theirs / name)
    assert isinstance(found.stage, KLFirstStage)
    mine, others = weights(found.stage), weights(expected)
    assert mine.keys() == others.keys()
    assert all(t.dtype == torch.float32 and torch.equal(t, others[n]) for n, t in mine.items())
    assert found.stage.std.item() == pytest.approx(std, rel=1e-7)  # single files have it in float32
    assert not found.stage.mean.any()
    assert found.resolution == resolution
    picture = IMAGES
    raw = expected.encode(picture) * expected.std
    torch.testing.assert_close(found.stage.encode(picture) * found.stage.std, raw, rtol=0, atol=1e-5, check_dtype=False)


def test_a_tiny_one_alone(theirs: Path) -> None:
    found = first_stages.loaded(theirs / "taesd.safetensors")
    expected = stage_of(replace(TINY, latent_channels=4))
    assert isinstance(found.stage, TinyFirstStage)
    same(found.stage, expected)
    assert found.name == "taesd"


def test_a_bundled_model_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.folder(tmp_path / "emoji")
    monkeypatch.setattr(model_folder, "BUNDLED", tmp_path)
    found = first_stages.loaded("emoji")
    same(found.stage, tiny.model().first_stage)
    assert (found.name, found.resolution) == ("tiny", 16)


@pytest.mark.parametrize("name", ["nowhere", "nowhere.safetensors"])
def test_nothing_there_is_a_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere") as caught:
        first_stages.loaded(tmp_path / name)
    assert "\n" not in str(caught.value)


# Of a model of ours ---------------------------------------------------------------------------------------

PLACES = ["", "model", "model/model.json"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a whole model, as it is when it has ended."""
    home = tmp_path_factory.mktemp("whole")
    tiny.folder(home / "model")
    (home / "config.json").write_text('{"recipe": "emoji", "data": null, "settings": {}}')
    return home


@pytest.mark.parametrize("place", PLACES)
def test_a_model_of_ours_gives_its_first_stage_wherever_one_is_taken(place: str, whole: Path) -> None:
    expected = tiny.model().first_stage
    found = first_stages.loaded(whole / place)
    same(found.stage, expected)
    assert (found.name, found.resolution) == ("tiny", 16)
    size, read_ = first_stages.opened(whole / place)
    assert size == tiny.CONFIG.first_stage
    own = weights(expected)
    stored = read_(found.stage.net, {name: tuple(t.shape) for name, t in own.items()})
    assert stored.keys() == own.keys()
    assert all(torch.equal(t, own[name]) for name, t in stored.items())
    assert first_stages.files_of(whole / place) == [whole / "model" / "ema.safetensors"]
    other = tiny.model(seed=1)
    other.first_stage.std.fill_(3.0)
    first_stages.put(other, whole / place)
    assert all(torch.equal(t, own[name]) for name, t in weights(other.first_stage).items())
    assert other.first_stage.std == 3


def test_a_bundled_model_is_one_too(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.folder(tmp_path / "emoji")
    monkeypatch.setattr(model_folder, "BUNDLED", tmp_path)
    assert first_stages.opened("emoji")[0] == tiny.CONFIG.first_stage
    assert first_stages.files_of("emoji") == [tmp_path / "emoji" / "ema.safetensors"]


def test_a_pipeline_gives_its_first_stage(theirs: Path) -> None:
    assert first_stages.opened(theirs / "pipe")[0] == files.KL
    assert first_stages.files_of(theirs / "pipe") == first_stages.files_of(theirs / "pipe" / "vae")
    expected = opening.load(theirs / "model.safetensors", precision="float32").model
    model = opening.load(theirs / "model.safetensors", precision="float32").model
    for t in weights(model.first_stage).values():
        t.zero_()
    first_stages.put(model, theirs / "pipe")
    same(model.first_stage, expected.first_stage)


def test_a_model_of_pixels_has_none_to_give(tmp_path: Path) -> None:
    convert(files.single("adm", tmp_path / "adm.safetensors"), tmp_path / "adm", "sfumato")
    for take in (first_stages.opened, first_stages.loaded):
        with pytest.raises(ValueError, match="adm paints pixels and has no first stage"):
            take(tmp_path / "adm")


TAKE: list[Callable[[Path], object]] = [
    first_stages.opened,
    first_stages.loaded,
    opening.opened,
    lambda path: first_stages.put(tiny.model(), path),
]


@pytest.mark.parametrize("take", TAKE, ids=["opened", "loaded", "model", "put"])
def test_weights_without_what_they_are_of_are_a_line(take: Callable[[Path], object], whole: Path, folder: Path) -> None:
    for path in (whole / "model" / "ema.safetensors", folder / WEIGHTS):
        with pytest.raises(ValueError, match=r"holds the weights alone, and .*; give its folder, ") as caught:
            take(path)
        assert str(caught.value).startswith(str(path))
        assert str(caught.value).endswith(str(path.parent))


def test_another_file_beside_a_model_is_what_it_is(whole: Path, theirs: Path, tmp_path: Path) -> None:
    home = Path(shutil.copytree(whole, tmp_path / "run")) / "model"
    for name in ("taesd.safetensors", "alone.safetensors"):
        shutil.copy(theirs / name, home / name)
        assert first_stages.opened(home / name)[0] == first_stages.opened(theirs / name)[0]


@pytest.mark.parametrize("take", TAKE, ids=["opened", "loaded", "model", "put"])
def test_a_run_that_has_not_ended_is_a_line(take: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"recipe": "kl-f4", "data": null, "settings": {}}')
    (tmp_path / "first-stage").mkdir()
    with pytest.raises(ValueError, match="is a run that is not finished; go on with: ") as caught:
        take(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path} is a run")
    assert str(caught.value).endswith(f": sfumato train kl-f4 --out {tmp_path} --resume")


@pytest.mark.parametrize("text", ["{}", "[]", '{"recipe": 3}', "{", "[" * 100_000, '{"recipe": "a\\nb"}'])
def test_another_configuration_is_no_run(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    assert model_folder.recipe_of(tmp_path) is None
    assert "not finished" not in refused(tmp_path)


def test_a_first_stage_is_no_model(folder: Path) -> None:
    for path in (folder, folder / NAME):
        with pytest.raises(
            ValueError, match=r"a is a first stage alone: |first_stage.json is a first stage al"
        ) as caught:
            opening.opened(path)
        assert "--vae beside a model, or measure it with evaluate --first-stage" in str(caught.value)


# In the place of a model's --------------------------------------------------------------------------------


def test_ours_takes_the_place_of_a_models_and_keeps_its_statistics(theirs: Path, tmp_path: Path) -> None:
    model = opening.load(theirs / "model.safetensors", precision="float32").model
    before = model.first_stage
    torch.manual_seed(3)
    stage = KLFirstStage(files.KL)
    tiny.awake(stage)
    stage.std.fill_(3.0)
    save(tmp_path / "run" / "model", described(files.KL), "made up", stage.state_dict())
    first_stages.put(model, tmp_path / "run")
    assert model.first_stage is not before
    assert all(torch.equal(t, weights(stage)[n]) for n, t in weights(model.first_stage).items())
    assert torch.equal(model.first_stage.std, before.std)
    assert torch.equal(model.first_stage.mean, before.mean)


@pytest.mark.parametrize(("size", "said"), [(VQ, "VQ, f2, 4 channels"), (replace(KL, latent_channels=3), "KL, f2, 3")])
def test_another_kind_does_not(size: AutoencoderSize, said: str, theirs: Path, tmp_path: Path) -> None:
    model = opening.load(theirs / "model.safetensors", precision="float32").model
    before = model.first_stage
    written(tmp_path / "a", size)
    with pytest.raises(ValueError, match="is a first stage of another kind") as caught:
        first_stages.put(model, tmp_path / "a")
    assert said in str(caught.value)
    assert model.first_stage is before


def test_a_codebook_takes_the_place_of_a_codebook(tmp_path: Path) -> None:
    model = opening.load(files.single("labels", tmp_path / "m.safetensors"), precision="float32").model
    torch.manual_seed(3)
    stage = VQFirstStage(files.VQ)
    tiny.awake(stage)
    save(tmp_path / "a", described(files.VQ), "made up", stage.state_dict())
    first_stages.put(model, tmp_path / "a")
    assert torch.equal(model.first_stage.codebook.weight, stage.codebook.weight)
