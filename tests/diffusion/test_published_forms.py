"""Each sampler against a plain form of the published algorithm, which shares no code with it.

The plain forms are written as their sources write them: Karras's and k-diffusion's in y = x / alpha and
s = sigma / alpha, DPM-Solver's and UniPC's in alpha, sigma, lam and h, DDPM's in betas. Random ones are fed the same
recorded noise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from numpy.polynomial import Polynomial
from torch import Tensor

from mixture import THREE, between, exact, f64
from sfumato.diffusion.denoiser import Denoise, Estimate
from sfumato.diffusion.drive import Asked, answer, steps
from sfumato.diffusion.grid import Grid, linspace, trailing
from sfumato.diffusion.level import Level
from sfumato.diffusion.noise import Noise, seeded
from sfumato.diffusion.samplers import (
    SAMPLERS,
    Entry,
    Sampler,
    adaptive,
    annealed_langevin,
    consistent_annealed,
    ddim,
    ddim_inversion,
    ddpm,
    ddpm_large,
    ddpm_learned,
    deis,
    denoised,
    dpm2,
    dpm2_a,
    dpm_solver,
    dpm_solver_single,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s_a,
    dpmpp_3m_sde,
    dpmpp_sde,
    euler,
    euler_a,
    heun,
    ipndm,
    lcm,
    lms,
    plms,
    pndm,
    s_pndm,
    unified,
    unipc,
)
from sfumato.diffusion.samplers.exponential import Form
from sfumato.diffusion.samplers.singlestep import orders
from sfumato.diffusion.schedule import SCHEDULES, Schedule, Table

Draw = Callable[[], Tensor]
Plain = Callable[[Tensor, Grid, Draw], Tensor]
Run = Callable[..., Sampler]

NAMES = ("scaled_linear", "cosine", "flow", "geometric")
SIZE = (4, 3)
every_path = pytest.mark.parametrize("path", [SCHEDULES[n]() for n in NAMES], ids=NAMES)
every_table = pytest.mark.parametrize("path", [SCHEDULES[n]() for n in NAMES[:2]], ids=NAMES[:2])
ends = pytest.mark.parametrize("clean", [True, False], ids=["clean", "noisy"])
forms = pytest.mark.parametrize("form", ["x0", "eps"])


def drawn(k: int) -> Tensor:
    """The k-th normal tensor of a fixed sequence; the first is the start."""
    return torch.randn(SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(k))


def recorded() -> Draw:
    numbers = itertools.count(1)
    return lambda: drawn(next(numbers))


def as_noise(draw: Draw) -> Noise:
    return lambda like: draw()


def visible(path: Schedule, steps: int, *, clean: bool) -> Grid:
    """Steps of unequal lengths from where there is some signal, to clean or not."""
    levels = [at for at in trailing(path, steps + 2).levels if not at.blind][-steps - 1 :]
    return Grid(path, tuple(levels if clean else levels[:-1]))


def begun(grid: Grid) -> Tensor:
    at = grid.levels[0]
    return at.alpha * THREE.draw(SIZE[0], seed=5) + at.sigma * drawn(0)


def agree(
    run: Run, plain: Plain, grid: Grid, *, denoise: Denoise = THREE.x0, noisy: bool = False, tolerance: float = 1e-9
) -> None:
    """The sampler and the plain form come to the same sample, and draw as much noise."""
    x, mine, theirs = begun(grid), recorded(), recorded()
    options = {"noise": as_noise(mine)} if noisy else {}
    sample, expected = answer(run(x, grid, **options), denoise), plain(x, grid, theirs)
    torch.testing.assert_close(sample, expected, rtol=tolerance, atol=tolerance)
    if noisy:
        assert torch.equal(mine(), theirs())


# --- Karras et al. 2022 and k-diffusion, in y = x / alpha and s = sigma / alpha ---------------------------------------


def clean_guess(y: Tensor, s: Tensor) -> Tensor:
    """D(y; s) of Karras et al. 2022."""
    return THREE.x0(y, Level(s, torch.ones_like(s), s))


def slope(y: Tensor, s: Tensor) -> Tensor:
    """d of k-diffusion: dy / ds along the flow, which is the noise."""
    return (y - clean_guess(y, s)) / s


Step = Callable[..., Tensor]


def in_ve(step: Step, x: Tensor, grid: Grid, draw: Draw) -> Tensor:
    """step(y, all s, index, draw) -> y, for each pair of levels."""
    s = [at.sigma / at.alpha for at in grid.levels]
    y = x / grid.levels[0].alpha
    for i in range(len(s) - 1):
        y = step(y, s, i, draw)
    return y * grid.levels[-1].alpha


def walks(step: Step) -> Plain:
    return partial(in_ve, step)


def up_and_down(s: Tensor, t: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """get_ancestral_step of k-diffusion: (sigma_down, sigma_up)."""
    up = torch.minimum(t, eta * (t**2 * (s**2 - t**2) / s**2).sqrt())
    return (t**2 - up**2).sqrt(), up


def raised(y: Tensor, s: list[Tensor], i: int, draw: Draw, churn: float) -> tuple[Tensor, Tensor]:
    """Lines 4 to 6 of algorithm 2 of Karras et al. 2022, with no bounds on s and S_noise = 1."""
    gamma = min(churn / (len(s) - 1), math.sqrt(2) - 1)
    hat = s[i] * (1 + gamma)
    return (y + (hat**2 - s[i] ** 2).sqrt() * draw(), hat) if gamma > 0 else (y, hat)


def euler_step(y: Tensor, s: list[Tensor], i: int, draw: Draw, *, churn: float = 0.0) -> Tensor:
    y, hat = raised(y, s, i, draw, churn)
    return y + (s[i + 1] - hat) * slope(y, hat)


def heun_step(y: Tensor, s: list[Tensor], i: int, draw: Draw, *, churn: float = 0.0) -> Tensor:
    y, hat = raised(y, s, i, draw, churn)
    d = slope(y, hat)
    end = y + (s[i + 1] - hat) * d
    if s[i + 1] == 0:
        return end
    return y + (s[i + 1] - hat) * (d + slope(end, s[i + 1])) / 2


def dpm2_step(y: Tensor, s: list[Tensor], i: int, draw: Draw, *, churn: float = 0.0) -> Tensor:
    y, hat = raised(y, s, i, draw, churn)
    d = slope(y, hat)
    if s[i + 1] == 0:
        return y + (s[i + 1] - hat) * d
    middle = (hat * s[i + 1]).sqrt()
    return y + (s[i + 1] - hat) * slope(y + (middle - hat) * d, middle)


def euler_a_step(y: Tensor, s: list[Tensor], i: int, draw: Draw, *, eta: float = 1.0) -> Tensor:
    down, up = up_and_down(s[i], s[i + 1], eta)
    y = y + (down - s[i]) * slope(y, s[i])
    return y + up * draw() if s[i + 1] > 0 else y


def dpm2_a_step(y: Tensor, s: list[Tensor], i: int, draw: Draw, *, eta: float = 1.0) -> Tensor:
    down, up = up_and_down(s[i], s[i + 1], eta)
    d = slope(y, s[i])
    if down == 0:
        return y + (down - s[i]) * d
    middle = (s[i] * down).sqrt()
    return y + (down - s[i]) * slope(y + (middle - s[i]) * d, middle) + up * draw()


def dpmpp_2s_a_step(y: Tensor, s: list[Tensor], i: int, draw: Draw, *, eta: float = 1.0) -> Tensor:
    down, up = up_and_down(s[i], s[i + 1], eta)
    d = clean_guess(y, s[i])
    if down == 0:
        return d
    h = s[i].log() - down.log()
    middle = (s[i].log() - h / 2).exp()
    trial = middle / s[i] * y - torch.expm1(-h / 2) * d
    return down / s[i] * y - torch.expm1(-h) * clean_guess(trial, middle) + up * draw()


def dpmpp_sde_step(y: Tensor, s: list[Tensor], i: int, draw: Draw, *, eta: float = 1.0) -> Tensor:
    """As in k-diffusion with r = 1/2, where the noise is that of the SDE's own path.

    What the first half adds, s_m sqrt(1 - (s_m / s_a)^2) z1, is damped by (s_b / s_m)^2 until b; the second half adds
    s_b sqrt(1 - (s_b / s_m)^2) z2. Together that is s_b sqrt(1 - (s_b / s_a)^2), the step of the ancestral chain.
    """
    a, b = s[i], s[i + 1]
    d = clean_guess(y, a)
    if b == 0:
        return d
    m = (a * b).sqrt()
    down, up = up_and_down(a, m, eta)
    z1 = draw()
    trial = down / a * y - torch.expm1(down.log() - a.log()) * d + up * z1
    d2 = clean_guess(trial, m)
    z2 = draw()
    down, _ = up_and_down(a, b, eta)
    first = (b / m) ** 2 * m * (1 - (m / a) ** 2).sqrt() * z1
    second = b * (1 - (b / m) ** 2).sqrt() * z2
    return down / a * y - torch.expm1(down.log() - a.log()) * d2 + eta * (first + second)


def dpmpp_2m_sde_plain(x: Tensor, grid: Grid, draw: Draw, *, eta: float, solver: str) -> Tensor:
    """sample_dpmpp_2m_sde of k-diffusion, both of its solver types."""
    old: Tensor | None = None
    last = math.nan

    def step(y: Tensor, s: list[Tensor], i: int, draw: Draw) -> Tensor:
        nonlocal old, last
        d = clean_guess(y, s[i])
        if s[i + 1] == 0:
            return d
        h = float(s[i].log() - s[i + 1].log())
        he = h * (1 + eta)
        y = s[i + 1] / s[i] * math.exp(-eta * h) * y - math.expm1(-he) * d
        if old is not None:
            r = last / h
            part = math.expm1(-he) / he + 1 if solver == "heun" else -0.5 * math.expm1(-he)
            y = y + part / r * (d - old)
        if eta:
            y = y + s[i + 1] * math.sqrt(-math.expm1(-2 * eta * h)) * draw()
        old, last = d, h
        return y

    return in_ve(step, x, grid, draw)


def dpmpp_3m_sde_plain(x: Tensor, grid: Grid, draw: Draw, *, eta: float) -> Tensor:
    """sample_dpmpp_3m_sde of k-diffusion."""
    ds: list[Tensor] = []
    hs: list[float] = []

    def step(y: Tensor, s: list[Tensor], i: int, draw: Draw) -> Tensor:
        d = clean_guess(y, s[i])
        if s[i + 1] == 0:
            return d
        h = float(s[i].log() - s[i + 1].log())
        he = h * (1 + eta)
        phi2 = math.expm1(-he) / he + 1
        phi3 = phi2 / he - 0.5
        y = math.exp(-he) * y - math.expm1(-he) * d
        if len(ds) > 1:
            r0, r1 = hs[-1] / h, hs[-2] / h
            d10, d11 = (d - ds[-1]) / r0, (ds[-1] - ds[-2]) / r1
            y = y + phi2 * (d10 + (d10 - d11) * r0 / (r0 + r1)) - phi3 * (d10 - d11) / (r0 + r1)
        elif ds:
            y = y + phi2 * (d - ds[-1]) / (hs[-1] / h)
        if eta:
            y = y + s[i + 1] * math.sqrt(-math.expm1(-2 * eta * h)) * draw()
        ds.append(d)
        hs.append(h)
        return y

    return in_ve(step, x, grid, draw)


@every_path
@ends
@pytest.mark.parametrize(("run", "step"), [(euler, euler_step), (heun, heun_step), (dpm2, dpm2_step)])
@pytest.mark.parametrize("churn", [0.0, 3.0, 1000.0])
def test_euler_heun_and_dpm2_are_karras_algorithm_two(
    path: Schedule, clean: bool, run: Run, step: Step, churn: float
) -> None:
    """With no churn, with some, and with so much that each step is raised by the most, sqrt(2)."""
    plain = walks(partial(step, churn=churn))
    agree(partial(run, churn=churn), plain, visible(path, 9, clean=clean), noisy=True)


@every_path
@ends
@pytest.mark.parametrize(
    ("run", "step"),
    [(euler_a, euler_a_step), (dpm2_a, dpm2_a_step), (dpmpp_2s_a, dpmpp_2s_a_step), (dpmpp_sde, dpmpp_sde_step)],
)
@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_ancestral_samplers_are_those_of_k_diffusion(
    path: Schedule, clean: bool, run: Run, step: Step, eta: float
) -> None:
    agree(partial(run, eta=eta), walks(partial(step, eta=eta)), visible(path, 9, clean=clean), noisy=True)


@every_path
@ends
@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_dpmpp_2m_sde_and_3m_sde_are_those_of_k_diffusion(path: Schedule, clean: bool, eta: float) -> None:
    grid = visible(path, 9, clean=clean)
    midpoint, by_heun = (partial(dpmpp_2m_sde_plain, eta=eta, solver=solver) for solver in ("midpoint", "heun"))
    agree(partial(dpmpp_2m_sde, eta=eta), midpoint, grid, noisy=True)
    agree(partial(dpm_solver, taylor=True, few=0, eta=eta), by_heun, grid, noisy=True)
    agree(partial(dpmpp_3m_sde, eta=eta), partial(dpmpp_3m_sde_plain, eta=eta), grid, noisy=True)


@every_path
def test_without_fresh_noise_the_sdes_are_the_multistep_solvers(path: Schedule) -> None:
    grid = visible(path, 9, clean=True)
    agree(partial(dpmpp_2m_sde, eta=0.0), partial(dpmpp_2m_sde_plain, eta=0.0, solver="midpoint"), grid, noisy=True)
    agree(partial(dpm_solver, few=0), partial(dpmpp_2m_sde_plain, eta=0.0, solver="midpoint"), grid)
    agree(partial(dpm_solver, order=3, few=0, taylor=True), partial(dpmpp_3m_sde_plain, eta=0.0), grid)


# --- Adams and Bashforth ----------------------------------------------------------------------------------------------

AB = {1: (1,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}


def transfer(x: Tensor, e: Tensor, p: Level, q: Level) -> Tensor:
    """phi of Liu et al. 2022, eq. 11, in abar; the straight line in s where alpha^2 + sigma^2 is not 1."""
    if abs(float(p.alpha**2 + p.sigma**2) - 1) > 1e-12:
        return q.alpha * (x / p.alpha + (q.sigma / q.alpha - p.sigma / p.alpha) * e)
    a, b = p.alpha**2, q.alpha**2
    by = a.sqrt() * (((1 - b) * a).sqrt() + ((1 - a) * b).sqrt())
    return x + (b - a) * (x / (a.sqrt() * (a.sqrt() + b.sqrt())) - e / by)


def noise_of(x: Tensor, at: Level) -> Tensor:
    """The network's answer: eps."""
    return (x - at.alpha * THREE.x0(x, at)) / at.sigma


