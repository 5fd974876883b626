"""First stages alone: our folders, LDM's files, diffusers' `vae` folders, TAESD's tiny ones; and those of models."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sfumato.io import diffusers_config, diffusers_folder, first_stage_folder, model_folder, opening, shapes, tensors
from sfumato.io.diffusers_folder import Joined
from sfumato.io.layouts import ldm, taesd
from sfumato.io.layouts.rules import Layout, prefixed
from sfumato.io.opening import Opened
from sfumato.io.recognise import FIRST_STAGE, UNET, holds_unet
from sfumato.io.stored import Stored, open_stored
from sfumato.latents.kl import KLFirstStage
from sfumato.latents.pixels import Pixels
from sfumato.latents.tiny import TinyFirstStage
from sfumato.latents.vq import VQFirstStage
from sfumato.models.latent_diffusion import LatentDiffusion, autoencoder_of, hollow, hollowed
from sfumato.nets.autoencoder import Autoencoder, AutoencoderSize
from sfumato.nets.tiny import TinyAutoencoder, TinySize

Size = AutoencoderSize | TinySize
Stage = KLFirstStage | VQFirstStage | TinyFirstStage
Read = Callable[[Autoencoder | TinyAutoencoder, Mapping[str, tuple[int, ...]]], dict[str, Tensor]]
"""A hollow network and the shapes of its tensors below `net.` -> those tensors."""
HALF = 256  # pixels a side at which a first stage is measured whose file does not say at which it was trained
_PIXELS = "{} paints pixels and has no first stage"
PASSED = r"(loss|model_ema|discriminator)\..*"


@dataclass(frozen=True)
class LoadedFirstStage:
    """A first stage with its weights, in float32."""

    stage: Stage
    name: str
    resolution: int  # pixels a side that it was trained at
    path: Path


def loaded(name_or_path: str | Path) -> LoadedFirstStage:
    """The first stage at a path, or of a model by name or path; ValueError if there is none.

    The latents of a file that says nothing of their deviation are given as they are.
    """
    path = Path(name_or_path)
    if not _alone(path):
        model = opening.load(name_or_path, precision="float32")
        stage = model.model.first_stage
        if isinstance(stage, Pixels):
            raise ValueError(_PIXELS.format(name_or_path))
        return LoadedFirstStage(stage, model.file.name, model.file.config.resolution, model.path)
    if folder := first_stage_folder.find(path):
        file = first_stage_folder.describe(folder)
        stored = first_stage_folder.read(folder, file)
        stage = _hollow(file.built)
        tensors.check(stage, stored, source=folder)
        return LoadedFirstStage(_filled(stage, stored), file.name, file.resolution, path)
    size, read = opened(path)
    stage, scale = _hollow(size), 1.0
    if path.is_dir() and not isinstance(size, TinySize):
        _, scale = diffusers_config.first_stage(path / "config.json")
    weights = read(stage.net, {name: tuple(p.shape) for name, p in stage.named_parameters()})
    mean, std = torch.zeros(1, stage.channels, 1, 1), torch.tensor(1 / scale, dtype=torch.float64)
    return LoadedFirstStage(_filled(stage, {**weights, "mean": mean, "std": std}), path.stem, HALF, path)


def _hollow(size: Size) -> Stage:
    with hollowed():
        return stage_of(size)


def _filled(stage: Stage, stored: Mapping[str, Tensor]) -> Stage:
    """The stage with these tensors, its weights in float32."""
    weights = {name for name, _ in stage.named_parameters()}
    stage.load_state_dict({n: t.float() if n in weights else t for n, t in stored.items()}, assign=True)
    return stage.eval().requires_grad_(False)


def _alone(path: Path) -> bool:
    """Whether what is at `path` is a first stage, and not a model that has one."""
    if first_stage_folder.find(path) is not None:
        return True
    if path.is_dir():
        run = model_folder.recipe_of(path) is not None  # whose settings are in a config.json too
        return (path / "config.json").is_file() and not (diffusers_folder.is_one(path) or run)
    return (
        path.is_file()
        and path.suffix in opening.TENSORS
        and not holds_unet(n.removeprefix(UNET) for n in open_stored(path).entries)
    )


def opened(name_or_path: str | Path) -> tuple[Size, Read]:
    """The size of a first stage, or of a model's, by name or path, and how it is read; ValueError if there is none."""
    path = _own_place(Path(name_or_path))
    if folder := first_stage_folder.find(path):
        return _ours(folder)
    if _is_file(path):
        opening.not_weights_alone(path)
        stored = open_stored(path)
        return _tiny(stored, path) if taesd.is_one(stored.entries) else _ldm(stored, path)
    if not _alone(path):
        return _of_model(opening.opened(name_or_path))
    if diffusers_config.is_tiny(path / "config.json"):
        size, read = _tiny(diffusers_folder.weights(path), path)
        diffusers_config.check_tiny(path / "config.json", size)
        return size, read
    return _diffusers(path)


def _own_place(path: Path) -> Path:
    """The folder of the first stage in a pipeline's; `path` itself if it is none."""
    parts = [path / name for name in ("vae", "vqvae")] if diffusers_folder.is_one(path) else []
    return next((part for part in parts if part.is_dir()), path)


