"""Against diffusers: the same weights give the same numbers, from its folders and from LDM's single files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
from pipelines import pipeline

from sfumato.diffusion.noise import seeded
from sfumato.generate import Model
from sfumato.io import opening, tensors
from sfumato.io.conversion import convert
from sfumato.io.stored import open_stored

TOLERANCE = 1e-4
PROMPT, NEGATIVE = "a photograph of an astronaut riding a horse, (bright)", "blurry, low quality"
pytestmark = pytest.mark.filterwarnings("ignore")


FULL = [pytest.param(name, marks=pytest.mark.parity) for name in ("sd1", "sd2")]
YAML = "model:\n  params:\n    parameterization: v\n    linear_start: 0.00085\n    linear_end: 0.012\n"


@pytest.fixture(scope="module", params=["sd1-small", "sd2-small", *FULL])
def pipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    folder = tmp_path_factory.mktemp(request.param)
    made = pipeline(request.param, folder)
    made.save_pretrained(folder / "pipe")
    yield made, folder
    shutil.rmtree(folder)  # of the full sizes some ten gigabytes


@pytest.fixture(scope="module", params=["folder", "single file"])
def both(request: pytest.FixtureRequest, pipe: tuple[Any, Path]) -> tuple[Any, opening.Loaded]:
    """The pipeline, and our model of its weights: from its folder, or from a single file made of that.

    In the full size the file says nothing of itself, and all is told from its shapes and the configuration beside it.
    """
    made, folder = pipe
    if request.param == "folder":
        return made, opening.load(folder / "pipe", precision="float32")
    path = folder / "ldm.safetensors"
    convert(folder / "pipe", path, "ldm")
    if made.unet.config.sample_size == 64:
        stored = open_stored(path)
        tensors.write(folder / "bare.safetensors", {name: stored.tensor(name) for name in stored.entries})
        path = folder / "bare.safetensors"
        if made.scheduler.config.prediction_type == "v_prediction":
            path.with_suffix(".yaml").write_text(YAML)
    loaded = opening.load(path, precision="float32")
    config, told = opening.describe(folder / "pipe").config, loaded.file.config
    assert told.first_stage == config.first_stage
    assert told.conditioner == config.conditioner
    assert told.prediction == config.prediction
    at = torch.arange(1000)
    assert torch.equal(told.schedule.build().level(at).alpha, config.schedule.build().level(at).alpha)
    return made, loaded


@torch.no_grad()
def test_unet(both: tuple[Any, opening.Loaded]) -> None:
    made, loaded = both
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 4, 16, 16, generator=generator)
    tokens = torch.randn(2, 77, made.unet.config.cross_attention_dim, generator=generator)
    t = torch.tensor([1.0, 981.0])
    theirs = made.unet(x, t, tokens).sample
    ours = loaded.model.denoiser.net(x, t, tokens)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)
    assert theirs.abs().mean() > 0.05


@torch.no_grad()
def test_first_stage(both: tuple[Any, opening.Loaded]) -> None:
    made, loaded = both
    generator = torch.Generator().manual_seed(4)
    image = torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1
    theirs = made.vae.encode(image).latent_dist.mode() * made.vae.config.scaling_factor
    ours = loaded.model.first_stage.encode(image)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)
    pictures = made.vae.decode(theirs / made.vae.config.scaling_factor).sample
    torch.testing.assert_close(loaded.model.first_stage.decode(theirs), pictures, rtol=0, atol=TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("prompt", [PROMPT, "", "a " * 40 + "cat"])
def test_text(both: tuple[Any, opening.Loaded], prompt: str) -> None:
    made, loaded = both
    ids = made.tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    theirs = made.text_encoder(ids)[0]
    plain = prompt.replace("(", r"\(").replace(")", r"\)")
    ours = loaded.model.conditioner.of([plain]).tokens
    assert ours is not None
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)


def test_a_whole_run(both: tuple[Any, opening.Loaded]) -> None:
    made, loaded = both
    prompt = "a photograph of an astronaut riding a horse"
    side = 64 if made.unet.config.sample_size == 8 else 512
    asked = {"sampler": "ddim", "spacing": "leading", "steps": 5, "guidance": 7.5, "size": (side, side)}
    result = Model(loaded).generate(prompt=prompt, negative=NEGATIVE, seed=11, **asked)
    noise = seeded([11])(torch.empty(1, 4, side // 8, side // 8))
    theirs = made(
        prompt,
        negative_prompt=NEGATIVE,
        num_inference_steps=5,
        guidance_scale=7.5,
        latents=noise,
        height=side,
        width=side,
        output_type="pt",
    ).images
    ours = (result.images / 2 + 0.5).clamp(0, 1)
    difference = (ours - theirs).abs().max().item()
    assert difference <= 1 / 255, f"{difference * 255:.2f} levels"
    assert theirs.std() > 0.02
