"""The adversary pulls as much as its definition says, and only when it is asked to; its critic learns apart."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fill import inp
from sfumato.diffusion.noise import Address, Stream
from sfumato.latents.adversary import LARGEST, Adversary, Criticism, adaptive_weight, contested, frozen
from sfumato.latents.autoencoding import Autoencoding, Losses
from sfumato.nets.autoencoder import Autoencoder, AutoencoderSize, codebook_loss, drawn, kl, moments, straight_through
from sfumato.nets.patchgan import PatchGan, PatchGanSize
from sfumato.train.fit import Batch, Phase, fit
from sfumato.train.plan import Plan
from sfumato.train.state import State
from tiny import awake

KL = AutoencoderSize(channels=8, mult=(1, 2), blocks=1, latent_channels=3)
LINEAR = replace(KL, patch=2, shortcut="linear")
VQ = replace(KL, codebook=8)
IMAGES = (0.5 * inp("img", 4, 3, 16, 16)).clamp(-1, 1)
AT = Address.of(3, [5, 6, 7, 8], 40)
SETTINGS = Adversary(critic=PatchGanSize(width=4, layers=1), start=40, weight=0.6)


def made(size: AutoencoderSize = KL) -> Autoencoder:
    torch.manual_seed(0)
    net = Autoencoder(size)
    awake(net)
    return net


@pytest.fixture
def critic() -> PatchGan:
    torch.manual_seed(1)
    net = PatchGan(SETTINGS.critic)
    awake(net)
    return net


def gradients(loss: Tensor, net: nn.Module) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True, allow_unused=True)
    return {n: g for (n, _), g in zip(net.named_parameters(), found, strict=True) if g is not None}


def close(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Equal to 1e-6 of the largest number of each tensor; a bias before a norm of one channel has rounding alone."""
    assert mine.keys() == theirs.keys()
    rounding = 1e-14 * max(float(g.abs().max()) for g in theirs.values())
    for name, g in theirs.items():
        assert float((mine[name] - g).abs().max()) <= 1e-6 * float(g.abs().max()) + rounding, name
    assert sum(float(g.abs().max()) > rounding for g in theirs.values()) > 0.8 * len(theirs)


# How strong -----------------------------------------------------------------------------------------------


def test_the_weight_is_a_ratio_of_norms() -> None:
    a, b = inp("a", 3, 8, 3, 3), 7 * inp("b", 3, 8, 3, 3)
    assert adaptive_weight(a, b).item() == pytest.approx(a.norm().item() / (b.norm().item() + 1e-4), rel=1e-6)
    assert adaptive_weight(0 * a, b).item() == 0


def test_the_weight_has_a_largest_value() -> None:
    one = torch.ones(1)
    assert adaptive_weight(one, 0 * one).item() == pytest.approx(1e4)  # 1 / 1e-4
    assert adaptive_weight(2 * one, 0 * one).item() == adaptive_weight(1e9 * one, 0 * one).item() == LARGEST == 1e4
    assert adaptive_weight(one, 1e-5 * one).item() == pytest.approx(1 / 1.1e-4, rel=1e-5)  # below it nothing is cut


def test_it_is_computed_in_float32() -> None:
    """Squares of numbers that half precision has are beyond what it has."""
    a = torch.full((4,), 300.0, dtype=torch.float16)
    found = adaptive_weight(a, a)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("size", [KL, LINEAR, replace(KL, middle_attention=False)])
