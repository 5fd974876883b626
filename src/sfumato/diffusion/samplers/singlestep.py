"""DPM-Solver in single steps, which take two or three levels of the grid at once."""

from collections.abc import Generator, Sequence

from torch import Tensor

from sfumato.diffusion.grid import Grid
from sfumato.diffusion.level import Level
from sfumato.diffusion.move import move
from sfumato.diffusion.samplers.exponential import Form, exponent, guess_of, moved, weights
from sfumato.diffusion.samplers.registry import Ask, Sampler, sampler


def orders(steps: int, order: int, *, lower_final: bool = True) -> list[int]:
    """How `steps` evaluations are shared out: as many steps of `order` as fit, then one of what is left.

    With `lower_final`, "DPM-Solver-fast", a last step of order three becomes one of two and one of one (Lu et al.
    2022a); without, its authors' "singlestep_fixed".
    """
    whole, rest = divmod(steps, order)
    each = [order] * whole + ([rest] if rest else [])
    return [*each[:-1], 2, 1] if lower_final and each[-1:] == [3] else each


def dpm_solver_single(
    x: Tensor, grid: Grid, *, form: Form, order: int, taylor: bool = False, lower_final: bool = True
) -> Sampler:
    """Single-step DPM-Solver ("eps") and DPM-Solver++ ("x0") of order 1 to 3 (Lu et al. 2022a; 2022b).

    A step of order p goes over p intervals of the grid, and asks at the levels on its way. A step from a blind level,
    and one to a clean end, are plain moves.
    """
    x, levels, clean = yield from seen(x, grid)
    for p in orders(len(levels) - 1, order, lower_final=lower_final):
        x0 = yield x, levels[0]
        _, x = yield from single(x, x0, levels[: p + 1], form, taylor=taylor)
        levels = levels[p:]
    return x if clean is None else move(x, levels[0], clean, x0=(yield x, levels[0]))


@sampler("dpm_solver_2s", order=2, least=2)
def dpm_solver_2s(x: Tensor, grid: Grid) -> Sampler:
    """DPM-Solver-2 in single steps (Lu et al. 2022a, alg. 1): two levels of the grid a step."""
    return (yield from dpm_solver_single(x, grid, form="eps", order=2))


@sampler("dpm_solver_3s", order=2, least=3, label="DPM fast", also=("dpm_fast", "k_dpm_fast"))
def dpm_solver_3s(x: Tensor, grid: Grid) -> Sampler:
    """DPM-Solver-fast (Lu et al. 2022a): third-order steps over three levels, then one of two and one of one."""
    return (yield from dpm_solver_single(x, grid, form="eps", order=3))


@sampler("dpm_solver_3f", order=3, least=3)
def dpm_solver_3f(x: Tensor, grid: Grid) -> Sampler:
    """DPM-Solver-3 in single steps, "singlestep_fixed": third order to the end; steps should divide by three."""
    return (yield from dpm_solver_single(x, grid, form="eps", order=3, lower_final=False))


@sampler("dpmpp_2s", order=2, least=2, also=("DPMSolverSinglestepScheduler",))
def dpmpp_2s(x: Tensor, grid: Grid) -> Sampler:
    """DPM-Solver++(2S) (Lu et al. 2022b, alg. 1): the clean guess, two levels of the grid a step."""
    return (yield from dpm_solver_single(x, grid, form="x0", order=2))


@sampler("dpmpp_3s", order=2, least=3)
def dpmpp_3s(x: Tensor, grid: Grid) -> Sampler:
    """DPM-Solver++(3S): third-order steps over three levels, then one of two and one of one."""
    return (yield from dpm_solver_single(x, grid, form="x0", order=3))


@sampler("dpmpp_3f", order=3, least=3)
def dpmpp_3f(x: Tensor, grid: Grid) -> Sampler:
    """DPM-Solver++(3S) of third order to the end, "singlestep_fixed"; steps should divide by three."""
    return (yield from dpm_solver_single(x, grid, form="x0", order=3, lower_final=False))


def seen(x: Tensor, grid: Grid) -> Generator[Ask, Tensor, tuple[Tensor, list[Level], Level | None]]:
    """`x` where the signal is first seen, by plain moves from blind levels; the levels from there on; the clean end.

    The clean end is not among the levels, and is None if the grid ends in noise.
    """
    levels = list(grid.levels)
    while len(levels) > 1 and levels[0].blind:
        x = move(x, levels[0], levels[1], x0=(yield x, levels[0]))
        levels = levels[1:]
    clean = levels.pop() if levels[-1].sigma == 0 and len(levels) > 1 else None
    return x, levels, clean


def single(
    x: Tensor, x0: Tensor, levels: Sequence[Level], form: Form, *, taylor: bool = False
) -> Generator[Ask, Tensor, tuple[Tensor, Tensor]]:
    """From the first level to the last, asking at those between: the lower-order end and the end.

    With three levels (two questions) the lower order is one, with four (three questions) two.
    """
    a, *inner, b = levels
    h = b.lam - a.lam
    m = guess_of(form, x, x0, a)
    lower = moved(form, x, a, b, m)
    if not inner:
        return lower, lower
    ratios = [(at.lam - a.lam) / h for at in inner]
    y = moved(form, x, a, inner[0], m)
    slope = (guess_of(form, y, (yield y, inner[0]), inner[0]) - m) / ratios[0]
    first, second = weights(exponent(form, h))
    middle = moved(form, x, a, b, m + (first if taylor else 0.5) * slope)
    if len(inner) == 1:
        return lower, middle
    part = weights(exponent(form, ratios[1] * h))[0] * ratios[1]
    y = moved(form, x, a, inner[1], m + part * slope)
    later = (guess_of(form, y, (yield y, inner[1]), inner[1]) - m) / ratios[1]
    if not taylor:
        return middle, moved(form, x, a, b, m + first * later)
    bend = (later - slope) / (ratios[1] - ratios[0])
    return middle, moved(form, x, a, b, m + first * (slope - ratios[0] * bend) + second * 2 * bend)
