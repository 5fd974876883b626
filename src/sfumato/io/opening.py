"""Opening a model, whatever it is kept in: a bundled name, a model folder, a single file, a folder of diffusers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from tokenizers import Tokenizer
from torch import Tensor

from sfumato.diffusion.prediction import Prediction
from sfumato.io import diffusers_folder, first_stage_folder, model_folder, single_file, tensors
from sfumato.io.model_folder import Defaults, Loaded, ModelFile
from sfumato.io.origin import Origin
from sfumato.io.recognise import ALONE, SIDE_OF_V, Recognised, recognise
from sfumato.io.stored import open_stored
from sfumato.models.config import ModelConfig
from sfumato.models.latent_diffusion import LatentDiffusion, hollow
from sfumato.registry import unknown
from sfumato.world import has_bfloat16

Precision = Literal["auto", "float32", "bfloat16"]
GUIDED = Defaults(sampler="dpmpp_2m", spacing="trailing", steps=25, guidance=7.5)
UNGUIDED = Defaults(sampler="dpmpp_2m", spacing="trailing", steps=50, guidance=1.0)
TENSORS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class Opened:
    """A model whose weights are not read yet."""

    path: Path
    file: ModelFile
    origin: Origin
    scale: float
    why: tuple[str, ...]
    sure: bool  # whether the prediction is known without asking the network
    sets: tuple[str, ...]
    files: tuple[Path, ...]  # with the weights of the U-Net, at least
    tokenizer: Tokenizer | None
    read: Callable[[LatentDiffusion, str, torch.dtype | None], tuple[dict[str, Tensor], list[str]]]
    """Our tensors, for the hollow model and the name of a weight set, as they are stored or in a type; and the keys
    passed over."""

    def chosen(self, weights: str | None) -> str:
        """The weight set of this name, or the model's default; ValueError, listing what there is, if there is none."""
        name = weights or self.file.default
        if name not in self.sets:
            raise ValueError(unknown("weight set", name, sorted(self.sets)))
        return name


def opened(name_or_path: str | Path) -> Opened:
    """What is kept under a name or a path, by its heads alone; ValueError if it is no model."""
    path = Path(name_or_path)
    if str(name_or_path) not in model_folder.names():
        if first_stage_folder.find(path) is not None:
            raise ValueError(f"{path} {ALONE}, or measure it with evaluate --first-stage")
        if path.is_file() and path.name != "model.json":
            return _single(path)
    if path.is_dir() and diffusers_folder.is_one(path):
        return _diffusers(path)
    if path.suffix in TENSORS and not path.exists():
        names = ", ".join(model_folder.names())
        raise ValueError(f"there is no file {path}; give the path of a model, or a name: {names}")
    return _own(name_or_path)


def not_weights_alone(path: Path) -> None:
    """ValueError if a file holds the weights of one of our folders, which says what they are: that is to be given."""
    folder, files = path.parent, set[str]()
    if (folder / first_stage_folder.NAME).is_file():
        files = {first_stage_folder.WEIGHTS}
    elif (folder / "model.json").is_file():
        files = {entry.file for entry in model_folder.describe(folder).weights.values()}
    if path.name in files:
        raise ValueError(f"{path} holds the weights alone, and not what they are of; give its folder, {folder}")


def describe(name_or_path: str | Path) -> ModelFile:
    """What a model is, without its weights; ValueError of one line if it is not as it should be."""
    return opened(name_or_path).file


def load(name_or_path: str | Path, *, weights: str | None = None, precision: Precision = "auto") -> Loaded:
    """Load a model by name or path, on the CPU, to be computed in `precision`.

    "auto" is bfloat16 for other programs' models where the processor has instructions for it, else float32. Weights
    that are in that type already are windows on the file: nothing is copied.
    """
    found = opened(name_or_path)
    chosen = found.chosen(weights)
    dtype = getattr(torch, chosen_precision(found.file, precision))
    found = found if found.sure else asked(found, dtype)
    return Loaded(_filled(found, chosen, dtype), found.file, found.path, chosen, found.files)


def chosen_precision(file: ModelFile, precision: Precision) -> Literal["float32", "bfloat16"]:
    """What "auto" means for a model on this machine."""
    if precision not in get_args(Precision):
        raise ValueError(f"precision {precision!r} is not known; it is one of {', '.join(get_args(Precision))}")
    if precision != "auto":
        return precision
    return "bfloat16" if file.origin is not None and has_bfloat16() else "float32"


def asked(found: Opened, dtype: torch.dtype = torch.float32) -> Opened:
    """The same, and sure of what its network predicts: that is asked with one evaluation of 64 by 64 pixels."""
    file, how = found.file, "epsilon"
    if _predicts_v(_filled(found, found.sets[-1], dtype)):
        file, how = file.model_copy(update={"config": predicting_v(file.config)}), "v"
    why = (*found.why[:-1], f"predicts {how}: nothing written says it, the network was asked")
    return replace(found, file=file, why=why, sure=True)


