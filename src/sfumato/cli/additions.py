"""What is put on a model for one run: LoRAs, embeddings, another first stage; and what a picture says of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from sfumato.conditioning.clip import Clip
from sfumato.io import classifier_folder, first_stages, tensors
from sfumato.io.embedding import read_embedding
from sfumato.io.lora import apply, read_lora
from sfumato.io.model_folder import Loaded
from sfumato.io.origin import Origin

Loras = Annotated[tyro.conf.UseAppendAction[list[str]], tyro.conf.arg(metavar="FILE[:WEIGHT]", help_behavior_hint="")]
Embeddings = Annotated[tyro.conf.UseAppendAction[list[Path]], tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Said = dict[str, list[dict[str, Any]]]
FLAGS = {"vae": "--vae", "loras": "--lora", "embeddings": "--embedding", "classifier": "--classifier"}


def added(loaded: Loaded, loras: Sequence[str], embeddings: Sequence[Path], vae: Path | None) -> Said:
    """Put them on the model; returns what its pictures say of it. ValueError if one does not fit."""
    said: Said = {}
    if vae is not None:
        first_stages.put(loaded.model, vae)
        said["vae"] = [{"file": vae.name, "sha256": tensors.sha256_of(first_stages.files_of(vae))}]
    for given in loras:
        path, weight = weighted(given)
        apply(loaded.model, read_lora(path), weight=weight, origin=loaded.file.origin or Origin())
        said.setdefault("loras", []).append({"file": path.name, "weight": weight, "sha256": tensors.sha256(path)})
    for path in embeddings:
        found, conditioner = read_embedding(path), loaded.model.conditioner
        if not isinstance(conditioner, Clip):
            raise ValueError(f"{path} is an embedding for CLIP, and this model is not asked through CLIP")
        conditioner.learn(found.name, found.vectors)
        said.setdefault("embeddings", []).append({"word": found.name, "sha256": tensors.sha256(path)})
    return said


def pulled(classifier: Path | None) -> Said:
    """What a picture says of the classifier that pulled, if there was one; ValueError if it is none."""
    if classifier is None:
        return {}
    found = classifier_folder.load(classifier)
    assert found.file.weights is not None
    return {"classifier": [{"file": classifier.name, "sha256": found.file.weights.sha256}]}


def differing(said: Said, wanted: dict[str, Any]) -> str | None:
    """What a picture was made with that is not there now, or the other way round; None if they agree."""
    for kind, flag in FLAGS.items():
        if said.get(kind, []) != (wanted.get(kind) or []):
            names = ", ".join(str(one.get("file") or one.get("word")) for one in wanted.get(kind) or [])
            return f"{flag} {names}" if names else f"no {flag}"
    return None


def weighted(given: str) -> tuple[Path, float]:
    """ "style.safetensors:0.8" -> the path and the weight; 1 if there is none."""
    path, colon, weight = given.rpartition(":")
    if colon and not Path(given).exists():
        try:
            return Path(path), float(weight)
        except ValueError:
            pass
    return Path(given), 1.0
