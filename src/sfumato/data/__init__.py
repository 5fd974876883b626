"""Data sets: captioned pictures by index, from tar shards, the emoji world and folders."""

from sfumato.data.emoji import Emoji, Split, captions, concrete, concrete_ids, split_of, withheld
from sfumato.data.folder import Folder, Report, scan
from sfumato.data.sample import Dataset, Meta, Sample
from sfumato.data.shards import Shards

__all__ = [
    "Dataset",
    "Emoji",
    "Folder",
    "Meta",
    "Report",
    "Sample",
    "Shards",
    "Split",
    "captions",
    "concrete",
    "concrete_ids",
    "scan",
    "split_of",
    "withheld",
]
