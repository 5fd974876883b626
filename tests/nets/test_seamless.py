"""On a torus a network commutes with shifts; the weights are the given ones and the given network stays as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tiny
from fill import inp
from sfumato.nets.autoencoder import Autoencoder
from sfumato.nets.seamless import seamless
from sfumato.nets.unet import UNet


def filled(module: nn.Module) -> nn.Module:
    """No layer is zero, so that all of them are seen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64) * 0.2)
    return module.double().eval()


def unet() -> tuple[nn.Module, Tensor, int]:
    net = filled(UNet(tiny.CONFIG.unet))
    size = tiny.CONFIG.unet
    x = inp("x", 1, size.channels, 16, 16).double()
    context = inp("context", 1, 5, size.context_dim or 1).double()

    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            vector = None if size.vector_dim is None else context[:, 0, : size.vector_dim]
            return self.net(x, torch.tensor([321.5]), context, None, vector, None)

    return Told(), x, 2 ** (len(size.mult) - 1)


def decoder() -> tuple[nn.Module, Tensor, int]:
    net = filled(Autoencoder(tiny.CONFIG.first_stage)).decoder
    return net, inp("z", 1, tiny.CONFIG.first_stage.latent_channels, 8, 8).double(), 1


@pytest.mark.parametrize("made", [unet, decoder], ids=["U-Net", "decoder"])
@pytest.mark.parametrize("by", [(1, 0), (0, 1), (2, 3)])
def test_it_commutes_with_shifts_around_the_torus(made, by: tuple[int, int]) -> None:  # noqa: ANN001
    net, x, cell = made()
    shift = [cell * b for b in by]
    plain, torus = net(x), seamless(net)(x)
    scale = plain.shape[-1] // x.shape[-1]
    moved = torch.roll(x, shift, (2, 3))
    expected = torch.roll(torus, [scale * s for s in shift], (2, 3))
    torch.testing.assert_close(seamless(net)(moved), expected, rtol=0, atol=1e-9)
    off = net(moved) - torch.roll(plain, [scale * s for s in shift], (2, 3))
    assert off.abs().max() > 1e-3  # which the plain network does not
    torch.testing.assert_close(net(x), plain, rtol=0, atol=0)


def test_the_weights_are_shared_and_no_copies() -> None:
    net, *_ = unet()
    twin = seamless(net)
    mine, theirs = dict(net.named_parameters()), dict(twin.named_parameters())
    assert mine.keys() == theirs.keys()
    assert all(mine[name] is theirs[name] for name in mine)
    assert all(a is not b for a, b in zip(net.modules(), twin.modules(), strict=True))
