"""Low-rank changes of layers: nothing at first, the formula afterwards, of the layers asked for and no others."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor, nn

import tiny
from fill import inp
from sfumato.models.latent_diffusion import LatentDiffusion
from sfumato.nets.lora import Adapters, LowRank, Targets, adaptable

RANK, ALPHA = 2, 3.0
ATTENTION = r"(self|cross)_attention\.to_(q|k|v|out)"
TRANSFORMER = rf"{ATTENTION}|mlp\.proj_(in|out)|transformer\.proj_(in|out)"
BLOCKS = r"res\.(conv_in|conv_out|emb|skip)|(down|up)\.\d+\.conv"


def answer(model: LatentDiffusion) -> Tensor:
    dtype = model.net.conv_in.weight.dtype
    told = model.conditioner.of(["two dogs in the rain", "a green pear"])
    x, t = inp("x", 2, 4, 4, 4).to(dtype), torch.tensor([3.0, 700.0])
    return model.net(x, t, told.tokens.to(dtype), told.mask, told.vector.to(dtype))


def on(model: LatentDiffusion, targets: Targets = "all") -> Adapters:
    torch.manual_seed(0)
    return Adapters(adaptable(model.net, targets), rank=RANK, alpha=ALPHA)


@torch.no_grad()
def moved(adapters: Adapters) -> Adapters:
    for name, p in adapters.named_parameters():
        p.copy_(0.3 * inp(name, *p.shape))
    return adapters


@pytest.mark.parametrize("targets", ["attention", "transformer", "all"])
@torch.no_grad()
def test_nothing_changes_at_first(targets: Targets) -> None:
    model = tiny.model()
    before = answer(model)
    on(model, targets)
    assert torch.equal(answer(model), before)


@torch.no_grad()
def test_the_answer_is_that_of_the_merged_weights() -> None:
    model = tiny.model().double()
    adapters = moved(on(model).double())
    assert (answer(model) - answer(tiny.model().double())).abs().mean() > 0.01
    changed = answer(model)
    adapters.off()
    assert torch.equal(answer(model), answer(tiny.model().double()))
    for name, (down, up) in Adapters.pairs(dict(adapters.named_parameters())).items():
        weight = model.net.get_submodule(name).weight
        weight += (ALPHA / RANK * up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    torch.testing.assert_close(answer(model), changed, rtol=0, atol=1e-6)


def test_a_strided_convolution() -> None:
    layer = nn.Conv2d(3, 4, 3, stride=2, padding=1)
    low = LowRank(layer, 2, 1.0)
    assert (low.down.shape, low.up.shape) == ((2, 3, 3, 3), (4, 2, 1, 1))
    with torch.no_grad():
        low.up.copy_(inp("up", 4, 2, 1, 1))
        x = inp("x", 2, 3, 8, 8)
        kernel = (0.5 * low.up.flatten(1) @ low.down.flatten(1)).reshape(4, 3, 3, 3)
        expected = torch.nn.functional.conv2d(x, kernel, stride=2, padding=1)
        torch.testing.assert_close(low(x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("targets", "pattern"),
    [("attention", ATTENTION), ("transformer", TRANSFORMER), ("all", f"{TRANSFORMER}|{BLOCKS}")],
)
def test_only_the_targets(targets: Targets, pattern: str) -> None:
    net = tiny.model().net
    layers = {name for name, module in net.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    expected = {name for name in layers if re.search(rf"({pattern})$", name)}
    assert adaptable(net, targets).keys() == expected
    assert layers - adaptable(net, "all").keys() == {
        "conv_in",
        "conv_out",
        *(f"{n}.{k}" for n in ("time", "vector") for k in (0, 2)),
    }


def test_gradients_reach_the_changes_alone_and_names_stay() -> None:
    model = tiny.model()
    names = set(model.state_dict())
    adapters = on(model, "attention")
    answer(model).square().mean().backward()
    assert set(model.state_dict()) == names
    assert all(p.grad is None for p in model.parameters())
    grads = {name: p.grad for name, p in adapters.named_parameters()}
    assert all(grad is not None for grad in grads.values())
    for name, grad in grads.items():  # with up at zero nothing reaches down yet
        assert bool((grad == 0).all()) == name.endswith(".down"), name


def test_how_down_begins() -> None:
    """Kaiming's uniform bound with a = sqrt 5 is 1 / sqrt(inputs)."""
    low = LowRank(nn.Linear(400, 10), 50, 1.0)
    assert low.down.abs().max() <= 1 / math.sqrt(400)
    assert low.down.std().item() == pytest.approx(1 / math.sqrt(3 * 400), rel=0.02)


def test_a_rank_beyond_a_layer() -> None:
    model = tiny.model()
    with pytest.raises(ValueError, match=r"rank is 17, and the layer \S+ has 16 directions; take 16 or less") as error:
        Adapters(adaptable(model.net, "attention"), rank=17, alpha=1.0)
    assert "\n" not in str(error.value)
