"""Samplers that remember their last guesses along half log-SNR: DPM-Solver and DPM-Solver++, their SDE, UniPC."""

import torch
from torch import Tensor

from sfumato.diffusion.grid import Grid
from sfumato.diffusion.level import Level
from sfumato.diffusion.move import move
from sfumato.diffusion.noise import Noise
from sfumato.diffusion.samplers.exponential import Form, exponent, guess_of, moved, weights
from sfumato.diffusion.samplers.registry import Sampler, sampler

FEW_STEPS = 15  # below this many, DPM-Solver ends with steps of lower order
Past = list[tuple[Tensor, Level]]  # guesses and where they were made, the latest first


def dpm_solver(
    x: Tensor,
    grid: Grid,
    *,
    form: Form = "x0",
    order: int = 2,
    taylor: bool = False,
    few: int = FEW_STEPS,
    eta: float = 0.0,
    noise: Noise | None = None,
) -> Sampler:
    """Multistep DPM-Solver ("eps") and DPM-Solver++ ("x0") (Lu et al. 2022a, 2022b), or their SDE if eta > 0.

    `taylor` integrates the line through two guesses exactly, where the default takes half of its slope. With less than
    `few` steps the last ones are of lower order. With `eta` the fresh noise has sigma' sqrt(1 - exp(-2 eta h)).
    """
    past: Past = []
    for i, (a, b) in enumerate(grid.steps()):
        x0 = yield x, a
        if b.sigma == 0 or (form == "eps" and a.blind):
            x = move(x, a, b, x0=x0)
            continue
        h = b.lam - a.lam
        past = [(guess_of(form, x, x0, a), a), *past[: order - 1]]
        known = past[: len(grid) - i] if len(grid) < few else past
        u = exponent(form, h * (1 + eta))
        guess = _continued(known, h, u, taylor=taylor)
        fresh = b.sigma * (-torch.expm1(-2 * eta * h)).clamp_min(0).sqrt() if eta else 0.0
        x = moved(form, x, a, b, guess, fresh=fresh, noise=noise)
    return x


@sampler(
    "dpmpp_2m",
    order=2,
    invertible=True,
    label="DPM++ 2M",
    also=("k_dpmpp_2m", "dpm++2m", "dpmpp", "DPMSolverMultistepScheduler"),
)
def dpmpp_2m(x: Tensor, grid: Grid) -> Sampler:
    """DPM-Solver++(2M) (Lu et al. 2022b, alg. 2): the clean guess, continued along a line in half log-SNR."""
    return (yield from dpm_solver(x, grid, form="x0", order=2))


@sampler("dpmpp_3m", order=2, least=3)
def dpmpp_3m(x: Tensor, grid: Grid) -> Sampler:
    """DPM-Solver++(3M) (Lu et al. 2022b): the clean guess, continued along a bent line in half log-SNR.

    Its authors' formula, which all programs have, takes half the bend of the parabola through the three guesses: it is
    of second order.
    """
    return (yield from dpm_solver(x, grid, form="x0", order=3))


@sampler("dpm_solver_2m", order=2, invertible=True, least=2, also=("dpm_solver", "dpmsolver"))
def dpm_solver_2m(x: Tensor, grid: Grid) -> Sampler:
    """DPM-Solver of second order, multistep (Lu et al. 2022a): the noise, continued along a line in half log-SNR."""
    return (yield from dpm_solver(x, grid, form="eps", order=2))


@sampler("dpm_solver_3m", order=2, invertible=True, least=3)
def dpm_solver_3m(x: Tensor, grid: Grid) -> Sampler:
    """DPM-Solver-3M (Lu et al. 2022a): the noise, continued along a bent line in half log-SNR; see dpmpp_3m."""
    return (yield from dpm_solver(x, grid, form="eps", order=3))


@sampler("dpmpp_2m_sde", order=2, stochastic=True, label="DPM++ 2M SDE", also=("k_dpmpp_2m_sde",))
def dpmpp_2m_sde(x: Tensor, grid: Grid, *, noise: Noise, eta: float = 1.0) -> Sampler:
    """SDE-DPM-Solver++(2M) (k-diffusion, after Lu et al. 2022b), the midpoint form."""
    return (yield from dpm_solver(x, grid, form="x0", order=2, few=0, eta=eta, noise=noise))


