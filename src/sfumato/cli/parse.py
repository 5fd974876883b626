"""Arguments of a verb into its typed settings; what is wrong becomes one line."""

import contextlib
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from pydantic import BaseModel, ValidationError

from sfumato.models.config import complaint

T = TypeVar("T")

Name = Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]
File = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Folder = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]
Int = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")]
Number = Annotated[float | None, tyro.conf.arg(metavar="X", help_behavior_hint="")]
_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_BOX = re.compile(r"[─│╭╮╰╯]|-{3,}")
_PLAIN = {  # tyro's words -> ours
    r"no type matching \{None\}\|INT could be instantiated from \['(.*)'\]\.?": r"'\1' is not a whole number",
    r"no type matching \{None\}\|FLOAT could be instantiated from \['(.*)'\]\.?": r"'\1' is not a number",
    r"invalid literal for int\(\) with base 10: ('.*')": r"\1 is not a whole number",
    r"could not convert string to float: ('.*')": r"\1 is not a number",
    r"Error parsing (?:-\w/)?(--[\w-]+)": r"\1",
    r"Missing value for argument '(.*)'\. Expected .*": r"\1 is given without a value",
    r"Missing from [^:]*: (\S+).*": r"\1 is missing",
}


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
        raise ValueError(complaint(error)) from None
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ValueError(_first_complaint(said.getvalue(), verb)) from None


def override(settings: BaseModel, changes: Sequence[str]) -> dict[str, Any]:
    """The settings as a dictionary with "path.to.key=value" changes; ValueError names a key that is not there."""
    tree = settings.model_dump()
    for change in changes:
        path, sign, text = change.partition("=")
        if not sign:
            example = next(filter(lambda path: path.endswith("plan.steps"), _paths(tree)), "name")
            raise ValueError(f"'{change}' is not a setting; write key=value, for instance {example}=2000")
        *above, key = path.replace("-", "_").split(".")
        node: Any = tree
        for step in above:
            node = node.get(step) if isinstance(node, dict) else None
        if not isinstance(node, dict) or key not in node:
            near = ", ".join(node) if isinstance(node, dict) else ", ".join(tree)
            raise ValueError(f"there is no setting '{path}'; here there are: {near}")
        value = text if isinstance(node[key], str) else _value(text)
        if isinstance(value, bool) and isinstance(node[key], int | float) and not isinstance(node[key], bool):
            raise ValueError(f"{path} is {text}; it must be a number")
        node[key] = value
    return tree


def _paths(tree: dict[str, Any], above: str = "") -> Iterator[str]:
    """The names of all settings, the last first."""
    for key, node in reversed(tree.items()):
        if isinstance(node, dict):
            yield from _paths(node, f"{above}{key}.")
        else:
            yield f"{above}{key}"


def _value(text: str) -> Any:
    if text[:1] + text[-1:] in ("[]", "()"):
        return [_value(part.strip()) for part in text[1:-1].split(",") if part.strip()]
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return {"true": True, "false": False, "none": None, "null": None}.get(text.lower(), text)


def _first_complaint(said: str, verb: str) -> str:
    """The first paragraph under the title of tyro's box, and the option that it thinks was meant."""
    rows = [_BOX.sub("", row).strip() for row in _STYLE.sub("", said).splitlines()]
    _, *rows = [*filter(None, rows[:1]), *itertools.dropwhile(lambda row: not row, rows[1:])] or [""]
    head = " ".join(itertools.takewhile(lambda row: row and not row.startswith("Got errors"), rows))
    for pattern, plain in _PLAIN.items():
        head = re.sub(pattern, plain, head)
    head = head or "the arguments are not understood"
    meant = re.search(r"Perhaps you meant:\s+(--?[\w-]+)", " ".join(rows))
    hint = f"; perhaps {meant[1]} was meant" if meant else ""
    first = head[:1] if head[1:2].isupper() else head[:1].lower()
    return f"{first}{head[1:].rstrip('.')}{hint}; see: sfumato {verb} --help"
