"""The typed description of a model: all that is needed to build it, and nothing that runs by name."""

import inspect
import math
from dataclasses import fields
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from sfumato.diffusion.prediction import Prediction
from sfumato.diffusion.schedule import SCHEDULES, Schedule
from sfumato.nets.autoencoder import AutoencoderSize
from sfumato.nets.patchgan import PatchGanSize
from sfumato.nets.perceiver import PerceiverSize
from sfumato.nets.tiny import TinySize
from sfumato.nets.transformer import TransformerSize
from sfumato.nets.unet import UNetSize
from sfumato.registry import Registry

S = TypeVar("S")
LARGEST = 10**7  # of any number in a size
HEAVIEST = 10**8  # weights of a layer: forty times the largest of a published first stage
UPSCALE = 4  # times as large, where a model does not say it: all published ones
LONG = 80  # characters of what was given that are said again
MOST = {"depth": 64, "blocks": 16, "layers": 16, "levels": 16, "mult": 64, "heads": 256}  # each costs modules


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError(f"'{next(name for name in names if names.count(name) > 1)}' is in it twice")
    return names


Name = Annotated[str, Field(min_length=1, max_length=200)]
Names = Annotated[tuple[Name, ...], AfterValidator(_distinct)]


class Closed(BaseModel):
    """A frozen schema: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def registered(registry: Registry[Any]) -> AfterValidator:
    """The check of a field that holds a name: it must be in the registry, whose error lists what is."""
    return AfterValidator(registry.name)


class ScheduleConfig(Closed):
    """A schedule by name, with the numbers that its kind takes; those left out are the field's defaults."""

    kind: Annotated[str, registered(SCHEDULES)] = "cosine"
    start: float | None = Field(default=None, gt=0, lt=1)
    end: float | None = Field(default=None, gt=0, lt=1)
    steps: int | None = Field(default=None, ge=2, le=100_000)
    terminal_zero: bool | None = None

    def build(self) -> Schedule:
        """The schedule; ValueError if its kind does not take one of the numbers."""
        given = self.model_dump(exclude={"kind"}, exclude_none=True)
        takes = inspect.signature(SCHEDULES[self.kind]).parameters
        wrong = [name for name in given if name not in takes]
        if wrong:
            known = ", ".join(name for name in type(self).model_fields if name in takes) or "no numbers"
            raise ValueError(f"schedule '{self.kind}' does not take {', '.join(wrong)}; it takes {known}")
        return SCHEDULES[self.kind](**given)


