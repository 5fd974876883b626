"""The hybrid loss of adversarial score matching, in two dimensions, where all of it is known (2009.05475, sec. 4)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sfumato.cond import Cond
from sfumato.diffusion.adversarial import (
    AdversarialDenoising,
    CriticOfGuesses,
    Fresh,
    Hybrid,
    critic_loss,
    generator_loss,
    matched,
)
from sfumato.diffusion.denoiser import Denoiser
from sfumato.diffusion.noise import Address, Stream
from sfumato.diffusion.objective import denoising_loss, noised
from sfumato.diffusion.prediction import Prediction
from sfumato.diffusion.schedule import SCHEDULES
from sfumato.train.fit import Phase, fit
from sfumato.train.plan import Plan
from sfumato.train.state import State

SCHEDULE = SCHEDULES["geometric"](start=0.05, end=0.9)
WIDE = Hybrid(low=-100.0, high=100.0)


class Exact(nn.Module):
    """The noise in x (B, 2, 1, 1) where the data are N(0, spread^2): sigma x / (spread^2 + sigma^2)."""

    def __init__(self, spread: float) -> None:
        super().__init__()
        self.spread = nn.Parameter(torch.tensor(spread))

    def forward(self, x: Tensor, t: Tensor, *told: object) -> Tensor:
        sigma = SCHEDULE.level(t.double()).sigma.to(x.dtype).view(-1, 1, 1, 1)
        return sigma * x / (self.spread.square() + sigma.square())


class Small(nn.Module):
    """A network (B, 2, 1, 1) -> (B, 2, 1, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 2))

    def forward(self, x: Tensor, t: Tensor, *told: object) -> Tensor:
        sigma = SCHEDULE.level(t.double()).sigma.to(x.dtype).view(-1, 1)
        return self.layers(torch.cat([x.flatten(1), sigma.log()], dim=1)).view_as(x)


def denoiser(net: nn.Module) -> Denoiser:
    return Denoiser(net, SCHEDULE, Prediction.EPS)  # type: ignore[arg-type]


def critic(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 1))


def data(n: int = 64) -> Tensor:
    return torch.randn(n, 2, 1, 1, generator=torch.Generator().manual_seed(1))


def at(n: int = 64, step: int = 3) -> Address:
    return Address.of(0, list(range(n)), step)


def test_the_denoising_term_is_score_matching() -> None:
    """1/2 |s + z|^2 in D dimensions is D / 2 times the mean square that `denoising_loss` takes."""
    own, _ = matched(denoiser(Exact(0.7)), data(), Cond(), at(), WIDE)
    mean = denoising_loss(denoiser(Exact(0.7)), data(), Cond(), at())
    torch.testing.assert_close(own, mean, rtol=1e-6, atol=1e-6)  # D / 2 is 1 here
    x, z, level = noised(SCHEDULE, data(), at())
    s = -Exact(0.7)(x, level.t.flatten())
    torch.testing.assert_close(own, 0.5 * (s + z).square().flatten(1).sum(1), rtol=1e-6, atol=1e-6)


def test_the_guess_is_tweedies() -> None:
    """x + sigma s, which for N(0, v) is the posterior's mean v x / (v + sigma^2); cut where it is said."""
    x, _, level = noised(SCHEDULE, data(), at())
    _, guess = matched(denoiser(Exact(0.7)), data(), Cond(), at(), WIDE)
    torch.testing.assert_close(guess, 0.49 * x / (0.49 + level.sigma**2), rtol=1e-4, atol=1e-5)
    _, cut = matched(denoiser(Exact(0.7)), data(), Cond(), at(), Hybrid())
    torch.testing.assert_close(cut, guess.clamp(-1, 1), rtol=0, atol=0)


