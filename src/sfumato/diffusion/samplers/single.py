"""Samplers that remember nothing between steps and move once: DDIM, DDPM in its three variances, Euler, LCM."""

from torch import Tensor

from sfumato.diffusion.denoiser import Estimate
from sfumato.diffusion.grid import Grid
from sfumato.diffusion.level import Level
from sfumato.diffusion.move import move, posterior_std
from sfumato.diffusion.noise import Noise
from sfumato.diffusion.reverse import Variance, reverse
from sfumato.diffusion.samplers.churn import churned
from sfumato.diffusion.samplers.registry import Sampler, sampler


@sampler("ddim", order=1, invertible=True, label="DDIM", also=("DDIMScheduler", "dpm_solver_1"))
def ddim(x: Tensor, grid: Grid, *, eta: float = 0.0, noise: Noise | None = None) -> Sampler:
    """Denoising diffusion implicit models (Song et al. 2021a, eq. 12 and 16). At eta = 1 it is DDPM."""
    if eta > 0 and noise is None:
        raise ValueError(f"eta {eta} asks for fresh noise; give ddim a noise, or eta 0")
    for a, b in grid.steps():
        x0 = yield x, a
        x = move(x, a, b, x0=x0, fresh=eta * posterior_std(a, b), noise=noise)
    return x


@sampler(
    "euler",
    order=1,
    invertible=True,
    label="Euler",
    also=("k_euler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"),
)
def euler(x: Tensor, grid: Grid, *, churn: float = 0.0, noise: Noise | None = None) -> Sampler:
    """Euler's method in sigma / alpha, which is ddim, with the churn of Karras et al. 2022 (alg. 2)."""
    for a, b in grid.steps():
        x, up = churned(x, a, grid, churn, noise)
        x = move(x, up, b, x0=(yield x, up))
    return x


@sampler(
    "euler_a",
    order=1,
    stochastic=True,
    label="Euler a",
    also=("k_euler_a", "k_euler_ancestral", "euler_ancestral", "EulerAncestralDiscreteScheduler"),
)
def euler_a(x: Tensor, grid: Grid, *, noise: Noise, eta: float = 1.0) -> Sampler:
    """Euler's method with the noise of the ancestral chain: ddim at eta = 1, under the name most people know."""
    return (yield from ddim(x, grid, eta=eta, noise=noise))


@sampler("ddpm", order=None, stochastic=True, learned=True, label="DDPM", also=("DDPMScheduler",))
def ddpm(x: Tensor, grid: Grid, *, noise: Noise) -> Sampler:
    """Ancestral sampling with the posterior's variance, "fixedsmall" (Ho et al. 2020, alg. 2)."""
    return (yield from _ancestral(x, grid, noise, "small"))


@sampler("ddpm_large", order=None, stochastic=True, learned=True)
def ddpm_large(x: Tensor, grid: Grid, *, noise: Noise) -> Sampler:
    """Ancestral sampling with the variance beta of the forward chain, "fixedlarge" (Ho et al. 2020, sec. 3.2)."""
    return (yield from _ancestral(x, grid, noise, "large"))


@sampler("ddpm_learned", order=None, stochastic=True, learned=True, needs_spread=True)
def ddpm_learned(x: Tensor, grid: Grid, *, noise: Noise) -> Sampler:
    """Ancestral sampling with the variance that the network learnt (Nichol & Dhariwal 2021, eq. 15).

    It needs a network with a learnt spread; ValueError if its answers have none.
    """
    return (yield from _ancestral(x, grid, noise, "learned"))


@sampler("lcm", order=None, stochastic=True, consistent=True, label="LCM", also=("LCMScheduler",))
def lcm(x: Tensor, grid: Grid, *, noise: Noise) -> Sampler:
    """Multistep consistency sampling: to the end of the flow and back up with fresh noise (Song et al. 2023, alg. 1;
    Luo et al. 2023). For networks that answer where the flow ends."""
    for a, b in grid.steps():
        x = move(x, a, b, x0=(yield x, a), fresh=b.sigma, noise=noise)
    return x


def _ancestral(x: Tensor, grid: Grid, noise: Noise, variance: Variance) -> Sampler:
    """A draw from the model's own step, and at a clean end its mean."""
    above: Level | None = None
    for a, b in grid.steps():
        guess = Estimate.of((yield x, a))
        if b.sigma == 0 and (above is None or variance == "small"):  # nothing lends this step a variance to push by
            return move(x, a, b, x0=guess.x0)
        mean, log_var = reverse(x, a, b, guess, variance=variance, clip=False, above=above)
        x = mean if b.sigma == 0 else mean + (log_var / 2).exp() * noise(x)
        above = a
    return x
