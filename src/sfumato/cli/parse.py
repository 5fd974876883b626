"""Arguments of a verb into its typed settings; what is wrong becomes one line."""

import contextlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from pydantic import BaseModel, ValidationError

T = TypeVar("T")

Name = Annotated[str | None, tyro.conf.arg(metavar="NAME")]
File = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]
Int = Annotated[int | None, tyro.conf.arg(metavar="N")]
Number = Annotated[float | None, tyro.conf.arg(metavar="X")]
_STYLE = re.compile(r"\x1b\[[0-9;]*m")


def parse(kind: type[T], arguments: Sequence[str], *, verb: str) -> T:
    """The settings that `arguments` give; ValueError of one line if they are wrong. `--help` prints and exits."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind,
                prog=f"sfumato {verb}",
                args=list(arguments),
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            )
    except ValidationError as error:
        raise ValueError(line(error)) from None
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ValueError(_first_complaint(said.getvalue(), verb)) from None


def line(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, in one line."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "there is no such setting"
    given = first.get("input")
    shown = f" (given: {given!r})" if isinstance(given, str | int | float) and first["type"] != "value_error" else ""
    return f"{where + ': ' if where else ''}{message[:1].lower()}{message[1:]}{shown}"


def override(settings: BaseModel, changes: Sequence[str]) -> dict[str, Any]:
    """The settings as a dictionary with "path.to.key=value" changes; ValueError names a key that is not there."""
    tree = settings.model_dump()
    for change in changes:
        path, sign, text = change.partition("=")
        if not sign:
            raise ValueError(f"'{change}' is not a setting; write key=value, for instance diffusion.plan.steps=2000")
        *above, key = path.replace("-", "_").split(".")
        node: Any = tree
        for step in above:
            node = node.get(step) if isinstance(node, dict) else None
        if not isinstance(node, dict) or key not in node:
            near = ", ".join(node) if isinstance(node, dict) else ", ".join(tree)
            raise ValueError(f"there is no setting '{path}'; here there are: {near}")
        node[key] = _value(text)
    return tree


def _value(text: str) -> Any:
    if text.startswith(("[", "(")):
        return [_value(part.strip()) for part in text[1:-1].split(",") if part.strip()]
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def _first_complaint(said: str, verb: str) -> str:
    """The first paragraph of tyro's box, and the option that it thinks was meant."""
    rows = [row.strip("│ ") for row in _STYLE.sub("", said).splitlines() if row.startswith("│")]
    ends = [i for i, row in enumerate(rows) if not row or row.startswith(("─", "Got errors"))]
    head = " ".join(rows[: ends[0]] if ends else rows) or "the arguments are not understood"
    meant = re.search(r"Perhaps you meant:\s+(--?[\w-]+)", " ".join(rows))
    hint = f"; perhaps {meant[1]} was meant" if meant else ""
    return f"{head[:1].lower()}{head[1:].rstrip('.')}{hint}; see: sfumato {verb} --help"