@sampler("dpmpp_3m_sde", order=2, least=3, stochastic=True, label="DPM++ 3M SDE", also=("k_dpmpp_3m_sde",))
def dpmpp_3m_sde(x: Tensor, grid: Grid, *, noise: Noise, eta: float = 1.0) -> Sampler:
    """SDE-DPM-Solver++(3M) (k-diffusion, after Lu et al. 2022b): as dpmpp_3m, with fresh noise."""
    return (yield from dpm_solver(x, grid, form="x0", order=3, taylor=True, few=0, eta=eta, noise=noise))


def _continued(known: Past, h: Tensor, u: Tensor, *, taylor: bool) -> Tensor:
    """The guess that a step of length `h` takes, from the last one to three."""
    (m, a), *before = known
    if not before:
        return m
    first, second = weights(u)
    ratio = (a.lam - before[0][1].lam) / h  # infinite where the last step came from alpha = 0
    slope = (m - before[0][0]) / ratio
    if len(before) == 1:
        return m + (first if taylor else 0.5) * slope
    older = (before[0][1].lam - before[1][1].lam) / h
    bend = (slope - (before[0][0] - before[1][0]) / older) / (ratio + older)
    return m + first * (slope + ratio * bend) + second * bend


@sampler("unipc", order=2, least=2, label="UniPC", also=("uni_pc", "uni_pc_bh2", "UniPCMultistepScheduler"))
def unipc(x: Tensor, grid: Grid) -> Sampler:
    """UniPC-2 with B(h) = exp(h) - 1 (Zhao et al. 2023): as dpmpp_2m, and each answer corrects the step before it."""
    return (yield from unified(x, grid))


def unified(x: Tensor, grid: Grid, *, form: Form = "x0", order: int = 2, lower_final: bool = True) -> Sampler:
    """Unified predictor and corrector of any order (Zhao et al. 2023), multistep, with B(h) = exp(h) - 1.

    With `lower_final`, as its authors' program has it, the last steps are of lower order, the very last of first;
    without, it converges with one order more than `order`.
    """
    past: Past = []
    begun: Tensor | None = None  # where the step before began
    for i, (a, b) in enumerate(grid.steps()):
        x0 = yield x, a
        guess = guess_of(form, x, x0, a)
        if begun is not None:
            x = _step(begun, form, [(guess, a), *past], past[0][1], a, corrects=True)
        if b.sigma == 0 or a.blind:
            x, past, begun = move(x, a, b, x0=x0), [], None
            continue
        past = [(guess, a), *past[: order - 1]]
        known = past[: len(grid) - i] if lower_final else past
        begun = x
        x = _step(x, form, known, a, b)
        past = known
    return x


def _step(x: Tensor, form: Form, known: Past, a: Level, b: Level, *, corrects: bool = False) -> Tensor:
    """From `a` to `b` with the guesses `known`; one that corrects has, first, a guess at `b` itself."""
    h = b.lam - a.lam
    (ahead, *known) = known if corrects else (None, *known)
    (m, _), *before = known
    ratios = [(at.lam - a.lam) / h for _, at in before]
    slopes = [(guess - m) / r for (guess, _), r in zip(before, ratios, strict=True)]
    if ahead is not None:
        ratios, slopes = [*ratios, torch.ones_like(h)], [*slopes, ahead[0] - m]
    for rho, slope in zip(_rhos(exponent(form, h), ratios), slopes, strict=True):
        m = m + rho * slope
    return moved(form, x, a, b, m)


def _rhos(u: Tensor, ratios: list[Tensor]) -> list[Tensor]:
    """Weights that make the step exact for polynomials in lam; one alone is a half (Zhao et al. 2023)."""
    if len(ratios) < 2:  # noqa: PLR2004
        return [torch.full_like(u, 0.5) for _ in ratios]
    phi1 = torch.expm1(u)
    phi, factorial, right = phi1 / u - 1, 1.0, []
    for k in range(len(ratios)):
        right.append(phi * factorial / phi1)
        factorial *= k + 2
        phi = phi / u - 1 / factorial
    powers = torch.stack([torch.stack(ratios) ** k for k in range(len(ratios))])
    return list(torch.linalg.solve(powers, torch.stack(right)))
