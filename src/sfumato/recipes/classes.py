"""Pictures of a class, or of none, through a first stage: class-to-image and unconditional."""

from pathlib import Path

from sfumato.data import Emoji, Sample, Split, opened
from sfumato.data.part import split
from sfumato.models.config import LabelsConfig
from sfumato.recipes import small
from sfumato.recipes.material import Material
from sfumato.recipes.settings import DiffusionTraining

DIM = 128  # of a class's token
GROUPS = (
    *("activities", "animals-nature", "flags", "food-drink", "objects"),
    *("people-body", "smileys-emotion", "symbols", "travel-places"),
)


class Grouped:
    """The emoji world with the group of each concept as its class."""

    fields = frozenset({"image", "label"})

    def __init__(self, world: Emoji) -> None:
        self.world = world

    def __len__(self) -> int:
        return len(self.world)

    def __getitem__(self, i: int, /) -> Sample:
        sample = self.world[i]
        return {"image": sample["image"], "label": GROUPS.index(str(sample["meta"]["group"]))}


def class_to_image(data: Path | None) -> DiffusionTraining:
    """LDM's class-conditional model in small: a class is one token, and one more stands for none (app. E.2.1).

    300 short steps (docs/recipes.md) took 136 s of processor time and learnt colours of the groups, not their shapes;
    its 3,000 were not run here.
    """
    classes = len(GROUPS) if data is None else len(opened(data, size=small.SIDE).classes)
    conditioner = LabelsConfig(classes=classes + 1, dim=DIM, null=classes)
    return small.training("class-to-image", steps=3000, conditioner=conditioner, guidance=2.0)


def unconditional(_data: Path | None) -> DiffusionTraining:
    """LDM's unconditional models in small: pictures alone (sec. 4.1). Costs what class-to-image does; not run here."""
    return small.training("unconditional", steps=3000)


def classed(data: Path | None, settings: DiffusionTraining) -> Material:
    """A folder of classes, or the emoji world by groups."""
    return of_size(data, settings.model.resolution)


def of_size(data: Path | None, size: int) -> Material:
    """The same, of this many pixels a side."""
    if data is None:
        learnt, unseen = Grouped(Emoji(size=size)), Grouped(Emoji(split=Split.CONCEPT, size=size))
        about, fingerprint = "emoji world, all styles, by groups", Emoji(split="all").fingerprint
        return Material(learnt, learnt, unseen, told, about, fingerprint, GROUPS, unseen)
    whole = opened(data, size=size)
    learnt, held_out = split(whole, every=small.EVERY)
    about = f"{len(whole)} pictures of the folder {data.name} in {len(whole.classes)} classes"
    return Material(learnt, learnt, held_out, told, about, whole.fingerprint, whole.classes, held_out)


def told(sample: Sample) -> tuple[dict[str, int], ...]:
    """A picture's class, if it has one."""
    return ({"label": sample["label"]},) if "label" in sample else ({},)
