"""Folders of diffusers: a pipeline's parts and their tensors, read and written."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.conditioning.clip_tokens import read_tokenizer
from sfumato.io import diffusers_config
from sfumato.io.diffusers_config import INDEX, read_json
from sfumato.io.layouts import diffusers, ldm
from sfumato.io.layouts.rules import Layout, prefixed
from sfumato.io.origin import Origin
from sfumato.io.recognise import maps_of
from sfumato.io.single_file import statistics
from sfumato.io.stored import Entry, Stored, open_stored
from sfumato.models.config import ClipConfig, ModelConfig, TableConfig, configured
from sfumato.models.latent_diffusion import LatentDiffusion
from sfumato.nets.autoencoder import Autoencoder

FILES = ("diffusion_pytorch_model", "model", "pytorch_model")  # stems, before .safetensors or .bin
VARIANTS = ("fp16", "bf16")
PASSED = (r".*\.position_ids",)


@dataclass(frozen=True)
class Folder:
    """A pipeline's folder, before its weights are read."""

    path: Path
    config: ModelConfig
    origin: Origin
    scale: float
    why: tuple[str, ...]
    first_stage: str  # the name of the part: "vae", or "vqvae" in LDM's pipelines


def is_one(path: Path) -> bool:
    """Whether a folder is a pipeline's."""
    return (path / INDEX).is_file()


def recognise(path: Path) -> Folder:
    """The model in a folder, from its configurations.

    ValueError if one is missing, or says what our networks do not do.
    """
    index = read_json(path / INDEX)
    parts = {name for name, value in index.items() if isinstance(value, list) and value and value[0] is not None}
    stage = "vqvae" if "vqvae" in parts else "vae"
    text = "text_encoder" if "text_encoder" in parts else None
    unknown = parts - {stage, text, "unet", "scheduler", "tokenizer", "safety_checker", "feature_extractor"}
    if unknown:
        raise ValueError(f"{path} is a pipeline with '{sorted(unknown)[0]}', which is not known here yet")
    first, scale = diffusers_config.first_stage(path / stage / "config.json") if stage in parts else (None, 1.0)
    unet, linear, side = diffusers_config.unet(path / "unet" / "config.json", first)
    conditioner = diffusers_config.text(path / text / "config.json") if text else None
    if conditioner is None and unet.classes:
        conditioner = TableConfig(classes=unet.classes)
    scheduler = path / "scheduler" / "scheduler_config.json"
    config = configured(
        path,
        first_stage=first,
        conditioner=conditioner,
        unet=unet,
        resolution=side * (first.factor if first else 1),
        maps=maps_of(unet, first),
        **diffusers_config.schedule(read_json(scheduler), scheduler),
    )
    origin = Origin(linear=linear, text=diffusers_config.ldm_names(conditioner))
    return Folder(path, config, origin, scale, (f"a folder of diffusers, {index.get('_class_name')}",), stage)


