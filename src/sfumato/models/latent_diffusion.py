"""The model: a first stage, a conditioner and a denoiser, and nothing else than their wiring."""

from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.overrides import TorchFunctionMode

from sfumato.conditioning.text import Text
from sfumato.diffusion.denoiser import Denoiser
from sfumato.latents.kl import KLFirstStage
from sfumato.models.config import ModelConfig
from sfumato.nets.unet import UNet


class LatentDiffusion(nn.Module):
    """A latent diffusion model (Rombach et al. 2022)."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.first_stage = KLFirstStage(config.first_stage)
        self.conditioner = Text(tokenizer, config.text)
        net = UNet(config.unet)
        with torch.device("cpu"):  # the schedule is real in a hollow model too
            schedule = config.schedule.build()
        self.denoiser = Denoiser(net, schedule, config.prediction)
        self.factor = self.first_stage.factor * net.factor  # what both sides of a picture must divide by

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, h, w) for a picture of width x height pixels; ValueError if the model cannot take that size."""
        f = self.factor
        if width % f or height % f or min(width, height) < f:
            near = "x".join(f"{max(f, round(side / f) * f)}" for side in (width, height))
            raise ValueError(
                f"size {width}x{height} does not fit this model; both sides must divide by {f} (near: {near})"
            )
        return self.first_stage.channels, height // self.first_stage.factor, width // self.first_stage.factor


def hollow(config: ModelConfig, tokenizer: Tokenizer) -> LatentDiffusion:
    """The model with shapes and no numbers: nothing of its size is made until weights are put in."""
    with torch.device("meta"), _Uninitialised():
        return LatentDiffusion(config, tokenizer)


class _Uninitialised(TorchFunctionMode):
    """Parameters are not drawn: on "meta" there is nothing to draw, and saying so takes torch a second."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
