"""`sfumato reproduce FILE.png`: make a picture again from the parameters inside it, and compare."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from pydantic import ValidationError

from sfumato.cli.parse import line, parse
from sfumato.generate import Request, generate
from sfumato.io import model_folder, pictures


@dataclass
class Reproduce:
    """Make a picture again from the parameters inside it, and say by how much it differs."""

    picture: tyro.conf.Positional[Path]
    """A PNG that sfumato wrote."""
    model: str | None = None
    """Name or path of the model, if it is not the one that the picture names."""
    init: Path | None = None
    """The picture that it began from, if there was one."""
    out: Path | None = None
    """Where to write the new picture, if anywhere."""
    json: bool = False
    """Print one JSON object, and nothing else, on standard output."""


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    asked = parse(Reproduce, arguments, verb="reproduce")
    found = pictures.parameters_of(asked.picture)
    try:
        request, named = Request.model_validate(found["request"]), found["model"]
        name, sha256, began = str(named["name"]), str(named["sha256"]), found.get("init")
    except ValidationError as error:
        raise ValueError(f"the parameters in {asked.picture} are not understood: {line(error)}") from None
    except (KeyError, TypeError):
        raise ValueError(f"the parameters in {asked.picture} are not complete; it must be as sfumato wrote it") from None
    loaded = model_folder.load(asked.model or name)
    same_model = loaded.file.weights[loaded.weights].sha256 == sha256
    old = pictures.decode(asked.picture.read_bytes())
    init = None
    if began is not None:
        if asked.init is None:
            raise ValueError(f"{asked.picture} began from a picture; give it with --init")
        init = pictures.decode(asked.init.read_bytes(), size=old.shape[2])
    new = generate(loaded, request, init=init).images[0]
    if old.shape != new.shape:
        raise ValueError(f"{asked.picture} was scaled after it was made; it cannot be compared")
    again = pictures.from_pil(pictures.to_pil(new))
    difference = round(float((again - old).abs().max()) * 127.5)
    if asked.out is not None:
        pictures.save_png(new, asked.out, found)
    if asked.json:
        print(json.dumps({"largest_difference": difference, "of": 255, "same_model": same_model}))
    else:
        if not same_model:
            print("the model is not the one that made the picture (its weights differ)")
        print(f"largest pixel difference: {difference} of 255")
    return 0
