"""The first stage: what its latents are brought to, and the loss that trains it, term by term."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fill import inp
from sfumato.diffusion.noise import Address, Stream, seeded
from sfumato.latents.autoencoding import Autoencoding, Losses, psnr
from sfumato.latents.kl import KLFirstStage
from sfumato.latents.statistics import LatentStatistics
from sfumato.nets.autoencoder import AutoencoderSize, kl, moments
from sfumato.nets.lpips import Lpips
from tiny import awake

SIZE = AutoencoderSize(channels=8, mult=(1, 2), blocks=1, latent_channels=3)
IMAGES = (0.5 * inp("img", 4, 3, 8, 8)).clamp(-1, 1)


@pytest.fixture
def stage() -> KLFirstStage:
    torch.manual_seed(0)
    net = KLFirstStage(SIZE).requires_grad_(False)
    awake(net.net)
    return net


def calibrate(stage: KLFirstStage, mean: Tensor, logvar: Tensor) -> None:
    statistics = LatentStatistics(3)
    statistics.update(mean, logvar)
    statistics.put(stage)


def test_calibrated_latents_have_no_mean_and_unit_variance(stage: KLFirstStage) -> None:
    """Of a draw from the posterior, so its own variance counts."""
    bias = stage.net.encoder.quant_conv.bias
    assert bias is not None
    bias.copy_(torch.tensor([1.0, -2.0, 0.5, -1.0, 0.0, 0.5]))
    stage.net.encoder.quant_conv.weight.mul_(3)
    calibrate(stage, *moments(stage.net.encoder(IMAGES)))
    mean, logvar = stage.moments(IMAGES)
    torch.testing.assert_close(mean.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-6)
    assert (mean.square() + logvar.exp()).mean().item() == pytest.approx(1, abs=1e-6)
    assert stage.std.ndim == 0  # one factor for all channels, as in LDM
    assert abs(stage.std.item() - 1) > 0.1


def test_calibration_does_not_change_what_is_decoded(stage: KLFirstStage) -> None:
    before = stage.decode(stage.encode(IMAGES))
    raw = moments(stage.net.encoder(IMAGES))
    calibrate(stage, *raw)
    assert not torch.allclose(stage.encode(IMAGES), raw[0], atol=0.01)
    torch.testing.assert_close(stage.decode(stage.encode(IMAGES)), before, rtol=0, atol=1e-5)


def test_a_latent_is_a_draw_with_noise_and_a_mean_without(stage: KLFirstStage) -> None:
    calibrate(stage, *moments(stage.net.encoder(IMAGES)))
    mean, logvar = stage.moments(IMAGES)
    assert torch.equal(stage.encode(IMAGES), mean)
    noise = seeded([1, 2, 3, 4])(mean)
    expected = mean + (0.5 * logvar).exp() * noise
    torch.testing.assert_close(stage.encode(IMAGES, seeded([1, 2, 3, 4])), expected)


def test_a_picture_that_does_not_divide_is_refused(stage: KLFirstStage) -> None:
    with pytest.raises(ValueError, match="10x7 does not divide by 2") as caught:
        stage.encode(torch.zeros(1, 3, 7, 10))
    assert "\n" not in str(caught.value)


# The loss -------------------------------------------------------------------------------------------------


class Halved(nn.Module):
    """A stand-in for LPIPS whose value is known."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().mean((1, 2, 3)) / 2


def test_the_loss_is_the_sum_of_its_terms(stage: KLFirstStage) -> None:
    at = Address.of(3, [5, 6, 7, 8], 40)
    loss = Autoencoding(stage.net, None, Losses(squares=5.0, kl=0.5), steps=50)({"image": IMAGES}, at)
    mean, logvar = moments(stage.net.encoder(IMAGES))
    y = stage.net.decoder(mean + (0.5 * logvar).exp() * at.normal(mean, Stream.ENCODE))
    pixels = 3 * 8 * 8
    l1, mse = (y - IMAGES).abs().sum() / pixels / 4, (y - IMAGES).square().sum() / pixels / 4
    divergence = kl(mean, logvar).sum() / pixels / 4
    torch.testing.assert_close(loss.said["l1"], l1)
    torch.testing.assert_close(loss.said["mse"], mse)
    torch.testing.assert_close(loss.said["kl"], divergence)
    torch.testing.assert_close(loss.loss, l1 + 5 * mse + 0.5 * divergence)


def test_the_perceptual_term_begins_at_its_step(stage: KLFirstStage) -> None:
    lpips: Lpips = Halved()
    objective = Autoencoding(stage.net, lpips, Losses(perceptual=4.0, perceptual_from=10, kl=0), steps=50)
    before = objective({"image": IMAGES}, Address.of(0, [0, 1, 2, 3], 9))
    after = objective({"image": IMAGES}, Address.of(0, [0, 1, 2, 3], 10))
    torch.testing.assert_close(before.loss, before.said["l1"])
    assert "lpips" not in before.said
    torch.testing.assert_close(after.loss, 3 * after.said["l1"])
    torch.testing.assert_close(after.said["lpips"], after.said["l1"] / 2)


def test_psnr_counts_the_levels_of_saved_pictures() -> None:
    a = torch.zeros(1, 3, 4, 4)  # level 127.5, which rounds to 128
    assert psnr(a, a + 10 / 127.5).item() == pytest.approx(20 * torch.log10(torch.tensor(25.5)).item(), abs=1e-4)
    assert psnr(a, a + 0.3 / 127.5).item() == pytest.approx(100)  # the same file
    assert psnr(torch.full_like(a, 9), torch.ones_like(a)).item() == pytest.approx(100)  # clamped as when saved
    both = psnr(torch.cat([a, a]), torch.cat([a + 10 / 127.5, a + 1]))
    assert both[0] > both[1]
