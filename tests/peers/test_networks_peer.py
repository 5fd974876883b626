"""Members of the family that few files show, against diffusers: the same weights from its folder, the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from pipelines import awaken

from sfumato.io import opening

pytestmark = pytest.mark.filterwarnings("ignore")
TOLERANCE = 1e-4
SMALL: dict[str, Any] = {"sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1}
CROSS = {"cross_attention_dim": 24, "attention_head_dim": 8}
BOTH = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
CONDITIONAL: dict[str, dict[str, Any]] = {
    "inpainting": {"in_channels": 9},
    "depth": {"in_channels": 5, "use_linear_projection": True, "attention_head_dim": (4, 8)},
    "two transformer blocks": {"transformer_layers_per_block": 2},
    "up-scaler": {
        "in_channels": 7,
        "num_class_embeds": 50,
        "only_cross_attention": (True, False),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    },
    "unclip": {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 20},
    "scale and shift": {"resnet_time_scale_shift": "scale_shift"},
}
PLAIN = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 32,
    "attention_head_dim": 16,
}
UNCONDITIONAL: dict[str, dict[str, Any]] = {
    "ldm": {**PLAIN, "norm_eps": 1e-5, "downsample_padding": 1},
    "ddpm": {
        **PLAIN,
        "norm_eps": 1e-6,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "attention_head_dim": None,
    },
}
ATTENDING = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    "layers_per_block": 1,
}


def filled(part: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    for p in part.parameters():
        torch.nn.init.normal_(p, std=0.05) if p.ndim > 1 else None
    awaken(part)
    return part.eval()


def saved(folder: Path, unet: Any, vae: Any, name: str) -> opening.Loaded:
    """The parts as a folder without a text encoder, opened."""
    scheduler = diffusers.DDIMScheduler(beta_schedule="linear")
    index = {"_class_name": "LDMPipeline", "_diffusers_version": "0", "unet": ["diffusers", type(unet).__name__]}
    index |= {"scheduler": ["diffusers", "DDIMScheduler"]}
    unet.save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    if vae is not None:
        index |= {name: ["diffusers", type(vae).__name__]}
        vae.save_pretrained(folder / name)
    (folder / "model_index.json").write_text(json.dumps(index))
    return opening.load(folder, precision="float32")


@torch.no_grad()
@pytest.mark.parametrize("name", CONDITIONAL)
def test_conditional_unets(name: str, tmp_path: Path) -> None:
    theirs = filled(diffusers.UNet2DConditionModel(**{**SMALL, **CROSS, **BOTH, **CONDITIONAL[name]}))
    vae = filled(diffusers.AutoencoderKL(**ATTENDING))
    net = saved(tmp_path, theirs, vae, "vae").model.net
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, theirs.config.in_channels, 16, 16, generator=generator)
    tokens, t = torch.randn(2, 7, 24, generator=generator), torch.tensor([3.0, 900.0])
    told: dict[str, Any] = {}
    if name == "up-scaler":
        told = {"label": torch.tensor([3, 41])}
    if name == "unclip":
        told = {"vector": torch.randn(2, 20, generator=generator)}
    wanted = theirs(x, t, tokens, class_labels=next(iter(told.values()), None)).sample
    found = net(x[:, :4], t, tokens, maps=x[:, 4:] if x.shape[1] > 4 else None, **told)
    torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE)
    assert wanted.std() > 0.05


@torch.no_grad()
@pytest.mark.parametrize("name", UNCONDITIONAL)
def test_unconditional_unets(name: str, tmp_path: Path) -> None:
    theirs = filled(diffusers.UNet2DModel(**{**SMALL, **UNCONDITIONAL[name]}))
    loaded = saved(tmp_path, theirs, None, "")
    assert loaded.model.config.unet.lineage == ("ddpm" if name == "ddpm" else "adm")
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([3.0, 900.0])
    torch.testing.assert_close(loaded.model.net(x, t), theirs(x, t).sample, rtol=0, atol=TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("middle", [True, False])
@pytest.mark.parametrize("kind", ["KL", "VQ"])
def test_first_stages_with_attention(kind: str, middle: bool, tmp_path: Path) -> None:
    common = {**ATTENDING, "mid_block_add_attention": middle}
    if kind == "KL":
        theirs = filled(diffusers.AutoencoderKL(latent_channels=4, **common))
    else:
        theirs = filled(diffusers.VQModel(latent_channels=4, num_vq_embeddings=32, vq_embed_dim=3, **common))
    channels = 4 if kind == "KL" else 3
    sides = {"in_channels": channels, "out_channels": channels}
    unet = filled(diffusers.UNet2DModel(**{**SMALL, **UNCONDITIONAL["ldm"], **sides}))
    stage = saved(tmp_path, unet, theirs, "vae" if kind == "KL" else "vqvae").model.first_stage.double()
    theirs = theirs.double()  # in single precision processors differ by as much as is allowed here
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2 - 1
    encoded = theirs.encode(image)
    latent = (encoded.latent_dist.mode() if kind == "KL" else encoded.latents) * theirs.config.scaling_factor
    torch.testing.assert_close(stage.encode(image), latent, rtol=0, atol=TOLERANCE)
    wanted = theirs.decode(latent / theirs.config.scaling_factor).sample
    torch.testing.assert_close(stage.decode(latent), wanted, rtol=0, atol=TOLERANCE)
