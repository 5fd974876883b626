"""The layout file that a command is given, for a model, and pictures with their boxes over them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from sfumato.boxes import Box, Layout, largest
from sfumato.conditioning.boxes import Boxes
from sfumato.conditioning.layout import LayoutTokens
from sfumato.generate import check_boxes
from sfumato.io import layout_file
from sfumato.io.layout_file import LayoutFile
from sfumato.io.model_folder import Loaded
from sfumato.io.outlined import outlined
from sfumato.models.config import BoxesConfig, Conditioning, LayoutConfig
from sfumato.request import MOST_BOXES, requested

READABLE = 512  # pixels that a picture with names on it has at least


class Laid(NamedTuple):
    """A layout file that was read."""

    path: Path
    said: LayoutFile

    @property
    def boxes(self) -> Layout:
        """Those that a request takes: of too many the largest."""
        return largest(self.said.boxes, MOST_BOXES)

    @property
    def left_out(self) -> int:
        """How many boxes of the file no request takes."""
        return len(self.said.boxes) - len(self.boxes)

    def check(self, loaded: Loaded) -> None:
        """ValueError, naming the entry, if there is a label that the model does not know, or modifiers."""
        kind = loaded.model.conditioner
        assert isinstance(kind, Boxes | LayoutTokens)
        said = zip(self.said.places, self.said.boxes, strict=True)
        check_boxes(kind, ((f"{self.path}, {place}", box) for place, box in said))


def takes_boxes(kind: Conditioning | None) -> bool:
    """Whether models of this kind are asked with boxes."""
    return isinstance(kind, BoxesConfig | LayoutConfig)


def laid(path: Path, size: tuple[int, int], kind: Conditioning | None) -> Laid:
    """What a file says, for pictures of `size`; ValueError, naming it, also if such a model cannot be asked so."""
    if not takes_boxes(kind):
        raise ValueError(
            "this model was not trained with boxes; leave --boxes out, or ask one that was (by sfumato train layout)"
        )
    said = layout_file.read(path, size)
    try:
        requested(prompt=said.prompt or "")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Laid(path, said)


def drawn(image: Tensor, boxes: Sequence[Box], loaded: Loaded) -> Tensor:
    """The picture (3, H, W), some times as large, with the boxes that the model read."""
    kind = loaded.model.conditioner
    assert isinstance(kind, Boxes | LayoutTokens)
    longest = max(image.shape)
    return outlined(image, largest(boxes, kind.most), side=longest * max(1, -(-READABLE // longest)))
