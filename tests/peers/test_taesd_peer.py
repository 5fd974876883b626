"""The tiny first stage against diffusers' AutoencoderTiny: the same weights, the same latents and pictures."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from pipelines import awaken

import tiny
from fill import inp
from sfumato.io import first_stages, tensors
from sfumato.io.stored import open_stored
from sfumato.latents.tiny import TinyFirstStage
from sfumato.nets.autoencoder import AutoencoderSize

pytestmark = pytest.mark.filterwarnings("ignore")
TOLERANCE = 1e-5
SMALL = {"encoder_block_out_channels": (16, 16, 16), "decoder_block_out_channels": (16, 16, 16)}
SMALL |= {"num_encoder_blocks": (1, 2, 2), "num_decoder_blocks": (2, 2, 1), "latent_channels": 3}
KINDS: dict[str, dict[str, Any]] = {"taesd": {}, "taesd3": {"latent_channels": 16}, "small": SMALL}


def ours(path: Path, theirs: Any) -> TinyFirstStage:
    """The first stage at `path`, put into a model for whose latents it is."""
    levels, channels = len(theirs.config.num_encoder_blocks) - 1, theirs.config.latent_channels
    first = AutoencoderSize(channels=4, mult=(1,) * (levels + 1), blocks=1, latent_channels=channels)
    unet = replace(tiny.CONFIG.unet, channels=channels)
    given = {**tiny.CONFIG.__dict__, "first_stage": first, "unet": unet}
    model = tiny.model(config=tiny.CONFIG.model_validate(given))
    first_stages.put(model, path)
    assert isinstance(model.first_stage, TinyFirstStage)
    return model.first_stage


def agree(stage: TinyFirstStage, theirs: Any) -> None:
    image = (0.5 * inp("img", 2, 3, 32, 48)).clamp(-1, 1)
    latent = theirs.encode(image).latents
    torch.testing.assert_close(stage.encode(image), latent, rtol=0, atol=TOLERANCE)
    for z in (latent, 2 * inp("z", *latent.shape)):
        wanted = theirs.decode(z).sample
        assert wanted.std() > 0.1
        torch.testing.assert_close(stage.decode(z), wanted, rtol=0, atol=TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", ["folder", "file"])
def test_random_weights(kind: str, kept: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderTiny(**KINDS[kind]).eval()
    for p in theirs.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=p[0].numel() ** -0.5)
    awaken(theirs)
    path = tmp_path / "vae"
    if kept == "folder":
        theirs.save_pretrained(path)
    else:
        path = path.with_suffix(".safetensors")
        tensors.write(path, theirs.state_dict())
    agree(ours(path, theirs), theirs)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["taesd", "taesd3"])
def test_published_weights(kind: str) -> None:
    path = Path(os.environ.get("SFUMATO_WEIGHTS", "")) / f"{kind}_fp8.safetensors"
    if not path.is_file():
        pytest.skip(f"SFUMATO_WEIGHTS names no folder with {path.name}")
    theirs, stored = diffusers.AutoencoderTiny(**KINDS[kind]).eval(), open_stored(path)
    theirs.load_state_dict({name: stored.tensor(name).float() for name in stored.entries})
    agree(ours(path, theirs), theirs)