def test_the_best_critic_is_least_squares() -> None:
    """Where pictures have the share p and guesses q, (p - q) / (p + q) is its minimum."""
    p, q = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([0.4, 0.4, 0.2])
    answers = ((p - q) / (p + q)).double().requires_grad_()
    loss = (p * (answers - 1).square()).sum() + (q * (answers + 1).square()).sum()
    (grad,) = torch.autograd.grad(loss, answers)
    torch.testing.assert_close(grad, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-6)
    counts = torch.tensor([2, 5, 3]), torch.tensor([4, 4, 2])
    real, fake = (answers.detach().repeat_interleave(n) for n in counts)
    assert critic_loss(real, fake).item() == pytest.approx(loss.item())
    assert generator_loss(torch.tensor([1.0, 3.0])).item() == 2


def test_each_phase_moves_its_own_weights_alone() -> None:
    net, judge = Small(), critic()
    model = denoiser(net)
    batch = {"mean": data()}
    outcome = AdversarialDenoising(model, judge, Hybrid())(batch, at())
    outcome.loss.backward()
    assert all(p.grad is None for p in judge.parameters())
    assert all(p.grad is not None for p in net.parameters())
    net.zero_grad()
    CriticOfGuesses(judge, model, Hybrid())(batch, at()).loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in net.parameters())
    assert all(p.grad is not None for p in judge.parameters())
    assert not [name for name, _ in AdversarialDenoising(model, judge, Hybrid()).named_parameters() if "critic" in name]


def test_the_loss_is_the_sum_of_its_weighted_terms() -> None:
    model, judge, batch = denoiser(Small()), critic(), {"mean": data()}
    one = AdversarialDenoising(model, judge, Hybrid(denoising=2.0, adversary=0.5))(batch, at())
    said = one.said
    torch.testing.assert_close(one.loss, 2 * said["denoising"] + 0.5 * said["adversary"])
    alone = AdversarialDenoising(model, judge, Hybrid(adversary=0.0))(batch, at())
    torch.testing.assert_close(alone.loss, denoising_loss(model, data(), Cond(), at()).mean())
    assert said["adversary"] > 0


def test_the_critic_sees_other_levels_and_other_noise() -> None:
    fresh = Fresh(at().seed, at().index, 3)
    for stream in (Stream.TIME, Stream.DROP):
        assert torch.equal(fresh.uniform(stream), at().uniform(stream)) == (stream == Stream.DROP)
    assert not torch.equal(fresh.normal(data(), Stream.NOISE), at().normal(data(), Stream.NOISE))
    assert torch.equal(fresh.uniform(Stream.TIME), at().uniform(Stream.CRITIC_TIME))


class Knows(nn.Module):
    """The best critic of data at (-0.6, 0) and (0.6, 0): 1 there, and less the farther away."""

    def forward(self, x: Tensor) -> Tensor:
        return 1 - (x[:, :1].abs() - 0.6).square() - x[:, 1:].square()


def test_two_phases_of_a_step_bring_guesses_to_what_the_critic_knows() -> None:
    """Between two data lies the best guess of squares, which is no datum; with the adversary guesses move to one."""
    torch.manual_seed(0)
    model, judge, other = denoiser(Small()), Knows(), critic()
    settings, plan = Hybrid(denoising=0.0), Plan(steps=25, batch=32, rate=2e-2, precision="fp32", warmup=0)
    objective = AdversarialDenoising(model, judge, settings)
    judgement = CriticOfGuesses(other, model, settings)
    before = [p.clone() for p in other.parameters()]
    phases = [Phase(objective, State(objective, plan)), Phase(judgement, State(judgement, plan, average=False))]
    sides = torch.tensor([-0.6, 0.0, 0.6, 0.0]).view(2, 2, 1, 1).repeat(16, 1, 1, 1)
    found = list(fit(phases, lambda step: {"index": torch.arange(32) + 32 * step, "mean": sides}))
    first, last = found[0].losses, found[-1].losses
    assert last["adversary"] < 0.2 * first["adversary"]
    assert all(not torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"low": 1.0, "high": 1.0}, "1.0 is not below 1.0"),
        ({"denoising": 0.0, "adversary": 0.0}, "one of them is not 0"),
        ({"adversary": -1.0}, "at least 0"),
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Hybrid(**wrong)
