"""What a training of a whole model learns from: pictures, and what is told of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sfumato.data.buckets import Shape
from sfumato.data.fingerprint import Fingerprint
from sfumato.data.listed import Listed
from sfumato.data.part import Part, spaced, split
from sfumato.data.sample import Dataset, Sample
from sfumato.data.training import TrainingPictures

Way = Mapping[str, Any]
"""What the conditioner is told of a picture: {"caption": "a red apple"}, {"label": 3}, or nothing."""


MEASURED = 64  # pictures, at most, that a denoiser is measured with


@dataclass(frozen=True)
class Material:
    """What a run learns from."""

    pictures: Dataset  # for the first stage
    told: Dataset  # for the denoiser, with what it is told of them
    held_out: Dataset | None  # pictures that the first stage never sees, to measure it with
    ways: Callable[[Sample], tuple[Way, ...]]  # the ways to say what a picture shows
    about: str
    fingerprint: Fingerprint  # of all of them
    classes: tuple[str, ...] = ()  # what labels 0, 1, ... are called
    validation: Dataset | None = None  # pictures that the denoiser never sees, with the fields of `told`
    found: tuple[str, ...] = ()  # what a person should know of them, a line each


def held_out(whole: Dataset) -> tuple[Part, Part | None]:
    """A folder's pictures to learn from, and one in twenty that are held out; none of fewer than forty."""
    return split(whole, every=20, least=40)


def bucketed(whole: Dataset, among: Sequence[Shape], *, least: int) -> Dataset:
    """The same pictures, each in the nearest of some shapes; ValueError if they have but one shape."""
    match whole:
        case Listed():
            return whole.shaped(among, least=least)
        case Part(whole=inner, index=index):
            return Part(bucketed(inner, among, least=least), index)
        case _:
            raise ValueError("buckets are for a folder of pictures of several shapes; set diffusion.buckets=false")


def sound(material: Material) -> Material:
    """The same without the pictures that cannot be decoded; ValueError if they are more than one in a hundred.

    As many of those that measure the denoiser are kept as it is measured with.
    """
    told, held_out, validation = material.told, material.held_out, material.validation
    if validation is not None:
        validation = _sound(Part(validation, spaced(len(validation), MEASURED)))
    held_out = None if held_out is None else _sound(held_out)
    return replace(material, told=_sound(told), held_out=held_out, validation=validation)


def _sound(pictures: Dataset) -> Dataset:
    return Part(pictures, TrainingPictures(pictures, room=0).check())
