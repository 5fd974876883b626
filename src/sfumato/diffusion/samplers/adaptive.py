"""DPM-Solver that chooses its own steps: two orders at each, and as long a step as they agree on."""

from collections.abc import Generator

import torch
from torch import Tensor

from sfumato.diffusion.grid import Grid
from sfumato.diffusion.level import Level
from sfumato.diffusion.move import move
from sfumato.diffusion.samplers.exponential import Form
from sfumato.diffusion.samplers.registry import Ask, Sampler, sampler
from sfumato.diffusion.samplers.singlestep import seen, single

FIRST_STEP = 0.05  # in half log-SNR
SAFETY = 0.9
NEAR = 1e-5  # of the clock: how near the end is the end


def adaptive(
    x: Tensor, grid: Grid, *, form: Form, order: int, atol: float = 0.0078, rtol: float = 0.05, most: int = 10_000
) -> Sampler:
    """Adaptive DPM-Solver of order 2 or 3 (Lu et al. 2022a, app. C). Of the grid it uses the ends alone.

    A step is taken if the root mean square of the difference between the orders, over atol or rtol times the sample, is
    at most one. Every sample of a batch has its own steps, so that it does not depend on its batch mates; it waits for
    the slowest at the end. RuntimeError after `most` questions, and if the answers are not finite.
    """
    x, levels, clean = yield from seen(x, grid)
    if len(levels) > 1:
        x = yield from _in_float64(_walk(x.double(), levels[0], levels[-1], grid, form, order, atol, rtol, most), x)
    return x if clean is None else move(x, levels[-1], clean, x0=(yield x, levels[-1]))


@sampler("dpm_adaptive", order=3, adaptive=True, label="DPM adaptive", also=("k_dpm_ad", "dpm_solver_adaptive"))
def dpm_adaptive(x: Tensor, grid: Grid, *, rtol: float = 0.05, atol: float = 0.0078) -> Sampler:
    """Adaptive DPM-Solver-23 (Lu et al. 2022a, app. C): chooses its steps between the ends of the grid."""
    return (yield from adaptive(x, grid, form="eps", order=3, atol=atol, rtol=rtol))


@sampler("dpmpp_adaptive", order=3, invertible=True, adaptive=True)
def dpmpp_adaptive(x: Tensor, grid: Grid, *, rtol: float = 0.05, atol: float = 0.0078) -> Sampler:
    """Adaptive DPM-Solver++ of third order: chooses its steps between the ends of the grid."""
    return (yield from adaptive(x, grid, form="x0", order=3, atol=atol, rtol=rtol))


def _walk(
    x: Tensor,
    first: Level,
    last: Level,
    grid: Grid,
    form: Form,
    order: int,
    atol: float,
    rtol: float,
    most: int,
) -> Sampler:
    schedule, shape = grid.schedule, (-1, *[1] * (x.ndim - 1))
    near = NEAR * (schedule.entries or 1)
    at, end = (level.rows(x) for level in (first, last))
    first_step, way = (end.lam - at.lam).abs().clamp_max(FIRST_STEP), float(torch.sign(end.lam - at.lam).flatten()[0])
    h = first_step
    before, asked = x, 0
    while bool((running := (at.t - end.t).abs() > near).any()):
        if (asked := asked + order) > most:
            raise RuntimeError(f"the end is not reached after {most} evaluations; a greater rtol takes longer steps")
        h = torch.where(running, h, -first_step)  # those that have arrived look back, at levels of the grid
        path = [at, *(schedule.level(schedule.time(at.lam + way * k / order * h)) for k in range(1, order + 1))]
        x0 = yield x, at
        lower, higher = yield from single(x, x0, path, form)
        delta = (rtol * torch.maximum(lower.abs(), before.abs())).clamp_min(atol)
        error = ((higher - lower) / delta).flatten(1).square().mean(1).sqrt().view(shape)
        if not error.isfinite().all():
            raise RuntimeError("the network's answers are not finite numbers")
        taken = running & (error <= 1)
        x, before = torch.where(taken, higher, x), torch.where(taken, lower, before)
        at = Level(*(torch.where(taken, new, old) for new, old in zip(path[-1], at, strict=True)))
        h = torch.minimum(SAFETY * h * (error.log() / -order).exp(), (end.lam - at.lam).abs())
    return x


def _in_float64(inner: Sampler, like: Tensor) -> Generator[Ask, Tensor, Tensor]:
    """Asks and returns in the type of `like` what is computed in float64."""
    try:
        x, at = next(inner)
        while True:
            x, at = inner.send((yield x.to(like.dtype), at).double())
    except StopIteration as done:
        return done.value.to(like.dtype)
    finally:
        inner.close()
