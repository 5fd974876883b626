"""What the small models of 64 pixels share: a first stage of factor 4, a denoiser, pictures to learn from.

They keep the wiring of their published namesakes (Rombach et al. 2022, sec. 4), and two CPU cores can train them.
"""

from pathlib import Path
from typing import Any

from sfumato.data import Dataset, Emoji, Split, opened
from sfumato.data.fingerprint import Fingerprint
from sfumato.data.part import split
from sfumato.io.model_folder import Defaults
from sfumato.models.config import Conditioning, LabelsConfig, MapsKind, ModelConfig, ScheduleConfig, map_channels
from sfumato.nets.unet import UNetSize
from sfumato.recipes import first_stages
from sfumato.recipes.material import Material
from sfumato.recipes.settings import DiffusionRun, DiffusionTraining
from sfumato.train.plan import Plan

SIDE, FACTOR = 64, 4
EVERY = 25  # one picture in so many is held out


def training(
    name: str,
    *,
    steps: int,
    maps: MapsKind | None = None,
    conditioner: Conditioning | None = None,
    guidance: float = 1.0,
    **of_model: Any,
) -> DiffusionTraining:
    """The settings of a whole model over the latents of `kl-f4`; conditions are dropped where guidance is of use."""
    first = first_stages.small("kl", FACTOR, None)
    channels = first.size.latent_channels
    tokens = conditioner.dim if isinstance(conditioner, LabelsConfig) else None
    return DiffusionTraining(
        name=name,
        defaults=Defaults(sampler="dpmpp_2m", steps=20, guidance=guidance),
        model=ModelConfig(
            first_stage=first.size,
            conditioner=conditioner,
            unet=UNetSize(
                channels=channels,
                map_channels=map_channels(maps, channels) or (3 if maps else 0),
                width=64,
                mult=(1, 2),
                blocks=1,
                attention=(2,),
                attends="plain" if tokens is None else "transformer",
                head_dim=32,
                context_dim=tokens,
                modulation="scale_shift",
            ),
            schedule=ScheduleConfig(kind="cosine"),
            resolution=SIDE,
            maps=maps,
            **of_model,
        ),
        first_stage=first.run.model_copy(update={"adversary": None}),
        diffusion=DiffusionRun(
            plan=Plan(steps=steps, batch=32, rate=1e-3, warmup=100, ema=0.998, save=250, preview=500),
            drop=0.1 if guidance > 1 else 0.0,
        ),
    )


def pictures(data: Path | None, settings: DiffusionTraining) -> Material:
    """The pictures of a folder, or the emoji world, and nothing said of them; some are held out from both stages."""
    size = settings.model.resolution
    if data is None:
        world, unseen = Emoji(size=size), Emoji(split=Split.CONCEPT, size=size)
        return plain(world, unseen, "emoji world, all styles", Emoji(split="all").fingerprint)
    whole = opened(data, size=size)
    return plain(*split(whole, every=EVERY), f"{len(whole)} pictures of the folder {data.name}", whole.fingerprint)


def plain(learnt: Dataset, held_out: Dataset | None, about: str, fingerprint: Fingerprint) -> Material:
    """Pictures of which nothing is said."""
    return Material(learnt, learnt, held_out, lambda _: ({},), about, fingerprint, validation=held_out)
