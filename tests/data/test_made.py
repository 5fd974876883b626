"""Small pictures and holes are functions of an address, and are what they are said to be."""

from __future__ import annotations

import math

import pytest
import torch

from fill import inp
from sfumato.data.degradation import GRAINIEST, KERNELS, degraded, gaussian, scaled_down
from sfumato.data.holes import LARGEST, SMALLEST, holes
from sfumato.data.part import Mirrored
from sfumato.diffusion.noise import Address

IMAGES = (0.5 * inp("made", 3, 3, 16, 24)).clamp(-1, 1)


def at(n: int, step: int = 0) -> Address:
    return Address.of(7, list(range(n)), step)


# Small pictures -------------------------------------------------------------------------------------------
def test_a_small_picture_depends_on_its_address_and_not_on_its_batch() -> None:
    whole = degraded(IMAGES, at(3), factor=4)
    assert whole.shape == (3, 3, 4, 6)
    for i in range(3):
        assert torch.equal(degraded(IMAGES[i : i + 1], Address.of(7, [i]), factor=4), whole[i : i + 1])
    assert torch.equal(whole, degraded(IMAGES, at(3), factor=4))
    assert not torch.equal(whole, degraded(IMAGES, at(3, step=1), factor=4))


def test_it_has_the_levels_of_a_file() -> None:
    levels = (degraded(IMAGES, at(3), factor=2) + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert levels.min() >= 0
    assert levels.max() <= 255


def test_area_takes_means_of_blocks() -> None:
    found = degraded(IMAGES, at(3), factor=4, kind="area")
    means = IMAGES.unflatten(3, (6, 4)).unflatten(2, (4, 4)).mean((3, 5))
    torch.testing.assert_close(found, means, rtol=0, atol=0.5 / 127.5 + 1e-6)


def test_a_plain_picture_stays_plain_but_for_the_grain() -> None:
    n = 300
    found = degraded(torch.full((n, 3, 16, 16), 0.2), at(n), factor=4)
    off = (found - 0.2).abs()
    assert off.max() < 6 * GRAINIEST
    uniform = GRAINIEST / math.sqrt(3)  # deviation of noise whose own deviation is uniform from 0 to GRAINIEST
    assert (found - 0.2).std().item() == pytest.approx(math.hypot(uniform, 2 / 255 / math.sqrt(12)), rel=0.05)


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_way_down_keeps_a_slope(kernel: str) -> None:
    slope = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32)
    small = scaled_down(slope, 4, kernel)
    assert small.shape == (1, 3, 8, 8)
    steps = small[0, 0, 0].diff()
    torch.testing.assert_close(steps[1:-1], torch.full((5,), 8 / 31), rtol=0.03, atol=0)


def test_a_blur_has_its_deviations_in_two_directions() -> None:
    kernel = gaussian(1.0, 2.0, angle=0.3)
    assert kernel.sum().item() == pytest.approx(1)
    steps = torch.arange(-(len(kernel) // 2), len(kernel) // 2 + 1, dtype=torch.float64)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    across, along = x * math.cos(0.3) + y * math.sin(0.3), y * math.cos(0.3) - x * math.sin(0.3)
    assert (kernel * across.square()).sum().item() == pytest.approx(1, rel=0.03)
    assert (kernel * along.square()).sum().item() == pytest.approx(4, rel=0.1)
    assert (kernel * across * along).sum().item() == pytest.approx(0, abs=0.05)


def test_sides_must_divide() -> None:
    with pytest.raises(ValueError, match="a picture of 24x16 cannot be made 5 times as small; both sides must divide"):
        degraded(IMAGES, at(3), factor=5)


# Holes ----------------------------------------------------------------------------------------------------
def test_a_hole_depends_on_its_address_and_not_on_its_batch() -> None:
    whole = holes(at(4), 24, 32)
    assert all(torch.equal(holes(Address.of(7, [i]), 24, 32)[0], whole[i]) for i in range(4))
    assert not torch.equal(whole, holes(at(4, step=1), 24, 32))


@pytest.mark.parametrize("kind", ["both", "rectangles", "strokes"])
def test_holes_are_there_and_leave_something(kind: str) -> None:
    found = holes(at(400), 32, 32, kind)
    assert set(found.unique().tolist()) == {0, 1}
    shares = found.mean((1, 2))
    assert shares.min() > 0
    assert shares.max() < 1
    assert 0.15 < shares.mean() < 0.35


def test_a_rectangle_is_as_large_as_is_said() -> None:
    found = [hole for hole in holes(at(300), 40, 60, "rectangles") if _is_rectangle(hole)]
    assert len(found) > 60  # a third of them have one alone
    for hole in found:
        height, width = (hole.amax(axis).sum().item() for axis in (1, 0))
        assert height >= SMALLEST * 40 - 0.5
        assert width >= SMALLEST * 60 - 0.5
    single = [h for h in found if h.amax(1).sum() <= LARGEST * 40 + 0.5 and h.amax(0).sum() <= LARGEST * 60 + 0.5]
    assert len(single) > 60


def _is_rectangle(hole: torch.Tensor) -> bool:
    rows, columns = hole.amax(1), hole.amax(0)
    whole = torch.equal(hole, rows[:, None] * columns[None])
    return whole and all(int(line.diff().abs().sum() + line[0] + line[-1]) == 2 for line in (rows, columns))


def test_half_are_of_either_kind() -> None:
    both, rectangles = holes(at(200), 24, 24), holes(at(200), 24, 24, "rectangles")
    same = sum(torch.equal(a, b) for a, b in zip(both, rectangles, strict=True))
    assert abs(same - 100) < 5 * 50**0.5


# Mirrors --------------------------------------------------------------------------------------------------
def test_a_mirrored_data_set_has_both_forms() -> None:
    class Two:
        fields = frozenset({"image", "map"})

        def __len__(self) -> int:
            return 2

        def __getitem__(self, i: int, /) -> dict:
            return {"image": IMAGES[i], "map": torch.arange(6).view(2, 3) + i, "label": i}

    found = Mirrored(Two())
    assert len(found) == 4
    assert torch.equal(found[3]["image"], IMAGES[1].flip(-1))
    assert found[2]["map"].tolist() == [[2, 1, 0], [5, 4, 3]]
    assert [found[i]["label"] for i in range(4)] == [0, 1, 0, 1]
    assert torch.equal(found[1]["image"], IMAGES[1])