def improved_euler(x: Tensor, e: Tensor, a: Level, b: Level, path: Schedule) -> Tensor:
    return (e + noise_of(transfer(x, e, a, b), b)) / 2


def pseudo_runge_kutta(x: Tensor, e1: Tensor, a: Level, b: Level, path: Schedule) -> Tensor:
    mid = path.level((a.t + b.t) / 2)
    e2 = noise_of(transfer(x, e1, a, mid), mid)
    e3 = noise_of(transfer(x, e2, a, mid), mid)
    e4 = noise_of(transfer(x, e3, a, b), b)
    return (e1 + 2 * e2 + 2 * e3 + e4) / 6


def pseudo_linear(
    x: Tensor, grid: Grid, draw: Draw, *, start: Callable[..., Tensor] | None, starts: int, most: int
) -> Tensor:
    """`starts` steps by `start`, then Adams and Bashforth over as many noises as there are, at most `most`."""
    es: list[Tensor] = []
    for i, (a, b) in enumerate(zip(grid.levels, grid.levels[1:], strict=False)):
        es.append(noise_of(x, a))
        if start is not None and i < starts:
            e = start(x, es[-1], a, b, grid.schedule)
        else:
            k = min(len(es), most)
            e = torch.stack([w * old for w, old in zip(AB[k], es[::-1], strict=False)]).sum(0)
        x = transfer(x, e, a, b)
    return x


