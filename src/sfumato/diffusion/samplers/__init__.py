"""Samplers as generators: they yield (x, level), are sent the clean guess, and return the sample.

They know no network, no guidance, no batching, no progress and no device.
"""

from sfumato.diffusion.samplers.multistep import dpmpp_2m, plms
from sfumato.diffusion.samplers.registry import SAMPLERS, Ask, Entry, Sampler, sampler, start
from sfumato.diffusion.samplers.single import ddim, ddpm, heun

__all__ = [
    "SAMPLERS",
    "Ask",
    "Entry",
    "Sampler",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "heun",
    "plms",
    "sampler",
    "start",
]
