"""Measures of pictures against torchmetrics: the same pictures, the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

torchmetrics = pytest.importorskip("torchmetrics")

from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.image.fid import FrechetInceptionDistance

from fill import inp
from sfumato.evaluate.frechet import Gaussian, frechet
from sfumato.evaluate.reconstruction import as_saved
from sfumato.evaluate.ssim import ssim
from sfumato.latents.autoencoding import psnr


def pair(noise: float, *shape: int) -> tuple[Tensor, Tensor]:
    a, b = (inp(name, *shape) for name in ("a", "b"))
    smooth = torch.nn.functional.avg_pool2d(a, 5, 1, 2)
    return as_saved(smooth), as_saved(smooth + noise * b)


@pytest.mark.parametrize("noise", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("size", [(11, 11), (64, 64), (33, 90)])
def test_ssim_where_the_window_lies_inside(noise: float, size: tuple[int, int]) -> None:
    """Theirs continues the picture beyond its edges since 1.9; what the window sees of the picture alone is ours."""
    a, b = pair(noise, 3, 3, *size)
    x, y = ((p.double() + 1) / 2 for p in (a, b))
    _, whole = structural_similarity_index_measure(x, y, data_range=1.0, reduction="none", return_full_image=True)
    inside = whole[..., 5:-5, 5:-5].mean((1, 2, 3))
    torch.testing.assert_close(ssim(a, b), inside, rtol=0, atol=1e-10)


def test_psnr() -> None:
    a, b = pair(0.1, 4, 3, 24, 31)
    x, y = ((p + 1) / 2 for p in (a, b))
    theirs = peak_signal_noise_ratio(x, y, data_range=1.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(psnr(a, b), theirs, rtol=1e-5, atol=0)


class Features(nn.Module):
    """Features of few numbers, for any Fréchet distance."""

    num_features = 20

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 20, 5, 3)
        self.conv.weight.data = inp("w", 20, 3, 5, 5)
        self.conv.bias.data = inp("b", 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.to(self.conv.weight.dtype)).relu().mean((2, 3))


@torch.no_grad()
@pytest.mark.parametrize("n", [200, 12])
def test_the_distance_of_features(n: int) -> None:
    """With fewer pictures than features too; then their root of the product is less exact than ours."""
    net = Features().double().eval()
    a, b = inp("real", n, 3, 16, 16), 0.8 * inp("made", n, 3, 16, 16) + 0.1
    theirs = FrechetInceptionDistance(feature=net, normalize=False, input_img_size=(3, 16, 16)).set_dtype(torch.float64)
    theirs.update(a, real=True)
    theirs.update(b, real=False)
    ours = [Gaussian(20), Gaussian(20)]
    for gaussian, images in zip(ours, (a, b), strict=True):
        for part in images.split(7):
            gaussian.update(net(part))
    assert frechet(ours[0].compute(), ours[1].compute()) == pytest.approx(theirs.compute().item(), rel=1e-6)
