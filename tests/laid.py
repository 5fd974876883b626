"""Whole models that are asked with boxes, of each kind, small enough to run a thousand times, and not trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import tiny
from sfumato.boxes import Box
from sfumato.conditioning.vocabulary import vocabulary
from sfumato.io import model_folder
from sfumato.io.model_folder import Defaults, Loaded, ModelFile
from sfumato.models.config import BoxesConfig, LayoutConfig, ModelConfig
from sfumato.models.latent_diffusion import LatentDiffusion
from sfumato.nets.perceiver import PerceiverSize
from sfumato.nets.transformer import TransformerSize

TOKENS = TransformerSize(dim=16, depth=1, length=10, heads=2, dim_head=8)
PERCEIVER = PerceiverSize(channels=8, latents=4, dim=16, rounds=1, depth=1, heads=2, read_heads=1)
NAMES = ("apple", "dog", "pear")
WORDS = ("red apple", "green pear", "dog")  # labels of a model that reads words
UNET = replace(tiny.CONFIG.unet, map_channels=4)


def _config(**changes: Any) -> ModelConfig:
    return ModelConfig(**{**tiny.CONFIG.model_dump(), **changes})


CONFIGS = {
    # boxes with labels of any words beside captions, painted too
    "words": _config(
        conditioner=BoxesConfig(encoder=TOKENS, words=TOKENS, captions=True, most=3, painted=4),
        unet=UNET,
        maps="boxes",
    ),
    # boxes alone, whose labels have names
    "names": _config(conditioner=BoxesConfig(encoder=TOKENS, names=NAMES, most=30)),
    # the same through a Perceiver, and painted
    "perceived": _config(
        conditioner=BoxesConfig(perceiver=PERCEIVER, names=NAMES, most=3, painted=4), unet=UNET, maps="boxes"
    ),
    # LDM's numbers
    "ldm": _config(
        conditioner=LayoutConfig(encoder=replace(TOKENS, length=11), vocabulary=400),
        unet=replace(tiny.CONFIG.unet, vector_dim=None),
    ),
}
PAINTED = ("words", "perceived")
ALONE = ("names", "perceived", "ldm")  # without captions
LABELS = {"words": ("red apple", "dog"), "names": ("apple", "dog"), "perceived": ("apple", "dog"), "ldm": ("7", "11")}


def boxes(kind: str) -> tuple[Box, Box]:
    """Two boxes of labels that such a model knows."""
    one, two = LABELS[kind]
    return Box(one, 0.0, 0.25, 0.5, 1.0), Box(two, 0.5, 0.125, 0.9, 0.75)


def model(kind: str, *, seed: int = 0, **changes: Any) -> LatentDiffusion:
    """The model, ready to sample."""
    config = CONFIGS[kind]
    conditioner = config.conditioner
    assert conditioner is not None
    changed = config.model_copy(update={"conditioner": conditioner.model_copy(update=changes)})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = LatentDiffusion(changed, vocabulary([*tiny.CAPTIONS, *WORDS]))
    tiny.awake(net, seed=seed)
    return net.eval().requires_grad_(False)


def loaded(kind: str, **changes: Any) -> Loaded:
    """The same, as it is after loading."""
    net = model(kind, **changes)
    file = ModelFile(name=kind, config=net.config, defaults=Defaults(steps=3, guidance=2.0))
    return Loaded(net, file, Path(), "ema")


def folder(path: Path, kind: str, **changes: Any) -> Path:
    """The same on disk."""
    one = loaded(kind, **changes)
    tokenizer = getattr(one.model.conditioner, "tokenizer", None)
    model_folder.save(path, one.file, {"ema": ("made up", one.model.state_dict())}, tokenizer=tokenizer)
    return path


def written(path: Path, content: Any) -> Path:
    """A file of JSON."""
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
