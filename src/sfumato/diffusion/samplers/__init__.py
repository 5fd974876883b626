"""Samplers as generators: they yield (x, level), are sent the clean guess, and return the sample.

They know no network, no guidance, no batching, no progress and no device.
"""

from sfumato.diffusion.samplers.adams import deis, ipndm, lms, plms, pndm, s_pndm
from sfumato.diffusion.samplers.adaptive import adaptive, dpm_adaptive, dpmpp_adaptive
from sfumato.diffusion.samplers.inversion import ddim_inversion, denoised
from sfumato.diffusion.samplers.langevin import annealed_langevin, cas, consistent_annealed, langevin
from sfumato.diffusion.samplers.multistep import (
    dpm_solver,
    dpm_solver_2m,
    dpm_solver_3m,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    dpmpp_3m_sde,
    unified,
    unipc,
)
from sfumato.diffusion.samplers.registry import SAMPLERS, Ask, Entry, Sampler, sampler, start
from sfumato.diffusion.samplers.single import ddim, ddpm, ddpm_large, ddpm_learned, euler, euler_a, lcm
from sfumato.diffusion.samplers.singlestep import (
    dpm_solver_2s,
    dpm_solver_3f,
    dpm_solver_3s,
    dpm_solver_single,
    dpmpp_2s,
    dpmpp_3f,
    dpmpp_3s,
)
from sfumato.diffusion.samplers.twice import dpm2, dpm2_a, dpmpp_2s_a, dpmpp_sde, heun

__all__ = [
    "SAMPLERS",
    "Ask",
    "Entry",
    "Sampler",
    "adaptive",
    "annealed_langevin",
    "cas",
    "consistent_annealed",
    "ddim",
    "ddim_inversion",
    "ddpm",
    "ddpm_large",
    "ddpm_learned",
    "deis",
    "denoised",
    "dpm2",
    "dpm2_a",
    "dpm_adaptive",
    "dpm_solver",
    "dpm_solver_2m",
    "dpm_solver_2s",
    "dpm_solver_3f",
    "dpm_solver_3m",
    "dpm_solver_3s",
    "dpm_solver_single",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_2s_a",
    "dpmpp_3f",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "dpmpp_3s",
    "dpmpp_adaptive",
    "dpmpp_sde",
    "euler",
    "euler_a",
    "heun",
    "ipndm",
    "langevin",
    "lcm",
    "lms",
    "plms",
    "pndm",
    "s_pndm",
    "sampler",
    "start",
    "unified",
    "unipc",
]