LINEAR: list[tuple[Run, Plain]] = [
    (plms, partial(pseudo_linear, start=improved_euler, starts=1, most=4)),
    (s_pndm, partial(pseudo_linear, start=improved_euler, starts=1, most=2)),
    (pndm, partial(pseudo_linear, start=pseudo_runge_kutta, starts=3, most=4)),
    (ipndm, partial(pseudo_linear, start=None, starts=0, most=4)),
]


@every_path
@ends
@pytest.mark.parametrize(("run", "plain"), LINEAR, ids=["plms", "s_pndm", "pndm", "ipndm"])
def test_pseudo_linear_multistep_methods_are_those_of_liu(path: Schedule, clean: bool, run: Run, plain: Plain) -> None:
    agree(run, plain, visible(path, 9, clean=clean))


def lagrange(nodes: list[float], j: int) -> Polynomial:
    others = [x for k, x in enumerate(nodes) if k != j]
    return Polynomial.fromroots(others) / math.prod(nodes[j] - x for x in others) if others else Polynomial([1.0])


def lms_plain(x: Tensor, grid: Grid, draw: Draw) -> Tensor:
    """sample_lms of k-diffusion; the integrals of Lagrange's polynomials by their antiderivatives."""
    ds: list[Tensor] = []

    def step(y: Tensor, s: list[Tensor], i: int, draw: Draw) -> Tensor:
        ds.insert(0, slope(y, s[i]))
        nodes = [float(s[i - k]) for k in range(min(i + 1, 4))]
        for j, d in enumerate(ds[: len(nodes)]):
            whole = lagrange(nodes, j).integ()
            y = y + (whole(float(s[i + 1])) - whole(float(s[i]))) * d
        return y

    return in_ve(step, x, grid, draw)


@every_path
@ends
def test_lms_is_that_of_k_diffusion(path: Schedule, clean: bool) -> None:
    agree(lms, lms_plain, visible(path, 9, clean=clean))


def deis_plain(x: Tensor, grid: Grid, draw: Draw, *, pieces: int) -> Tensor:
    """tAB-DEIS (Zhang & Chen 2023, eq. 15): a polynomial of the clock, integrated over s by trapezoids in t."""
    ds: list[Tensor] = []
    ts = [float(at.t) for at in grid.levels]

    def step(y: Tensor, s: list[Tensor], i: int, draw: Draw) -> Tensor:
        ds.insert(0, slope(y, s[i]))
        if s[i + 1] == 0:
            return y - s[i] * ds[0]
        fine = torch.linspace(ts[i], ts[i + 1], pieces + 1, dtype=torch.float64)
        at = grid.schedule.level(fine)
        ratio = (at.sigma / at.alpha).numpy()
        nodes = [ts[i - k] for k in range(min(i + 1, 4))]
        for j, d in enumerate(ds[: len(nodes)]):
            values = lagrange(nodes, j)(fine.numpy())
            y = y + float(np.sum(np.diff(ratio) * (values[1:] + values[:-1]) / 2)) * d
        return y

    return in_ve(step, x, grid, draw)


@every_path
@ends
def test_deis_is_its_papers_equation_fifteen(path: Schedule, clean: bool) -> None:
    """As exact as the rules of integration are: a table has kinks."""
    tolerance = 1e-4 if isinstance(path, Table) else 1e-7
    agree(deis, partial(deis_plain, pieces=20_000), visible(path, 9, clean=clean), tolerance=tolerance)


# --- DPM-Solver and UniPC, in alpha, sigma, lam and h -----------------------------------------------------------------


def model(form: Form, x: Tensor, at: Level) -> Tensor:
    """m of DPM-Solver++ or eps of DPM-Solver."""
    return THREE.x0(x, at) if form == "x0" else noise_of(x, at)


def lam_of(at: Level) -> float:
    return math.log(float(at.alpha) / float(at.sigma))


def first_order(form: Form, x: Tensor, m: Tensor, s: Level, t: Level) -> Tensor:
    h = lam_of(t) - lam_of(s)
    if form == "x0":
        return t.sigma / s.sigma * x - t.alpha * math.expm1(-h) * m
    return t.alpha / s.alpha * x - t.sigma * math.expm1(h) * m


