"""`sfumato reproduce FILE.png`: make a picture again from the parameters inside it, and compare."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro
from pydantic import ValidationError
from torch import Tensor

from sfumato.cli.additions import Embeddings, Loras, added, differing, pulled
from sfumato.cli.parse import File, Folder, Name, parse
from sfumato.generate import Given, generate
from sfumato.io import classifier_folder, model_folder, opening, pictures
from sfumato.models.config import ModelConfig, complaint
from sfumato.request import Request


@dataclass
class Reproduce:
    """Make a picture again from the parameters inside it, and say by how much it differs."""

    picture: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE.png")]
    """A PNG that sfumato wrote."""
    model: Name = None
    """Name or path of the model, if it is not the one that the picture names."""
    init: File = None
    """The picture that it began from, if there was one."""
    mask: File = None
    """Its mask, if there was one."""
    map: File = None
    """The map of classes that it was asked with, if there was one."""
    classifier: Folder = None
    """The classifier that pulled, if there was one."""
    lora: Loras = field(default_factory=list)
    """Its LoRAs with their weights, if there were any."""
    embedding: Embeddings = field(default_factory=list)
    """Its textual inversions, if there were any."""
    vae: File = None
    """Its first stage, if it was not the model's own."""
    out: File = None
    """Where to write the new picture, if anywhere."""
    json: bool = False
    """Print one JSON object, and nothing else, on standard output."""


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    asked = parse(Reproduce, arguments, verb="reproduce")
    made = _made(asked.picture)
    if asked.model is None and made.model not in model_folder.names():
        raise ValueError(f"{asked.picture} was made by a model called '{made.model}'; give its path with --model")
    loaded = opening.load(asked.model or made.model, precision=made.precision)
    said = {**added(loaded, asked.lora, asked.embedding, asked.vae), **pulled(asked.classifier)}
    if wanted := differing(said, made.additions):
        raise ValueError(f"{asked.picture} was made with {wanted}; give the same")
    same_model = opening.digest(loaded) == made.sha256
    old = pictures.read(asked.picture)
    given = _given(asked, made, old, loaded.file.config)
    new = generate(loaded, made.request, **given._asdict()).images[0]
    if old.shape != new.shape:
        raise ValueError(f"{asked.picture} was scaled after it was made; it cannot be compared")
    difference = round(float((pictures.from_pil(pictures.to_pil(new)) - old).abs().max()) * 127.5)
    if asked.out is not None:
        pictures.save_png(new, asked.out, pictures.parameters_of(asked.picture))
    if asked.json:
        print(json.dumps({"largest_difference": difference, "of": 255, "same_model": same_model}))
        return 0
    if not same_model:
        print("the model is not the one that made the picture (its weights differ)")
    print(f"largest pixel difference: {difference} of 255")
    return 0


class _Made(NamedTuple):
    """What a picture says of how it was made."""

    request: Request
    model: str
    sha256: str
    precision: opening.Precision
    additions: dict[str, Any]  # what was put on the model
    began: str  # hash of the pixels of the picture that it began from, if there was one
    masked: str  # hash of its mask, if there was one
    mapped: str  # hash of its map of classes, if there was one


WAS = {"init": "began from a picture", "mask": "was painted through a mask", "map": "was asked with a map of classes"}


def _given(asked: Reproduce, made: _Made, old: Tensor, config: ModelConfig) -> Given:
    """What it was made of; ValueError if one is missing or is another."""
    hashes = {"init": made.began, "mask": made.masked, "map": made.mapped}
    for flag, digest in hashes.items():
        path = getattr(asked, flag)
        if digest and path is None:
            raise ValueError(f"{asked.picture} {WAS[flag]}; give it with --{flag}")
        if path is not None and not digest:
            raise ValueError(f"{asked.picture} was made without --{flag}; leave it out")
    left, _, right, _ = made.request.extend or (0, 0, 0, 0)
    size = None if config.maps == "low_resolution" else old.shape[2] - left - right
    given = Given(
        pictures.read(asked.init, size=size) if asked.init else None,
        pictures.read_mask(asked.mask, of=asked.init, size=size) if asked.mask and asked.init else None,
        pictures.read_map(asked.map, size=size) if asked.map else None,
        classifier_folder.load(asked.classifier) if asked.classifier else None,
    )
    for flag, digest in hashes.items():
        if digest and pictures.digest(getattr(given, flag)) != digest:
            raise ValueError(
                f"{getattr(asked, flag)} is not the one that {asked.picture} was made with; its pixels differ"
            )
    return given


def _made(path: Path) -> _Made:
    found = pictures.parameters_of(path)
    try:
        model = {**found["model"]}
        request = Request.model_validate(found["request"])
        if "init" not in found:  # pictures once said a strength that had no meaning
            request = request.model_copy(update={"strength": None})
        precision = "bfloat16" if model.get("precision") == "bfloat16" else "float32"
        hashes = [_hash(found, name) for name in WAS]
        return _Made(request, str(model["name"]), str(model["sha256"]), precision, model, *hashes)
    except ValidationError as error:
        raise ValueError(f"the parameters in {path} are not understood: {complaint(error)}") from None
    except (KeyError, TypeError):
        raise ValueError(f"the parameters in {path} are not complete; it must be as sfumato wrote it") from None


def _hash(found: dict[str, Any], key: str) -> str:
    given = found.get(key)
    return str(given["sha256"]) if given is not None else ""
