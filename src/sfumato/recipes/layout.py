"""Layout to image: boxes with labels, and captions beside where there are some (Rombach et al. 2022, sec. 4.3.1)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sfumato.data import opened
from sfumato.data.cropped import Cropped
from sfumato.data.limits import Limits
from sfumato.data.listed import Listed
from sfumato.data.listing import shown
from sfumato.data.part import Part
from sfumato.data.sample import Dataset, Sample
from sfumato.data.scenes import LABELS, SIDE, Scenes
from sfumato.io.model_folder import Defaults
from sfumato.latents.autoencoding import Losses
from sfumato.models.config import BoxesConfig, Conditioning, LayoutConfig, ModelConfig, ScheduleConfig, sized
from sfumato.nets.autoencoder import AutoencoderSize
from sfumato.nets.perceiver import PerceiverSize
from sfumato.nets.transformer import TransformerSize
from sfumato.nets.unet import UNetSize
from sfumato.recipes import emoji
from sfumato.recipes.autoencoder import FirstStageRun
from sfumato.recipes.material import Material, Way, held_out
from sfumato.recipes.settings import DiffusionRun, DiffusionTraining, Layouts
from sfumato.recipes.told import LACKING
from sfumato.registry import unknown
from sfumato.train.plan import Plan

CHANNELS = 16  # of the latent
DIM = 128  # of a token
PAINTED = 64  # channels in which boxes are drawn beside the latent
READER = TransformerSize(dim=DIM, depth=2, heads=4, dim_head=32)
WORDS = TransformerSize(dim=DIM, depth=1, length=48, heads=4, dim_head=32)
SCENES, UNSEEN, VALIDATED = 12_000, 253, 64  # scenes that are learnt from, and others, each of a seed of its own
BOTH, BOXES_ALONE, CAPTION_ALONE = 4, 3, 1  # of eight times that a picture is seen, what is told of it


def settings(data: Path | None) -> DiffusionTraining:
    """Boxes by their sides and the words of their labels, through a transformer; drawn beside the latent too."""
    return _settings(BoxesConfig(encoder=READER, words=WORDS, captions=_captioned(data), painted=PAINTED))


def perceiver(data: Path | None) -> DiffusionTraining:
    """The same rows, any number of them, through a Perceiver to 16 tokens, and nothing drawn."""
    size = PerceiverSize(channels=DIM, latents=16, dim=DIM, rounds=1, depth=2, heads=4)
    return _settings(BoxesConfig(perceiver=size, words=WORDS, captions=_captioned(data), most=1000))


def tokens(data: Path | None) -> DiffusionTraining:
    """LDM's sequence of 92 numbers through its transformer in small; no captions, and nothing drawn."""
    size = TransformerSize(dim=DIM, depth=4, length=92, heads=4, dim_head=32)
    return _settings(sized(LayoutConfig, data, encoder=size, names=labels(data)))


def labels(data: Path | None) -> tuple[str, ...]:
    """What objects are called: in the scenes, or in the pictures of a folder."""
    return LABELS if data is None else opened(data, size=SIDE).labels


def _captioned(data: Path | None) -> bool:
    return data is None or "caption" in opened(data, size=SIDE).fields


def _settings(conditioner: BoxesConfig | LayoutConfig) -> DiffusionTraining:
    """A model of 96 pixels over a first stage of few channels: what need not be painted, need not be learnt."""
    first = replace(emoji.settings().model.first_stage or AutoencoderSize(), latent_channels=CHANNELS)
    placed = isinstance(conditioner, BoxesConfig)
    painted = conditioner.painted if placed else 0
    return DiffusionTraining(
        name="layout",
        defaults=Defaults(guidance=2.0),
        model=ModelConfig(
            first_stage=first,
            conditioner=conditioner,
            unet=UNetSize(
                channels=CHANNELS,
                map_channels=painted,
                map_short=painted > 0,
                width=64,
                mult=(1, 2, 3),
                blocks=1,
                attention=(2, 4),
                head_dim=32,
                context_dim=DIM,
                vector_dim=DIM if placed else None,
                modulation="scale_shift",
            ),
            schedule=ScheduleConfig(kind="cosine"),
            resolution=SIDE,
            maps="boxes" if painted else None,
        ),
        first_stage=FirstStageRun(
            plan=Plan(steps=1500, batch=16, rate=1.5e-3, warmup=50, ema=0.995, save=250, preview=500),
            losses=Losses(perceptual=0.1, perceptual_from=1200, squares=5.0, kl=3e-3),
            crop=64,
        ),
        diffusion=DiffusionRun(
            plan=Plan(steps=9000, batch=32, rate=1.5e-3, warmup=200, ema=0.999, save=250, preview=1000),
            layouts=Layouts(most=conditioner.most) if placed else Layouts(),
        ),
    )


