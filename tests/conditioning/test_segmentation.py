"""A map of classes becomes what LDM's rescaler makes of it: halved bilinearly, then a convolution of one pixel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sfumato.conditioning.segmentation import UNSAID, Segmentation

CLASSES, CHANNELS = 5, 3


@pytest.mark.parametrize("stages", [0, 1, 2, 3])
def test_looking_up_and_averaging_is_halving_and_mixing(stages: int) -> None:
    torch.manual_seed(0)
    net = Segmentation(CLASSES, CHANNELS, stages=stages)
    found = torch.randint(0, CLASSES, (2, 16, 24), dtype=torch.uint8)
    x = F.one_hot(found.long(), CLASSES).permute(0, 3, 1, 2).float()
    for _ in range(stages):
        x = F.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)
    maps = net(net.collate([{"map": m} for m in found])).maps
    assert maps is not None
    torch.testing.assert_close(maps, net.project(x), rtol=0, atol=1e-6)
    assert sum(p.numel() for p in net.parameters()) == CLASSES * CHANNELS


def test_what_is_not_said_is_the_null_condition() -> None:
    net = Segmentation(CLASSES, CHANNELS, stages=1)
    cond = net(net.collate([{"map": torch.full((4, 4), UNSAID, dtype=torch.uint8)}]))
    assert cond.maps is not None
    assert torch.equal(cond.maps, torch.zeros(1, CHANNELS, 2, 2))
    other = net(net.collate([{"map": torch.zeros(4, 4, dtype=torch.uint8)}]))
    dropped = other.where(torch.tensor([False]), net.null(1))
    assert dropped.maps is not None
    assert torch.equal(dropped.maps, cond.maps)


def test_the_convolution_learns_from_the_classes_that_are_there() -> None:
    net = Segmentation(CLASSES, CHANNELS, stages=1)
    found = torch.zeros(4, 4, dtype=torch.uint8)
    found[2:] = 3
    maps = net({"map": found[None]}).maps
    assert maps is not None
    maps.sum().backward()
    grad = net.project.weight.grad
    assert grad is not None
    assert grad.flatten(1).sum(0).tolist() == [6, 0, 0, 6, 0]  # 2 positions of 3 channels each


def test_strange_maps_are_refused() -> None:
    net = Segmentation(CLASSES, CHANNELS, stages=2)
    with pytest.raises(ValueError, match="a map has the class 5; this model knows 0 to 4, and 255 for nothing"):
        net.collate([{"map": torch.full((4, 4), 5, dtype=torch.uint8)}])
    with pytest.raises(ValueError, match="a map of 6x4 does not divide by 4; both sides must"):
        net.collate([{"map": torch.zeros(4, 6, dtype=torch.uint8)}])
