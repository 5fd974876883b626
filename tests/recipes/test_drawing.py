"""What maps draw by their short way is held against the latent itself, in training alone."""

from __future__ import annotations

from dataclasses import replace

import torch

import tiny
import tiny_layout
from sfumato.boxes import Box
from sfumato.conditioning.boxes import Boxes
from sfumato.diffusion.noise import Address
from sfumato.models.latent_diffusion import LatentDiffusion
from sfumato.recipes.told import Told
from tiny import awake

AT = Address.of(3, [0, 1], 5)
WAYS = [
    {"caption": "3d: a cat", "boxes": (Box("cat", 0.1, 0.1, 0.9, 0.6),)},
    {"caption": "", "boxes": (Box("owl", 0.0, 0.0, 1.0, 1.0),)},
]


def made(*, short: bool) -> tuple[LatentDiffusion, dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    config = tiny_layout.config()
    config = config.model_copy(update={"unet": replace(config.unet, map_short=short)})
    model = tiny.model((tiny_layout.WORDS,), config)
    awake(model.net)
    assert isinstance(model.conditioner, Boxes)
    side = model.conditioner.cells[0]
    latents = torch.randn(2, config.unet.channels, side, side, generator=torch.Generator().manual_seed(2))
    return model, {"mean": latents, **model.conditioner.collate(WAYS)}


def test_the_loss_is_that_of_denoising_and_the_squared_error_of_the_drawing() -> None:
    model, batch = made(short=True)
    objective = Told(model, 0.0, "uniform")
    outcome, denoising = objective(batch, AT), objective.each(batch, AT).mean()
    short, cond = model.net.short, objective.teller(batch)  # pyright: ignore[reportOptionalCall]
    assert short is not None
    assert cond.maps is not None
    error = (short.guess(cond.maps) - batch["mean"]).square().mean()
    torch.testing.assert_close(outcome.said["drawing"], error.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(outcome.loss, denoising + error, rtol=1e-6, atol=0)


def test_the_painter_learns_to_draw_although_nothing_of_it_reaches_the_answer_yet() -> None:
    model, batch = made(short=True)
    assert model.net.short is not None
    torch.nn.init.zeros_(model.net.short.gain.weight)
    torch.nn.init.zeros_(model.net.short.gain.bias)
    objective = Told(model, 0.0, "uniform").requires_grad_(True)
    errors = []
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    for _ in range(30):
        outcome = objective(batch, AT)
        errors.append(float(outcome.said["drawing"]))
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
    assert errors[-1] < 0.7 * errors[0]


def test_without_a_short_way_there_is_no_such_loss() -> None:
    model, batch = made(short=False)
    objective = Told(model, 0.0, "uniform")
    outcome = objective(batch, AT)
    assert not outcome.said
    torch.testing.assert_close(outcome.loss, objective.each(batch, AT).mean(), rtol=1e-6, atol=0)
