"""Several averages at once, power-function profiles, and averages that are made after the training."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sfumato.train.ema import Average, Averages, Ema
from sfumato.train.posthoc import (
    WIDEST,
    PowerEma,
    Profile,
    Snapshot,
    coefficients,
    gamma_of,
    inner,
    misfit,
    reconstructed,
    sigma_rel_of,
)

STEPS, DIM = 512, 40


def walk(steps: int = STEPS) -> Tensor:
    """(steps, DIM): weights that wander."""
    generator = torch.Generator().manual_seed(0)
    return 3 + torch.randn(steps, DIM, dtype=torch.float64, generator=generator).cumsum(0) / math.sqrt(steps)


def module(dtype: torch.dtype = torch.float64) -> nn.Linear:
    net = nn.Linear(DIM, 1, bias=False, dtype=dtype)
    nn.init.ones_(net.weight)
    return net


def led(net: nn.Linear, path: Tensor, each: Callable[[int], None]) -> None:
    """Set the weights to each point of the path, in turn."""
    for step, point in enumerate(path, start=1):
        with torch.no_grad():
            net.weight.copy_(point)
        each(step)


def tracked(sigmas: tuple[float, ...], every: int) -> dict[float, list[Snapshot]]:
    """Snapshots of an average of each length along the walk."""
    net = module()
    emas = {sigma: PowerEma(net, sigma) for sigma in sigmas}
    kept: dict[float, list[Snapshot]] = {sigma: [] for sigma in sigmas}

    def follow(step: int) -> None:
        for sigma, ema in emas.items():
            ema.update()
            if step % every == 0:
                kept[sigma].append(ema.snapshot())

    led(net, walk(), follow)
    return kept


# Several at once


def test_several_averages_are_each_what_it_is_alone() -> None:
    net, other = module(torch.float32), module(torch.float32)
    many = Averages({"short": Ema(net, 0.5), "long": Ema(net, 0.999), "power": PowerEma(net, 0.1)})
    alone: dict[str, Average] = {"short": Ema(other, 0.5), "long": Ema(other, 0.999), "power": PowerEma(other, 0.1)}

    def follow(_: int) -> None:
        for average in alone.values():
            average.update()

    led(net, walk(30), lambda _: many.update())
    led(other, walk(30), follow)
    assert list(many) == list(alone)
    for name, average in alone.items():
        assert torch.equal(many[name].shadow["weight"], average.shadow["weight"])
    assert not torch.equal(many["short"].shadow["weight"], many["long"].shadow["weight"])
    assert many.numbers() == {"short": 30, "long": 30, "power": 30}


def test_several_averages_go_on_from_what_they_gave() -> None:
    def fresh(net: nn.Module) -> Averages:
        return Averages({"a": Ema(net, 0.99), "b": PowerEma(net, 0.07)})

    path, whole = walk(20).float(), module(torch.float32)
    straight = fresh(whole)
    led(whole, path, lambda _: straight.update())
    net = module(torch.float32)
    first = fresh(net)
    led(net, path[:8], lambda _: first.update())
    kept = {k: v.clone() for k, v in first.tensors().items()}
    assert set(kept) == {"a.weight", "b.weight"}
    again = module(torch.float32)
    second = fresh(again)
    second.load(kept, first.numbers())
    led(again, path[8:], lambda _: second.update())
    assert second.numbers() == straight.numbers()
    assert all(torch.equal(v, straight.tensors()[k]) for k, v in second.tensors().items())


@pytest.mark.parametrize("name", ["", "0.05"])
def test_a_name_that_would_not_be_found_again_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name an average"):
        Averages({name: Ema(module())})


def test_follow_begins_again_at_the_weights_and_shown_gives_them_back() -> None:
    net = module()
    ema = PowerEma(net, 0.1)
    led(net, walk(10), lambda _: ema.update())
    averaged, live = ema.shadow["weight"].clone(), net.weight.detach().clone()
    with ema.shown():
        assert torch.equal(net.weight, averaged)
    assert torch.equal(net.weight, live)
    Averages({"one": ema}).follow()
    assert torch.equal(ema.shadow["weight"], live)


# Profiles


@given(st.floats(1e-3, WIDEST))
def test_sigma_rel_goes_to_gamma_and_back(sigma_rel: float) -> None:
    assert sigma_rel_of(gamma_of(sigma_rel)) == pytest.approx(sigma_rel, rel=1e-12)


@given(st.floats(0, 1000))
def test_gamma_goes_to_sigma_rel_and_back(gamma: float) -> None:
    assert gamma_of(sigma_rel_of(gamma)) == pytest.approx(gamma, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_the_published_pairs(sigma_rel: float, gamma: float) -> None:
    """Karras et al. 2024b, sec. 3.1."""
    assert gamma_of(sigma_rel) == pytest.approx(gamma, abs=5e-3)


@pytest.mark.parametrize("sigma_rel", [0.02, 0.1, 0.25])
def test_sigma_rel_is_the_deviation_of_the_profile(sigma_rel: float) -> None:
    """Of tau^gamma on [0, 1], by the rule of the middles."""
    tau = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    p = tau ** gamma_of(sigma_rel)
    p = p / p.sum()
    mean = (p * tau).sum()
    assert float((p * (tau - mean) ** 2).sum().sqrt()) == pytest.approx(sigma_rel, rel=1e-6)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.29, math.nan, math.inf])
def test_no_profile_is_so_wide_or_has_no_width(sigma_rel: float) -> None:
    with pytest.raises(ValueError, match=r"above 0 and at most 0\.2886") as caught:
        PowerEma(module(), sigma_rel)
    assert "\n" not in str(caught.value)


def shares(end: int, sigma_rel: float, steps: int) -> Tensor:
    """How much the weights after each update count: the integral of the profile over that update."""
    edges = (torch.arange(steps + 1, dtype=torch.float64) / end).clamp(max=1)
    return (edges ** (gamma_of(sigma_rel) + 1)).diff()


@pytest.mark.parametrize("sigma_rel", [0.03, 0.1, WIDEST])
def test_the_average_has_its_profile_exactly(sigma_rel: float) -> None:
    net, path = module(), walk(100)
    ema = PowerEma(net, sigma_rel)
    led(net, path, lambda _: ema.update())
    expected = shares(100, sigma_rel, 100) @ path
    torch.testing.assert_close(ema.shadow["weight"][0], expected, rtol=1e-12, atol=0)


def test_the_widest_is_the_plain_mean_and_the_weights_before_training_do_not_count() -> None:
    net, path = module(), walk(50)
    nn.init.constant_(net.weight, 1e6)
    ema = PowerEma(net, WIDEST)
    led(net, path, lambda _: ema.update())
    torch.testing.assert_close(ema.shadow["weight"][0], path.mean(0), rtol=1e-9, atol=0)


def density(profile: Profile, tau: Tensor) -> Tensor:
    gamma = gamma_of(profile.sigma_rel)
    return torch.where(tau <= profile.step, (gamma + 1) * (tau / profile.step) ** gamma / profile.step, 0.0)


def test_products_of_profiles_are_their_integrals() -> None:
    """By the rule of the middles, with 200 to an update, so that each end lies between two of them."""
    a = [Profile(64, 0.05), Profile(64, 0.1), Profile(100, 0.2), Profile(37, 0.15)]
    b = [Profile(100, 0.05), Profile(64, 0.25), Profile(12, WIDEST)]
    tau = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 200
    rows, columns = (torch.stack([density(p, tau) for p in ps]) for ps in (a, b))
    torch.testing.assert_close(inner(a, b), rows @ columns.T / 200, rtol=2e-5, atol=0)
    torch.testing.assert_close(inner(a, b), inner(b, a).T, rtol=1e-14, atol=0)


# Reconstruction


PAIR, EVERY = (0.05, 0.10), 32


@pytest.fixture(scope="module")
def kept() -> dict[float, list[Snapshot]]:
    return tracked((*PAIR, 0.03, 0.07, 0.13, 0.2), EVERY)


def of_the_pair(kept: dict[float, list[Snapshot]]) -> list[Snapshot]:
    return [snapshot for sigma in PAIR for snapshot in kept[sigma]]


@pytest.mark.parametrize("sigma_rel", PAIR)
@pytest.mark.parametrize("at", [EVERY, 8 * EVERY, STEPS])
def test_what_was_tracked_is_found_exactly(kept: dict[float, list[Snapshot]], sigma_rel: float, at: int) -> None:
    snapshots = of_the_pair(kept)
    weights = coefficients([s.profile for s in snapshots], sigma_rel=sigma_rel, at=at)
    one = torch.tensor([float(s.profile == (at, sigma_rel)) for s in snapshots], dtype=torch.float64)
    assert one.sum() == 1
    torch.testing.assert_close(weights, one, rtol=0, atol=1e-11)
    assert misfit([s.profile for s in snapshots], sigma_rel=sigma_rel, at=at) < 1e-6
    (direct,) = (s for s in kept[sigma_rel] if s.step == at)
    got = reconstructed(snapshots, sigma_rel=sigma_rel, at=at)
    torch.testing.assert_close(got["weight"], direct.tensors["weight"], rtol=1e-10, atol=0)


MOST = {
    (256, 0.03): 0.08,
    (256, 0.07): 0.004,
    (256, 0.13): 0.003,
    (256, 0.2): 0.02,
    (512, 0.03): 0.02,
    (512, 0.07): 0.001,
    (512, 0.13): 0.001,
    (512, 0.2): 0.006,
}
"""How far a reconstruction from 8 and from 16 snapshots of both lengths may be off, as a part of how far that average
lags behind the weights; root mean squares."""


@pytest.mark.parametrize(("at", "sigma_rel"), MOST)
def test_another_length_is_what_tracking_it_would_have_given(
    kept: dict[float, list[Snapshot]], sigma_rel: float, at: int
) -> None:
    snapshots = [s for s in of_the_pair(kept) if s.step <= at]
    (direct,) = (s.tensors["weight"][0] for s in kept[sigma_rel] if s.step == at)
    error = reconstructed(snapshots, sigma_rel=sigma_rel, at=at)["weight"][0] - direct
    path = walk()[:at]
    lag = (direct - path[-1]).square().mean().sqrt()
    assert float(error.square().mean().sqrt()) < MOST[at, sigma_rel] * float(lag)
    profiles = [s.profile for s in snapshots]
    size = float(inner([Profile(at, sigma_rel)], [Profile(at, sigma_rel)]).sqrt())
    roam = (path - path.mean(0)).square().sum(0).sqrt()
    limit = misfit(profiles, sigma_rel=sigma_rel, at=at) * size * roam
    assert (error.abs() <= limit).all()
    assert float(error.abs().max()) > 1e-9  # it is an approximation, and the limit says something


def test_more_snapshots_come_nearer() -> None:
    def off(every: int) -> float:
        profiles = [Profile(step, sigma) for step in range(every, STEPS + 1, every) for sigma in PAIR]
        return misfit(profiles, sigma_rel=0.07, at=STEPS)

    assert off(16) < off(32) / 2 < off(64) / 4


def test_no_other_weights_that_sum_to_one_come_nearer() -> None:
    profiles = [Profile(step, sigma) for step in (100, 200, 300) for sigma in PAIR]
    goal = [Profile(300, 0.14)]
    best = coefficients(profiles, sigma_rel=0.14, at=300)
    assert float(best.sum()) == pytest.approx(1, abs=1e-12)

    def distance(weights: Tensor) -> float:
        left = weights @ inner(profiles, profiles) @ weights - 2 * weights @ inner(profiles, goal)[:, 0]
        return float(left + inner(goal, goal)[0, 0])

    assert misfit(profiles, sigma_rel=0.14, at=300) ** 2 * float(inner(goal, goal)) == pytest.approx(distance(best))
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        step = torch.randn(6, dtype=torch.float64, generator=generator)
        step = 1e-2 * (step - step.mean())
        assert distance(best + step) > distance(best) < distance(best - step)


def test_a_weight_that_never_moved_is_as_it_was() -> None:
    still = {"weight": torch.full((3,), 0.7)}
    snapshots = [Snapshot(step, sigma, still) for step in (10, 20, 30) for sigma in PAIR]
    got = reconstructed(snapshots, sigma_rel=0.2, at=30)["weight"]
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, still["weight"], rtol=2e-7, atol=0)


def test_a_snapshot_does_not_move_with_the_average() -> None:
    net = module()
    ema = PowerEma(net, 0.1)
    led(net, walk(3), lambda _: ema.update())
    snapshot = ema.snapshot()
    before = snapshot.tensors["weight"].clone()
    led(net, walk(5), lambda _: ema.update())
    assert torch.equal(snapshot.tensors["weight"], before)
    assert (snapshot.step, snapshot.sigma_rel, snapshot.profile) == (3, 0.1, Profile(3, 0.1))


@pytest.mark.parametrize(
    ("profiles", "at", "message"),
    [
        ([], 1, "from no snapshots"),
        ([Profile(10, 0.1), Profile(10, 0.1)], 10, "the same step and sigma_rel"),
        ([Profile(10, 0.1), Profile(20, 0.1)], 21, "step 21 is not within the snapshots, the last of which is of 20"),
        ([Profile(10, 0.1)], 0, "step 0 is not within"),
        ([Profile(10, 0.4)], 10, "at most 0.2886"),
    ],
)
def test_what_cannot_be_reconstructed_is_refused(profiles: list[Profile], at: int, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        coefficients(profiles, sigma_rel=0.05, at=at)
    assert "\n" not in str(caught.value)
