"""Small files of every kind of model, as their authors' programs would have written them."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sfumato.io import tensors
from sfumato.io.origin import Origin
from sfumato.io.single_file import write
from sfumato.models.config import (
    BertConfig,
    ClipConfig,
    LabelsConfig,
    LayoutConfig,
    ModelConfig,
    ScheduleConfig,
    SegmentationConfig,
    TableConfig,
)
from sfumato.models.latent_diffusion import hollow
from sfumato.nets.autoencoder import AutoencoderSize
from sfumato.nets.transformer import TransformerSize
from sfumato.nets.unet import UNetSize

SD = ScheduleConfig(kind="scaled_linear", start=0.00085, end=0.012)
KL = AutoencoderSize(channels=32, mult=(1, 2), blocks=1)
VQ = AutoencoderSize(channels=32, mult=(1, 2), blocks=1, latent_channels=3, attention=(2,), codebook=16)
TEXT = TransformerSize(dim=64, depth=2, heads=1, causal=True, bias=True)
SMALL = {"width": 32, "mult": (1, 2), "blocks": 1}
KINDS: dict[str, tuple[ModelConfig, Origin]] = {
    "sd1": (
        ModelConfig(
            first_stage=KL,
            conditioner=ClipConfig(encoder=replace(TEXT, activation="quick_gelu"), vocabulary=200, pad=49407),
            unet=UNetSize(channels=4, attention=(1, 2), heads=8, context_dim=64, **SMALL),
            schedule=SD,
            resolution=64,
        ),
        Origin(text="clip"),
    ),
    "sd2": (
        ModelConfig(
            first_stage=KL,
            conditioner=ClipConfig(encoder=TEXT, vocabulary=49408, pad=0),
            unet=UNetSize(channels=4, attention=(1, 2), head_dim=16, context_dim=64, map_channels=5, **SMALL),
            schedule=SD,
            resolution=64,
            maps="inpainting",
        ),
        Origin(linear=True, text="openclip"),
    ),
    "clip": (
        ModelConfig(
            first_stage=KL,
            conditioner=ClipConfig(encoder=TEXT, pad=0),
            unet=UNetSize(channels=4, attention=(1, 2), head_dim=16, context_dim=64, **SMALL),
            schedule=SD,
            resolution=64,
        ),
        Origin(linear=True, text="openclip"),
    ),
    "text2img": (
        ModelConfig(
            first_stage=VQ,
            conditioner=BertConfig(encoder=TransformerSize(dim=32, depth=2, logits=True), vocabulary=30522),
            unet=UNetSize(channels=3, attention=(2,), head_dim=32, context_dim=32, depth=2, **SMALL),
            schedule=SD,
            resolution=64,
        ),
        Origin(text="bert"),
    ),
    "layout": (
        ModelConfig(
            first_stage=VQ,
            conditioner=LayoutConfig(
                encoder=TransformerSize(dim=32, depth=2, length=14, logits=True),
                vocabulary=64,
                names=("cat", "dog", "tree"),
            ),
            unet=UNetSize(channels=3, attention=(1, 2), head_dim=32, context_dim=32, depth=3, **SMALL),
            schedule=SD,
            resolution=64,
        ),
        Origin(text="bert"),
    ),
    "labels": (
        ModelConfig(
            first_stage=VQ,
            conditioner=LabelsConfig(classes=11, dim=16, null=10),
            unet=UNetSize(channels=3, attention=(2,), heads=1, context_dim=16, **SMALL),
            schedule=SD,
            resolution=64,
        ),
        Origin(),
    ),
    "churches": (
        ModelConfig(
            first_stage=KL,
            conditioner=None,
            unet=UNetSize(
                channels=4, attention=(1, 2), attends="plain", modulation="scale_shift", resample="residual", **SMALL
            ),
            schedule=SD,
            resolution=64,
        ),
        Origin(),
    ),
    "adm": (
        ModelConfig(
            first_stage=None,
            conditioner=TableConfig(classes=10),
            unet=UNetSize(
                channels=3,
                out_channels=6,
                attention=(2,),
                attends="plain",
                classes=10,
                modulation="scale_shift",
                resample="residual",
                **SMALL,
            ),
            schedule=SD,
            resolution=64,
        ),
        Origin(order="by_part"),
    ),
    "semantic": (
        ModelConfig(
            first_stage=VQ,
            conditioner=SegmentationConfig(classes=7, stages=1),
            unet=UNetSize(channels=3, map_channels=3, attention=(), attends="plain", heads=1, **SMALL),
            schedule=SD,
            resolution=64,
            maps="segmentation",
        ),
        Origin(),
    ),
    "larger": (
        ModelConfig(
            first_stage=VQ,
            unet=UNetSize(channels=3, map_channels=3, attention=(2,), attends="plain", head_dim=32, **SMALL),
            schedule=SD,
            resolution=64,
            maps="low_resolution",
            upscale=2,
        ),
        Origin(),
    ),
}


def filled(config: ModelConfig, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """Numbers for every parameter, no two tensors alike."""
    model = hollow(config)
    generator = torch.Generator().manual_seed(5)
    ours = {n: _numbers(n, p.shape, generator).to(dtype) for n, p in model.named_parameters()}
    std = {n: torch.tensor(1 / 0.18215, dtype=torch.float64) for n in model.state_dict() if n == "first_stage.std"}
    return ours | std


def _numbers(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Matrices that keep the variance, scales near 1, offsets near 0: networks that answer in numbers of order 1."""
    numbers = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        return numbers / shape[1:].numel() ** 0.5
    return (1.0 if name.endswith("weight") else 0.0) + 0.1 * numbers


@functools.cache
def original(kind: str) -> dict[str, Tensor]:
    """A file's tensors as its authors' program would have written them."""
    config, origin = KINDS[kind]
    return write(filled(config), hollow(config), origin)


def single(kind: str, path: Path) -> Path:
    config, origin = KINDS[kind]
    said = json.dumps({"config": config.model_dump(mode="json"), "origin": origin.model_dump(mode="json")})
    tensors.write(path, original(kind), {"sfumato": said})
    return path