def multistep_update(form: Form, x: Tensor, ms: list[Tensor], at: list[Level], t: Level, *, taylor: bool) -> Tensor:
    """Orders 1 to 3 of multistep DPM-Solver; the latest model value is the last of `ms`."""
    y = first_order(form, x, ms[-1], at[-1], t)
    if len(ms) == 1:
        return y
    h = lam_of(t) - lam_of(at[-1])
    r0 = (lam_of(at[-1]) - lam_of(at[-2])) / h
    d10 = (ms[-1] - ms[-2]) / r0
    if len(ms) == 2:
        if form == "x0":
            by = t.alpha * (math.expm1(-h) / h + 1) if taylor else -0.5 * t.alpha * math.expm1(-h)
        else:
            by = -t.sigma * (math.expm1(h) / h - 1) if taylor else -0.5 * t.sigma * math.expm1(h)
        return y + by * d10
    r1 = (lam_of(at[-2]) - lam_of(at[-3])) / h
    d11 = (ms[-2] - ms[-3]) / r1
    d1 = d10 + r0 / (r0 + r1) * (d10 - d11)
    d2 = (d10 - d11) / (r0 + r1)
    if form == "x0":
        phi2 = math.expm1(-h) / h + 1
        return y + t.alpha * phi2 * d1 - t.alpha * (phi2 / h - 0.5) * d2
    phi2 = math.expm1(h) / h - 1
    return y - t.sigma * phi2 * d1 - t.sigma * (phi2 / h - 0.5) * d2


def multistep_plain(
    x: Tensor, grid: Grid, draw: Draw, *, form: Form, order: int, taylor: bool = False, few: int = 15
) -> Tensor:
    """The published driver: orders 1 to p - 1 to begin, and with less than `few` steps min(p, S + 1 - step) to end."""
    ms: list[Tensor] = []
    levels, steps = list(grid.levels), len(grid.levels) - 1
    for step in range(1, steps + 1):
        s, t = levels[step - 1], levels[step]
        if t.sigma == 0:
            return THREE.x0(x, s)
        ms.append(model(form, x, s))
        p = min(step, order, steps + 1 - step if steps < few else order)
        x = multistep_update(form, x, ms[-p:], levels[step - p : step], t, taylor=taylor)
    return x


@every_path
@ends
@forms
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", [3, 14, 15])
def test_multistep_dpm_solver_is_the_published_one(
    path: Schedule, clean: bool, form: Form, order: int, steps: int
) -> None:
    grid = visible(path, steps if clean else steps + 1, clean=clean)
    assert len(grid) == steps
    for taylor, few in ((False, 15), (True, 15), (False, 10)):
        options = {"form": form, "order": order, "taylor": taylor, "few": few}
        agree(partial(dpm_solver, **options), partial(multistep_plain, **options), grid)


def single_second(form: Form, x: Tensor, s: Level, s1: Level, t: Level, *, taylor: bool) -> Tensor:
    h = lam_of(t) - lam_of(s)
    r1 = (lam_of(s1) - lam_of(s)) / h
    m = model(form, x, s)
    m1 = model(form, first_order(form, x, m, s, s1), s1)
    y = first_order(form, x, m, s, t)
    if form == "x0":
        by = t.alpha * (math.expm1(-h) / h + 1) / r1 if taylor else -t.alpha * math.expm1(-h) / (2 * r1)
    else:
        by = -t.sigma * (math.expm1(h) / h - 1) / r1 if taylor else -t.sigma * math.expm1(h) / (2 * r1)
    return y + by * (m1 - m)


def single_third(form: Form, x: Tensor, s: Level, s1: Level, s2: Level, t: Level, *, taylor: bool) -> Tensor:
    h = lam_of(t) - lam_of(s)
    r1, r2 = ((lam_of(at) - lam_of(s)) / h for at in (s1, s2))
    sign = -1 if form == "x0" else 1  # of h in the exponentials
    phi1, phi12 = math.expm1(sign * h), math.expm1(sign * r2 * h)
    phi22 = phi12 / (r2 * h) - sign
    phi2 = phi1 / h - sign
    phi3 = phi2 / h - 0.5

    def weight(at: Level) -> Tensor:
        return at.alpha if form == "x0" else at.sigma

    m = model(form, x, s)
    m1 = model(form, first_order(form, x, m, s, s1), s1)
    y2 = first_order(form, x, m, s, s2) - sign * r2 / r1 * weight(s2) * phi22 * (m1 - m)
    m2 = model(form, y2, s2)
    y = first_order(form, x, m, s, t)
    if not taylor:
        return y - sign / r2 * weight(t) * phi2 * (m2 - m)
    d10, d11 = (m1 - m) / r1, (m2 - m) / r2
    d1, d2 = (r2 * d10 - r1 * d11) / (r2 - r1), 2 * (d11 - d10) / (r2 - r1)
    return y - sign * weight(t) * phi2 * d1 - weight(t) * phi3 * d2


