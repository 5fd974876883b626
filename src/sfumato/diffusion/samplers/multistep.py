"""Samplers that remember their last guesses: PLMS and DPM-Solver++(2M)."""

from torch import Tensor

from sfumato.diffusion.grid import Grid
from sfumato.diffusion.level import Level
from sfumato.diffusion.move import move, noise_in
from sfumato.diffusion.samplers.registry import Sampler, sampler

ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
FEW_STEPS = 15  # below this many, DPM-Solver++ ends with a first-order step


@sampler("plms", order=2, extra=(1,))
def plms(x: Tensor, grid: Grid) -> Sampler:
    """Pseudo linear multistep as in LDM (after Liu et al. 2022): Adams-Bashforth over the noise, Heun to warm up."""
    past: list[Tensor] = []  # the latest first
    for a, b in grid.steps():
        x0 = yield x, a
        if a.blind:  # no noise to remember where there is nothing but noise
            x = move(x, a, b, x0=x0)
            continue
        eps = noise_in(x, x0, a)
        past = [eps, *past[:3]]
        mixed = _mixed(past)
        if len(past) == 1 and b.sigma > 0:
            y = move(x, a, b, eps=eps)
            mixed = (eps + noise_in(y, (yield y, b), b)) / 2
        x = move(x, a, b, eps=mixed)
    return x


@sampler("dpmpp_2m", order=2)
def dpmpp_2m(x: Tensor, grid: Grid) -> Sampler:
    """DPM-Solver++(2M) (Lu et al. 2022, alg. 2): the clean guess, continued along a line in half log-SNR."""
    last: tuple[Tensor, Level] | None = None
    for i, (a, b) in enumerate(grid.steps()):
        x0 = guess = yield x, a
        ends = i == len(grid) - 1 and len(grid) < FEW_STEPS
        if last is not None and b.sigma > 0 and not ends:
            before, c = last
            ratio = (b.lam - a.lam) / (a.lam - c.lam)  # 0 where the last step came from alpha = 0
            guess = x0 + ratio / 2 * (x0 - before)
        x, last = move(x, a, b, x0=guess), (x0, a)
    return x


def _mixed(past: list[Tensor]) -> Tensor:
    """The Adams-Bashforth mean of the noises, the latest first."""
    first, *others = zip(ADAMS_BASHFORTH[len(past) - 1], past, strict=True)
    mixed = first[0] * first[1]
    for weight, eps in others:
        mixed = mixed + weight * eps
    return mixed
