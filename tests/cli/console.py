"""What a command said."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Said(NamedTuple):
    """Its exit code, standard output and standard error."""

    code: int
    out: str
    err: str


Run = Callable[..., Said]
"""Runs a command: sfumato("generate", "a red apple", "--seed", 7)."""
