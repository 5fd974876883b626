"""Schedules against the published numbers (float64)."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from mixture import TOY, exact, f64
from sfumato.diffusion.level import Level
from sfumato.diffusion.move import move, posterior_std
from sfumato.diffusion.schedule import (
    SCHEDULES,
    Table,
    abar_of,
    cosine,
    flow,
    linear,
    scaled_linear,
    zero_terminal,
)

SD = scaled_linear()
DDPM = linear()

ABAR: list[tuple[str, Table, dict[int, float]]] = [
    (
        "DDPM and ADM linear 1e-4 to 0.02",
        DDPM,
        {0: 0.9999, 1: 0.9997800921, 249: 0.5240853738, 499: 0.07858724288, 749: 0.003350550439}
        | {999: 4.035829765e-05},
    ),
    (
        "SD scaled 0.00085 to 0.012",
        SD,
        {0: 0.99915, 1: 0.9982960278, 249: 0.6754324137, 499: 0.2776696505, 749: 0.0566234916}
        | {999: 0.004660098513, 20: 0.9813143622, 980: 0.005843783319, 981: 0.005775500139, 998: 0.0047166989},
    ),
    (
        "LDM scaled 0.0015 to 0.0195",
        scaled_linear(start=0.0015, end=0.0195),
        {0: 0.9985, 1: 0.9969944271, 249: 0.5105143008, 499: 0.1158444908, 749: 0.00844483049}
        | {999: 1.423039752e-4, 20: 0.9673463501},
    ),
    (
        "LDM scaled 0.0015 to 0.0205",
        scaled_linear(start=0.0015, end=0.0205),
        {0: 0.9985, 249: 0.504253441, 499: 0.1085759962, 999: 9.691086681e-05},
    ),
    (
        "LDM scaled 0.0015 to 0.0155",
        scaled_linear(start=0.0015, end=0.0155),
        {0: 0.9985, 249: 0.5374232296, 499: 0.1510774233, 999: 6.686651737e-4},
    ),
    ("RDM scaled 0.0015 to 0.015", scaled_linear(start=0.0015, end=0.015), {0: 0.9985, 999: 8.125184711e-4}),
    (
        "x4-upscaler scaled 1e-4 to 0.02",
        scaled_linear(start=1e-4, end=0.02),
        {0: 0.9999, 249: 0.8215213423, 499: 0.3331877674, 999: 7.334124596e-4},
    ),
    (
        "LDM sqrt_linear, which is linear, 0.00085 to 0.012",
        linear(start=0.00085, end=0.012),
        {0: 0.99915, 499: 0.1618121459, 999: 0.001578962931},
    ),
    (
        "cosine",
        cosine(),
        {0: 0.9999587158, 249: 0.8470121613, 499: 0.4938435904, 749: 0.1442721024, 998: 2.428766907e-6}
        | {999: 2.428766907e-9},
    ),
]
PUBLISHED = pytest.mark.parametrize(("table", "values"), [p[1:] for p in ABAR], ids=[p[0] for p in ABAR])


@PUBLISHED
def test_signal_powers_are_the_published_ones(table: Table, values: dict[int, float]) -> None:
    for t, abar in values.items():
        assert float(table.abar[t]) == pytest.approx(abar, rel=1e-9 if t != 998 else 1e-8), t


@PUBLISHED
def test_level_reads_the_table_at_whole_clock_values(table: Table, values: dict[int, float]) -> None:
    for t, abar in values.items():
        at = table.level(float(t))
        assert float(at.alpha) ** 2 == pytest.approx(abar, rel=1e-8)
        assert float(at.sigma) ** 2 == pytest.approx(1 - abar, rel=1e-8, abs=1e-10)


def test_betas_of_the_cosine_schedule_are_the_published_ones_and_capped() -> None:
    abar = cosine().abar
    assert 1 - float(abar[0]) == pytest.approx(4.128422482e-5, rel=1e-9)
    assert 1 - float(abar[999] / abar[998]) == pytest.approx(0.999, rel=1e-12)


@pytest.mark.parametrize(
    ("table", "first", "last"), [(SD, 3.534712, -2.682024), (DDPM, 4.605120, -5.058837)], ids=["SD", "DDPM"]
)
def test_half_log_snr_at_the_ends_is_the_published_one(table: Table, first: float, last: float) -> None:
    assert float(table.level(0).lam) == pytest.approx(first, abs=5e-7)
    assert float(table.level(999).lam) == pytest.approx(last, abs=5e-7)


def test_signal_to_noise_at_the_end_of_sd_is_not_zero() -> None:
    at = SD.level(999)
    assert float((at.alpha / at.sigma) ** 2) == pytest.approx(4.6819e-3, rel=1e-5)
    assert float(DDPM.level(999).alpha) == pytest.approx(0.0063528181, rel=1e-8)


def before(table: Table, t: int) -> Level:
    return table.level(t - 1) if t else Level.clean(0.0)


@pytest.mark.parametrize(
    ("t", "variance", "on_x0", "on_x"),
    [
        (0, 0.0, 1.0, 0.0),
        (1, 4.263531e-4, 0.50137869, 0.49862122),
        (500, 4.8060586e-3, 3.506044334e-3, 0.99574658),
        (999, 1.19993176e-2, 8.2799728e-4, 0.99392537),
    ],
)
def test_posterior_of_sd_is_the_published_one(t: int, variance: float, on_x0: float, on_x: float) -> None:
    a, b = SD.level(t), before(SD, t)
    std = posterior_std(a, b)
    assert float(std) ** 2 == pytest.approx(variance, rel=1e-7, abs=1e-15)

    def mean(x: float, x0: float) -> float:
        return float(move(f64(x), a, b, x0=f64(x0), fresh=std, noise=torch.zeros_like))

    assert mean(0.0, 1.0) == pytest.approx(on_x0, rel=1e-7)
    assert mean(1.0, 0.0) == pytest.approx(on_x, rel=1e-7, abs=1e-15)


def test_posterior_of_ddpm_at_the_second_entry_is_the_published_one() -> None:
    variance = float(posterior_std(DDPM.level(1), DDPM.level(0))) ** 2
    assert variance == pytest.approx(5.4531876613e-05, rel=1e-9)
    assert math.log(variance) == pytest.approx(-9.816725, abs=5e-7)


def test_betas_of_a_respaced_chain_are_the_published_ones() -> None:
    abar = DDPM.abar[[0, 111, 222, 333, 444, 555, 666, 777, 888, 999]]
    betas = 1 - abar / torch.cat([f64(1.0), abar[:-1]])
    published = f64(
        0.0001,
        0.12630764,
        0.31684362,
        0.46611906,
        0.58300549,
        0.67448064,
        0.74602977,
        0.80196259,
        0.84566338,
        0.87978823,
    )
    torch.testing.assert_close(betas, published, rtol=0, atol=5e-9)


@pytest.mark.parametrize("build", [scaled_linear, linear, cosine])
def test_zero_terminal_ends_at_no_signal_and_keeps_the_first_entry(build: Callable[..., Table]) -> None:
    plain, zero = build(), build(terminal_zero=True)
    assert float(zero.abar[-1]) == 0.0
    assert float(zero.abar[0]) == pytest.approx(float(plain.abar[0]), rel=1e-14)
    assert float(zero.level(999).alpha) == 0.0
    assert float(zero.level(999).sigma) == 1.0
    # Lin et al. 2023, alg. 1: one shift and one scale of the square roots, so their differences keep their ratios
    torch.testing.assert_close(
        zero.abar.sqrt().diff() / zero.abar.sqrt().diff().sum(),
        plain.abar.sqrt().diff() / plain.abar.sqrt().diff().sum(),
    )


def test_zero_terminal_alpha_is_continuous_and_falls_in_a_line_to_zero_in_the_last_interval() -> None:
    zero = scaled_linear(terminal_zero=True)
    at = [float(zero.level(t).alpha) for t in (998 - 1e-9, 998, 998.25, 998.5, 999)]
    assert at[0] == pytest.approx(at[1], rel=1e-8)
    assert at[2:] == pytest.approx([0.75 * at[1], 0.5 * at[1], 0.0], rel=1e-12)
    assert float(zero.time(f64(-math.inf))) == 999.0


def test_zero_terminal_stays_at_pure_noise_beyond_its_end() -> None:
    at = scaled_linear(terminal_zero=True).level(1004.0)
    assert (float(at.alpha), float(at.sigma)) == (0.0, 1.0)


@pytest.mark.parametrize("build", [scaled_linear, linear, cosine])
def test_between_entries_log_alpha_is_linear_in_the_clock(build: Callable[..., Table]) -> None:
    table = build()
    t = f64(0.25, 17.5, 402.75, 997.125, 998.5)
    low, high = (0.5 * table.abar[i].log() for i in (t.floor().long(), t.floor().long() + 1))
    torch.testing.assert_close(table.level(t).alpha.log(), torch.lerp(low, high, t.frac()), rtol=1e-12, atol=0)


def test_flow_is_the_straight_path() -> None:
    at = flow().level(f64(0.0, 0.3, 1.0))
    torch.testing.assert_close(at.alpha, f64(1.0, 0.7, 0.0))
    torch.testing.assert_close(at.sigma, f64(0.0, 0.3, 1.0))
    assert float(flow().time(f64(math.inf))) == 0.0
    assert float(flow().time(f64(-math.inf))) == 1.0


@pytest.mark.parametrize(
    ("start", "end", "published"),
    [
        (981, 0, (0.742474, 0.364065)),
        (981, None, (0.741154, 0.365135)),
        (999, 0, (0.743321, 0.365111)),
        (999, None, (0.741996, 0.366174)),
        (951, 0, (0.740940, 0.362106)),
    ],
)
def test_exact_flow_of_the_toy_between_levels_of_sd_is_the_published_one(
    start: int, end: int | None, published: tuple[float, float]
) -> None:
    a, b = SD.level(start), Level.clean(0.0) if end is None else SD.level(end)

    def spread(at: Level) -> torch.Tensor:
        return (0.0625 * at.alpha**2 + at.sigma**2).sqrt()

    x = f64(1.0, -0.5)
    closed = 0.5 * b.alpha + spread(b) / spread(a) * (x - 0.5 * a.alpha)
    torch.testing.assert_close(closed, f64(*published), rtol=0, atol=6e-7)
    if end is not None:  # the reference solution of all measurements solves the same equation
        torch.testing.assert_close(exact(TOY.x0, x[:, None], a, b)[:, 0], closed, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "abar",
    [
        f64(0.5),
        f64(0.9, 0.9),
        f64(0.5, 0.7),
        f64(1.0, 0.5),
        f64(0.5, -0.1),
        f64(0.9, 0.5)[None],
        f64(0.9, math.nan),
    ],
    ids=["one entry", "flat", "rising", "begins at one", "negative", "two axes", "nan"],
)
def test_a_table_that_is_no_schedule_is_refused(abar: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="fall strictly"):
        Table(abar)


def test_powers_are_the_running_product_of_one_minus_beta() -> None:
    torch.testing.assert_close(abar_of(f64(0.1, 0.5, 0.2)), f64(0.9, 0.45, 0.36))
    torch.testing.assert_close(zero_terminal(f64(0.81, 0.25, 0.01)), f64(0.81, 0.2025, 0.0))


def test_an_unknown_schedule_is_answered_with_what_exists() -> None:
    with pytest.raises(ValueError, match=r"unknown schedule 'cosin'; did you mean 'cosine'\? known: .*scaled_linear"):
        SCHEDULES["cosin"]
