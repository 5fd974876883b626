"""`sfumato reproduce FILE.png`: make a picture again from the parameters inside it, and compare."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro
from pydantic import ValidationError
from torch import Tensor

from sfumato.cli.additions import Embeddings, Loras, added, differing
from sfumato.cli.parse import File, Name, parse
from sfumato.generate import generate
from sfumato.io import model_folder, opening, pictures
from sfumato.models.config import complaint
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
    said = added(loaded, asked.lora, asked.embedding, asked.vae)
    if wanted := differing(said, made.additions):
        raise ValueError(f"{asked.picture} was made with {wanted}; give the same")
    same_model = opening.digest(loaded) == made.sha256
    old = pictures.read(asked.picture)
    init, mask = _given(asked, made, old)
    new = generate(loaded, made.request, init=init, mask=mask).images[0]
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


def _given(asked: Reproduce, made: _Made, old: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The picture that it began from and its mask; ValueError if one is missing or is another."""
    for flag, path, digest in (("init", asked.init, made.began), ("mask", asked.mask, made.masked)):
        if digest and path is None:
            what = "began from a picture" if flag == "init" else "was painted through a mask"
            raise ValueError(f"{asked.picture} {what}; give it with --{flag}")
        if path is not None and not digest:
            raise ValueError(f"{asked.picture} was made without --{flag}; leave it out")
    if not made.began or asked.init is None:
        return None, None
    left, _, right, _ = made.request.extend or (0, 0, 0, 0)
    size = old.shape[2] - left - right
    init = pictures.read(asked.init, size=size)
    mask = pictures.read_mask(asked.mask, of=asked.init, size=size) if made.masked and asked.mask else None
    for path, given, digest in ((asked.init, init, made.began), (asked.mask, mask, made.masked)):
        if digest and pictures.digest(given) != digest:
            raise ValueError(f"{path} is not the one that {asked.picture} was made with; its pixels differ")
    return init, mask


def _made(path: Path) -> _Made:
    found = pictures.parameters_of(path)
    try:
        model = {**found["model"]}
        request = Request.model_validate(found["request"])
        if "init" not in found:  # pictures once said a strength that had no meaning
            request = request.model_copy(update={"strength": None})
        precision = "bfloat16" if model.get("precision") == "bfloat16" else "float32"
        began, masked = _hash(found, "init"), _hash(found, "mask")
        return _Made(request, str(model["name"]), str(model["sha256"]), precision, model, began, masked)
    except ValidationError as error:
        raise ValueError(f"the parameters in {path} are not understood: {complaint(error)}") from None
    except (KeyError, TypeError):
        raise ValueError(f"the parameters in {path} are not complete; it must be as sfumato wrote it") from None


def _hash(found: dict[str, Any], key: str) -> str:
    given = found.get(key)
    return str(given["sha256"]) if given is not None else ""
