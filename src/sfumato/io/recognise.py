"""What model a single file holds: told from names and shapes, then from what the file and its neighbour say."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from pydantic import ValidationError

from sfumato.conditioning.known_labels import known_labels
from sfumato.conditioning.layout import OBJECT
from sfumato.diffusion.prediction import Prediction
from sfumato.io import said, shapes
from sfumato.io.layouts import taesd
from sfumato.io.layouts.ldm import Order
from sfumato.io.origin import Origin
from sfumato.io.shapes import FoundUNet, TextNames, below
from sfumato.io.stored import Stored
from sfumato.models.config import (
    BertConfig,
    ClipConfig,
    Closed,
    Conditioning,
    LabelsConfig,
    LayoutConfig,
    MapsKind,
    ModelConfig,
    ScheduleConfig,
    SegmentationConfig,
    TableConfig,
    complaint,
    configured,
)
from sfumato.models.published import TRAININGS, Training
from sfumato.nets.autoencoder import AutoencoderSize
from sfumato.nets.transformer import TransformerSize
from sfumato.nets.unet import UNetSize

UNET, FIRST_STAGE, COND, EMA = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "model_ema."
CLIP_AT = (COND + "transformer.text_model.", COND + "transformer.")  # newer libraries leave the second part out
UNKNOWN = Training(512, ScheduleConfig(kind="scaled_linear"), 0.18215, like="as Stable Diffusion, which is assumed")
SIDE_OF_V = 768
BERT = 30522  # words
PUBLISHED_LAYOUT = 8192, 92  # numbers of layout2img-openimages256, and how many of them say a layout
OURS = "sfumato"  # the key of the metadata under which a file written here says what it is


@dataclass(frozen=True)
class Recognised:
    """A model in a file, before its weights are read."""

    config: ModelConfig
    origin: Origin
    scale: float  # what latents are multiplied by
    sets: tuple[str, ...]  # names of the weight sets, the one to use first
    why: tuple[str, ...]
    sure: bool  # whether the prediction is known without asking the network
    prefixed: bool = True  # whether the U-Net's names have LDM's prefix
    text_at: str = ""


def recognise(stored: Stored) -> Recognised:
    """The model in a file; ValueError, saying what it is, if it is none."""
    all_shapes = {name: entry.shape for name, entry in stored.entries.items()}
    prefixed = any(name.startswith(UNET) for name in all_shapes)
    unet_shapes = below(all_shapes, UNET) if prefixed else all_shapes
    if not holds_unet(unet_shapes):
        raise ValueError(f"{stored.path} {_not_a_model(all_shapes)}")
    try:
        first_shapes = below(all_shapes, FIRST_STAGE)
        first = shapes.autoencoder(first_shapes) if first_shapes else None
        found = shapes.unet(unet_shapes, latent=first.latent_channels if first else None)
        text_at, conditioner, text = _conditioner(all_shapes, found, first)
        _whole(found, first, conditioner)
    except ValueError as error:
        raise ValueError(f"{stored.path}: {error}") from None
    if OURS in stored.metadata:
        return _ours(stored, first, text_at, prefixed)
    beside, training = said.beside(stored.path), TRAININGS[found.published] if found.published else UNKNOWN
    schedule, about_schedule = said.schedule(stored, beside, training)
    prediction, about_prediction, sure = said.prediction(stored, beside, found, training)
    v = prediction is Prediction.V and found.published == "sd2"
    order, about_order = _order(beside, found)
    size, about_heads = beside.size(found.size)
    config = configured(
        stored.path,
        first_stage=first,
        conditioner=conditioner,
        unet=replace(size, upcast=v or found.size.vector_dim is not None),
        schedule=schedule,
        prediction=prediction,
        resolution=SIDE_OF_V if v else training.resolution,
        maps=training.maps or maps_of(found.size, first, conditioner),
    )
    averaged = any(name.startswith(EMA + "diffusion_model") for name in all_shapes)
    return Recognised(
        config,
        Origin(linear=found.linear, order=order, text=text),
        said.scale(stored, beside, training) if first else 1.0,
        ("ema", "raw") if averaged else ("raw",),
        (*found.why, *about_heads, *about_order, *_called(conditioner), about_schedule, about_prediction),
        sure,
        prefixed,
        text_at,
    )


def maps_of(size: UNetSize, first: AutoencoderSize | None, conditioner: Conditioning | None = None) -> MapsKind | None:
    """What a network is shown, as its channels tell: a latent and a hole, a latent, depth, or another thing."""
    if isinstance(conditioner, SegmentationConfig):
        return "segmentation"
    latent, channels = first.latent_channels if first else size.channels, size.map_channels
    if channels == 0:
        return None
    if channels == latent + 1:
        return "inpainting"
    return "picture" if channels == latent else "depth" if channels == 1 else "other"


def _whole(found: FoundUNet, first: AutoencoderSize | None, conditioner: Conditioning | None) -> None:
    """ValueError if the U-Net is alone, or attends to what nothing in the file makes."""
    if first is None and found.size.channels != 3:  # noqa: PLR2004
        raise ValueError("it holds a U-Net alone, without the first stage whose latents it paints")
    if conditioner is None and found.size.context_dim and found.published != "rdm768":
        raise ValueError(f"it holds no text encoder, and its U-Net attends to {found.size.context_dim} channels of one")


def _order(beside: said.Beside, found: FoundUNet) -> tuple[Order, tuple[str, ...]]:
    """How plain attention holds Q, K and V, and how that is known, where there is some."""
    if found.size.attends != "plain" or found.size.lineage == "ddpm":
        return "by_head", ()
    new = beside.params.unet_config.params.use_new_attention_order if beside.params else None
    how = "says the .yaml"
    if new is None:
        new = found.published == "adm-64"
        how = "as the published network has them" if found.published else "as nearly all networks have them"
    words = "part by part" if new else "head by head"
    return ("by_part" if new else "by_head"), (f"Q, K and V {words}, {how}",)


class _Ours(Closed):
    """What a file that was written here says of itself."""

    config: ModelConfig
    origin: Origin


def _ours(stored: Stored, first: AutoencoderSize | None, text_at: str, prefixed: bool) -> Recognised:
    """A file that was written here."""
    try:
        found = _Ours.model_validate_json(str(stored.metadata[OURS]))
    except ValidationError as error:
        raise ValueError(f"{stored.path}: what its metadata say of it is not understood: {complaint(error)}") from None
    scale = said.scale(stored, said.Beside(stored.path, None), UNKNOWN) if first else 1.0
    why = ("written by sfumato, which says all of it",)
    return Recognised(found.config, found.origin, scale, ("raw",), why, True, prefixed, text_at)


def holds_unet(names: Iterable[str]) -> bool:
    """Whether tensors of these names, without LDM's prefix, are a U-Net among others."""
    some = set(names)
    return bool({"time_embed.0.weight", "temb.dense.0.weight"} & some) and "out.2.c_proj.weight" not in some


