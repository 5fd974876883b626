"""Data sets: pictures by index with captions and boxes: folders, COCO, Open Images, tar shards, the emoji world."""

from sfumato.data.cropped import Cropped
from sfumato.data.emoji import Emoji, Split, captions, concrete, concrete_ids, split_of, withheld
from sfumato.data.limits import Limits
from sfumato.data.listed import Listed
from sfumato.data.sample import Dataset, Meta, Sample
from sfumato.data.shards import Shards
from sfumato.data.source import opened

__all__ = [
    "Cropped",
    "Dataset",
    "Emoji",
    "Limits",
    "Listed",
    "Meta",
    "Sample",
    "Shards",
    "Split",
    "captions",
    "concrete",
    "concrete_ids",
    "opened",
    "split_of",
    "withheld",
]