def shares(steps: int, order: int, *, fast: bool) -> list[int]:
    """The published orders of single steps, as a table by the remainder (LuChengTHU's get_orders)."""
    if order == 3 and fast:
        k = steps // 3 + 1
        return {0: [3] * (k - 2) + [2, 1], 1: [3] * (k - 1) + [1], 2: [3] * (k - 1) + [2]}[steps % 3]
    whole = [order] * (steps // order)
    return [*whole, steps % order] if steps % order else whole


def single_plain(
    x: Tensor, grid: Grid, draw: Draw, *, form: Form, order: int, taylor: bool = False, lower_final: bool = True
) -> Tensor:
    levels = [at for at in grid.levels if at.sigma > 0]
    i = 0
    for p in shares(len(levels) - 1, order, fast=lower_final):
        part = levels[i : i + p + 1]
        if p == 1:
            x = first_order(form, x, model(form, x, part[0]), *part)
        elif p == 2:
            x = single_second(form, x, *part, taylor=taylor)
        else:
            x = single_third(form, x, *part, taylor=taylor)
        i += p
    return x if grid.levels[-1].sigma > 0 else THREE.x0(x, levels[-1])


@every_path
@ends
@forms
@pytest.mark.parametrize(("order", "lower_final"), [(1, True), (2, True), (3, True), (3, False)])
@pytest.mark.parametrize("steps", [6, 7, 8, 9])
def test_single_step_dpm_solver_is_the_published_one(
    path: Schedule, clean: bool, form: Form, order: int, lower_final: bool, steps: int
) -> None:
    """On levels that are not even in lam, so that r1 and r2 are not 1/3 and 2/3; `steps` and the clean end."""
    grid = visible(path, steps + 1, clean=clean)
    for taylor in (False, True):
        options = {"form": form, "order": order, "taylor": taylor, "lower_final": lower_final}
        agree(partial(dpm_solver_single, **options), partial(single_plain, **options), grid)


@pytest.mark.parametrize(
    ("steps", "order", "lower_final", "published"),
    [
        (6, 3, True, [3, 2, 1]),
        (7, 3, True, [3, 3, 1]),
        (8, 3, True, [3, 3, 2]),
        (9, 3, True, [3, 3, 2, 1]),
        (20, 3, True, [3] * 6 + [2]),
        (18, 3, False, [3] * 6),
        (20, 2, True, [2] * 10),
        (7, 2, True, [2, 2, 2, 1]),
        (3, 1, True, [1, 1, 1]),
    ],
)
def test_single_steps_share_out_the_evaluations_as_published(
    steps: int, order: int, lower_final: bool, published: list[int]
) -> None:
    assert orders(steps, order, lower_final=lower_final) == published
    assert shares(steps, order, fast=lower_final) == published


def adaptive_plain(
    x: Tensor, grid: Grid, draw: Draw, *, form: Form, order: int, atol: float = 0.0078, rtol: float = 0.05
) -> Tensor:
    """dpm_solver_adaptive of LuChengTHU for one sample."""
    path = grid.schedule
    levels = [at for at in grid.levels if at.sigma > 0]
    s, end = levels[0], levels[-1]
    h, before = 0.05, x

    def ahead(part: float) -> Level:
        return path.level(path.time(f64(lam_of(s) + part)[0]))

    while abs(float(s.t - end.t)) > 1e-5 * (path.entries or 1):
        t = ahead(h)
        if order == 2:
            lower = first_order(form, x, model(form, x, s), s, t)
            higher = single_second(form, x, s, ahead(h / 2), t, taylor=False)
        else:
            lower = single_second(form, x, s, ahead(h / 3), t, taylor=False)
            higher = single_third(form, x, s, ahead(h / 3), ahead(h * 2 / 3), t, taylor=False)
        delta = (rtol * torch.maximum(lower.abs(), before.abs())).clamp_min(atol)
        error = float(((higher - lower) / delta).square().mean().sqrt())
        if error <= 1:
            x, before, s = higher, lower, t
        h = min(0.9 * h * error ** (-1 / order), lam_of(end) - lam_of(s))
    return x if grid.levels[-1].sigma > 0 else THREE.x0(x, end)


@every_path
@ends
@forms
@pytest.mark.parametrize("order", [2, 3])
def test_every_sample_of_adaptive_dpm_solver_takes_the_published_steps(
    path: Schedule, clean: bool, form: Form, order: int
) -> None:
    """All samples in one batch against each alone, with a tolerance at which some steps are refused."""
    grid = visible(path, 9, clean=clean)
    for tolerance in (0.05, 0.003):
        options = {"form": form, "order": order, "rtol": tolerance, "atol": tolerance / 6}
        x = begun(grid)
        batch = answer(adaptive(x, grid, **options), THREE.x0)
        alone = torch.cat([adaptive_plain(x[i : i + 1], grid, recorded(), **options) for i in range(len(x))])
        torch.testing.assert_close(batch, alone, rtol=1e-9, atol=1e-9)


def bh2(
    form: Form,
    x: Tensor,
    ms: list[Tensor],
    at: list[Level],
    t: Level,
    ahead: Tensor | None = None,
) -> Tensor:
    """multistep_uni_pc_bh_update of UniPC with B2(h): the predictor; with a value `ahead` at t the corrector."""
    h = lam_of(t) - lam_of(at[-1])
    hh = -h if form == "x0" else h
    rks = [(lam_of(before) - lam_of(at[-1])) / h for before in at[-2::-1]]
    d1s = [(m - ms[-1]) / r for m, r in zip(ms[-2::-1], rks, strict=True)]
    rks.append(1.0)
    h_phi_1 = b_h = math.expm1(hh)
    h_phi_k, factorial = h_phi_1 / hh - 1, 1
    rows, b = [], []
    for i in range(1, len(rks) + 1):
        rows.append([r ** (i - 1) for r in rks])
        b.append(h_phi_k * factorial / b_h)
        factorial *= i + 1
        h_phi_k = h_phi_k / hh - 1 / factorial
    big_r, big_b = np.array(rows), np.array(b)
    if ahead is None:
        rhos = [0.5] if len(rks) == 2 else np.linalg.solve(big_r[:-1, :-1], big_b[:-1])
    else:
        rhos = [0.5] if len(rks) == 1 else np.linalg.solve(big_r, big_b)
        d1s = [*d1s, ahead - ms[-1]]
    residual = torch.zeros_like(x)
    for rho, d in zip(rhos, d1s, strict=True):
        residual = residual + float(rho) * d
    if form == "x0":
        return t.sigma / at[-1].sigma * x - t.alpha * h_phi_1 * ms[-1] - t.alpha * b_h * residual
    return t.alpha / at[-1].alpha * x - t.sigma * h_phi_1 * ms[-1] - t.sigma * b_h * residual


def unipc_plain(x: Tensor, grid: Grid, draw: Draw, *, form: Form, order: int, lower_final: bool = True) -> Tensor:
    """The published driver: predict, ask, correct with the answer, which is also the one that is remembered."""
    levels, steps = list(grid.levels), len(grid.levels) - 1
    ms = [model(form, x, levels[0])]
    if levels[1].sigma == 0:
        return THREE.x0(x, levels[0])
    for step in range(1, steps + 1):
        t = levels[step]
        p = min(step, order, steps + 1 - step if lower_final else order)
        known, at = ms[-p:], levels[step - p : step]
        predicted = bh2(form, x, known, at, t)
        if step == steps:
            return predicted
        ms.append(model(form, predicted, t))
        corrected = bh2(form, x, known, at, t, ahead=ms[-1])
        if levels[step + 1].sigma == 0:  # the last answer is the sample
            return THREE.x0(predicted, t)
        x = corrected
    raise AssertionError


@every_path
@ends
@forms
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 2, 9, 15])
def test_unipc_is_the_published_one_in_its_matrix_form(
    path: Schedule, clean: bool, form: Form, order: int, steps: int
) -> None:
    grid = visible(path, steps if clean else steps + 1, clean=clean)
    assert len(grid) == steps
    for lower_final in (True, False):
        options = {"form": form, "order": order, "lower_final": lower_final}
        agree(partial(unified, **options), partial(unipc_plain, **options), grid)


@every_path
def test_unipc_is_of_second_order_in_the_clean_guess(path: Schedule) -> None:
    grid = visible(path, 9, clean=False)
    agree(unipc, partial(unipc_plain, form="x0", order=2), grid)


def test_unipc_without_its_lower_end_is_of_third_order_and_with_it_of_second() -> None:
    path = SCHEDULES["cosine"]()
    a, b = (path.level(path.time(f64(lam)[0])) for lam in (-2.5, 2.0))
    x = begun(Grid(path, (a, b)))
    end = exact(THREE.x0, x, a, b)

    def order(*, lower_final: bool) -> float:
        grids = [between(path, a, b, n, even_in="lam") for n in (84, 168)]
        few, many = ((answer(unified(x, g, lower_final=lower_final), THREE.x0) - end).norm() for g in grids)
        return math.log2(few / many)

    assert order(lower_final=False) > 2.8
    assert 1.8 < order(lower_final=True) < 2.4


