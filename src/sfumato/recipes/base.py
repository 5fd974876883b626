"""A model that is there, as recipes go on from it: which one, whether it can learn, what it is told of pictures."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, Field, model_validator

from sfumato.data import Listed
from sfumato.data import opened as pictures_of
from sfumato.data.sample import Sample
from sfumato.diffusion.objective import Loss
from sfumato.io import model_folder, opening
from sfumato.io.model_folder import Loaded, ModelFile
from sfumato.models.config import BoxesConfig, Closed, LabelsConfig, LayoutConfig, TableConfig, WordsConfig
from sfumato.recipes.material import Material, Way
from sfumato.recipes.settings import DiffusionRun

UNHEARD = ("validation", "averages", "snapshots", "decays", "buckets", "flips", "showing")
HYBRID = 1e-3  # of the bound, where the base learnt its variance (Nichol & Dhariwal 2021, eq. 16)


class Tuning(Closed):
    """The settings that all recipes have that go on from a model that is there."""

    name: str = Field(min_length=1)
    base: Annotated[str, AfterValidator(model_folder.from_anywhere)] = model_folder.DEFAULT  # by name or path
    weights: str | None = None  # which of its weight sets; its default if not said
    resolution: int | None = Field(default=None, ge=8, le=4096)  # pixels a side of the pictures; its own if not said
    diffusion: DiffusionRun
    previews: int = Field(default=8, ge=0, le=16)  # pictures of a preview; 0 is none

    @model_validator(mode="after")
    def _heard(self) -> Self:
        """What the recipes for models from nothing alone do is refused here."""
        for name in UNHEARD:
            if getattr(self.diffusion, name) != DiffusionRun.model_fields[name].get_default(call_default_factory=True):
                raise ValueError(f"diffusion.{name} is not of a model that goes on; leave it out")
        return self


T = TypeVar("T", bound=Tuning)


def on(model: str | None, small: T, large: T) -> T:
    """The settings for a model to go on from: `large` for one of another program's, else `small`; the bundled if None.

    ValueError if there is none of this name or path.
    """
    if model is None:
        return small
    chosen = large if described(model).origin is not None else small
    return chosen.model_copy(update={"base": model_folder.from_anywhere(model)})


def described(name_or_path: str) -> ModelFile:
    """What a model is; ValueError of one line if there is none."""
    found = opening.opened(name_or_path)
    return (found if found.sure else opening.asked(found)).file


def opened(settings: Tuning) -> Loaded:
    """The model, its weights in single precision; ValueError of one line if it is none, or cannot learn so."""
    loaded = opening.load(settings.base, weights=settings.weights, precision="float32")
    config = loaded.file.config
    if config.maps is not None:
        raise ValueError(
            f"{settings.base} is shown a map of kind '{config.maps}', and such cannot be fine-tuned; "
            "take a model that is told words or classes alone"
        )
    if config.unet.vector_dim is not None and not isinstance(config.conditioner, WordsConfig):
        raise ValueError(f"{settings.base} is told an embedding of a picture, and such cannot be fine-tuned")
    side = side_of(settings, loaded.file)
    loaded.model.latent_shape(side, side)
    run = settings.diffusion
    loss_of(run, loaded.file).check(
        loaded.model.denoiser.schedule, config.prediction, run.times, learned=config.learned
    )
    return loaded


def side_of(settings: Tuning, file: ModelFile) -> int:
    """Pixels a side of the pictures that are learnt from."""
    return settings.resolution or file.config.resolution


def loss_of(run: DiffusionRun, file: ModelFile) -> Loss:
    """What is minimised: with the bound beside it if the base learnt its variance, as nothing else trains that."""
    return replace(run.loss, hybrid=HYBRID) if file.config.learned and not run.loss.hybrid else run.loss


def material(data: Path | None, settings: Tuning) -> Material:
    """A folder of pictures with what the model is told: captions, classes or nothing. ValueError if they lack it."""
    file = described(settings.base)
    whole = folder(data, side_of(settings, file))
    return material_of(whole, data, _ways(file, whole, settings.base))


def folder(data: Path | None, side: int) -> Listed:
    """The pictures of a folder; ValueError if none is given."""
    if data is None:
        raise ValueError("a model that is there learns from pictures of yours; give their folder with --data")
    return pictures_of(data, size=side)


def material_of(whole: Listed, data: Path | None, ways: Callable[[Sample], tuple[Way, ...]]) -> Material:
    """All pictures of a folder, told in these ways."""
    assert data is not None
    about = f"{len(whole)} pictures of the folder {data.resolve().name}"
    return Material(whole, whole, None, ways, about, whole.fingerprint)


def _ways(file: ModelFile, whole: Listed, base: str) -> Callable[[Any], tuple[Way, ...]]:
    match file.config.conditioner:
        case None:
            return lambda _: ({},)
        case LabelsConfig(classes=classes, null=null):
            _classed(whole, classes - (null is not None), base)
            if null is None:
                raise ValueError(f"{base} has no class that stands for none, and cannot be fine-tuned")
            numbers = _numbers(whole.classes, file.classes or whole.classes, base)
            return lambda sample: ({"label": numbers[sample["label"]]},)
        case TableConfig() | LayoutConfig() | BoxesConfig():
            raise ValueError(f"{base} is told what pictures of a folder do not say, and cannot be fine-tuned")
        case _:
            if "caption" not in whole.fields:
                raise ValueError(f"the pictures have no captions ({whole.kind}); add sidecars or a metadata.jsonl")
            return lambda sample: tuple({"caption": way} for way in sample["captions"])


def _numbers(mine: tuple[str, ...], theirs: tuple[str, ...], base: str) -> list[int]:
    """The labels of a folder's classes in a model that knows them by name; ValueError for one that it does not know."""
    if unknown := [name for name in mine if name not in theirs]:
        raise ValueError(f"{base} knows no class '{unknown[0]}'; it knows {', '.join(theirs)}")
    return [theirs.index(name) for name in mine]


def _classed(whole: Listed, classes: int, base: str) -> None:
    if not whole.classes:
        raise ValueError(f"the pictures have no classes ({whole.kind}); put those of a class into a folder")
    if len(whole.classes) > classes:
        raise ValueError(f"the pictures have {len(whole.classes)} classes, and {base} knows {classes}; give no more")
