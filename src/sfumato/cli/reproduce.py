"""`sfumato reproduce FILE.png`: make a picture again from the parameters inside it, and compare."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro
from pydantic import ValidationError

from sfumato.cli.parse import File, Name, parse
from sfumato.generate import Request, generate
from sfumato.io import model_folder, pictures
from sfumato.models.config import complaint


@dataclass
class Reproduce:
    """Make a picture again from the parameters inside it, and say by how much it differs."""

    picture: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE.png")]
    """A PNG that sfumato wrote."""
    model: Name = None
    """Name or path of the model, if it is not the one that the picture names."""
    init: File = None
    """The picture that it began from, if there was one."""
    out: File = None
    """Where to write the new picture, if anywhere."""
    json: bool = False
    """Print one JSON object, and nothing else, on standard output."""


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    asked = parse(Reproduce, arguments, verb="reproduce")
    made = _made(asked.picture)
    loaded = model_folder.load(asked.model or made.model)
    same_model = loaded.file.weights[loaded.weights].sha256 == made.sha256
    old = pictures.read(asked.picture)
    if made.began and asked.init is None:
        raise ValueError(f"{asked.picture} began from a picture; give it with --init")
    init = pictures.read(asked.init, size=old.shape[2]) if made.began and asked.init else None
    if init is not None and pictures.digest(init) != made.began:
        raise ValueError(f"{asked.init} is not the picture that {asked.picture} began from; its pixels differ")
    new = generate(loaded, made.request, init=init).images[0]
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
    began: str  # hash of the pixels of the picture that it began from, if there was one


def _made(path: Path) -> _Made:
    found = pictures.parameters_of(path)
    try:
        model = found["model"]
        return _Made(Request.model_validate(found["request"]), str(model["name"]), str(model["sha256"]), _began(found))
    except ValidationError as error:
        raise ValueError(f"the parameters in {path} are not understood: {complaint(error)}") from None
    except (KeyError, TypeError):
        raise ValueError(f"the parameters in {path} are not complete; it must be as sfumato wrote it") from None


def _began(found: dict[str, Any]) -> str:
    init = found.get("init")
    return str(init["sha256"]) if init is not None else ""
