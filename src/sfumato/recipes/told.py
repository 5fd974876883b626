"""The objective of a denoiser and of its conditioner: what a batch of latents, and what is told of them, means."""

from collections.abc import Sequence

from torch import Tensor, nn

from sfumato.cond import Cond
from sfumato.conditioning.segmentation import Segmentation
from sfumato.diffusion.noise import Address, Stream
from sfumato.diffusion.objective import SIMPLE, Loss, Times, denoising_loss
from sfumato.models.config import (
    BertConfig,
    BoxesConfig,
    ClipConfig,
    LabelsConfig,
    LayoutConfig,
    SegmentationConfig,
    TableConfig,
    WordsConfig,
)
from sfumato.models.latent_diffusion import AnyConditioner, LatentDiffusion
from sfumato.nets.autoencoder import drawn
from sfumato.nets.unet import UNet
from sfumato.outcome import Outcome
from sfumato.recipes.material import Material, Way
from sfumato.recipes.settings import DiffusionTraining
from sfumato.train.fit import Batch

SHOWN = (None, "inpainting", "inpainting_black", "low_resolution", "segmentation", "boxes")
PLACED = ("boxes", "uncut")  # what is told of a picture object by object
SHUFFLED = 256  # objects of a picture whose order is drawn; those behind them stay there
LACKING = {
    "caption": "the pictures have no captions ({}); add sidecars or a metadata.jsonl",
    "label": "the pictures have no classes ({}); put those of a class into a folder",
    "boxes": "no boxes are said of the pictures ({}); give a folder of COCO, or one of docs/data.md that has some",
    "map": "the pictures have no maps of classes ({}); put one for each, of its name and .png, into masks/",
}


def check_told(settings: DiffusionTraining, material: Material) -> None:
    """ValueError if what a model is told or shown cannot be trained on, or is not in the pictures."""
    kind, maps, drop = settings.model.conditioner, settings.model.maps, settings.diffusion.drop
    if maps not in SHOWN:
        raise ValueError(f"a model that is shown maps of kind '{maps}' cannot be trained; of these: {SHOWN[1:]}")
    undroppable = isinstance(kind, TableConfig) or (isinstance(kind, LabelsConfig) and kind.null is None)
    if (kind is None or undroppable) and settings.defaults.guidance != 1:
        raise ValueError("nothing stands for no condition, so defaults.guidance must be 1")
    if kind is None:
        return
    frozen = settings.told_by is not None
    for wrong, message in (
        (
            isinstance(kind, ClipConfig) and not frozen,
            "CLIP's text tower is used as it is; say with told_by which model it is taken from",
        ),
        (
            frozen and not isinstance(kind, ClipConfig | BertConfig),
            f"told_by is for conditioners of kind 'clip' and 'bert', and this is '{kind.kind}'; leave it out",
        ),
        (undroppable and drop > 0, "no label stands for none, so none can be left out; set diffusion.drop=0"),
    ):
        if wrong:
            raise ValueError(message)
    _check_fields(kind, material)


def _check_fields(kind: object, material: Material) -> None:
    match kind:
        case WordsConfig() | ClipConfig() | BertConfig():
            field = "caption"
        case SegmentationConfig():
            field = "map"
        case LayoutConfig() | BoxesConfig():
            field = "boxes"
        case _:
            field = "label"
    if field not in material.told.fields:
        raise ValueError(LACKING[field].format(material.about))
    if isinstance(kind, LabelsConfig | TableConfig):
        room = kind.classes - (isinstance(kind, LabelsConfig) and kind.null is not None)
        if len(material.classes) > room:
            raise ValueError(f"the pictures have {len(material.classes)} classes, and the model room for {room}")


def shuffled(said: Sequence[Way], at: Address) -> list[Way]:
    """The objects of each picture in an order that is drawn, as LDM draws it for a conditioner to which it matters.

    An order does not depend on batch mates.
    """
    drawn = at.uniform(Stream.OBJECTS, SHUFFLED).tolist()
    return [_shuffled(way, numbers) for way, numbers in zip(said, drawn, strict=True)]


def _shuffled(way: Way, numbers: Sequence[float]) -> Way:
    placed = {key: way[key] for key in PLACED if key in way}
    first = {key: [box for _, box in sorted(zip(numbers, boxes, strict=False))] for key, boxes in placed.items()}
    return {**way, **{key: (*first[key], *boxes[len(numbers) :]) for key, boxes in placed.items()}}


class Told(nn.Module):
    """The objective of the second stage; its parameters are the conditioner's and the denoiser's.

    A `frozen` conditioner is used as it is: it is no part of what is trained.
    """

    def __init__(
        self, model: LatentDiffusion, drop: float, times: Times, loss: Loss = SIMPLE, *, frozen: bool = False
    ) -> None:
        super().__init__()
        self.conditioner = None if frozen else model.conditioner
        self.denoiser = model.denoiser
        self._frozen = (model.conditioner,) if frozen else ()  # in a tuple, where no module looks for its parts
        self.drop = drop
        self.times: Times = times
        self.loss = loss

    @property
    def teller(self) -> AnyConditioner | None:
        """The conditioner, trained or not."""
        return self._frozen[0] if self._frozen else self.conditioner

    @property
    def reads(self) -> AnyConditioner | None:
        """The conditioner, if it reads what is said of a picture, and not a map that is shown."""
        return None if isinstance(self.teller, Segmentation) else self.teller

    def forward(self, batch: Batch, at: Address) -> Outcome:
        """The mean of `each`; and where maps have a short way to the answer, the squared error of what they draw."""
        z, cond = self._asked(batch, at)
        loss = self._denoised(z, cond, at).mean()
        short = self.denoiser.net.short if isinstance(self.denoiser.net, UNet) else None
        if short is None or cond.maps is None:
            return Outcome(loss)
        drawing = (short.guess(cond.maps) - z).square().mean()
        return Outcome(loss + drawing, {"drawing": drawing.detach()})

    def each(self, batch: Batch, at: Address) -> Tensor:
        """The loss of each sample (B,) in denoising.

        `batch`: "mean" (B, C, h, w) of the latents, "logvar" of those that are drawn; "maps" (B, M, h, w) that the
        network is shown; the conditioner's tensors.
        """
        return self._denoised(*self._asked(batch, at), at)

    def _denoised(self, z: Tensor, cond: Cond, at: Address) -> Tensor:
        return denoising_loss(self.denoiser, z, cond, at, kind=self.times, loss=self.loss)

    def _asked(self, batch: Batch, at: Address) -> tuple[Tensor, Cond]:
        """The latents, and what the network is told of them."""
        z = batch["mean"]
        if "logvar" in batch:
            z = drawn(z, batch["logvar"], at.normal(z, Stream.ENCODE))
        cond = Cond()
        if (teller := self.teller) is not None:
            cond = teller(batch)
            if self.drop > 0:
                keep = (at.uniform(Stream.DROP)[:, 0] >= self.drop).to(z.device)
                cond = cond.where(keep, teller.null(len(z)))
        if "maps" in batch:
            cond = cond | Cond(maps=batch["maps"])
        return z, cond