@pytest.mark.parametrize("run", [euler, heun])
def test_churn_does_not_go_beyond_what_the_network_has_seen(run: Run) -> None:
    grid = trailing(SCHEDULES["scaled_linear"](), 5)
    events = steps(run(begun(grid), grid, churn=10.0, noise=seeded(range(4))), THREE.x0)
    asks = [float(event.at.t) for event in events if isinstance(event, Asked)]
    assert asks[0] == max(asks) == 999  # no churn at the top
    assert 799 < asks[2 if run is heun else 1] < 999


@every_path
def test_the_predictor_of_unipc_is_dpmpp_2m(path: Schedule) -> None:
    """For answers that do not depend on x both take the same step from where they are; only that place is corrected."""
    a, b, c = visible(path, 3, clean=False).levels
    x = begun(Grid(path, (a, b, c)))

    def asked(run: Run, m: Level) -> tuple[Tensor, Tensor]:
        """The sample at `b` and at `m`, with the answers drawn(1) at `a` and drawn(2) at `b`."""
        asks = run(x, Grid(path, (a, b, m)))
        next(asks)
        there, _ = asks.send(drawn(1))
        with pytest.raises(StopIteration) as done:
            asks.send(drawn(2))
        return there, done.value.value

    (at_b, end), (also_at_b, other_end) = (
        asked(partial(unified, order=2, lower_final=False), c),
        asked(partial(dpm_solver, order=2, few=0), c),
    )
    torch.testing.assert_close(at_b, also_at_b, rtol=1e-12, atol=1e-12)
    corrected = bh2("x0", x, [drawn(1)], [a], b, ahead=drawn(2))
    moved = c.sigma / b.sigma * (corrected - at_b)
    assert float(moved.abs().max()) > 1e-3
    torch.testing.assert_close(end - other_end, moved, rtol=1e-9, atol=1e-9)


# --- One step without memory ------------------------------------------------------------------------------------------


def respaced(a: Level, b: Level) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the respaced chain: the weights of the posterior's mean on x0 and x, its variance, and beta."""
    abar, before = a.alpha**2, b.alpha**2
    beta = 1 - abar / before
    on_x0, on_x = before.sqrt() * beta / (1 - abar), (1 - beta).sqrt() * (1 - before) / (1 - abar)
    return on_x0, on_x, beta * (1 - before) / (1 - abar), beta


def spread_at(x: Tensor) -> Tensor:
    """Something for a network to have learnt of the variance, in [0, 1]."""
    return (1 + (3 * x).sin()) / 2


def push_at(x: Tensor) -> Tensor:
    return x.cos()


def ancestral_plain(x: Tensor, grid: Grid, draw: Draw, *, variance: str, pushed: bool = False) -> Tensor:
    """p_sample of Ho et al. 2020 and Nichol & Dhariwal 2021; the push is that of Dhariwal & Nichol 2021, alg. 1.

    At the last step, where the posterior has no variance, their programs push by none ("small"), by that of the step
    before ("large"), or by what lies between that and beta ("learned").
    """
    before = None
    for a, b in zip(grid.levels, grid.levels[1:], strict=False):
        on_x0, on_x, small, large = respaced(a, b)
        v = {"small": torch.zeros_like(x), "large": torch.ones_like(x), "learned": spread_at(x)}[variance]
        if small > 0:
            before = small
            var = (v * large.log() + (1 - v) * small.log()).exp()
        else:
            assert before is not None
            between = (v * large.log() + (1 - v) * before.log()).exp()
            var = {"small": 0 * large, "large": before, "learned": between}[variance]
        mean = on_x0 * THREE.x0(x, a) + on_x * x + (var * push_at(x) if pushed else 0)
        x = mean + var.sqrt() * draw() if b.sigma > 0 else mean
    return x


@every_table
@ends
@pytest.mark.parametrize(("run", "variance"), [(ddpm, "small"), (ddpm_large, "large"), (ddpm_learned, "learned")])
def test_the_ancestral_samplers_are_the_posterior_in_betas(
    path: Schedule, clean: bool, run: Run, variance: str
) -> None:
    """From the first entry on, where there is next to nothing but noise; with and without a push."""
    levels = trailing(path, 11).levels
    grid = Grid(path, levels if clean else levels[:-1])
    for pushed in (False, True):

        def denoise(x: Tensor, at: Level, pushed: bool = pushed) -> Tensor:
            return Estimate(THREE.x0(x, at), spread_at(x), push_at(x) if pushed else None)  # pyright: ignore

        agree(run, partial(ancestral_plain, variance=variance, pushed=pushed), grid, denoise=denoise, noisy=True)


@every_path
@ends
@pytest.mark.parametrize(("spread", "like"), [(0.0, ddpm), (1.0, ddpm_large)])
def test_a_learnt_variance_at_its_ends_is_one_of_the_fixed_ones(
    path: Schedule, clean: bool, spread: float, like: Run
) -> None:
    def plain(x: Tensor, grid: Grid, draw: Draw) -> Tensor:
        return answer(like(x, grid, noise=as_noise(draw)), THREE.x0)

    def denoise(x: Tensor, at: Level) -> Tensor:
        x0 = THREE.x0(x, at)
        return Estimate(x0, torch.full_like(x0, spread))  # pyright: ignore[reportReturnType]

    agree(ddpm_learned, plain, visible(path, 9, clean=clean), denoise=denoise, noisy=True)


@every_path
@ends
def test_euler_is_ddim_and_its_ancestral_form_is_ddpm(path: Schedule, clean: bool) -> None:
    grid = visible(path, 9, clean=clean)
    agree(ddim, lambda x, grid, draw: answer(euler(x, grid), THREE.x0), grid)
    for run in (ddpm, partial(ddim, eta=1.0), euler_a):
        agree(run, walks(euler_a_step), grid, noisy=True)
    for eta in (0.3, 0.8):
        agree(partial(ddim, eta=eta), walks(partial(euler_a_step, eta=eta)), grid, noisy=True)


@every_path
@ends
@forms
def test_dpm_solver_of_order_one_is_ddim(path: Schedule, clean: bool, form: Form) -> None:
    grid = visible(path, 9, clean=clean)
    for run in (dpm_solver, dpm_solver_single):
        agree(partial(run, form=form, order=1), walks(euler_step), grid)


def lcm_plain(x: Tensor, grid: Grid, draw: Draw) -> Tensor:
    """Multistep consistency sampling (Song et al. 2023, alg. 1): answer, noise again, answer."""
    for a, b in zip(grid.levels, grid.levels[1:], strict=False):
        x0 = THREE.x0(x, a)
        x = b.alpha * x0 + b.sigma * draw() if b.sigma > 0 else x0
    return x


@every_path
@ends
def test_lcm_is_multistep_consistency_sampling(path: Schedule, clean: bool) -> None:
    agree(lcm, lcm_plain, visible(path, 5, clean=clean), noisy=True)


# --- Score matching ---------------------------------------------------------------------------------------------------


def score(y: Tensor, s: Tensor) -> Tensor:
    """By Tweedie's formula."""
    return (clean_guess(y, s) - y) / s**2


