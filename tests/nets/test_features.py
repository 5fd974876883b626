"""The bundled feature networks: their weights fit, and they see what is in a picture."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from sfumato.data import Emoji
from sfumato.evaluate import features
from sfumato.io import feature_networks, tensors
from sfumato.io.feature_networks import MOBILENET_FILE, VGG16_FILE
from sfumato.nets.lpips import Lpips
from sfumato.nets.mobilenet import MobileNetV2

KNOWN = {"basketball": 430, "soccer ball": 805, "teapot": 849, "umbrella": 879, "pretzel": 932}  # in ImageNet's order


@cache
def named() -> dict[str, Tensor]:
    emoji = Emoji(split="all", styles=("3d",))
    images = {str(emoji.meta(i)["name"]): i for i in range(len(emoji))}
    found = {name: emoji[images[name]]["image"] for name in KNOWN}
    return found


@pytest.fixture(scope="module")
def mobilenet() -> MobileNetV2:
    return feature_networks.mobilenet()


def test_mobilenet_takes_the_bundled_weights_whole() -> None:
    weights = tensors.load(MOBILENET_FILE)
    own = {k: v.shape for k, v in MobileNetV2().state_dict().items() if not k.endswith("num_batches_tracked")}
    assert own == {k: v.shape for k, v in weights.items()}
    assert sum(v.numel() for k, v in weights.items() if "running" not in k) == 3_504_872  # as torchvision counts


@torch.no_grad()
def test_mobilenet_names_what_it_sees(mobilenet: MobileNetV2) -> None:
    """Each of these is one class of a thousand: no wrong weight, normalisation or resizing gets them right."""
    images = named()
    logits = mobilenet(torch.stack(list(images.values())))
    assert dict(zip(images, logits.argmax(1).tolist(), strict=True)) == KNOWN


def test_features_are_unit_vectors_that_tell_pictures_apart(mobilenet: MobileNetV2) -> None:
    images = torch.stack(list(named().values()))
    f = features.pooled(mobilenet, images)
    assert torch.equal(features.pooled(mobilenet, images), f)
    torch.testing.assert_close(f.square().sum(1), torch.ones(5))
    shifted = features.pooled(mobilenet, images.roll(1, 3))
    assert torch.equal((f @ shifted.T).argmax(1), torch.arange(5))
    assert (f @ f.T - torch.eye(5)).max() < 0.95


def test_features_do_not_depend_on_the_batch(mobilenet: MobileNetV2, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.stack(list(named().values()))
    whole = features.pooled(mobilenet, images)
    monkeypatch.setattr(features, "BATCH", 2)
    torch.testing.assert_close(features.pooled(mobilenet, images), whole, rtol=0, atol=1e-5)


@torch.no_grad()
def test_bundled_lpips_is_a_distance_that_sees_structure() -> None:
    net = Lpips(stages=3)
    tensors.fill(net, tensors.load(VGG16_FILE), source=VGG16_FILE)
    assert all(lin.weight.min() >= 0 for lin in net.lin)
    images = torch.stack(list(named().values()))
    noisy = images + 0.05 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    same, near, other = net(images, images), net(noisy, images), net(images.roll(1, 0), images)
    assert same.abs().max() == 0
    torch.testing.assert_close(net(images, noisy), near)
    assert bool((near > 0).all())
    assert bool((near < other).all())
