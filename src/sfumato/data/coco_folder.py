"""A data set with boxes as a folder in the form of COCO, which other programs read, and `opened` too."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sfumato.boxes import Box, Modifier
from sfumato.data.sample import Dataset
from sfumato.io import atomic, pictures


class Classed(Dataset, Protocol):
    """A data set that knows what is in its boxes."""

    @property
    def classes(self) -> Sequence[str]:
        """The labels of boxes."""
        ...


def written(whole: Classed, out: Path) -> Iterator[int]:
    """Writes the pictures, boxes and captions of a data set, whole or not at all; yields how many are written.

    ValueError if there is something at `out`, or if it has no boxes, or one of a label that is not in its `classes`.
    Of modifiers COCO knows groups alone.
    """
    if out.exists():
        raise ValueError(f"{out} is there already; choose another place")
    if "boxes" not in whole.fields:
        raise ValueError("the pictures have no boxes to write")
    numbers = {label: number for number, label in enumerate(whole.classes, 1)}
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    with atomic.folder(out) as folder:
        for i in range(len(whole)):
            sample = whole[i]
            height, width = sample["image"].shape[1:]
            image = {"id": i, "file_name": f"{i:06}.png", "width": width, "height": height}
            pictures.save_png(sample["image"], folder / "images" / f"{i:06}.png", {})
            images.append(image)
            for box in sample["boxes"]:
                boxes.append({"id": len(boxes) + 1, "image_id": i, **_annotation(box, numbers, width, height)})
            for caption in sample.get("captions", ()):
                captions.append({"id": len(captions) + 1, "image_id": i, "caption": caption})
            yield i + 1
        categories = [{"id": number, "name": label} for label, number in numbers.items()]
        instances = {"images": images, "annotations": boxes, "categories": categories}
        _write(folder / "annotations/instances.json", instances)
        if captions:
            _write(folder / "annotations/captions.json", {"images": images, "annotations": captions})


def _annotation(box: Box, numbers: Mapping[str, int], width: int, height: int) -> dict[str, Any]:
    if box.label not in numbers:
        raise ValueError(f"a box has the label {box.label!r}, which is none of the classes of the data set")
    bbox = [box.x0 * width, box.y0 * height, (box.x1 - box.x0) * width, (box.y1 - box.y0) * height]
    crowd = int(bool(box.modifiers & Modifier.GROUP))
    return {"category_id": numbers[box.label], "bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": crowd}


def _write(path: Path, facts: Mapping[str, Any]) -> None:
    atomic.write_bytes(path, json.dumps(facts).encode())
