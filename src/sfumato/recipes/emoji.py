"""The emoji recipe: a model of 64 x 64 pixels that two CPU cores can train."""

from pathlib import Path

from sfumato.data import Emoji, Split, captions, concrete_ids, opened
from sfumato.io.model_folder import Defaults
from sfumato.latents.autoencoding import Losses
from sfumato.models.config import ModelConfig, ScheduleConfig, WordsConfig
from sfumato.nets.autoencoder import AutoencoderSize
from sfumato.nets.transformer import TransformerSize
from sfumato.nets.unet import UNetSize
from sfumato.recipes.autoencoder import FirstStageRun
from sfumato.recipes.material import Material, held_out
from sfumato.recipes.settings import DiffusionRun, DiffusionTraining
from sfumato.train.plan import Plan

STYLES = ("3d", "flat")  # that the denoiser learns; the autoencoder sees all four


def settings() -> DiffusionTraining:
    """The settings of the bundled model."""
    return DiffusionTraining(
        name="emoji",
        defaults=Defaults(guidance=1.5),
        model=ModelConfig(
            first_stage=AutoencoderSize(
                channels=32, mult=(1, 2, 4), blocks=1, latent_channels=48, patch=2, shortcut="linear"
            ),
            conditioner=WordsConfig(encoder=TransformerSize(dim=128, depth=2, length=24, heads=4, dim_head=32)),
            unet=UNetSize(
                channels=48,
                width=80,
                mult=(1, 2, 3),
                blocks=1,
                attention=(2, 4),
                head_dim=40,
                context_dim=128,
                vector_dim=128,
                modulation="scale_shift",
            ),
            schedule=ScheduleConfig(kind="cosine"),
            resolution=64,
        ),
        first_stage=FirstStageRun(
            plan=Plan(steps=2000, batch=16, rate=1.5e-3, warmup=50, ema=0.995, save=250, preview=500),
            losses=Losses(perceptual=0.1, perceptual_from=1600, squares=5.0, kl=1e-3),
        ),
        diffusion=DiffusionRun(
            plan=Plan(steps=9000, batch=64, rate=1e-3, warmup=200, ema=0.999, save=250, preview=1000)
        ),
    )


def material(data: Path | None = None, size: int = 64, *, hold: bool = True) -> Material:
    """The emoji world, or a folder of captioned pictures in its place; with `hold` some are held out to validate with.

    Of the emoji world these are concepts that nothing learns from in any case.
    """
    if data is not None:
        return _folder(data, size, hold=hold)
    concrete = concrete_ids()
    return Material(
        pictures=Emoji(split=Split.TRAIN),
        told=Emoji(split=Split.TRAIN, styles=STYLES, concepts=concrete),
        held_out=Emoji(split=Split.CONCEPT),
        ways=lambda sample: tuple({"caption": way} for way in captions(sample["meta"])),
        about=f"emoji world, concrete concepts in the styles {', '.join(STYLES)}",
        fingerprint=Emoji(split="all").fingerprint,
        validation=Emoji(split=Split.CONCEPT, styles=STYLES, concepts=concrete) if hold else None,
    )


def _folder(data: Path, size: int, *, hold: bool) -> Material:
    whole = opened(data, size=size)
    rest, unseen = held_out(whole)
    return Material(
        pictures=rest,
        told=rest if hold else whole,
        held_out=unseen,
        ways=lambda sample: tuple({"caption": way} for way in sample["captions"]),
        about=f"{len(whole)} pictures of the folder {data.name}",
        fingerprint=whole.fingerprint,
        validation=unseen if hold else None,
    )
