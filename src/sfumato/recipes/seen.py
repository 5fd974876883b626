"""The pictures of a run: those that are learnt from, those that are held out, and what is written down of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sfumato import __version__
from sfumato.data import Dataset, Emoji, Split, opened
from sfumato.data.fingerprint import Fingerprint
from sfumato.data.listing import shown
from sfumato.data.part import Part, split, spread
from sfumato.data.training import TrainingPictures
from sfumato.evaluate.first_stage import KEPT
from sfumato.evaluate.verdict import ENOUGH
from sfumato.train.state import State
from sfumato.world import World, hardware

EVERY, MOST = 20, 400  # one picture in so many is held out, and no more than so many;
SMALL = 5  # of a small folder one in so many, so that there are enough to judge by
LEAST = 2  # pictures, of which distances of features can be taken


@dataclass(frozen=True)
class Seen:
    """What a first stage is trained on, and what it is judged by."""

    training: Dataset
    held_out: Dataset | None  # the first are far apart, so that a contact sheet shows more than one sub-folder
    unreadable: tuple[str, ...]  # files that were left out, and why
    about: str
    fingerprint: Fingerprint  # of all of them

    @property
    def judged(self) -> Dataset:
        """The pictures that tell its quality: those it was trained on if none are held out."""
        return self.held_out or self.training

    @property
    def held(self) -> int:
        """How many are held out."""
        return 0 if self.held_out is None else len(self.held_out)

    def check(self) -> None:
        """ValueError if they are too few to judge by."""
        if len(self.judged) < LEAST:
            raise ValueError(f"there are fewer than {LEAST} pictures ({self.about}); a first stage needs many")

    def provenance(
        self, pictures: TrainingPictures, state: State, world: World, *, called: str, rolled_back: int = 0
    ) -> dict[str, Any]:
        """Where a network comes from that was trained on them: numbers, the perceptual loss, machine and programs."""
        return {
            "pictures": {"training": len(self.training), "held out": self.held},
            "skipped": {
                "unreadable": len(self.unreadable),
                "damaged": len(pictures.damaged),
                "steps": state.skipped,
            },
            "rolled back": rolled_back,
            "perceptual loss": called,
            "material": self.about,
            "hardware": hardware(world),
            "sfumato": __version__,
            "torch": torch.__version__,
        }


def seen(data: Path | None, resolution: int) -> Seen:
    """The pictures of a folder, or of the emoji world where none is given."""
    if data is None:
        whole = Emoji(split=Split.TRAIN, size=resolution)
        unseen = Emoji(split=Split.CONCEPT, size=resolution)
        judged = Part(unseen, spread(len(unseen), KEPT))
        return Seen(whole, judged, (), "emoji world, all styles", Emoji(split="all").fingerprint)
    folder = opened(data, size=resolution)
    training, held_out = split(folder, every=min(EVERY, max(SMALL, len(folder) // ENOUGH)), most=MOST)
    if held_out is not None:
        held_out = Part(held_out, spread(len(held_out), KEPT))  # see `Seen.held_out`
    unreadable = tuple(f"{shown(path)}: {why}" for path, why in folder.skipped)
    return Seen(training, held_out, unreadable, f"{len(folder)} pictures of the folder {data.name}", folder.fingerprint)
