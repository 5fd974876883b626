"""A model on disk: a folder with `model.json` (what it is), `tokenizer.json` and one safetensors file a weight set.

A weight set is a complete model by name: "ema" (the average, which sampling uses) or "raw" (the last step's).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationError
from tokenizers import Tokenizer
from torch import Tensor

from sfumato.conditioning.vocabulary import PAD
from sfumato.diffusion.grid import SPACINGS
from sfumato.diffusion.samplers import SAMPLERS
from sfumato.io import atomic, tensors
from sfumato.io.origin import Origin
from sfumato.models.config import BoxesConfig, Closed, ModelConfig, WordsConfig, complaint, registered
from sfumato.models.latent_diffusion import LatentDiffusion
from sfumato.registry import unknown

BUNDLED = Path(__file__).resolve().parent.parent / "bundled" / "models"
DEFAULT = "emoji"


SamplerName = Annotated[str, registered(SAMPLERS)]
SpacingName = Annotated[str, registered(SPACINGS)]
Steps = Annotated[int, Field(ge=1, le=1000)]
Guidance = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


class Defaults(Closed):
    """How this model is sampled when nothing is said."""

    sampler: SamplerName = "dpmpp_2m"
    spacing: SpacingName = "trailing"
    steps: Steps = 20
    guidance: Guidance = 3.0


class WeightSet(Closed):
    """One file of weights."""

    file: str
    sha256: str
    about: str


class ModelFile(Closed):
    """The content of model.json."""

    format: Literal[1] = 1
    name: str
    config: ModelConfig
    default: str = "ema"  # the weight set that sampling uses
    weights: dict[str, WeightSet] = Field(default_factory=dict)
    defaults: Defaults = Defaults()
    classes: tuple[str, ...] | None = None  # what labels 0, 1, ... stand for, where that is known
    origin: Origin | None = None  # of a model that came from another program's file
    provenance: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Loaded:
    """A model, what its folder says of it, and which weight set it holds."""

    model: LatentDiffusion
    file: ModelFile
    path: Path
    weights: str
    files: tuple[Path, ...] = ()  # of other programs' models: those with the weights of the U-Net


def names() -> list[str]:
    """The models that ship with the package."""
    return sorted(p.parent.name for p in BUNDLED.glob("*/model.json"))


def from_anywhere(name_or_path: str) -> str:
    """The same, whatever the working directory: a path that is there becomes absolute, a name stays."""
    path = Path(name_or_path)
    return str(path.absolute()) if name_or_path not in names() and path.exists() else name_or_path


def find(name_or_path: str | Path) -> Path:
    """The folder of a model given by name or path; ValueError, listing the names, if there is none."""
    path = Path(name_or_path)
    if str(name_or_path) and (path / "model.json").is_file():
        return path
    if path.name == "model.json" and path.is_file():
        return path.parent
    if str(name_or_path) in names():
        return BUNDLED / str(name_or_path)
    if str(name_or_path) and (path / "model" / "model.json").is_file():
        return path / "model"  # the folder of a training run
    if str(name_or_path) and (addition := _addition(path / "model")) is not None:
        raise ValueError(f"{path} holds no model, but what was learnt for one; give {addition}")
    if str(name_or_path) and (recipe := recipe_of(path)) is not None:
        raise ValueError(
            f"{path} is a run that is not finished; go on with: sfumato train {recipe} --out {path} --resume"
        )
    if str(name_or_path) and path.exists():
        raise ValueError(f"{path} holds no model.json, nor diffusers' model_index.json; a model is a folder that does")
    paths = "or the path of a model folder, a .safetensors or .ckpt file or a folder of diffusers"
    raise ValueError(f"{unknown('model', str(name_or_path), names())} ({paths})")


def _addition(folder: Path) -> str | None:
    """How the LoRA or the textual inversion in a folder is given; None if it has neither."""
    for file in sorted(folder.glob("*.safetensors")) if not any(folder.glob("*.json")) else []:
        return f"{'--lora' if file.stem == 'lora' else '--embedding'} {file} to generate"
    return None


def recipe_of(path: Path) -> str | None:
    """The recipe of the training run in a folder; None if there is no run in it."""
    try:
        recipe = json.loads((path / "config.json").read_bytes())["recipe"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return recipe if isinstance(recipe, str) and recipe.isprintable() else None


def describe(name_or_path: str | Path) -> ModelFile:
    """What model.json says, without the weights; ValueError of one line if it is not as it should be."""
    path = find(name_or_path) / "model.json"
    try:
        return ModelFile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path} is not a model description: {complaint(error)}") from None


def read(folder: Path, file: ModelFile, model: LatentDiffusion, chosen: str) -> dict[str, Tensor]:
    """The tensors of a weight set as they are stored; ValueError if its hash or one of its tensors is not as said."""
    entry = file.weights[chosen]
    path = folder / Path(entry.file).name
    if tensors.sha256(path) != entry.sha256:
        raise ValueError(f"{path} is not the file that model.json describes (its hash differs); copy it again")
    stored = tensors.load(path)
    held, asked = (sum(w.numel() for w in weights.values()) for weights in (stored, model.state_dict()))
    if asked > 2 * held:  # smaller differences are named by `check`
        raise ValueError(f"{path} holds {held:,} numbers, the model that model.json describes {asked:,}; one is wrong")
    tensors.check(model, stored, source=path)
    check_statistics(stored, "first_stage.", source=path)
    return stored


def check_statistics(stored: Mapping[str, Tensor], prefix: str, *, source: Path) -> None:
    """ValueError if a mean or a deviation of latents under this prefix is none; they need not be there."""
    mean, std = (stored.get(prefix + name, torch.ones(())).double() for name in ("mean", "std"))
    for good, what in (
        (mean.isfinite().all(), "the mean of its latents is not finite"),
        ((std.isfinite() & (std > 0)).all(), "the deviation of its latents is not a positive number"),
    ):
        if not good:
            raise ValueError(f"{source} is damaged: {what}; copy it again, or train anew")


def save(
    path: Path,
    file: ModelFile,
    sets: Mapping[str, tuple[str, Mapping[str, Tensor]]],
    *,
    tokenizer: Tokenizer | None,
    kept_as: Callable[[str, Tensor], torch.dtype] = lambda _name, weight: weight.dtype,
) -> None:
    """Write a model folder whole. `sets` maps the name of a weight set to what it is and its tensors.

    `kept_as` says in which type a tensor is stored; it is float32 again when it is loaded.
    """
    with atomic.folder(path) as folder:
        entries = {}
        for key, (about, weights) in sets.items():
            target = folder / f"{key}.safetensors"
            tensors.write(target, {k: v.to(kept_as(k, v)) for k, v in weights.items()})
            entries[key] = WeightSet(file=target.name, sha256=tensors.sha256(target), about=about)
        if tokenizer is not None:
            (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
        whole = file.model_copy(update={"weights": entries})
        text = json.dumps(whole.model_dump(mode="json", exclude_none=True), indent=2, ensure_ascii=False)
        (folder / "model.json").write_text(text + "\n", encoding="utf-8")


def tokenizer(folder: Path, config: ModelConfig) -> Tokenizer | None:
    """The tokenizer in a model folder, if the model is asked with prompts; ValueError if it is not one."""
    path = folder / "tokenizer.json"
    kind = config.conditioner
    words = isinstance(kind, WordsConfig) or (isinstance(kind, BoxesConfig) and kind.words is not None)
    if not words and not path.is_file():
        return None
    try:
        found = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError:
        raise ValueError(f"{path} is missing; the folder is not complete") from None
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{path} is not a tokenizer ({str(error).splitlines()[0]}); copy it again") from None
    ids = found.get_vocab()
    if words and (PAD not in ids or max(ids.values()) >= len(ids)):
        raise ValueError(f"{path} is not a tokenizer of this model (it has no {PAD}, or gaps); copy it again")
    return found