def langevin_step(y: Tensor, s: list[Tensor], i: int, draw: Draw, *, step: float, inner: int) -> Tensor:
    """Algorithm 1 of Song & Ermon 2019 at one level; before a clean end, the denoising of the last sample."""
    epsilon = step * s[-2] ** 2 if s[-1] == 0 else step * s[-1] ** 2
    last = s[-2] if s[-1] == 0 else s[-1]
    size = epsilon * s[i] ** 2 / last**2
    for _ in range(inner):
        y = y + size * score(y, s[i]) + (2 * size).sqrt() * draw()
    return y + s[i] ** 2 * score(y, s[i]) if s[i + 1] == 0 else y


@every_path
@ends
@pytest.mark.parametrize(("step", "inner"), [(0.1, 5), (0.03, 2)])
def test_langevin_is_song_and_ermons_algorithm_one(path: Schedule, clean: bool, step: float, inner: int) -> None:
    options = {"step": step, "inner": inner}
    agree(
        partial(annealed_langevin, **options),
        walks(partial(langevin_step, **options)),
        visible(path, 6, clean=clean),
        noisy=True,
    )


def cas_step(y: Tensor, s: list[Tensor], i: int, draw: Draw, *, eta: float | None, beta: float = 0.2) -> Tensor:
    """Algorithm 2 of Jolicoeur-Martineau et al. 2021, and its denoising; with `eta`, beta follows from it."""
    k = i if s[i + 1] > 0 else i - 1  # the last level takes the step of the one before
    gamma = float(s[k + 1] / s[k])
    part = 1 - gamma * math.sqrt(1 - beta**2) if eta is None else eta
    fresh = beta if eta is None else math.sqrt(1 - ((1 - eta) / gamma) ** 2)
    y = y + part * s[i] ** 2 * score(y, s[i])
    return y + fresh * s[i + 1] * draw() if s[i + 1] > 0 else y + s[i] ** 2 * score(y, s[i])


@every_path
@ends
@pytest.mark.parametrize("beta", [0.2, 0.7])
def test_consistent_annealed_sampling_is_its_algorithm_two(path: Schedule, clean: bool, beta: float) -> None:
    grid = visible(path, 6, clean=clean)
    agree(partial(consistent_annealed, beta=beta), walks(partial(cas_step, eta=None, beta=beta)), grid, noisy=True)


@pytest.mark.parametrize("eta", [0.1, 0.5])
@ends
def test_consistent_annealed_sampling_with_one_step_for_all_levels(clean: bool, eta: float) -> None:
    """The published setting: levels that fall by one factor, at a density at which the step is within its bounds."""
    path = SCHEDULES["geometric"](start=0.05, end=5.0, steps=61)
    grid = Grid(path, tuple(path.level(float(t)) for t in range(60, -1, -1)))
    grid = Grid(path, (*grid.levels, Level.clean(0.0))) if clean else grid
    agree(partial(consistent_annealed, step=eta), walks(partial(cas_step, eta=eta)), grid, noisy=True)


@every_path
@pytest.mark.parametrize("beta", [0.2, 0.7])
def test_for_one_point_of_data_consistent_annealed_sampling_has_the_noise_of_each_level(
    path: Schedule, beta: float
) -> None:
    """The property that gives it its name: old and new noise, which are independent, add up to sigma'."""
    point, grid = f64(0.7, 0.7), visible(path, 9, clean=False)
    a = grid.levels[0]
    for i in range(1, len(grid.levels)):
        fresh = itertools.chain([f64(0.0, 1.0)], itertools.repeat(f64(0.0, 0.0)))  # of the first step alone
        part = Grid(path, grid.levels[: i + 1])
        x = a.alpha * point + a.sigma * f64(1.0, 0.0)
        sampler = consistent_annealed(x, part, noise=lambda _, z=fresh: next(z), beta=beta)
        kept = float(f64(1 - beta**2).sqrt()) ** i * part.levels[-1].sigma
        off = answer(sampler, lambda x, at: point) - part.levels[-1].alpha * point
        first = beta * math.sqrt(1 - beta**2) ** (i - 1) * part.levels[-1].sigma
        torch.testing.assert_close(off, torch.stack([kept, first]), rtol=1e-9, atol=1e-12)
        every = kept**2 + sum((beta * math.sqrt(1 - beta**2) ** k * part.levels[-1].sigma) ** 2 for k in range(i))
        assert float(every) == pytest.approx(float(part.levels[-1].sigma) ** 2, rel=1e-12)


# --- What is exact, and what closes a run -----------------------------------------------------------------------------


def walked(run: Run, grid: Grid, guess: Callable[[Tensor, Level], Tensor]) -> list[Tensor]:
    """The samples at all levels, of a sampler that asks once a step."""
    asked: list[Tensor] = []

    def denoise(x: Tensor, at: Level) -> Tensor:
        asked.append(x)
        return guess(x, at)

    end = answer(run(begun(grid), grid), denoise)
    return [*asked, end]


