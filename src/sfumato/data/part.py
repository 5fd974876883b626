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


def split(whole: Dataset, *, every: int, most: int | None = None) -> tuple[Part, Part | None]:
    """All but each n-th sample, and these, spread evenly if they are more than `most`; None where they would be few."""
    held = list(range(0, len(whole), every)) if len(whole) >= LEAST else []
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
