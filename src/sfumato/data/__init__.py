"""Data sets: captioned pictures by index, from folders, COCO captions, tar shards and the emoji world."""

from sfumato.data.emoji import Emoji, Split, captions, concrete, concrete_ids, split_of, withheld
from sfumato.data.listed import Listed
from sfumato.data.sample import Dataset, Meta, Sample
from sfumato.data.shards import Shards
from sfumato.data.source import opened

__all__ = [
    "Dataset",
    "Emoji",
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