def _is_file(path: Path) -> bool:
    """Whether it is a file of tensors, and not the description of a model, which stands for its folder."""
    return path.is_file() and path.name != "model.json"


def _of_model(found: Opened) -> tuple[AutoencoderSize, Read]:
    size = found.file.config.first_stage
    if size is None:
        raise ValueError(_PIXELS.format(found.path))

    def read(net: Autoencoder | TinyAutoencoder, expected: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        del net
        stored, _ = found.read(hollow(found.file.config, found.tokenizer), found.chosen(None), None)
        return {name: stored[f"first_stage.{name}"] for name in expected}

    return size, read


def _ours(folder: Path) -> tuple[Size, Read]:
    file = first_stage_folder.describe(folder)

    def read(net: Autoencoder | TinyAutoencoder, expected: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        stored = first_stage_folder.read(folder, file)
        tensors.check(net, {n.removeprefix("net."): t for n, t in stored.items() if n in expected}, source=folder)
        return {name: stored[name] for name in expected}

    return file.built, read


def _diffusers(path: Path) -> tuple[AutoencoderSize, Read]:
    size, _ = diffusers_config.first_stage(path / "config.json")

    def read(net: Autoencoder | TinyAutoencoder, expected: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        assert isinstance(net, Autoencoder)
        return diffusers_folder.first_stage_weights(path, net, expected)

    return size, read


def _ldm(stored: Stored, path: Path) -> tuple[AutoencoderSize, Read]:
    try:
        size = shapes.autoencoder(shapes.below({n: e.shape for n, e in stored.entries.items()}, _prefix(stored)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None

    def read(net: Autoencoder | TinyAutoencoder, expected: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        assert isinstance(net, Autoencoder)
        prefix = _prefix(stored)
        rules = prefixed(ldm.autoencoder(net, levels=len(size.mult)), "net.", prefix)
        around = (r"(?!first_stage_model\.).*",) if prefix else ()  # the rest of a whole model
        layout = Layout(tuple(rules), (prefix.replace(".", r"\.") + PASSED, *around))
        layout.account(stored.entries, source=path)
        return layout.read(stored, expected, source=path)

    return size, read


def _tiny(stored: Stored | Joined, path: Path) -> tuple[TinySize, Read]:
    try:
        size = shapes.tiny({n: e.shape for n, e in stored.entries.items()})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None

    def read(net: Autoencoder | TinyAutoencoder, expected: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        assert isinstance(net, TinyAutoencoder)
        rules = taesd.autoencoder(net, original=taesd.is_original(stored.entries))
        layout = Layout(tuple(prefixed(rules, "net.", "")))
        layout.account(stored.entries, source=path)
        return layout.read(stored, expected, source=path)

    return size, read


def stage_of(size: Size) -> Stage:
    """A first stage of this size."""
    if isinstance(size, TinySize):
        return TinyFirstStage(size)
    return autoencoder_of(size)


def kind(size: Size) -> str:
    """What a first stage is, in a word."""
    return "tiny" if isinstance(size, TinySize) else "VQ" if size.codebook else "KL"


def files_of(name_or_path: str | Path) -> list[Path]:
    """The files with the weights of a first stage, or of a model's, by name or path."""
    path = _own_place(Path(name_or_path))
    if folder := first_stage_folder.find(path):
        return [folder / first_stage_folder.WEIGHTS]
    if _is_file(path):
        return [path]
    if _alone(path):
        return diffusers_folder.files_of(path)
    found = opening.opened(name_or_path)
    return [found.path / Path(found.file.weights[found.chosen(None)].file).name]


def put(model: LatentDiffusion, name_or_path: str | Path) -> None:
    """A first stage, or another model's, in the place of the model's own, with the model's statistics of latents.

    A tiny one stands in for any whose latents have its shape; if it has no encoder, the model's own encodes.
    ValueError if there is none by this name or path, or if its latents are of another shape.
    """
    own, before = model.config.first_stage, model.first_stage
    if own is None or isinstance(before, Pixels):
        raise ValueError("this model paints pixels, and has no place for a first stage")
    size, read = opened(name_or_path)
    kinds = [f"{kind(s)}, f{s.factor}, {s.latent_channels} channels" for s in (size, own)]
    alike = (size.factor, size.latent_channels) == (own.factor, own.latent_channels)
    if not alike or kind(size) not in ("tiny", kind(own)):
        raise ValueError(f"{name_or_path} is a first stage of another kind ({kinds[0]}) than this model's ({kinds[1]})")
    stage = _hollow(size)
    weights = read(stage.net, {name: tuple(p.shape) for name, p in stage.named_parameters()})
    statistics = dict(before.named_buffers(recurse=False))
    stage.load_state_dict({**{name: t.to(before.dtype) for name, t in weights.items()}, **statistics}, assign=True)
    if isinstance(stage, TinyFirstStage) and stage.net.encoder is None:
        lent = before.encoder if isinstance(before, TinyFirstStage) else None
        stage.encoder = lent or before
    model.first_stage = stage.eval().requires_grad_(False)


def _prefix(stored: Stored) -> str:
    return FIRST_STAGE if any(name.startswith(FIRST_STAGE) for name in stored.entries) else ""