def read(
    folder: Folder, model: LatentDiffusion, dtype: torch.dtype | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """Our tensors for a hollow model, as windows on the files where `dtype` allows; and the keys passed over."""
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    out: dict[str, Tensor] = {}
    passed: list[str] = []
    for part, layout in _layouts(model, folder.origin, folder.first_stage).items():
        stored = weights(folder.path / part)
        today = _Today(stored, text=part == "text_encoder")
        passed += [f"{part}/{name}" for name in layout.account(today.names, source=folder.path / part)]
        out |= layout.read(today, shapes, source=folder.path / part, dtype=dtype)
    return out | statistics(folder.config, folder.scale), passed


def write(tensors: Mapping[str, Tensor], model: LatentDiffusion, origin: Origin) -> dict[str, dict[str, Tensor]]:
    """Part by part, the tensors of a pipeline of Stable Diffusion, from ours. ValueError for another kind of model."""
    config = model.config
    first, unet = config.first_stage, config.unet
    for wrong, what in (
        (first is None or first.codebook, "its first stage is not KL"),
        (
            first is not None and not first.published,
            "its first stage has shortcuts or patches",
        ),
        (not isinstance(config.conditioner, ClipConfig), "it is not asked through CLIP"),
        (config.maps not in (None, "inpainting", "picture"), f"it is shown a map of kind '{config.maps}'"),
        (unet.resample != "conv" or unet.attends != "transformer", "its U-Net is of another kind"),
        (unet.classes or unet.vector_dim or config.learned or unet.stem, "its U-Net is of another kind"),
        (_off_centre(tensors), "its latents have a mean, which diffusers has no place for"),
    ):
        if wrong:
            raise ValueError(f"diffusers' folders are written for Stable Diffusion's models, and this is none: {what}")
    return {part: layout.write(tensors) for part, layout in _layouts(model, origin, "vae").items()}


def _off_centre(tensors: Mapping[str, Tensor]) -> bool:
    mean = tensors.get("first_stage.mean")
    return mean is not None and bool(mean.any())


def _layouts(model: LatentDiffusion, origin: Origin, stage: str) -> dict[str, Layout]:
    """The rules of each part."""
    net = diffusers.unet(model.net, linear=origin.linear)
    layouts = {"unet": Layout(tuple(prefixed(net, "denoiser.net.", "")), PASSED)}
    if model.config.first_stage is not None:
        first = diffusers.autoencoder(model.autoencoder)
        layouts[stage] = Layout(tuple(prefixed(first, "first_stage.net.", "")), PASSED)
    if isinstance(model.config.conditioner, ClipConfig):
        text = ldm.clip(model.text)
        layouts["text_encoder"] = Layout(tuple(prefixed(text, "conditioner.encoder.", "text_model.")), PASSED)
    return layouts


class Joined:
    """Several files as one."""

    def __init__(self, files: list[Stored]) -> None:
        self.owner = {name: file for file in files for name in file.entries}

    def tensor(self, name: str) -> Tensor:
        """One of their tensors."""
        return self.owner[name].tensor(name)

    def release(self, name: str) -> None:
        """It was copied elsewhere, and is not needed here any more."""
        self.owner[name].release(name)

    @property
    def entries(self) -> dict[str, Entry]:
        """Shapes and types of their tensors."""
        return {name: file.entries[name] for name, file in self.owner.items()}


def weights(part: Path) -> Joined:
    """The weights of a part: one file or several, in full precision if there is a choice."""
    return Joined([open_stored(path) for path in files_of(part)])


def files_of(part: Path) -> list[Path]:
    """The files with the weights of a part; ValueError if there are none, or of variants that are not known here."""
    for stem in FILES:
        for suffix in (".safetensors", ".bin"):
            whole, index = part / f"{stem}{suffix}", part / f"{stem}{suffix}.index.json"
            if whole.is_file():
                return [whole]
            if index.is_file():
                names = read_json(index).get("weight_map")
                if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
                    raise ValueError(f"{index} has no weight_map; copy it again")
                return [part / Path(name).name for name in sorted(set(names.values()))]
        for variant in VARIANTS:
            if (part / f"{stem}.{variant}.safetensors").is_file():
                return [part / f"{stem}.{variant}.safetensors"]
    raise ValueError(f"{part} has no weights; a part has diffusion_pytorch_model.safetensors or model.safetensors")


class _Today:
    """The tensors by the names of today: attention over pixels had others, and `text_model.` may be left out."""

    def __init__(self, stored: Joined, *, text: bool) -> None:
        self.stored = stored
        self.names: dict[str, str] = {}  # now -> as they are called in the file
        for name in stored.entries:
            *above, last, leaf = name.split(".") if "." in name else ("", name)
            old = last in diffusers.OLD and "attentions" in above
            now = ".".join([*above, diffusers.OLD[last], leaf]) if old else name
            self.names[f"text_model.{now}" if text and not now.startswith("text_model.") else now] = name

    def tensor(self, name: str) -> Tensor:
        found, pointwise = self.stored.tensor(self.names[name]), 4
        old = self.names[name].rpartition(".")[0] != name.rpartition(".")[0]
        return found.reshape(found.shape[:2]) if old and found.ndim == pointwise else found

    def release(self, name: str) -> None:
        self.stored.release(self.names[name])


def first_stage_weights(part: Path, net: Autoencoder, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Our tensors, below `net.`, of the first stage in a part."""
    today = _Today(weights(part), text=False)
    layout = Layout(tuple(prefixed(diffusers.autoencoder(net), "net.", "")), PASSED)
    layout.account(today.names, source=part)
    return layout.read(today, shapes, source=part)


def tokenizer_of(path: Path) -> Any:
    """The tokenizer in a folder, if it has one of its own."""
    folder = path / "tokenizer"
    return read_tokenizer(folder) if (folder / "vocab.json").is_file() else None
