"""A whole model that is small enough to run a thousand times, and not trained."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from sfumato.conditioning.vocabulary import vocabulary
from sfumato.io import model_folder
from sfumato.io.model_folder import Defaults, ModelFile
from sfumato.models.config import ModelConfig, ScheduleConfig, WordsConfig
from sfumato.models.latent_diffusion import LatentDiffusion
from sfumato.nets.autoencoder import AutoencoderSize
from sfumato.nets.transformer import TransformerSize
from sfumato.nets.unet import UNetSize

CAPTIONS = ("a red apple, 3d", "a green pear, flat", "two dogs in the rain")

CONFIG = ModelConfig(
    first_stage=AutoencoderSize(channels=8, mult=(1, 2), blocks=1, latent_channels=4, patch=2, shortcut="linear"),
    conditioner=WordsConfig(encoder=TransformerSize(dim=16, depth=1, length=10, heads=2, dim_head=8)),
    unet=UNetSize(
        channels=4, width=16, mult=(1, 2), blocks=1, attention=(2,), head_dim=8, context_dim=16, vector_dim=16
    ),
    schedule=ScheduleConfig(kind="cosine"),
    resolution=16,
)  # both sides of a picture must divide by 8


@torch.no_grad()
def awake(module: nn.Module, *, seed: int = 0) -> nn.Module:
    """Noise in every parameter that starts at one number, so that no branch is silent and nothing cancels."""
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        if bool((p == p.flatten()[0]).all()):
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return module


def model(captions: Iterable[str] = CAPTIONS, config: ModelConfig = CONFIG, *, seed: int = 0) -> LatentDiffusion:
    """The model, ready to sample."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = LatentDiffusion(config, vocabulary(captions))
    awake(net, seed=seed)
    return net.eval().requires_grad_(False)


def folder(path: Path, *, seed: int = 0) -> Path:
    """The model as a folder on disk, with one weight set."""
    net = model(seed=seed)
    model_folder.save(
        path,
        ModelFile(
            name="tiny",
            config=CONFIG,
            defaults=Defaults(steps=3, guidance=2.0),
            provenance={"material": "nothing"},
        ),
        {"ema": ("made up", net.state_dict())},
        tokenizer=net.conditioner.tokenizer,
    )
    return path