@every_path
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_lms_is_exact_for_a_noise_that_is_a_cubic_in_sigma_over_alpha(path: Schedule, degree: int) -> None:
    grid = visible(path, 9, clean=False)
    curve = Polynomial([0.3, -0.4, 0.25, 0.1][: degree + 1])
    xs = walked(lms, grid, lambda x, at: (x - at.sigma * curve(float(at.sigma / at.alpha))) / at.alpha)
    ys = [x / at.alpha for x, at in zip(xs, grid.levels, strict=True)]
    s = [float(at.sigma / at.alpha) for at in grid.levels]
    for i in range(degree, len(grid)):
        gain = curve.integ()(s[i + 1]) - curve.integ()(s[i])
        torch.testing.assert_close(ys[i + 1], ys[i] + gain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_deis_is_exact_for_a_noise_that_is_a_cubic_in_the_clock(degree: int) -> None:
    """On the flow: with s = t / (1 - t) and u = 1 - t, the integral of (1 - u)^k d(1 / u) in closed form."""
    path = SCHEDULES["flow"]()
    grid = between(path, path.level(0.9), path.level(0.2), 9, even_in="time")
    curve = Polynomial([0.3, -0.4, 0.25, 0.1][: degree + 1])

    def whole(t: float) -> float:  # the antiderivative of curve(t) / (1 - t)^2
        u = 1 - t
        in_u = sum((c * Polynomial([1.0, -1.0]) ** k for k, c in enumerate(curve.coef)), Polynomial([0.0])).coef
        return -sum(c * (math.log(u) if k == 1 else u ** (k - 1) / (k - 1)) for k, c in enumerate(in_u))

    xs = walked(deis, grid, lambda x, at: (x - at.sigma * curve(float(at.t))) / at.alpha)
    ys = [x / at.alpha for x, at in zip(xs, grid.levels, strict=True)]
    t = [float(at.t) for at in grid.levels]
    for i in range(degree, len(grid)):
        torch.testing.assert_close(ys[i + 1], ys[i] + whole(t[i + 1]) - whole(t[i]), rtol=1e-7, atol=1e-7)


@every_path
@pytest.mark.parametrize(("order", "degree"), [(1, 0), (2, 1)])
@forms
def test_the_taylor_form_is_exact_for_a_guess_that_is_a_line_in_lam(
    path: Schedule, order: int, degree: int, form: Form
) -> None:
    """x / sigma grows by the integral of exp(lam) x0, x / alpha falls by that of exp(-lam) eps."""
    grid = visible(path, 9, clean=False)
    c0, c1 = 0.3, 0.4 * degree

    def guess(x: Tensor, at: Level) -> Tensor:
        line = c0 + c1 * at.lam
        return line.expand_as(x) if form == "x0" else (x - at.sigma * line) / at.alpha

    def whole(lam: float) -> float:
        return math.exp(lam) * (c0 + c1 * (lam - 1)) if form == "x0" else math.exp(-lam) * (c0 + c1 * (lam + 1))

    run = partial(dpm_solver, form=form, order=order, taylor=True, few=0)
    xs = walked(run, grid, guess)
    zs = [x / (at.sigma if form == "x0" else at.alpha) for x, at in zip(xs, grid.levels, strict=True)]
    for i in range(degree, len(grid)):
        gain = whole(lam_of(grid.levels[i + 1])) - whole(lam_of(grid.levels[i]))
        torch.testing.assert_close(zs[i + 1], zs[i] + gain, rtol=1e-9, atol=1e-9)


@every_path
@forms
def test_third_order_single_steps_in_taylor_form_are_exact_for_a_parabola_in_lam(path: Schedule, form: Form) -> None:
    grid = Grid(path, visible(path, 9, clean=False).levels[:4])  # one step of order three over levels that are not even
    c = Polynomial([0.3, 0.4, -0.2])

    def guess(x: Tensor, at: Level) -> Tensor:
        value = f64(c(lam_of(at)))[0]
        return value.expand_as(x) if form == "x0" else (x - at.sigma * value) / at.alpha

    def whole(lam: float) -> float:  # of exp(lam) c, or of exp(-lam) c with the sign of the step
        d, dd = c.deriv(), c.deriv(2)
        return math.exp(lam) * (c - d + dd)(lam) if form == "x0" else math.exp(-lam) * (c + d + dd)(lam)

    x, (a, *_, b) = begun(grid), grid.levels
    run = dpm_solver_single(x, grid, form=form, order=3, taylor=True, lower_final=False)
    start, end = (at.sigma if form == "x0" else at.alpha for at in (a, b))
    expected = end * (x / start + whole(lam_of(b)) - whole(lam_of(a)))
    torch.testing.assert_close(answer(run, guess), expected, rtol=1e-9, atol=1e-9)


@every_path
def test_denoise_to_zero_is_one_question_more_whose_answer_is_the_sample(path: Schedule) -> None:
    grid = visible(path, 9, clean=False)
    end = grid.levels[-1]
    x = multistep_plain(begun(grid), grid, recorded(), form="x0", order=2)
    closed = denoised(dpmpp_2m(begun(grid), grid), end)
    torch.testing.assert_close(answer(closed, THREE.x0), THREE.x0(x, end), rtol=1e-9, atol=1e-9)


# --- Inversion --------------------------------------------------------------------------------------------------------


def inverted(x: Tensor, grid: Grid, draw: Draw) -> Tensor:
    """LDM's encode, with the clock that it should have asked at, in abar; the straight line in s on other schedules."""
    for a, b in zip(grid.levels, grid.levels[1:], strict=False):
        e = (x - b.alpha * THREE.x0(x, b)) / b.sigma
        p, q = a.alpha**2, b.alpha**2
        if abs(float(p + a.sigma**2) - 1) < 1e-12:
            x = (q / p).sqrt() * x + q.sqrt() * ((1 / q - 1).sqrt() - (1 / p - 1).sqrt()) * e
        else:
            x = b.alpha * (x / a.alpha + (b.sigma / b.alpha - a.sigma / a.alpha) * e)
    return x


@every_path
def test_ddim_inversion_is_ldms_encode_at_the_right_clock(path: Schedule) -> None:
    agree(ddim_inversion, inverted, trailing(path, 12).part(0.8).upward())


@every_path
def test_corrected_inversion_and_ddim_are_a_round_trip(path: Schedule) -> None:
    grid = trailing(path, 60).part(0.9).upward()
    down = Grid(path, grid.levels[::-1])
    assert min(float(at.sigma) for at in grid.levels) > 0
    x = grid.levels[0].alpha * THREE.draw(4, seed=3)
    noise = answer(ddim_inversion(x, grid, corrections=100), THREE.x0)
    assert float((noise - x).norm(dim=1).min()) > 0.2
    torch.testing.assert_close(answer(ddim(noise, down), THREE.x0), x, rtol=0, atol=1e-8)
    plain = answer(ddim_inversion(x, grid), THREE.x0)
    assert float((answer(ddim(plain, down), THREE.x0) - x).norm(dim=1).mean()) > 1e-3  # without corrections it is not


walkers = pytest.mark.parametrize(
    "entry", [e for e in SAMPLERS.values() if not e.stochastic and not e.adaptive], ids=lambda e: e.name
)


def back_and_forth(entry: Entry, up: Grid) -> float:
    """How far a picture is from itself after a walk to the noise and back down the same levels."""
    x = up.levels[0].alpha * THREE.draw(4, seed=3)
    noise = answer(entry.run(x, up), THREE.x0)
    back = answer(entry.run(noise, Grid(up.schedule, up.levels[::-1])), THREE.x0)
    return float((back - x).norm(dim=1).mean())


@walkers
@pytest.mark.parametrize("name", ["scaled_linear", "flow"])
def test_a_round_trip_closes_with_the_declared_order_on_steps_even_in_log_snr(entry: Entry, name: str) -> None:
    path = SCHEDULES[name]()
    top, bottom = (path.level(path.time(f64(lam)[0])) for lam in (-2.5, 2.0))
    few, many = (back_and_forth(entry, between(path, top, bottom, n, even_in="lam").upward()) for n in (96, 192))
    assert math.log2(few / many) >= max(entry.order - 0.3, 1 - 0.05)
    assert many < 0.02


@walkers
def test_a_round_trip_over_nine_tenths_of_the_flow_closes_with_second_order(entry: Entry) -> None:
    """Or first, if declared. It begins at half log-SNR 8; the long steps there cost the third order."""
    few, many = (back_and_forth(entry, trailing(SCHEDULES["flow"](), n).part(0.9).upward()) for n in (40, 160))
    assert math.log2(few / many) / 2 >= min(entry.order, 2) - 0.3


@walkers
def test_a_round_trip_over_all_of_stable_diffusions_table_closes_at_least_nearly_with_first_order(
    entry: Entry,
) -> None:
    """No more than that: its last steps are long in log-SNR even among hundreds."""
    few, many = (back_and_forth(entry, linspace(SCHEDULES["scaled_linear"](), n).upward()) for n in (96, 384))
    assert math.log2(few / many) / 2 >= 0.7
    assert many < 0.02