def ema_name(name: str) -> str:
    """The name under which LDM keeps the average of a parameter of `model.`: without its dots."""
    return EMA + name.removeprefix("model.").replace(".", "")


def _conditioner(
    all_shapes: shapes.Shapes, found: FoundUNet, first: AutoencoderSize | None
) -> tuple[str, Conditioning | None, TextNames | None]:
    """Where the conditioner is, what it is, and whose names it has."""
    for at in CLIP_AT:
        if at + "embeddings.token_embedding.weight" in all_shapes:
            words, size = shapes.encoder(below(all_shapes, at), "clip")
            pad = 49407 if size.activation == "quick_gelu" else 0
            return at, ClipConfig(encoder=size, vocabulary=words, pad=pad), "clip"
    if COND + "model.token_embedding.weight" in all_shapes:
        words, size = shapes.encoder(below(all_shapes, COND + "model."), "openclip")
        return COND + "model.", ClipConfig(encoder=size, vocabulary=words, pad=0), "openclip"
    if COND + "transformer.token_emb.weight" in all_shapes:
        words, size = shapes.encoder(below(all_shapes, COND + "transformer."), "bert")
        reads = BertConfig(encoder=size, vocabulary=words) if words == BERT else _layout(words, size)
        return COND + "transformer.", reads, "bert"
    table, mapper = (all_shapes.get(COND + name) for name in ("embedding.weight", "channel_mapper.weight"))
    conditioner: Conditioning | None = None
    if table:
        null = table[0] - 1 if table[0] % 10 == 1 else None  # 1001 classes are 1000 and none
        conditioner = LabelsConfig(classes=table[0], dim=table[1], null=null)
    elif mapper:
        stages = 0 if first is None else round(math.log2(first.factor))
        conditioner = SegmentationConfig(channels=mapper[0], classes=mapper[1], stages=stages)
    elif found.size.classes and not found.size.context_dim:
        conditioner = TableConfig(classes=found.size.classes)
    return COND if table or mapper else "", conditioner, None


def _layout(words: int, size: TransformerSize) -> LayoutConfig:
    """Numbers that are no words are boxes; those of LDM's published model have names, which no file says."""
    names = known_labels("open-images") if (words, size.length) == PUBLISHED_LAYOUT else ()
    return LayoutConfig(encoder=size, vocabulary=words, names=names, window=size.length % OBJECT != 0)


def _called(conditioner: Conditioning | None) -> tuple[str, ...]:
    """How it is known what the classes of boxes are called, if they have names."""
    if not isinstance(conditioner, LayoutConfig) or not conditioner.names:
        return ()
    return (f"labels: {len(conditioner.names)} of Open Images, as the authors' data had them; no file says it",)


ALONE = "is a first stage alone: give it with --vae beside a model"
PARTS = (
    ("lora", "lora", "is a LoRA, which changes a model: give it with --lora"),
    ("string_to_param", "embedding", "is an embedding for a word: give it with --embedding"),
    ("emb_params", "embedding", "is an embedding for a word: give it with --embedding"),
    (r"encoder\.conv_in", "first stage", ALONE),
    (f"^{taesd.MARK}$", "first stage", ALONE),
    (r"out\.2\.c_proj", "classifier", "is a classifier alone, which guides a model and is none"),
    ("text_model", "text encoder", "is a text encoder alone, which a model needs and is not"),
    ("down_blocks", "part", "is a part of a diffusers folder: give the folder"),
)
"""A pattern in the names of a file without a model, what the file is, and what there is to say of it."""


def part(names: Iterable[str]) -> tuple[str, str] | None:
    """What a file without a model holds, and what there is to say of it; None if it is not known."""
    some = list(names)
    return next(((what, advice) for mark, what, advice in PARTS if any(re.search(mark, name) for name in some)), None)


def _not_a_model(names: Iterable[str]) -> str:
    found, first = part(names), next(iter(names), "")
    return found[1] if found else f"holds no diffusion model that is known here (its first tensor is '{first}')"
