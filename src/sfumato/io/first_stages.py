"""First stages alone: LDM's files of them, and diffusers' `vae` folders, read to stand in for a model's own."""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from sfumato.io import diffusers_config, diffusers_folder, shapes
from sfumato.io.layouts import ldm
from sfumato.io.layouts.rules import Layout, prefixed
from sfumato.io.recognise import FIRST_STAGE
from sfumato.io.stored import Stored, open_stored
from sfumato.latents.kl import KLFirstStage
from sfumato.latents.vq import VQFirstStage
from sfumato.models.latent_diffusion import LatentDiffusion, hollowed
from sfumato.nets.autoencoder import Autoencoder, AutoencoderSize

Read = Callable[[Autoencoder, Mapping[str, tuple[int, ...]]], dict[str, Tensor]]
"""A hollow network and the shapes of its tensors below `net.` -> those tensors."""
PASSED = r"(loss|model_ema|discriminator)\..*"


def opened(path: Path) -> tuple[AutoencoderSize, Read]:
    """The size of the first stage at `path`, and how it is read; ValueError if there is none."""
    if path.is_dir():
        size, _ = diffusers_config.first_stage(path / "config.json")
        return size, lambda net, expected: diffusers_folder.first_stage_weights(path, net, expected)
    stored = open_stored(path)
    try:
        size = shapes.autoencoder(shapes.below({n: e.shape for n, e in stored.entries.items()}, _prefix(stored)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None

    def read(net: Autoencoder, expected: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        prefix = _prefix(stored)
        rules = prefixed(ldm.autoencoder(net, levels=len(size.mult)), "net.", prefix)
        around = (r"(?!first_stage_model\.).*",) if prefix else ()  # the rest of a whole model
        layout = Layout(tuple(rules), (prefix.replace(".", r"\.") + PASSED, *around))
        layout.account(stored.entries, source=path)
        return layout.read(stored, expected, source=path)

    return size, read


def files_of(path: Path) -> list[Path]:
    """The files with the weights of the first stage at `path`."""
    return diffusers_folder.files_of(path) if path.is_dir() else [path]


def put(model: LatentDiffusion, path: Path) -> None:
    """The first stage at `path` in the place of the model's own, with the model's statistics of latents.

    ValueError if there is none at `path`, or if its latents are of another shape.
    """
    own = model.config.first_stage
    if own is None:
        raise ValueError("this model paints pixels, and has no place for a first stage")
    size, read = opened(path)
    kinds = [f"{'VQ' if s.codebook else 'KL'}, f{s.factor}, {s.latent_channels} channels" for s in (size, own)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"{path} is a first stage of another kind ({kinds[0]}) than this model's ({kinds[1]})")
    with hollowed():
        stage = VQFirstStage(size) if size.codebook else KLFirstStage(size)
    weights = read(stage.net, {name: tuple(p.shape) for name, p in stage.named_parameters()})
    dtype = next(model.autoencoder.parameters()).dtype
    statistics = dict(model.first_stage.named_buffers())
    stage.load_state_dict({**{name: t.to(dtype) for name, t in weights.items()}, **statistics}, assign=True)
    model.first_stage = stage.eval().requires_grad_(False)


def _prefix(stored: Stored) -> str:
    return FIRST_STAGE if any(name.startswith(FIRST_STAGE) for name in stored.entries) else ""
