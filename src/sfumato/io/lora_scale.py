"""The scale of PEFT's LoRAs, which stands beside their tensors: in the file's metadata, or in adapter_config.json."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfumato.io.head import quoted
from sfumato.io.lora_keys import Part

ADAPTER, CONFIG = "lora_adapter_metadata", "adapter_config.json"
LARGEST = 10**6  # bytes of a configuration
PREFIX: dict[Part, str] = {"unet": "unet.", "text": "text_encoder."}
_PLAIN = re.compile(r"\^?(?P<path>[\w.]+)\$?")


def settings(path: Path, metadata: Mapping[str, object], part: Part, *, beside: bool) -> Mapping[str, Any]:
    """What is said of one part of the LoRA at `path`, also in a file `beside` it; nothing if nothing is.

    ValueError, worded to go after the name of the LoRA, if that cannot be read or says that it is no plain LoRA.
    """
    if ADAPTER in metadata:
        said = _object(str(metadata[ADAPTER]), f"has metadata '{ADAPTER}' that")
        prefix = PREFIX[part]
        own = {name.removeprefix(prefix): value for name, value in said.items() if name.startswith(prefix)}
        return _plain(own)
    if "lora_alpha" in metadata:
        return {"lora_alpha": metadata["lora_alpha"]}
    config = path.parent / CONFIG
    return _plain(_object(_read(config), f"has a {CONFIG} beside it that")) if beside and config.is_file() else {}


def alpha(said: Mapping[str, Any], path: str, rank: int) -> float:
    """Of a layer by its path with dots: scale times rank. As much as the rank where nothing is said."""
    value: Any = said.get("lora_alpha", rank)
    for pattern, own in _mapping(said, "alpha_pattern").items():
        plain = _PLAIN.fullmatch(pattern)
        if plain is None:
            raise ValueError(f"says alphas by the pattern {quoted(pattern)}, which is not read; plain paths are")
        if path == plain["path"] or (pattern[0] != "^" and path.endswith(f".{plain['path']}")):
            value = own
    number = _number(value)
    return number * math.sqrt(rank) if said.get("use_rslora") else number


def _read(config: Path) -> bytes:
    try:
        with config.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise ValueError(f"has a {CONFIG} beside it that cannot be read ({error.strerror})") from None
    if len(data) > LARGEST:
        raise ValueError(f"has a {CONFIG} beside it of more than {LARGEST:,} bytes; it is another file")
    return data


def _plain(said: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings, if they are those of a LoRA and not of one of its kin."""
    if said.get("use_dora"):
        raise ValueError("is a DoRA (its settings say use_dora), which is not read; plain LoRA and LoCon are")
    kind = said.get("peft_type", "LORA")
    if kind != "LORA":
        raise ValueError(f"is of PEFT's kind {quoted(str(kind))}, which is not read; LORA is")
    return said


def _object(text: str | bytes, whose: str) -> Mapping[str, Any]:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{whose} cannot be read as JSON; get it again") from None
    if not isinstance(said, dict):
        raise ValueError(f"{whose} is no JSON object; get it again")
    return said


def _mapping(said: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = said.get(name) or {}
    if not isinstance(found, dict):
        raise ValueError(f"has settings whose {name} is no JSON object; get it again")
    return found


def _number(value: object) -> float:
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"has settings whose lora_alpha is {quoted(str(value))}; it must be a number")
    return number