@pytest.mark.parametrize("loss", ["hinge", "vanilla"])
def test_the_contest_is_the_plain_sum(size: AutoencoderSize, loss: Any, critic: PatchGan) -> None:
    """Value and gradient of rec + factor * weight * adaptive * adv, its two gradients taken apart."""
    net, critic = made(size).double(), critic.double()
    x = IMAGES.double()
    z = drawn(*moments(net.encoder(x)), inp("eps", 4, 3, *([8, 8] if size is not LINEAR else [4, 4])).double())
    y = net.decoder(z)
    error, last = (y - x).abs().mean() + 5 * (y - x).square().mean(), net.decoder.conv_out.weight
    adversary = -critic(y).mean()
    pulls = [torch.autograd.grad(term, last, retain_graph=True)[0] for term in (error, adversary)]
    adaptive = pulls[0].norm() / (pulls[1].norm() + 1e-4)
    assert 1e-3 < adaptive < 1e3
    plain = gradients(error + 0.5 * 0.6 * adaptive.float().double() * adversary, net)
    critic.zero_grad()
    found, said = contested(error, y, last, critic, replace(SETTINGS, loss=loss), 0.5)
    torch.testing.assert_close(said["adversary weight"].double(), adaptive, rtol=1e-6, atol=0)
    torch.testing.assert_close(said["adversary"].double(), adversary.detach(), rtol=1e-6, atol=1e-9)
    assert found.item() == pytest.approx((error + 0.3 * adaptive * adversary).item(), rel=1e-6)
    close(gradients(found, net), plain)
    assert not any(t.requires_grad for t in said.values())


def test_the_critic_is_left_alone(critic: PatchGan) -> None:
    net = made()
    y = net.decoder(inp("z", 4, 3, 8, 8))
    found, _ = contested((y - IMAGES).abs().mean(), y, net.decoder.conv_out.weight, critic, SETTINGS, 1.0)
    assert all(p.requires_grad for p in critic.parameters())
    found.backward()
    assert all(p.grad is None for p in critic.parameters())
    assert all(p.grad is not None for p in net.decoder.parameters())


def test_the_critic_thaws_after_an_error(critic: PatchGan) -> None:
    net = made()
    y = net.decoder(inp("z", 4, 3, 1, 1))  # two pixels a side
    with pytest.raises(ValueError, match="too small"):
        contested(y.mean(), y, net.decoder.conv_out.weight, critic, SETTINGS, 1.0)
    assert all(p.requires_grad for p in critic.parameters())
    with frozen(critic):
        assert not any(p.requires_grad for p in critic.parameters())
    assert all(p.requires_grad for p in critic.parameters())


def test_when_it_begins() -> None:
    plain, slow = Adversary(start=10), Adversary(start=10, warmup=4)
    assert [plain.factor(s) for s in (0, 9, 10, 11, 10**6)] == [0, 0, 1, 1, 1]
    assert [slow.factor(s) for s in range(8, 16)] == [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert Adversary(start=0).factor(0) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("start", -1),
        ("warmup", -1),
        ("weight", -0.1),
        ("weight", math.nan),
        ("weight", 1e4),
        ("rate", 0.0),
        ("rate", math.inf),
        ("betas", (0.5, 1.0)),
    ],
)
def test_an_adversary_that_cannot_be(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} is .*; it must be ") as caught:
        replace(SETTINGS, **{name: value})
    assert "\n" not in str(caught.value)


# In the loss of a first stage -----------------------------------------------------------------------------


