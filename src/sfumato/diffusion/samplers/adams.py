"""Samplers that remember the noise and weigh it like Adams and Bashforth: PLMS, PNDM, iPNDM, LMS, DEIS."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sfumato.diffusion.grid import Grid
from sfumato.diffusion.level import Level
from sfumato.diffusion.move import move, noise_in
from sfumato.diffusion.samplers.registry import Sampler, sampler

ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
GAUSS = torch.tensor(  # nodes in [-1, 1] and weights of Gauss and Legendre's rule, exact up to degree 15; and mirrored
    [
        (0.1834346424956498, 0.3626837833783620),
        (0.5255324099163290, 0.3137066458778873),
        (0.7966664774136267, 0.2223810344533745),
        (0.9602898564975363, 0.1012285362903763),
    ],
    dtype=torch.float64,
)
Past = list[tuple[Tensor, Level]]  # noises and where they were found, the latest first


@sampler("plms", order=2, extra=(1,), label="PLMS", also=("PNDMScheduler",))
def plms(x: Tensor, grid: Grid) -> Sampler:
    """Pseudo linear multistep as in LDM (after Liu et al. 2022a): Adams-Bashforth over the noise, Heun to warm up."""
    return (yield from _multistep(x, grid, _adams, order=4, warm_up=(_heun,)))


@sampler("s_pndm", order=2, invertible=True, extra=(1,))
def s_pndm(x: Tensor, grid: Grid) -> Sampler:
    """S-PNDM: Heun, then two noises (Liu et al. 2022a, sec. 3.4)."""
    return (yield from _multistep(x, grid, _adams, order=2, warm_up=(_heun,)))


@sampler("pndm", order=2, extra=(3, 3, 3), least=4, also=("f_pndm",))
def pndm(x: Tensor, grid: Grid) -> Sampler:
    """F-PNDM: three pseudo Runge-Kutta steps, then four noises (Liu et al. 2022a, alg. 2)."""
    return (yield from _multistep(x, grid, _adams, order=4, warm_up=(_runge_kutta,) * 3))


@sampler("ipndm", order=2, invertible=True, also=("IPNDMScheduler",))
def ipndm(x: Tensor, grid: Grid) -> Sampler:
    """Improved PNDM: Adams-Bashforth of growing order, with no warm-up to pay for (Zhang & Chen 2023)."""
    return (yield from _multistep(x, grid, _adams, order=4))


@sampler("lms", order=2, label="LMS", also=("k_lms", "LMSDiscreteScheduler"))
def lms(x: Tensor, grid: Grid) -> Sampler:
    """Linear multistep: the noise as a polynomial of sigma / alpha through the last four, integrated exactly."""
    return (yield from _multistep(x, grid, _integrated(lambda s, _: s), order=4))


@sampler("deis", order=2, label="DEIS", also=("DEISMultistepScheduler",))
def deis(x: Tensor, grid: Grid) -> Sampler:
    """tAB-DEIS: the noise as a polynomial of the clock through the last four (Zhang & Chen 2023)."""

    def clock(s: Tensor, grid: Grid) -> Tensor:
        return grid.schedule.time(-s.log())

    return (yield from _multistep(x, grid, _integrated(clock), order=4, clean_plain=True))


Weigh = Callable[[Past, Level, Grid], Tensor]
"""(the last noises, the level to go to, the grid) -> the noise that the step takes."""

Warm = Callable[[Tensor, Tensor, Level, Level, Grid], Sampler]
"""A step's noise from more questions: (x, the noise here, from, to, grid)."""


def _multistep(
    x: Tensor, grid: Grid, weigh: Weigh, *, order: int, warm_up: Sequence[Warm] = (), clean_plain: bool = False
) -> Sampler:
    """Walk with a noise weighed of the last `order`; the first steps may take theirs from more questions."""
    past: Past = []
    for a, b in grid.steps():
        x0 = yield x, a
        if a.blind or (clean_plain and b.sigma == 0):  # no noise to remember where there is nothing but noise
            x = move(x, a, b, x0=x0)
            continue
        eps = noise_in(x, x0, a)
        past = [(eps, a), *past[: order - 1]]
        if len(past) <= len(warm_up) and b.sigma > 0:
            eps = yield from warm_up[len(past) - 1](x, eps, a, b, grid)
        else:
            eps = weigh(past, b, grid)
        x = move(x, a, b, eps=eps)
    return x


def _adams(past: Past, _b: Level, _grid: Grid) -> Tensor:
    """With the weights for even steps, whatever the steps are."""
    return _mixed(ADAMS_BASHFORTH[len(past) - 1], past)


def _integrated(variable: Callable[[Tensor, Grid], Tensor]) -> Weigh:
    """With the weights that integrate, over s = sigma / alpha, a polynomial of `variable`(s) through the noises."""

    nodes, shares = torch.cat([1 - GAUSS[:, 0], 1 + GAUSS[:, 0]]) / 2, torch.cat([GAUSS[:, 1]] * 2) / 2

    def weigh(past: Past, b: Level, grid: Grid) -> Tensor:
        start, end = past[0][1].sigma / past[0][1].alpha, b.sigma / b.alpha
        u = variable(start + nodes * (end - start), grid)
        known = [variable(at.sigma / at.alpha, grid) for _, at in past]
        weights = []
        for j, mine in enumerate(known):
            lagrange = shares
            for other in (*known[:j], *known[j + 1 :]):
                lagrange = lagrange * (u - other) / (mine - other)
            weights.append(float(lagrange.sum()))
        return _mixed(weights, past)

    return weigh


def _heun(x: Tensor, eps: Tensor, a: Level, b: Level, _grid: Grid) -> Sampler:
    y = move(x, a, b, eps=eps)
    return (eps + noise_in(y, (yield y, b), b)) / 2


def _runge_kutta(x: Tensor, eps: Tensor, a: Level, b: Level, grid: Grid) -> Sampler:
    """The classical fourth-order rule with the move in the place of addition (Liu et al. 2022a, eq. 13)."""
    m = grid.halfway(a, b)
    y = move(x, a, m, eps=eps)
    second = noise_in(y, (yield y, m), m)
    y = move(x, a, m, eps=second)
    third = noise_in(y, (yield y, m), m)
    y = move(x, a, b, eps=third)
    return (eps + 2 * second + 2 * third + noise_in(y, (yield y, b), b)) / 6


def _mixed(weights: Sequence[float], past: Past) -> Tensor:
    mixed = weights[0] * past[0][0]
    for weight, (eps, _) in zip(weights[1:], past[1:], strict=True):
        mixed = mixed + weight * eps
    return mixed
