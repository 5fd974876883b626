"""Pipelines of diffusers with random weights, in a small size or in that of Stable Diffusion."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch


class Kind(NamedTuple):
    """A member of the family."""

    unet: dict[str, Any]
    text: dict[str, Any]
    vae: dict[str, Any]
    prediction: str
    pad: str


VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
SMALL_VAE = {**VAE, "block_out_channels": (32, 64, 64, 64)}
FULL_VAE = {**VAE, "block_out_channels": (128, 256, 512, 512)}
KINDS = {
    "sd1-small": Kind(
        {"block_out_channels": (32, 64, 128, 128), "cross_attention_dim": 64, "attention_head_dim": 8},
        {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "hidden_act": "quick_gelu"},
        SMALL_VAE,
        "epsilon",
        "<|endoftext|>",
    ),
    "sd2-small": Kind(
        {
            "block_out_channels": (32, 64, 128, 128),
            "cross_attention_dim": 64,
            "attention_head_dim": (2, 4, 8, 8),
            "use_linear_projection": True,
        },
        {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "hidden_act": "gelu"},
        SMALL_VAE,
        "v_prediction",
        "!",
    ),
    "sd1": Kind(
        {"cross_attention_dim": 768, "attention_head_dim": 8},
        {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "quick_gelu"},
        FULL_VAE,
        "epsilon",
        "<|endoftext|>",
    ),
    "sd2": Kind(
        {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
        {"hidden_size": 1024, "num_hidden_layers": 23, "num_attention_heads": 16, "hidden_act": "gelu"},
        FULL_VAE,
        "v_prediction",
        "!",
    ),
}


def tokenizer(folder: Path, pad: str) -> Any:
    """CLIP's, made of the words that ship with the package."""
    from transformers import CLIPTokenizer

    from sfumato.conditioning.clip_tokens import clip_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    clip_tokenizer().model.save(str(folder))
    names = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token=pad, model_max_length=77, **names
    )


def pipeline(name: str, folder: Path) -> Any:
    """A pipeline with random weights that are not silent anywhere."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    kind = KINDS[name]
    torch.manual_seed(0)
    width = kind.text["hidden_size"]
    config = CLIPTextConfig(intermediate_size=4 * width, vocab_size=49408, max_position_embeddings=77, **kind.text)
    unet = UNet2DConditionModel(sample_size=64 if "small" not in name else 8, **kind.unet)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=kind.prediction,
    )
    parts = {"vae": AutoencoderKL(**kind.vae), "text_encoder": CLIPTextModel(config), "unet": unet}
    for part in parts.values():
        awaken(part)
    words = tokenizer(folder / "words", kind.pad)
    pipe = StableDiffusionPipeline(
        **parts,
        tokenizer=words,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def awaken(module: torch.nn.Module) -> None:
    """Numbers in what starts at one value, so that a norm or an offset put in the wrong place shows."""
    generator = torch.Generator().manual_seed(1)
    for p in module.parameters():
        if p.ndim == 1:
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
