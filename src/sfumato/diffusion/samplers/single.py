"""Samplers that remember nothing between steps: DDIM, DDPM, Heun."""

from torch import Tensor

from sfumato.diffusion.grid import Grid
from sfumato.diffusion.move import move, noise_in, posterior_std
from sfumato.diffusion.noise import Noise
from sfumato.diffusion.samplers.registry import Sampler, sampler


@sampler("ddim", order=1)
def ddim(x: Tensor, grid: Grid, *, eta: float = 0.0, noise: Noise | None = None) -> Sampler:
    """Denoising diffusion implicit models (Song et al. 2021, eq. 12). At eta = 1 it is DDPM."""
    if eta > 0 and noise is None:
        raise ValueError(f"eta {eta} asks for fresh noise; give ddim a noise, or eta 0")
    for a, b in grid.steps():
        x0 = yield x, a
        x = move(x, a, b, x0=x0, fresh=eta * posterior_std(a, b), noise=noise)
    return x


@sampler("ddpm", order=1, stochastic=True)
def ddpm(x: Tensor, grid: Grid, *, noise: Noise) -> Sampler:
    """Ancestral sampling with the posterior's variance (Ho et al. 2020, alg. 2, on the respaced chain)."""
    return (yield from ddim(x, grid, eta=1.0, noise=noise))


@sampler("heun", order=2, calls=2)
def heun(x: Tensor, grid: Grid) -> Sampler:
    """Heun's second-order method (Karras et al. 2022, alg. 1): the mean of the noise here and at the trial point."""
    for a, b in grid.steps():
        x0 = yield x, a
        if b.sigma == 0 or a.blind:
            x = move(x, a, b, x0=x0)
            continue
        eps = noise_in(x, x0, a)
        y = move(x, a, b, eps=eps)
        x = move(x, a, b, eps=(eps + noise_in(y, (yield y, b), b)) / 2)
    return x
