"""The critic sees patches of the published size, starts as published, and its losses have the published values."""

from __future__ import annotations

import math

import pytest
import torch

from fill import inp
from sfumato.nets.patchgan import PatchGan, PatchGanSize, hinge, hinge_generator, vanilla

REAL, FAKE = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, -0.5, 1.0])


@pytest.mark.parametrize(("layers", "params"), [(3, 2_765_633), (2, 663_361), (4, 6_960_961)])
def test_published_sizes(layers: int, params: int) -> None:
    """The last by arithmetic: a fourth layer is no wider than the third."""
    with torch.device("meta"):
        net = PatchGan(PatchGanSize(layers=layers))
    assert sum(p.numel() for p in net.parameters()) == params


@pytest.mark.parametrize(("layers", "patch"), [(3, 70), (2, 34), (1, 16)])
def test_a_logit_sees_its_patch_and_nothing_else(layers: int, patch: int) -> None:
    """Isola et al. 2017, app. 6.1.2: the 70x70 discriminator; its gradient is nowhere else."""
    torch.manual_seed(0)
    net = PatchGan(PatchGanSize(width=4, layers=layers)).eval()
    image = inp("img", 1, 3, 128, 128).requires_grad_()
    logits = net(image)
    middle = logits.shape[2] // 2
    (gradient,) = torch.autograd.grad(logits[0, 0, middle, middle], image)
    rows = gradient[0].abs().sum((0, 2)).nonzero().flatten()
    columns = gradient[0].abs().sum((0, 1)).nonzero().flatten()
    assert len(rows) == len(columns) == patch
    assert int(rows[-1] - rows[0]) == int(columns[-1] - columns[0]) == patch - 1


def test_it_starts_as_published() -> None:
    torch.manual_seed(0)
    net = PatchGan(PatchGanSize()).requires_grad_(False)
    for layer in net.layers:
        if isinstance(layer, torch.nn.Conv2d):
            off = 5 / math.sqrt(layer.weight.numel())  # five standard errors, in units of the deviation
            assert abs(float(layer.weight.mean())) < 0.02 * off
            assert float(layer.weight.std()) == pytest.approx(0.02, rel=off)
        if isinstance(layer, torch.nn.BatchNorm2d):
            assert float(layer.weight.mean()) == pytest.approx(1, abs=0.02 * 5 / math.sqrt(len(layer.weight)))
            assert float(layer.weight.std()) == pytest.approx(0.02, rel=5 / math.sqrt(len(layer.weight)))
            assert not layer.bias.any()


def test_a_picture_smaller_than_a_patch_is_refused() -> None:
    net = PatchGan(PatchGanSize(width=4)).eval()
    assert net(inp("img", 1, 3, 24, 31)).shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match="64x23 is too small for this PatchGAN; 24x24"):
        net(inp("img", 1, 3, 23, 64))


def test_losses_have_the_known_values() -> None:
    assert hinge(REAL, FAKE).item() == pytest.approx(0.83333331, abs=1e-7)
    assert vanilla(REAL, FAKE).item() == pytest.approx(0.63808888, abs=1e-7)
    assert hinge_generator(FAKE).item() == pytest.approx(0.5)
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits
    both = 0.5 * (cross_entropy(REAL, torch.ones(3)) + cross_entropy(FAKE, torch.zeros(3)))
    assert vanilla(REAL, FAKE).item() == pytest.approx(both.item())


def test_a_critic_that_cannot_tell() -> None:
    """At logit 0 both critics have their known losses: 1 for hinge, log 2 for cross-entropy."""
    zero = torch.zeros(4)
    assert hinge(zero, zero).item() == 1
    assert vanilla(zero, zero).item() == pytest.approx(math.log(2))


def test_the_losses_pull_in_opposite_directions() -> None:
    """At logit 0 the generator climbs where the critic pushes fakes down."""
    for critic in (hinge, vanilla):
        fake = torch.zeros(4, requires_grad=True)
        (down,) = torch.autograd.grad(critic(REAL, fake), fake)
        (up,) = torch.autograd.grad(hinge_generator(fake), fake)
        assert bool((down > 0).all())
        assert bool((up < 0).all())


def test_a_critic_learns_to_tell_smooth_from_rough() -> None:
    torch.manual_seed(0)
    net = PatchGan(PatchGanSize(width=8, layers=2))
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)

    def pictures() -> tuple[torch.Tensor, torch.Tensor]:
        rough = torch.randn(8, 3, 32, 32, generator=generator)
        smooth = torch.nn.functional.avg_pool2d(rough, 3, 1, 1) * 3  # the same variance inside
        return smooth, rough

    for _ in range(80):
        real, fake = pictures()
        optimizer.zero_grad()
        hinge(net(real), net(fake)).backward()
        optimizer.step()
    real, fake = (net(x).mean().item() for x in pictures())
    assert real > 0.5
    assert fake < -0.5
