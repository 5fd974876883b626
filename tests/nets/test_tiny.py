"""The tiny autoencoder against its plain form, and by what it must keep: ranges, bounds, shifts, gradients, counts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fill import fill, inp
from sfumato.io.layouts import taesd
from sfumato.io.layouts.rules import Layout
from sfumato.latents.kl import KLFirstStage
from sfumato.latents.tiny import TinyFirstStage
from sfumato.models.latent_diffusion import hollowed
from sfumato.nets.autoencoder import AutoencoderSize
from sfumato.nets.seamless import seamless
from sfumato.nets.tiny import TinyAutoencoder, TinyDecoder, TinySize
from tiny import awake

SIZES = {
    "published": TinySize(),
    "sixteen channels": TinySize(latent_channels=16),
    "small": TinySize(width=8, blocks=1, levels=1),
    "deep": TinySize(width=6, blocks=2, latent_channels=3, levels=2),
}
SMALL = SIZES["deep"]


def net(size: TinySize) -> TinyAutoencoder:
    made = TinyAutoencoder(size)
    fill(made, taesd.autoencoder(made, original=False))
    return made.requires_grad_(False)


# The plain form: tensors by the names of diffusers' files, layer after layer -----------------------------------


def conv(w: dict[str, Tensor], name: str, x: Tensor, stride: int = 1) -> Tensor:
    return F.conv2d(x, w[f"{name}.weight"], w.get(f"{name}.bias"), stride=stride, padding=1)


def block(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    h = x
    for k in (0, 2, 4):
        h = conv(w, f"{name}.conv.{k}", h)
        h = h.clamp_min(0) if k < 4 else h
    return (h + x).clamp_min(0)


def encode(w: dict[str, Tensor], size: TinySize, image: Tensor) -> Tensor:
    h = block(w, "encoder.layers.1", conv(w, "encoder.layers.0", 0.5 * image + 0.5))
    at = 2
    for _ in range(size.levels):
        assert f"encoder.layers.{at}.bias" not in w
        h = conv(w, f"encoder.layers.{at}", h, stride=2)
        for k in range(size.blocks):
            h = block(w, f"encoder.layers.{at + 1 + k}", h)
        at += 1 + size.blocks
    return conv(w, f"encoder.layers.{at}", h)


def decode(w: dict[str, Tensor], size: TinySize, z: Tensor) -> Tensor:
    h = conv(w, "decoder.layers.0", 3 * (z / 3).tanh()).clamp_min(0)
    at = 2
    for _ in range(size.levels):
        for k in range(size.blocks):
            h = block(w, f"decoder.layers.{at + k}", h)
        h = h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        at += size.blocks + 1
        assert f"decoder.layers.{at}.bias" not in w
        h = conv(w, f"decoder.layers.{at}", h)
        at += 1
    return 2 * conv(w, f"decoder.layers.{at + 1}", block(w, f"decoder.layers.{at}", h)) - 1


@pytest.mark.parametrize("name", SIZES)
def test_it_is_its_plain_form(name: str) -> None:
    size = SIZES[name]
    made = net(size)
    assert made.encoder is not None
    layout = Layout(tuple(taesd.autoencoder(made, original=False)))
    w = layout.write(dict(made.named_parameters()))
    image, z = inp("img", 2, 3, 3 * size.factor, 2 * size.factor), inp("z", 2, size.latent_channels, 3, 2)
    encoded, decoded = made.encoder(image), made.decoder(z)
    assert encoded.shape == z.shape
    assert decoded.shape == image.shape
    torch.testing.assert_close(encoded, encode(w, size, image), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(decoded, decode(w, size, z), rtol=1e-5, atol=1e-5)


# What it must keep -----------------------------------------------------------------------------------------------


def test_the_published_one_has_the_published_count() -> None:
    with hollowed():
        made = TinyAutoencoder(TinySize())
    assert made.encoder is not None
    counts = [sum(p.numel() for p in half.parameters()) for half in (made.encoder, made.decoder)]
    block_, size_ = 3 * (64 * 64 * 9 + 64), 64 * 64 * 9
    assert counts[0] == (3 * 64 * 9 + 64) + 10 * block_ + 3 * size_ + (64 * 4 * 9 + 4) == 1_222_532
    assert counts[1] == (4 * 64 * 9 + 64) + 10 * block_ + 3 * size_ + (64 * 3 * 9 + 3) == 1_222_531


def test_no_latent_goes_beyond_three() -> None:
    made = net(SMALL)
    sign = inp("z", 1, 3, 4, 4).sign()
    inside = 2 * made.decoder.layers(3 * sign) - 1
    torch.testing.assert_close(made.decoder(1e4 * sign), inside, rtol=1e-5, atol=1e-5)
    small = 1e-3 * inp("z", 1, 3, 4, 4)
    torch.testing.assert_close(made.decoder(small), 2 * made.decoder.layers(small) - 1, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_pictures_are_in_zero_to_one_inside() -> None:
    """Without offsets black outside is zero inside, and zero stays zero; an offset of the last layer is a colour."""
    made = net(SMALL)
    assert made.encoder is not None
    for name, p in made.named_parameters():
        if name.endswith("bias"):
            p.zero_()
    assert not made.encoder(torch.full((1, 3, 8, 8), -1.0)).any()
    last = made.decoder.layers[-1]
    assert isinstance(last, torch.nn.Conv2d)
    assert last.bias is not None
    last.weight.zero_()
    last.bias.copy_(torch.tensor([0.0, 0.5, 1.0]))
    picture = made.decoder(inp("z", 1, 3, 2, 2))
    assert torch.equal(picture, torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8))


def test_a_shift_by_whole_latents_shifts_the_latent() -> None:
    """On a torus, where there is no border; so every stride begins at the same corner, and nothing else sees place."""
    stage = TinyFirstStage(SMALL)
    fill(stage.net, taesd.autoencoder(stage.net, original=False))
    stage = seamless(stage).requires_grad_(False)
    f = SMALL.factor
    image, z = inp("img", 1, 3, 6 * f, 6 * f), inp("z", 1, 3, 6, 6)
    moved = stage.encode(image.roll((2 * f, f), (2, 3)))
    torch.testing.assert_close(moved, stage.encode(image).roll((2, 1), (2, 3)), rtol=1e-5, atol=1e-5)
    again = stage.decode(z.roll((2, 1), (2, 3)))
    torch.testing.assert_close(again, stage.decode(z).roll((2 * f, f), (2, 3)), rtol=1e-5, atol=1e-5)


def test_the_gradient_reaches_every_parameter() -> None:
    torch.manual_seed(0)
    made = TinyAutoencoder(SMALL)
    awake(made)
    assert made.encoder is not None
    y = made.decoder(made.encoder(inp("img", 2, 3, 16, 16)))
    (y * inp("target", *y.shape)).sum().backward()
    dead = [n for n, p in made.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not dead


# As a first stage --------------------------------------------------------------------------------------------------


def test_it_encodes_itself_or_has_another_encode() -> None:
    torch.manual_seed(0)
    large = KLFirstStage(AutoencoderSize(channels=8, mult=(1, 1, 1), blocks=1, latent_channels=3)).requires_grad_(False)
    awake(large)
    large.std.fill_(0.5)
    image = inp("img", 1, 3, 8, 8)
    both, alone = (
        TinyFirstStage(size, large) for size in (SMALL, TinySize(levels=2, latent_channels=3, encoder=False))
    )
    assert both.net.encoder is not None
    assert alone.net.encoder is None
    with torch.no_grad():
        assert torch.equal(both.encode(image), both.net.encoder(image))
        for noise in (None, torch.ones_like):
            assert torch.equal(alone.encode(image, noise), large.encode(image, noise))
    assert not torch.equal(alone.encode(image, torch.ones_like), alone.encode(image))
    assert (alone.factor, alone.channels) == (4, 3)


def test_a_decoder_alone_encodes_nothing() -> None:
    with pytest.raises(ValueError, match="is a decoder alone"):
        TinyFirstStage(TinySize(width=4, encoder=False)).encode(torch.zeros(1, 3, 8, 8))


def test_a_picture_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="a picture of 8x6 does not divide by 4"):
        TinyFirstStage(SMALL).encode(torch.zeros(1, 3, 6, 8))


def test_weights_in_half_the_bits_take_and_give_whole_ones() -> None:
    stage = TinyFirstStage(SMALL).to(torch.bfloat16).requires_grad_(False)
    z = inp("z", 1, 3, 2, 2)
    assert stage.decode(z).dtype == stage.encode(stage.decode(z)).dtype == torch.float32
    assert isinstance(stage.net.decoder, TinyDecoder)