def _filled(found: Opened, chosen: str, dtype: torch.dtype) -> LatentDiffusion:
    """The model with a weight set, its parameters in `dtype`."""
    model = hollow(found.file.config, found.tokenizer)
    stored, _ = found.read(model, chosen, dtype)
    model.load_state_dict(stored, assign=True)
    return model.eval().requires_grad_(False)


def predicting_v(config: ModelConfig) -> ModelConfig:
    """Stable Diffusion 2 at 768 pixels: the same network, another prediction, scores in single precision."""
    unet = {**config.unet.__dict__, "upcast": True}
    given = config.model_dump() | {"prediction": Prediction.V, "resolution": SIDE_OF_V, "unet": unet}
    return ModelConfig.model_validate(given)


@torch.no_grad()
def _predicts_v(model: LatentDiffusion) -> bool:
    """Whether a network at the noisiest level answers with less of what it is shown, as one that predicts v does.

    The question that Stable Diffusion 2's users have put to it since 2022: at t = 999 x is all noise, so an answer of
    noise is x, and an answer of v is about -x0.
    """
    net, size = model.denoiser.net, model.config.unet
    side = max(8, 2 ** (len(size.mult) - 1))
    x = torch.full((1, size.channels + size.map_channels, side, side), 0.5)
    tokens = torch.full((1, 2, size.context_dim or 1), 0.5)
    out = net(x, torch.tensor([999.0]), tokens if size.context_dim else None)
    return bool((out.float() - x[:, : out.shape[1]]).mean() < -1)


def _own(name_or_path: str | Path) -> Opened:
    folder, file = model_folder.find(name_or_path), model_folder.describe(name_or_path)
    sets = tuple(file.weights)
    if file.default not in sets:
        raise ValueError(
            f"{folder / 'model.json'} names the weight set '{file.default}' and describes none of that name"
        )

    def read(model: LatentDiffusion, chosen: str, dtype: torch.dtype | None) -> tuple[dict[str, Tensor], list[str]]:
        parameters = {name for name, _ in model.named_parameters()}
        stored = model_folder.read(folder, file, model, chosen)
        return {n: t.to(dtype) if dtype and n in parameters else t for n, t in stored.items()}, []

    why = (f"a model folder of sfumato, format {file.format}",)
    tokenizer = model_folder.tokenizer(folder, file.config)
    return Opened(folder, file, file.origin or Origin(), 1.0, why, True, sets, (), tokenizer, read)


def _single(path: Path) -> Opened:
    not_weights_alone(path)
    stored = open_stored(path)
    found: Recognised = recognise(stored)

    def read(model: LatentDiffusion, chosen: str, dtype: torch.dtype | None) -> tuple[dict[str, Tensor], list[str]]:
        return single_file.read(stored, found, model, ema=chosen == "ema", dtype=dtype)

    file = _file(path.stem, found.config, found.origin, found.sets[0])
    return Opened(path, file, found.origin, found.scale, found.why, found.sure, found.sets, (path,), None, read)


def _diffusers(path: Path) -> Opened:
    folder = diffusers_folder.recognise(path)

    def read(model: LatentDiffusion, chosen: str, dtype: torch.dtype | None) -> tuple[dict[str, Tensor], list[str]]:
        del chosen
        return diffusers_folder.read(folder, model, dtype)

    file = _file(path.resolve().name, folder.config, folder.origin, "raw")
    tokenizer = diffusers_folder.tokenizer_of(path)
    files = tuple(diffusers_folder.files_of(path / "unet"))
    return Opened(path, file, folder.origin, folder.scale, folder.why, True, ("raw",), files, tokenizer, read)


def _file(name: str, config: ModelConfig, origin: Origin, default: str) -> ModelFile:
    prompted = config.conditioner is not None and config.conditioner.kind in ("clip", "bert")
    defaults = GUIDED if prompted else UNGUIDED
    return ModelFile(name=name, config=config, defaults=defaults, origin=origin, default=default)


def identity(loaded: Loaded) -> dict[str, Any]:
    """What a picture says of the model that made it."""
    dtype = str(next(loaded.model.parameters()).dtype).removeprefix("torch.")
    precision = {} if dtype == "float32" else {"precision": dtype}
    return {"name": loaded.file.name, "weights": loaded.weights, "sha256": digest(loaded), **precision}


def digest(loaded: Loaded) -> str:
    """The hash of the file with the model's weights, or with its U-Net's; of several files, that of their hashes."""
    if loaded.weights in loaded.file.weights:
        return loaded.file.weights[loaded.weights].sha256
    return tensors.sha256_of(loaded.files)