class Halved(nn.Module):
    """A stand-in for LPIPS whose value is known."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().mean((1, 2, 3)) / 2


def share(terms: Tensor, adversary: Tensor, last: Tensor) -> Tensor:
    pulls = [torch.autograd.grad(term, last, retain_graph=True)[0].norm() for term in (terms, adversary)]
    return pulls[0] / (pulls[1] + 1e-4)


@pytest.mark.parametrize("size", [KL, VQ])
@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_the_loss_is_the_sum_of_its_terms(size: AutoencoderSize, strength: float, critic: PatchGan) -> None:
    net, weights, x = made(size), Losses(squares=5.0, perceptual=0.5, kl=0.5, codebook=0.7), IMAGES
    lpips: Any = Halved()
    settings = replace(SETTINGS, warmup=4)  # at its first step a quarter
    objective = Autoencoding(net, lpips, weights, steps=50, adversary=settings, critic=critic)
    objective.strength.fill_(strength)
    raw = net.encoder(x)
    if net.codebook is None:
        mean, logvar = moments(raw)
        z = drawn(mean, logvar, AT.normal(mean, Stream.ENCODE))
        bottleneck = 0.5 * kl(mean, logvar).mean() / x[0].numel()
    else:
        entries = net.codebook(raw)
        z, bottleneck = straight_through(raw, entries), 0.7 * codebook_loss(raw, entries)
    y = net.decoder(z)
    error = (y - x).abs().mean()
    terms = error + 5 * (y - x).square().mean() + 0.5 * error / 2
    adversary = -critic(y).mean()
    ratio = share(terms, adversary, net.decoder.conv_out.weight)
    expected = terms + 0.25 * strength * 0.6 * ratio * adversary + bottleneck
    outcome = objective({"image": x}, AT)
    torch.testing.assert_close(outcome.loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(outcome.said["adversary weight"], ratio, rtol=1e-4, atol=0)
    assert torch.equal(outcome.made["painted"], y.detach())
    assert not outcome.made["painted"].requires_grad
    before = objective({"image": x}, replace(AT, step=39))
    assert "adversary" not in before.said


def test_what_is_remembered_is_what_it_goes_on_with(critic: PatchGan) -> None:
    """Entries that were last used at known steps, and a weakened adversary: another objective with them is the same."""

    def objective(memory: dict[str, Tensor] | None) -> Autoencoding:
        net = made(VQ)
        torch.manual_seed(1)
        mine = PatchGan(SETTINGS.critic)
        losses = Losses(patience=10, perceptual=0)
        found = Autoencoding(net, None, losses, steps=100, adversary=SETTINGS, critic=mine)
        for name, kept in found.memory.items():
            if memory:
                kept.copy_(memory[name])
        return found

    first = objective(None)
    first.strength.mul_(0.25)
    first.codes.last.copy_(torch.tensor([0, 40, 30, 31, 39, 5, 40, 0]))
    remembered, forgotten = objective({k: v.clone() for k, v in first.memory.items()}), objective(None)
    losses = [o({"image": IMAGES}, AT) for o in (first, remembered, forgotten)]
    assert torch.equal(losses[0].loss, losses[1].loss)
    assert not torch.equal(losses[0].loss, losses[2].loss)
    for name, kept in first.memory.items():
        assert torch.equal(kept, remembered.memory[name])
    assert torch.equal(first.codes.last, remembered.codes.last)
    weights = [o.net.codebook.weight for o in (first, remembered, forgotten) if o.net.codebook is not None]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


# The critic -----------------------------------------------------------------------------------------------


def batch(step: int) -> Batch:
    fake = 0.3 * inp(f"fake {step}", 4, 3, 16, 16)
    return {"index": torch.arange(4), "image": IMAGES, "painted": fake}


def everything(state: State) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in state.tensors().items()}


def test_a_critic_is_not_touched_before_it_begins(critic: PatchGan) -> None:
    plan = Plan(steps=5, batch=4, rate=1e-2, warmup=0, precision="fp32")
    state = State(critic, plan, average=False)
    objective = Criticism(critic, replace(SETTINGS, start=3))
    before = everything(state)
    assert any("running_mean" in name for name in before)
    assert not any(name.startswith("optimizer.") for name in before)
    for progress in fit(Phase(objective, state), batch):
        now = everything(state)
        same = now.keys() == before.keys() and all(torch.equal(now[k], before[k]) for k in now)
        assert same == (progress.step <= 3)
        assert ("critic" in progress.losses) == (progress.step > 3)
    steps = {int(v) for k, v in everything(state).items() if k.startswith("optimizer.") and k.endswith(".step")}
    assert steps == {2}


@pytest.mark.parametrize(("loss", "value"), [("hinge", 0.83333331), ("vanilla", 0.63808888)])
def test_its_loss_is_the_known_one(loss: Any, value: float, critic: PatchGan, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: Iterator[Tensor] = iter([torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, -0.5, 1.0])])
    monkeypatch.setattr(critic, "forward", lambda _: next(answers))
    outcome = Criticism(critic, replace(SETTINGS, loss=loss))(batch(0), AT)
    assert outcome is not None
    assert outcome.loss.item() == pytest.approx(value, abs=1e-7)
    assert outcome.said["critic"].item() == pytest.approx(value, abs=1e-7)
    assert outcome.said["critic real"].item() == outcome.said["critic fake"].item() == pytest.approx(2 / 3)
