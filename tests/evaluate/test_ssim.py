"""SSIM against another program, against sums over windows, and where it is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fill import inp
from sfumato.evaluate import ssim as module
from sfumato.evaluate.ssim import C1, C2, ROWS, WINDOW, ssim

SCIKIT_IMAGE = {  # 0.26.0: structural_similarity(.., channel_axis=0, data_range=1, gaussian_weights=True, sigma=1.5,
    # use_sample_covariance=False) of the rule's pictures, float64
    "noise": [0.011146430760412917, -0.014997271789681165],
    "near": [0.9960039182842673, 0.9958790326870263],
    "blurred": [0.16828102793355826, 0.14790042366266729],
}


@pytest.mark.parametrize("kind", SCIKIT_IMAGE)
def test_it_is_the_number_of_another_program(kind: str) -> None:
    a, b = (inp(name, 2, 3, 48, 37).clamp(-1, 1) for name in ("img", "img2"))
    others = {"noise": b, "near": (a + 0.1 * b).clamp(-1, 1), "blurred": torch.nn.functional.avg_pool2d(a, 3, 1, 1)}
    expected = torch.tensor(SCIKIT_IMAGE[kind], dtype=torch.float64)
    torch.testing.assert_close(ssim(a, others[kind]), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(ssim(others[kind], a), expected, rtol=0, atol=1e-12)


def plain(a: Tensor, b: Tensor) -> float:
    """Equations 6 to 13 of the paper, window by window, of one channel in [0, 1]."""
    at = torch.arange(11.0, dtype=torch.float64) - 5
    weight = torch.exp(-(at[:, None] ** 2 + at**2) / (2 * 1.5**2))
    weight /= weight.sum()
    total, count = 0.0, 0
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            x, y = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            mx, my = (weight * x).sum(), (weight * y).sum()
            sx, sy = (weight * (x - mx) ** 2).sum(), (weight * (y - my) ** 2).sum()
            both = (weight * (x - mx) * (y - my)).sum()
            above = (2 * mx * my + 0.01**2) * (2 * both + 0.03**2)
            total += float(above / ((mx**2 + my**2 + 0.01**2) * (sx + sy + 0.03**2)))
            count += 1
    return total / count


def test_it_is_the_mean_over_windows_and_channels() -> None:
    a, b = (0.5 * inp(name, 1, 3, 13, 16).clamp(-1, 1) for name in ("a", "b"))
    expected = sum(plain((a[0, c].double() + 1) / 2, (b[0, c].double() + 1) / 2) for c in range(3)) / 3
    assert ssim(a, b).item() == pytest.approx(expected, abs=1e-12)


def test_the_same_is_one_and_greys_differ_by_their_light_alone() -> None:
    a = inp("a", 2, 3, 20, 11).clamp(-1, 1)
    assert ssim(a, a).tolist() == [1.0, 1.0]
    light, dark = torch.full((1, 3, 11, 11), 0.6), torch.full((1, 3, 11, 11), -0.4)
    x, y = 0.8, 0.3
    expected = (2 * x * y + C1) / (x * x + y * y + C1)
    assert ssim(light, dark).item() == pytest.approx(expected, abs=1e-7)


def test_the_negative_of_a_picture_around_grey_is_its_opposite() -> None:
    """Around middle grey the means of a picture and its negative are near, and the covariance is minus the variance."""
    board = (torch.arange(64)[:, None] + torch.arange(64)[None]) % 2 * 2.0 - 1  # +-1, whose window mean is nearly 0
    picture = (0.9 * board)[None, None].expand(1, 3, 64, 64)
    v = (0.9 / 2) ** 2
    assert ssim(picture, -picture).item() == pytest.approx((C2 - 2 * v) / (C2 + 2 * v), abs=1e-3)


@pytest.mark.parametrize("long", [ROWS + WINDOW - 2, ROWS + WINDOW - 1, ROWS + WINDOW, 2 * ROWS + WINDOW - 1, 250])
def test_strips_are_the_whole(long: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever side is long, and where strips begin and end: by one strip of all rows, but for rounding."""
    a, b = (0.5 * inp(name, 2, 3, long, 13).clamp(-1, 1) for name in ("a", "b"))
    strips = ssim(a, b), ssim(a.mT, b.mT)
    monkeypatch.setattr(module, "ROWS", long)
    for found in strips:
        torch.testing.assert_close(found, ssim(a, b), rtol=0, atol=1e-14)


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that an operation makes."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
        if isinstance(out, Tensor) and out.untyped_storage().data_ptr() not in given:  # no view
            self.numel = max(self.numel, out.numel())
        return out


def test_memory_does_not_grow_with_the_longer_side() -> None:
    a = inp("a", 1, 3, 12, 1000).clamp(-1, 1)
    for x in (a, a.mT):
        with Largest() as largest:
            ssim(x, x)
        assert largest.numel == 3 * 12 * (ROWS + WINDOW - 1)


@pytest.mark.parametrize(("height", "width"), [(10, 64), (64, 10)])
def test_pictures_smaller_than_the_window_are_refused(height: int, width: int) -> None:
    a = torch.zeros(1, 3, height, width)
    with pytest.raises(ValueError, match=rf"^pictures of {width}x{height} are too small for SSIM; it needs 11 pixels$"):
        ssim(a, a)
