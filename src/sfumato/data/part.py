"""Parts of a data set, one for training and one that is held out."""

from sfumato.data.sample import Dataset, Sample

LEAST = 50  # pictures; of fewer none is held out


class Part:
    """The samples of a data set at these indices."""

    def __init__(self, whole: Dataset, index: list[int]) -> None:
        self.whole, self.index, self.fields = whole, index, whole.fields

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int, /) -> Sample:
        return self.whole[self.index[i]]


class Mirrored:
    """The samples of a data set, and behind them all of them turned to a mirror, maps and boxes too."""

    def __init__(self, whole: Dataset) -> None:
        self.whole, self.fields = whole, whole.fields

    def __len__(self) -> int:
        return 2 * len(self.whole)

    def __getitem__(self, i: int, /) -> Sample:
        turned, own = divmod(i, len(self.whole))
        sample: Sample = {**self.whole[own]}
        if turned:
            sample["image"] = sample["image"].flip(-1)
            if "map" in sample:
                sample["map"] = sample["map"].flip(-1)
            if "boxes" in sample:
                sample["boxes"] = tuple(box.mirrored() for box in sample["boxes"])
            if "uncut" in sample:
                sample["uncut"] = tuple(box.mirrored() for box in sample["uncut"])
            if "window" in sample:
                sample["window"] = sample["window"].mirrored()
        return sample


def split(whole: Dataset, *, every: int, most: int | None = None, least: int = LEAST) -> tuple[Part, Part | None]:
    """All but each n-th sample, and these, spread evenly if they are more than `most`; None of fewer than `least`."""
    held = list(range(0, len(whole), every)) if len(whole) >= least else []
    held = [held[i] for i in spaced(len(held), most or len(held))]
    rest = sorted(set(range(len(whole))) - set(held))
    return Part(whole, rest), Part(whole, held) if held else None


def spaced(n: int, most: int) -> list[int]:
    """All indices below `n`, or `most` of them, evenly spaced."""
    return [i * n // most for i in range(most)] if n > most else list(range(n))


def spread(n: int, first: int) -> list[int]:
    """All indices below `n`, beginning with `first` of them that are far apart."""
    far = spaced(n, first)
    return far + sorted(set(range(n)) - set(far))
