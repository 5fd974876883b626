"""Which layouts a model is asked for when it is measured: those of real pictures, as much of them as it reads."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.boxes import Box, Layout, largest
from sfumato.conditioning.boxes import Boxes
from sfumato.conditioning.layout import LayoutTokens
from sfumato.data.sample import Dataset, Sample
from sfumato.evaluate.fidelity import drawn
from sfumato.request import Request, requested


@dataclass(frozen=True)
class Asked:
    """Layouts, with boxes in each, and the pictures that they are of."""

    pictures: Dataset
    index: tuple[int, ...]  # of the pictures
    layouts: tuple[Layout, ...]
    prompts: tuple[str, ...]  # "" where none is read or known
    unread: int  # boxes that are over what the model reads: the smallest; they are not asked for
    refused: tuple[str, ...]  # boxes that the model cannot be asked for, as with labels that it never saw, and why
    skipped: tuple[str, ...]  # pictures that cannot be read, and why

    def __len__(self) -> int:
        return len(self.layouts)

    def real(self, begin: int, end: int) -> Tensor:
        """The pictures (N, 3, H, W) of some of the layouts."""
        return torch.stack([self.pictures[i]["image"] for i in self.index[begin:end]])

    def owners(self) -> Tensor:
        """Of each box, those of a layout after those of the one before, which layout it is of: (boxes,) int64."""
        return torch.tensor([k for k, layout in enumerate(self.layouts) for _ in layout])


def asked(pictures: Dataset, n: int, *, seed: int, conditioner: Boxes | LayoutTokens) -> Asked:
    """The layouts of `n` of the pictures, drawn by seed, or of all that have boxes if there are no more.

    ValueError if there are none that the model can be asked for.
    """
    if "boxes" not in pictures.fields:
        raise ValueError("nothing is said of where things are in these pictures; layouts need boxes")
    chosen: dict[int, Request] = {}
    unread, skipped, refused = 0, [], []
    for i, sample in readable(pictures, drawn(len(pictures), of=len(pictures), seed=seed), skipped):
        if len(chosen) == n:
            break
        if boxes := _askable(sample, conditioner, refused):
            chosen[i] = _request(boxes, sample, conditioner)
            unread += max(0, len(boxes) - conditioner.most)
    if not chosen:
        raise ValueError(refused[0] if refused else f"none of {len(pictures)} pictures has a box; layouts need some")
    index = tuple(sorted(chosen))
    requests = [chosen[i] for i in index]
    layouts = tuple(request.boxes or () for request in requests)
    return Asked(pictures, index, layouts, tuple(r.prompt for r in requests), unread, tuple(refused), tuple(skipped))


def readable(pictures: Dataset, order: Sequence[int], skipped: list[str]) -> Iterator[tuple[int, Sample]]:
    """The samples that can be read, with their index; what is wrong with the others goes to `skipped`."""
    for i in order:
        try:
            sample = pictures[i]
        except ValueError as error:
            skipped.append(str(error))
        else:
            yield i, sample


def _askable(sample: Sample, conditioner: Boxes | LayoutTokens, refused: list[str]) -> Layout:
    """The boxes of a picture that the model can be asked for; why it cannot be for the others goes to `refused`."""
    found: list[Box] = []
    for box in sample["boxes"]:
        try:
            conditioner.check(box.label)
            requested(boxes=(box,), prompt=_prompt(sample, conditioner))
        except ValueError as error:
            refused.append(f"a box of {sample['key']} cannot be asked for: {error}")
        else:
            found.append(box)
    return tuple(found)


def _request(boxes: Layout, sample: Sample, conditioner: Boxes | LayoutTokens) -> Request:
    """What asks for a layout of a picture."""
    boxes = largest(boxes, conditioner.most)
    if isinstance(conditioner, LayoutTokens):
        boxes = tuple(map(conditioner.sayable, boxes))
    return requested(boxes=boxes, prompt=_prompt(sample, conditioner))


def _prompt(sample: Sample, conditioner: Boxes | LayoutTokens) -> str:
    return sample.get("caption", "") if conditioner.captions else ""
