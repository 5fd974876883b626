"""What the classes of data that others trained layout models on are called, in the order of their numbers."""

from functools import cache
from pathlib import Path
from typing import Literal

HOME = Path(__file__).resolve().parent.parent / "bundled" / "labels"


@cache
def known_labels(of: Literal["open-images", "coco-stuff"]) -> tuple[str, ...]:
    """The 340 labels of LDM's model of Open Images, or COCO-stuff's 171: things and stuff.

    Both are in the order of their ids as texts, in which their authors numbered them, Open Images' Suitcase last.
    """
    return tuple((HOME / f"{of}.txt").read_text(encoding="utf-8").splitlines())
