"""From any kind of model file to any other, every tensor to the bit; on the way LoRAs can become part of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from sfumato.conditioning.clip_tokens import clip_tokenizer
from sfumato.io import atomic, diffusers_config, diffusers_folder, model_folder, opening, single_file, tensors
from sfumato.io.lora import apply, read_lora
from sfumato.io.opening import Opened
from sfumato.io.origin import Origin
from sfumato.io.recognise import OURS
from sfumato.models.config import ModelConfig
from sfumato.models.latent_diffusion import LatentDiffusion, hollow

Kind = Literal["sfumato", "ldm", "diffusers"]
PREDICTED = {"eps": "epsilon"}  # in ModelSpec's words, where they are others


@dataclass(frozen=True)
class Converted:
    """What was written."""

    path: Path
    kind: Kind
    weights: str  # the weight set that was taken
    tensors: int
    passed: tuple[str, ...]  # keys of the source that say nothing to the model, and are not in the result


def convert(
    source: str | Path,
    target: Path,
    kind: Kind,
    *,
    weights: str | None = None,
    loras: Sequence[tuple[Path, float]] = (),
) -> Converted:
    """Write the model `source` as a model of another kind, whole or not at all, with LoRAs by their weights in it.

    A sum is taken as when it is painted with, and rounded to the type that the weight is stored in. ValueError if the
    source is no model, if the other kind has no room for it, if a LoRA does not fit it, or if something is in the way.
    """
    found = opening.opened(source)
    if target.exists():
        raise ValueError(f"{target} is there already; choose another name")
    if kind == "ldm" and target.suffix != ".safetensors":
        raise ValueError(f"{target} would be a safetensors file, so its name must end in .safetensors")
    if not found.sure:
        found = opening.asked(found)
    chosen = found.chosen(weights)
    model = hollow(found.file.config, found.tokenizer)
    ours, passed = found.read(model, chosen, None)
    if loras:
        ours, found = _with(ours, model, found, loras)
    match kind:
        case "ldm":
            written = single_file.write(ours, model, found.origin)
            tensors.write(target, written, metadata(found.file.name, found.file.config, found.origin))
            count = len(written)
        case "diffusers":
            count = _folder(target, ours, model, found)
        case "sfumato":
            count = len(ours)
            _own(target, ours, chosen, found)
    return Converted(target, kind, chosen, count, tuple(passed))


def _with(
    ours: Mapping[str, Tensor], model: LatentDiffusion, found: Opened, loras: Sequence[tuple[Path, float]]
) -> tuple[dict[str, Tensor], Opened]:
    """The tensors with LoRAs in them, and what is said of the model then."""
    model.load_state_dict(ours, assign=True)
    for path, weight in loras:
        apply(model, read_lora(path), weight=weight, origin=found.origin)
    state = model.state_dict()
    said = [{"file": path.name, "weight": weight, "sha256": tensors.sha256(path)} for path, weight in loras]
    file = found.file.model_copy(update={"provenance": {**found.file.provenance, "loras": said}})
    return {name: state[name] for name in ours}, replace(found, file=file)


def metadata(name: str, config: ModelConfig, origin: Origin) -> dict[str, str]:
    """What a single file says of itself (Stability AI's ModelSpec 1.0.0), and what no shape can tell of it."""
    side = f"{config.resolution}x{config.resolution}"
    architecture = {768: "stable-diffusion-v1", 1024: "stable-diffusion-v2-512"}.get(config.unet.context_dim or 0)
    if architecture == "stable-diffusion-v2-512" and config.prediction.value == "v":
        architecture = "stable-diffusion-v2-768-v"
    said = {
        "sai_model_spec": "1.0.0",
        "architecture": architecture or "latent-diffusion",
        "implementation": "https://github.com/CompVis/latent-diffusion",
        "title": name,
        "resolution": side,
        "prediction_type": PREDICTED.get(config.prediction.value, config.prediction.value),
    }
    ours = json.dumps({"config": config.model_dump(mode="json"), "origin": origin.model_dump(mode="json")})
    return {**{f"modelspec.{key}": value for key, value in said.items()}, OURS: ours}


def _own(target: Path, ours: Mapping[str, Tensor], chosen: str, found: Opened) -> None:
    provenance = {**found.file.provenance, "converted from": found.path.name}
    file = found.file.model_copy(update={"provenance": provenance, "default": chosen})
    model_folder.save(target, file, {chosen: (f"converted from {found.path.name}", ours)}, tokenizer=found.tokenizer)


def _folder(target: Path, ours: Mapping[str, Tensor], model: LatentDiffusion, found: Opened) -> int:
    """The number of tensors in a folder of diffusers."""
    parts = diffusers_folder.write(ours, model, found.origin)
    said = diffusers_config.written(model.config, found.origin, float(f"{float(1 / ours['first_stage.std']):.7g}"))
    with atomic.folder(target) as folder:
        for name, value in said.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        (found.tokenizer or clip_tokenizer()).model.save(str(folder / "tokenizer"))
        for part, weights in parts.items():
            stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
            tensors.write(folder / part / f"{stem}.safetensors", weights, {"format": "pt"})
    return sum(map(len, parts.values()))