def complaint(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, in one line."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "there is no such setting"
    given, shown = first.get("input"), ""
    if isinstance(given, str | int | float) and first["type"] != "value_error":
        text = repr(given)
        shown = f" (given: {text if len(text) <= LONG else text[:LONG] + '...'})"
    return f"{where + ': ' if where else ''}{message[:1].lower()}{message[1:]}{shown}"


class WordsConfig(Closed):
    """Captions through a transformer of our own over a vocabulary made of the captions (`conditioning/text.py`)."""

    kind: Literal["words"] = "words"
    encoder: TransformerSize

    @property
    def dim(self) -> int:
        """Of a token."""
        return self.encoder.dim


class ClipConfig(Closed):
    """Prompts through CLIP's text tower (`conditioning/clip.py`)."""

    kind: Literal["clip"] = "clip"
    encoder: TransformerSize
    vocabulary: int = Field(default=49408, ge=1, le=1_000_000)
    pad: int = Field(default=49407, ge=0)  # the id that fills a chunk: the end again in SD 1, 0 in SD 2


class BertConfig(Closed):
    """Captions through LDM's transformer (`conditioning/bert.py`)."""

    kind: Literal["bert"] = "bert"
    encoder: TransformerSize
    vocabulary: int = Field(default=30522, ge=1, le=1_000_000)


class LabelsConfig(Closed):
    """Class labels as one token to attend to (`conditioning/label.py`)."""

    kind: Literal["labels"] = "labels"
    classes: int = Field(ge=1, le=1_000_000)
    dim: int = Field(ge=1, le=65536)
    null: int | None = Field(default=None, ge=0)  # the class that stands for none, for guidance


class TableConfig(Closed):
    """Class labels that are rows of the network's own table."""

    kind: Literal["table"] = "table"
    classes: int = Field(ge=1, le=1_000_000)


class SegmentationConfig(Closed):
    """A map of classes as channels beside the latent (`conditioning/segmentation.py`)."""

    kind: Literal["segmentation"] = "segmentation"
    classes: int = Field(ge=1, le=255)
    channels: int = Field(default=3, ge=1, le=256)
    stages: int = Field(default=2, ge=0, le=8)  # how often its sides are halved, down to the latent's


class LayoutConfig(Closed):
    """Boxes as LDM's sequence of numbers, through its transformer (`conditioning/layout.py`).

    `encoder.length` is 3 for each object, and 2 for the window that is cut out if `window`.
    """

    kind: Literal["layout"] = "layout"
    encoder: TransformerSize
    vocabulary: int = Field(default=8192, ge=5, le=1_000_000)
    names: Names = ()  # of classes 0, 1, ...; without them labels are numbers
    window: bool = True

    @model_validator(mode="after")
    def _room(self) -> Self:
        least = 5 if self.window else 3
        if self.encoder.length < least:
            raise ValueError(
                f"encoder.length must be at least {least}, for one object{' and the window' * self.window}"
            )
        if len(self.names) >= self.vocabulary:
            raise ValueError(f"names are {len(self.names)}, and vocabulary has room for {self.vocabulary - 1} classes")
        return self


class BoxesConfig(Closed):
    """Boxes by their sides and labels, any number of them, perhaps beside a caption (`conditioning/boxes.py`)."""

    kind: Literal["boxes"] = "boxes"
    encoder: TransformerSize | None = None  # tau_theta
    perceiver: PerceiverSize | None = None  # in its place
    names: Names = ()  # what labels are known; without them they are read by their words
    words: TransformerSize | None = None  # what reads words
    captions: bool = False  # whether prompts are read too
    most: int = Field(default=30, ge=1, le=10_000)  # boxes
    bands: int = Field(default=8, ge=1, le=16)  # frequencies of their sides
    painted: int = Field(default=0, ge=0, le=1024)  # channels beside the latent in which they are drawn

    @property
    def dim(self) -> int:
        """Of a token."""
        size = self.encoder or self.perceiver
        assert size is not None
        return size.dim

    @model_validator(mode="after")
    def _read(self) -> Self:
        if (self.encoder is None) == (self.perceiver is None):
            raise ValueError("say encoder or perceiver, one of them")
        if self.words is None and (self.captions or not self.names):
            raise ValueError("words says what reads captions, and labels that are not in names; it must be there")
        for name, size in (("words", self.words), ("perceiver", self.perceiver)):
            if size is not None:
                within_bounds(name, size)
        return self


Conditioning = Annotated[
    WordsConfig
    | ClipConfig
    | BertConfig
    | LayoutConfig
    | BoxesConfig
    | LabelsConfig
    | TableConfig
    | SegmentationConfig,
    Field(discriminator="kind"),
]
MapsKind = Literal[
    "inpainting", "inpainting_black", "picture", "depth", "low_resolution", "segmentation", "boxes", "other"
]


def _or_none(said: Any) -> Any:
    """Nothing, where somebody says it in place of a word."""
    return None if said == "none" else said


class ModelConfig(Closed):
    """Sizes of the three parts, the schedule and the prediction. Without a first stage the model paints pixels."""

    first_stage: AutoencoderSize | None = None
    conditioner: Conditioning | None = None
    unet: UNetSize
    schedule: ScheduleConfig = ScheduleConfig()
    prediction: Prediction = Prediction.V
    resolution: int = Field(default=64, ge=8, le=4096)  # pixels a side that it was trained at
    maps: Annotated[MapsKind | None, BeforeValidator(_or_none)] = None  # what is concatenated to the latent
    upscale: int | None = Field(default=None, ge=2, le=16)  # of maps "low_resolution": how many times as large; 4

    @property
    def larger(self) -> int:
        """How many times as large as the picture that it is shown are those that it paints."""
        return (self.upscale or UPSCALE) if self.maps == "low_resolution" else 1

    @property
    def learned(self) -> bool:
        """Whether the network learnt its variance too."""
        return self.unet.out_channels == 2 * self.unet.channels

    @model_validator(mode="after")
    def _buildable(self) -> Self:
        """A model that cannot be built is refused here, and not after hours of training its first stage."""
        self.schedule.build()
        encoder = getattr(self.conditioner, "encoder", None)
        for name, size in (("first_stage", self.first_stage), ("conditioner.encoder", encoder), ("unet", self.unet)):
            if size is not None:
                within_bounds(name, size)
        first, unet = self.first_stage, self.unet
        _fits(self.conditioner, unet)
        channels = 3 if first is None else first.latent_channels
        factor = (1 if first is None else first.factor) * 2 ** (len(unet.mult) - 1)
        for wrong, message in (
            (unet.channels != channels, f"unet.channels must be {channels}, as the latent's"),
            (unet.out_channels not in (None, channels, 2 * channels), f"unet.out_channels must be {channels}"),
            (not _shown(self.maps, unet, channels), _unshown(self.maps, channels)),
            (unet.map_short and not unet.map_channels, "unet.map_short is a way of maps; there are none"),
            (self.upscale and self.maps != "low_resolution", "upscale is of maps 'low_resolution'; leave it out"),
            (self.resolution % self.larger > 0, f"resolution must divide by {self.larger}, as upscale says"),
            (self.resolution % factor > 0, f"resolution must divide by {factor}, as all sizes of this model must"),
        ):
            if wrong:
                raise ValueError(message)
        if isinstance(self.conditioner, SegmentationConfig):
            _segments(self.conditioner, self)
        painted = self.conditioner.painted if isinstance(self.conditioner, BoxesConfig) else 0
        if (self.maps == "boxes") != (painted > 0) or (painted and unet.map_channels != painted):
            raise ValueError("where boxes are painted, maps is 'boxes' and unet.map_channels is conditioner.painted")
        return self


def map_channels(kind: MapsKind | None, latent: int) -> int | None:
    """The channels of maps of this kind beside a latent of so many; None where the kind does not say."""
    holes = {"inpainting": latent + 1, "inpainting_black": latent + 1}
    return {None: 0, **holes, "picture": latent, "depth": 1, "low_resolution": 3}.get(kind)


def _shown(kind: MapsKind | None, unet: UNetSize, latent: int) -> bool:
    """Whether the network has the channels that maps of this kind take."""
    channels = map_channels(kind, latent)
    return unet.map_channels > 0 if channels is None else unet.map_channels == channels


def _segments(conditioner: SegmentationConfig, model: ModelConfig) -> None:
    """ValueError if a map of classes does not come out as the network is to be shown it."""
    factor = 1 if model.first_stage is None else model.first_stage.factor
    for wrong, message in (
        (model.maps != "segmentation", "maps must be 'segmentation', as the conditioner's kind"),
        (model.unet.map_channels != conditioner.channels, f"unet.map_channels must be {conditioner.channels}"),
        (2**conditioner.stages != factor, f"conditioner.stages must halve a side to 1/{factor}, as the first stage"),
    ):
        if wrong:
            raise ValueError(message)


def _unshown(kind: MapsKind | None, latent: int) -> str:
    if kind is None:
        return "unet.map_channels must be 0, for the network is shown nothing"
    return f"unet.map_channels is not what maps of kind '{kind}' have beside a latent of {latent} channels"


def sized(kind: type[S], source: object, /, **fields: Any) -> S:
    """A size, or another checked description, from what `source` says; ValueError of one line that names it."""
    try:
        return TypeAdapter(kind).validate_python(fields)
    except ValidationError as error:
        raise ValueError(f"{source}: {complaint(error)}") from None


def configured(source: object, **fields: Any) -> ModelConfig:
    """The description of what is in `source`; ValueError of one line that names it if no such model can be."""
    try:
        return ModelConfig(**fields)
    except ValidationError as error:
        raise ValueError(f"{source}: {complaint(error)}") from None


def _fits(conditioner: Conditioning | None, unet: UNetSize) -> None:
    """ValueError if the network does not listen to what the conditioner says."""
    heard: list[tuple[str, int, str]] = []  # a field of the network, what it must be, as what
    match conditioner:
        case (
            WordsConfig(encoder=size) | ClipConfig(encoder=size) | BertConfig(encoder=size) | LayoutConfig(encoder=size)
        ):
            heard.append(("context_dim", size.dim, "conditioner.encoder.dim"))
        case LabelsConfig(dim=dim) | BoxesConfig(dim=dim):
            heard.append(("context_dim", dim, "conditioner.dim"))
        case TableConfig(classes=classes):
            heard.append(("classes", classes, "conditioner.classes"))
        case SegmentationConfig() | None:
            pass
    for name, value, what in heard:
        if getattr(unet, name) != value:
            raise ValueError(f"unet.{name} must be {value}, as {what}")
    if isinstance(conditioner, WordsConfig | BoxesConfig) and unet.vector_dim not in (None, conditioner.dim):
        raise ValueError(f"unet.vector_dim must be {conditioner.dim}, as conditioner.encoder.dim, or none")


def within_bounds(
    name: str, size: AutoencoderSize | PatchGanSize | PerceiverSize | TinySize | TransformerSize | UNetSize
) -> None:
    """ValueError if a number of `size` is not positive, or too large to build; one that is 0 by default may be 0.

    Of a first stage or a critic also if a layer is too large, or if its numbers do not fit each other or pictures.
    """
    for field in fields(size):
        value = getattr(size, field.name)
        values = value if isinstance(value, tuple) else (value,)
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        most = MOST.get(field.name, LARGEST)
        good = all(0 < v < math.inf or v == field.default == 0 for v in numbers)
        if not good or (field.name == "mult" and not numbers):
            raise ValueError(f"{name}.{field.name} is {value}; it must be positive")
        if max([*numbers, len(numbers)], default=0) > most:
            raise ValueError(f"{name}.{field.name} is {value}; at most {most} can be built")
    if not isinstance(size, PerceiverSize | TransformerSize | UNetSize) and size.largest > HEAVIEST:
        raise ValueError(f"{name} has a layer of {size.largest:,} weights; at most {HEAVIEST:,} can be built")
    if isinstance(size, AutoencoderSize):
        _of_pictures(name, size)


def _of_pictures(name: str, size: AutoencoderSize) -> None:
    """ValueError if no picture has so many channels, or no square of one so many components as a linear shortcut."""
    if size.image_channels != 3:  # noqa: PLR2004
        raise ValueError(f"{name}.image_channels is {size.image_channels}; pictures have 3")
    if size.shortcut == "linear" and size.latent_channels > size.components:
        raise ValueError(
            f"{name}.latent_channels is {size.latent_channels}; a linear shortcut at factor {size.factor} gives at "
            f"most {size.components}"
        )
