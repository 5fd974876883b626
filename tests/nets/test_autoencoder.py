"""The autoencoder's moments and divergence by their numbers, and its start by linear algebra."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fill import inp
from sfumato.nets.autoencoder import Autoencoder, AutoencoderSize, drawn, kl, moments
from tiny import awake

LINEAR = AutoencoderSize(channels=8, mult=(1, 2), blocks=1, latent_channels=5, patch=2, shortcut="linear")
PLAIN = AutoencoderSize(channels=8, mult=(1, 2), blocks=1, latent_channels=5)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)


def test_the_divergence_from_a_standard_normal() -> None:
    """systems.md 8.1."""
    mean, logvar = column(0.5, -1), column(0, -2)
    assert kl(mean, logvar).item() == pytest.approx(1.19266772, abs=1e-7)
    assert kl(column(0, 0), column(0, 0)).item() == 0


def test_the_divergence_is_a_sum_for_each_sample() -> None:
    mean, logvar = inp("mean", 3, 2, 4, 4).double(), inp("logvar", 3, 2, 4, 4).double()
    p = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    expected = torch.distributions.kl_divergence(p, torch.distributions.Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(kl(mean, logvar), expected)


def test_moments_are_halves_and_the_variance_is_kept_in_bounds() -> None:
    mean, logvar = moments(column(7, -50, -31, 25))
    assert mean.flatten().tolist() == [7, -50]
    assert logvar.flatten().tolist() == [-30, 20]


def test_a_draw_is_mean_and_deviation() -> None:
    z = drawn(column(1, -2), column(0, 2 * np.log(3)), column(0.5, -1))
    assert z.flatten().tolist() == pytest.approx([1.5, -5.0])


@pytest.mark.parametrize("size", [LINEAR, PLAIN], ids=["linear", "plain"])
def test_the_gradient_reaches_every_parameter(size: AutoencoderSize) -> None:
    torch.manual_seed(0)
    net = Autoencoder(size)
    awake(net)
    image = inp("img", 2, 3, 16, 16)
    mean, logvar = moments(net.encoder(image))
    y = net.decoder(drawn(mean, logvar, inp("eps", *mean.shape)))
    (y * inp("target", *y.shape)).sum().backward()
    dead = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not dead


@pytest.mark.parametrize("size", [LINEAR, PLAIN], ids=["linear", "plain"])
def test_a_shift_by_whole_latents_shifts_the_latent(size: AutoencoderSize) -> None:
    """So every stride and every folding of pixels begins at the same corner. Attention off: it sees the border."""
    torch.manual_seed(0)
    net = Autoencoder(size).requires_grad_(False)
    awake(net)
    for half in (net.encoder, net.decoder):
        half.layers = torch.nn.Sequential(*(layer for layer in half.layers if not hasattr(layer, "to_q")))
        for part in half.modules():
            if isinstance(part, torch.nn.GroupNorm):
                part.forward = lambda x: x  # it sees the whole picture
    f = size.factor
    image = F.pad(inp("img", 1, 3, 4 * f, 4 * f), (14 * f,) * 4)
    z = net.encoder(image)
    moved = net.encoder(image.roll((2 * f, f), (2, 3)))
    middle = slice(12, -12)  # farther from the border than anything sees
    torch.testing.assert_close(moved[..., middle, middle], z.roll((2, 1), (2, 3))[..., middle, middle])
    y, again = net.decoder(z[:, :5]), net.decoder(z[:, :5].roll((2, 1), (2, 3)))
    middle = slice(12 * f, -12 * f)
    torch.testing.assert_close(again[..., middle, middle], y.roll((2 * f, f), (2, 3))[..., middle, middle])


# The start at the principal components --------------------------------------------------------------------


def pictures() -> Tensor:
    """Smooth pictures with some noise, so that the components differ in weight."""
    coarse = F.interpolate(inp("coarse", 12, 3, 4, 4), (16, 16), mode="bicubic")
    return (0.4 * coarse + 0.1 * inp("fine", 12, 3, 16, 16) + 0.2).clamp(-1, 1)


def optimum(images: Tensor, k: int, side: int) -> np.ndarray:
    """The pictures by the best affine map of rank k of their patches, by singular values (Eckart & Young 1936)."""
    x = images.double().numpy()
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // side, side, w // side, side).transpose(0, 2, 4, 1, 3, 5)
    rows = blocks.reshape(-1, c * side * side)
    mean = rows.mean(0)
    u, s, v = np.linalg.svd(rows - mean, full_matrices=False)
    best = (u[:, :k] * s[:k]) @ v[:k] + mean
    back = best.reshape(n, h // side, w // side, c, side, side).transpose(0, 3, 1, 4, 2, 5)
    return back.reshape(n, c, h, w)


@pytest.fixture
def started() -> Autoencoder:
    torch.manual_seed(0)
    net = Autoencoder(LINEAR).requires_grad_(False)
    net.start_at_principal_components(pictures())
    return net


def test_the_shortcuts_are_the_best_linear_autoencoder(started: Autoencoder) -> None:
    images = pictures()
    inner, outer = started.encoder.linear, started.decoder.linear
    assert inner is not None
    assert outer is not None
    z = inner(F.pixel_unshuffle(images, LINEAR.factor))
    y = F.pixel_shuffle(outer(z), LINEAR.factor)
    np.testing.assert_allclose(y.numpy(), optimum(images, 5, LINEAR.factor), atol=1e-5)


def test_latents_start_as_roots_of_what_they_are_in_pixels(started: Autoencoder) -> None:
    """Uncorrelated, and of deviation sqrt(s) where the component has s in pixels."""
    images = pictures()
    mean, logvar = moments(started.encoder(images))
    rows = mean.movedim(1, -1).flatten(0, 2).double()
    patches = F.pixel_unshuffle(images, LINEAR.factor).movedim(1, -1).flatten(0, 2).double()
    s = torch.linalg.svdvals(patches - patches.mean(0))[:5].flip(0) / len(patches) ** 0.5
    torch.testing.assert_close(torch.cov(rows.T, correction=0), s.diag(), rtol=0, atol=1e-5)
    noise = logvar.double().movedim(1, -1).flatten(0, 2)[0].exp()  # of each channel, in latents
    torch.testing.assert_close(noise * s, (0.02 * s[0] ** 2).expand(5), rtol=1e-4, atol=0)


def test_without_shortcuts_there_is_no_such_start() -> None:
    with pytest.raises(ValueError, match="no linear shortcut"):
        Autoencoder(PLAIN).start_at_principal_components(pictures())
