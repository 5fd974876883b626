"""First stages by name: small ones that two CPU cores train, and the published ones with the settings of their authors.

A small one (`kl-f4`, `vq-f8`, ...) keeps the factor and the terms of the loss of its namesake in the paper, and has a
twentieth of its weights or fewer: pictures folded two by two, 32 channels, linear shortcuts that begin as the principal
components of the pictures.
"""

from pathlib import Path

from sfumato.latents.adversary import LARGEST, Adversary
from sfumato.latents.autoencoding import Losses
from sfumato.models.published import FIRST_STAGES
from sfumato.nets.autoencoder import AutoencoderSize
from sfumato.nets.patchgan import PatchGanSize
from sfumato.recipes.autoencoder import FirstStageRun
from sfumato.recipes.first_stage import FirstStageTraining
from sfumato.train.plan import Plan

CHANNELS = {2: 2, 4: 3, 8: 4, 16: 16}  # of the latent, by factor, as in Rombach et al. 2022, table 8
LEVELS = {2: (1,), 4: (1, 2), 8: (1, 2, 4), 16: (1, 2, 4, 4)}
CODES = 1024


def small(kind: str, factor: int, data: Path | None) -> FirstStageTraining:
    """For photographs of 128 pixels, of which a step sees squares of 64; for the emoji world whole pictures of 64."""
    steps = 1600
    return FirstStageTraining(
        name=f"{kind}-f{factor}",
        size=AutoencoderSize(
            channels=32,
            mult=LEVELS[factor],
            blocks=1,
            latent_channels=CHANNELS[factor],
            codebook=CODES if kind == "vq" else None,
            patch=2,
            shortcut="linear",
        ),
        resolution=128 if data else 64,
        statistics=2000,
        run=FirstStageRun(
            plan=Plan(steps=steps, batch=16, rate=1.5e-3, warmup=50, ema=0.995, save=250, preview=400),
            losses=Losses(squares=5.0, perceptual=0.1, perceptual_from=steps * 8 // 10),
            adversary=Adversary(
                critic=PatchGanSize(width=32, layers=2), start=steps * 17 // 20, warmup=100, weight=0.2, rate=5e-4
            ),
            crop=64 if data else None,
            flips=data is not None,
        ),
    )


# The published ones: steps, batch on one device, where the adversary begins, its weight, layers of its critic -----
_PUBLISHED = {
    "kl-f4": (176_991, 10, 50_001, 0.5, 3),
    "kl-f8": (246_803, 4, 50_001, 0.5, 3),
    "kl-f16": (442_998, 6, 50_001, 0.5, 3),
    "kl-f32": (406_763, 6, 50_001, 0.5, 3),
    "vq-f4": (533_066, 8, 0, 0.75, 3),
    "vq-f4-noattn": (658_131, 8, 11, 0.75, 3),
    "vq-f8": (971_043, 10, 1, 0.6, 2),
    "vq-f8-n256": (1_608_649, 10, 250_001, 0.75, 3),
    "vq-f16": (1_101_166, 14, 250_001, 0.75, 2),
}
RATE = 4.5e-6  # for each picture of a batch


def published(name: str) -> FirstStageTraining:
    """LDM's configurations of its released models: 256 pixels, Adam without decay at a constant rate, LPIPS and GAN.

    The codebook's loss is the one that was meant; `run.losses.beta=legacy` is the one that was used.
    """
    steps, batch, start, weight, layers = _PUBLISHED[name]
    size = FIRST_STAGES[name]
    limit = LARGEST / (3 * 256**2 if name.startswith("kl") else 1)  # there the loss that it is held against is a sum
    return FirstStageTraining(
        name=f"ldm-{name}",
        size=size,
        resolution=256 if name.startswith("vq-f4") else 384,
        run=FirstStageRun(
            plan=Plan(
                steps=steps,
                batch=batch,
                rate=RATE * batch,
                warmup=0,
                floor=1.0,
                betas=(0.5, 0.9),
                weight_decay=0.0,
                clip=1e6,
                ema=0.999,
                save=5000,
                preview=5000,
            ),
            losses=Losses(patience=steps),
            adversary=Adversary(critic=PatchGanSize(layers=layers), start=start, weight=weight, limit=limit),
            crop=256,
            flips=True,
        ),
    )


PUBLISHED = tuple(_PUBLISHED)
