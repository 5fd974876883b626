"""The model: a first stage, a conditioner and a denoiser, and nothing else than their wiring."""

import torch
from tokenizers import Tokenizer
from torch import nn

from sfumato.conditioning.text import Text
from sfumato.diffusion.denoiser import Denoiser
from sfumato.latents.kl import KLFirstStage
from sfumato.models.config import ModelConfig
from sfumato.nets.transformer import TransformerEncoder
from sfumato.nets.unet import UNet


class LatentDiffusion(nn.Module):
    """A latent diffusion model (Rombach et al. 2022)."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.first_stage = KLFirstStage(config.first_stage)
        self.conditioner = Text(tokenizer, config.text)
        net = UNet(config.unet)
        self.denoiser = Denoiser(net, config.schedule.build(), config.prediction)
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


def count(config: ModelConfig, tokenizer: Tokenizer) -> int:
    """How many numbers a model of this description holds; nothing of that size is made to find out."""
    with torch.device("meta"):
        parts = (
            KLFirstStage(config.first_stage),
            TransformerEncoder(tokenizer.get_vocab_size(), config.text),
            UNet(config.unet),
        )
    return sum(weight.numel() for part in parts for weight in part.state_dict().values())