def material(data: Path | None, settings: DiffusionTraining) -> Material:
    """The scenes, or a folder of pictures with boxes; some are held out from both stages."""
    size, kind = settings.model.resolution, settings.model.conditioner
    told = ways if isinstance(kind, BoxesConfig) and kind.captions else placed
    if data is None:
        _check_names(kind, LABELS)
        learnt, unseen, few = (Scenes(n, seed=k, side=size) for k, n in enumerate((SCENES, UNSEEN, VALIDATED)))
        about = f"{SCENES:,} scenes of the emoji world"
        return Material(learnt, learnt, unseen, told, about, learnt.fingerprint, validation=few)
    how = settings.diffusion.layouts
    whole = opened(data, size=size)
    if len(whole.unboxed) == len(whole):
        raise ValueError(f"{shown(whole.root)}: {LACKING['boxes'].format(whole.kind)}")
    unlimited, whole = whole, whole.limited(Limits(how.least_area, how.least, how.most))
    _check_names(kind, whole.labels)
    rest, unseen = _split(whole, unlimited)
    seen = rest
    if how.crops:
        seen = Cropped(rest, size=size, kind=how.windows, n=how.crops, seed=settings.diffusion.plan.seed)
    small, over, few = whole.counted
    about = f"{len(whole)} pictures of the folder {data.name} with boxes of {len(whole.labels)} labels"
    lost = f"{small:,} boxes too small and {over:,} over the number left out, and {few:,} pictures with too few"
    return Material(
        rest, seen, unseen, told, f"{about}; {lost}", whole.fingerprint, validation=unseen, found=(f"{about}: {lost}",)
    )


def _check_names(kind: Conditioning | None, labels: Sequence[str]) -> None:
    """ValueError if the model has names for labels, and none for one of these."""
    names = kind.names if isinstance(kind, BoxesConfig | LayoutConfig) else ()
    if names and (strange := sorted(set(labels) - set(names))):
        raise ValueError(f"model.conditioner.names lacks one: {unknown('label', strange[0], names)}")


def _split(whole: Listed, unlimited: Listed) -> tuple[Dataset, Dataset | None]:
    """Pictures to learn from and those held out: of all of the folder one in twenty, whatever the limits leave of them,
    so that an evaluation, which has no limits, measures none that were learnt.
    """
    _, held = held_out(unlimited)
    every = unlimited.names
    apart = {every[i] for i in held.index} if held else set()
    index = [[i for i, name in enumerate(whole.names) if (name in apart) == there] for there in (False, True)]
    rest, unseen = (Part(whole, some) for some in index)
    if not rest.index:
        raise ValueError(f"all of the {len(whole)} pictures that the limits leave are held out; take wider limits")
    return rest, unseen if unseen.index else None


def ways(sample: Sample) -> tuple[Way, ...]:
    """Boxes and a caption, boxes alone, a caption alone; each caption of several."""
    (alone,) = placed(sample)
    told: list[Way] = []
    for caption in sample.get("captions", ()):
        told += [{**alone, "caption": caption}] * BOTH + [alone] * BOXES_ALONE
        told += [{"boxes": (), "caption": caption}] * CAPTION_ALONE
    return tuple(told) or (alone,)


def placed(sample: Sample) -> tuple[Way, ...]:
    """Boxes alone, and of a picture that is cut what LDM's tokens say of the whole."""
    told: dict[str, Any] = {key: sample[key] for key in ("uncut", "window") if key in sample}
    return ({**told, "boxes": sample.get("boxes", ()), "caption": ""},)
