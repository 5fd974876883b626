"""The four predictions are four ways to say one thing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixture import BLIND, PATHS, TOY, f64
from sfumato.diffusion.drive import answer
from sfumato.diffusion.grid import trailing
from sfumato.diffusion.level import Level
from sfumato.diffusion.move import noise_in
from sfumato.diffusion.prediction import Prediction
from sfumato.diffusion.samplers import ddim
from sfumato.diffusion.schedule import Schedule

every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
every_kind = pytest.mark.parametrize("kind", list(Prediction))
numbers = st.lists(st.floats(-4, 4), min_size=3, max_size=3)


def at_part(path: Schedule, part: float) -> Level:
    low, high = path.span
    return path.level(low + part * (high - low))


@every_path
@every_kind
@settings(max_examples=20)
@given(part=st.floats(0, 1), clean=numbers, noise=numbers)
def test_the_right_answer_gives_back_the_clean_picture(
    path: Schedule, kind: Prediction, part: float, clean: list[float], noise: list[float]
) -> None:
    at, x0, eps = at_part(path, part), f64(*clean), f64(*noise)
    if kind is Prediction.EPS and at.alpha < 1e-5:
        return  # singular at alpha = 0: rounding is divided by alpha
    x = at.alpha * x0 + at.sigma * eps
    rounding = 1e-14 / float(at.alpha) if kind is Prediction.EPS else 1e-13
    torch.testing.assert_close(kind.x0(kind.target(x0, eps, at), x, at), x0, rtol=0, atol=rounding)


@every_path
@given(part=st.floats(0.01, 0.99), clean=numbers, state=numbers)
def test_every_kind_reads_any_guess_the_same(
    path: Schedule, part: float, clean: list[float], state: list[float]
) -> None:
    """A wrong guess of x0, said as eps, v or flow, is read back as that wrong guess."""
    at, x0, x = at_part(path, part), f64(*clean), f64(*state)
    eps = noise_in(x, x0, at)
    for kind in Prediction:
        torch.testing.assert_close(kind.x0(kind.target(x0, eps, at), x, at), x0, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", BLIND)
@pytest.mark.parametrize("kind", [k for k in Prediction if k is not Prediction.EPS])
def test_v_x0_and_flow_are_exact_where_there_is_nothing_but_noise(name: str, kind: Prediction) -> None:
    at = PATHS[name].level(PATHS[name].span[1])
    assert at.alpha == 0
    x0, eps = f64(0.7, -0.2), f64(1.1, 0.4)
    x = at.alpha * x0 + at.sigma * eps
    torch.testing.assert_close(kind.x0(kind.target(x0, eps, at), x, at), x0)


@every_path
def test_v_follows_the_formulas_of_the_papers(path: Schedule) -> None:
    at, x0, eps = at_part(path, 0.4), f64(0.7, -0.2), f64(1.1, 0.4)
    torch.testing.assert_close(Prediction.V.target(x0, eps, at), at.alpha * eps - at.sigma * x0)
    torch.testing.assert_close(Prediction.FLOW.target(x0, eps, at), eps - x0)


@every_path
def test_ddim_of_a_v_model_and_of_an_eps_model_are_the_same(path: Schedule) -> None:
    grid = trailing(path, 20)
    first, *rest = grid.levels
    grid = type(grid)(path, tuple(rest)) if first.alpha == 0 else grid

    def model(kind: Prediction, x: Tensor, at: Level) -> Tensor:
        x0 = TOY.x0(x, at)
        return kind.x0(kind.target(x0, noise_in(x, x0, at), at), x, at)

    x = f64(1.0, -0.5)[:, None]
    samples = [answer(ddim(x, grid), lambda y, at, k=kind: model(k, y, at)) for kind in Prediction]
    for sample in samples[1:]:
        torch.testing.assert_close(sample, samples[0], rtol=1e-10, atol=1e-10)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_levels_of_a_schedule_do_not_promote_the_picture(kind: Prediction, dtype: torch.dtype) -> None:
    at, x = at_part(PATHS["cosine"], 0.5), torch.ones(2, 3, dtype=dtype)
    assert kind.target(x, x, at).dtype == dtype
    assert kind.x0(x, x, at).dtype == dtype
