"""What a U-Net promises whatever its sizes, and its blocks against their formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fill import inp
from sfumato.nets.blocks import ResBlock, group_norm
from sfumato.nets.unet import UNet, UNetSize, clock
from tiny import awake

PLAIN = UNetSize(channels=4, width=16, mult=(1, 2), blocks=1, attention=(2,), head_dim=8)
SIZES = {
    "plain": PLAIN,
    "text": replace(PLAIN, context_dim=12, vector_dim=6, modulation="scale_shift"),
    "maps": replace(PLAIN, map_channels=3, depth=2, attention=(1, 2), blocks=2),
}
X, T = inp("x", 3, 4, 8, 8), torch.tensor([1.0, 500.0, 981.0])
TOLD = {"tokens": inp("tokens", 3, 5, 12), "mask": None, "vector": inp("vector", 3, 6), "maps": inp("maps", 3, 3, 8, 8)}


def test_maps_have_a_short_way_to_the_answer_that_the_clock_steers() -> None:
    torch.manual_seed(0)
    net = awake(UNet(replace(SIZES["maps"], map_short=True))).requires_grad_(False)
    short, net.short = net.short, None
    assert short is not None
    without = net(X, T, maps=TOLD["maps"])
    net.short = short
    emb = net.time(clock(T, net.size))
    gain = short.gain(F.silu(emb))
    assert len(set(gain[:, 0].tolist())) == len(T)
    expected = without + short.guess(TOLD["maps"]) * gain[:, :, None, None]
    torch.testing.assert_close(net(X, T, maps=TOLD["maps"]), expected, rtol=0, atol=1e-6)


def net_of(name: str) -> UNet:
    torch.manual_seed(0)
    return UNet(SIZES[name])


def told(name: str) -> dict[str, torch.Tensor]:
    size = SIZES[name]
    has = {"tokens": size.context_dim, "vector": size.vector_dim, "maps": size.map_channels}
    return {k: v for k, v in TOLD.items() if has.get(k) and v is not None}


@pytest.mark.parametrize("name", SIZES)
def test_it_starts_at_zero(name: str) -> None:
    assert torch.equal(net_of(name)(X, T, **told(name)), torch.zeros_like(X))


@pytest.mark.parametrize("name", SIZES)
def test_the_gradient_reaches_every_parameter(name: str) -> None:
    net = net_of(name)
    awake(net)
    (net(X, T, **told(name)) * inp("target", *X.shape)).sum().backward()
    dead = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not dead


@pytest.mark.parametrize("name", SIZES)
def test_samples_do_not_meet(name: str) -> None:
    net = net_of(name).requires_grad_(False)
    awake(net)
    order = torch.tensor([2, 0, 1])
    out = net(X, T, **told(name))
    again = net(X[order], T[order], **{k: v[order] for k, v in told(name).items()})
    torch.testing.assert_close(again, out[order], rtol=0, atol=1e-5)
    assert not torch.allclose(out[0], out[1], atol=1e-2)


@pytest.fixture
def captioned() -> UNet:
    net = net_of("text").requires_grad_(False)
    awake(net)
    return net


def test_masked_tokens_change_nothing(captioned: UNet) -> None:
    tokens, vector = TOLD["tokens"], TOLD["vector"]
    assert tokens is not None
    longer = torch.cat([tokens, 30 * inp("padding", 3, 4, 12)], dim=1)
    mask = (torch.arange(9) < 5).expand(3, 9)
    out = captioned(X, T, tokens=tokens, vector=vector)
    torch.testing.assert_close(captioned(X, T, tokens=longer, mask=mask, vector=vector), out, rtol=0, atol=1e-5)
    assert not torch.allclose(captioned(X, T, tokens=longer, vector=vector), out, atol=1e-4)


@pytest.mark.parametrize("what", ["tokens", "vector"])
def test_what_it_is_told_matters(captioned: UNet, what: str) -> None:
    out = captioned(X, T, **told("text"))
    other = captioned(X, T, **(told("text") | {what: -told("text")[what]}))
    assert all(not torch.allclose(a, b, atol=1e-4) for a, b in zip(out, other, strict=True))


def test_maps_are_channels_of_the_input() -> None:
    """With the weights of the map channels at zero, it is the network that has none."""
    net, bare = net_of("maps").requires_grad_(False), UNet(replace(SIZES["maps"], map_channels=0)).requires_grad_(False)
    awake(net)
    state = net.state_dict()
    bare.load_state_dict(state | {"conv_in.weight": state["conv_in.weight"][:, :4]})
    maps = told("maps")["maps"]
    assert not torch.allclose(net(X, T, maps=maps), net(X, T, maps=-maps), atol=1e-4)
    net.conv_in.weight[:, 4:] = 0
    torch.testing.assert_close(net(X, T, maps=maps), bare(X, T), rtol=0, atol=1e-5)


def test_a_clock_of_another_scale(captioned: UNet) -> None:
    scaled = UNet(replace(SIZES["text"], time_scale=1000.0)).requires_grad_(False)
    scaled.load_state_dict(captioned.state_dict())
    out = captioned(X, T, **told("text"))
    torch.testing.assert_close(scaled(X, T / 1000, **told("text")), out, rtol=0, atol=1e-4)
    assert not torch.allclose(captioned(X, T + 0.5, **told("text")), out, atol=1e-4)  # between two entries


def test_it_computes_in_its_own_type(captioned: UNet) -> None:
    out = captioned(X, T, **told("text"))
    half = captioned.to(torch.bfloat16)(X, T, **told("text"))
    assert half.dtype == torch.bfloat16
    assert ((half.float() - out).norm() / out.norm()).item() < 0.1


# Blocks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "groups"), [(320, 32), (32, 32), (48, 24), (80, 20), (8, 8), (37, 1), (1, 1)])
def test_groups_divide_the_channels(channels: int, groups: int) -> None:
    assert group_norm(channels, eps=1e-5).num_groups == groups


@pytest.mark.parametrize("modulation", ["add", "scale_shift"])
def test_a_residual_block_by_its_formula(modulation: str) -> None:
    torch.manual_seed(0)
    block = ResBlock(8, 16, emb_dim=12, modulation="add" if modulation == "add" else "scale_shift")
    awake(block.requires_grad_(False))
    x, emb = inp("x", 2, 8, 4, 4), inp("emb", 2, 12)
    assert block.emb is not None
    assert isinstance(block.skip, torch.nn.Conv2d)
    steer = F.linear(F.silu(emb), block.emb.weight, block.emb.bias)[:, :, None, None]
    h = F.conv2d(F.silu(block.norm_in(x)), block.conv_in.weight, block.conv_in.bias, padding=1)
    scaled = block.norm_out(h) * (1 + steer[:, :16]) + steer[:, 16:] if modulation == "scale_shift" else None
    h = block.norm_out(h + steer) if scaled is None else scaled
    h = F.conv2d(F.silu(h), block.conv_out.weight, block.conv_out.bias, padding=1)
    skip = F.conv2d(x, block.skip.weight, block.skip.bias)
    torch.testing.assert_close(block(x, emb), skip + h)


def test_a_residual_block_starts_as_its_input() -> None:
    torch.manual_seed(0)
    x, emb = inp("x", 2, 8, 4, 4), inp("emb", 2, 12)
    assert torch.equal(ResBlock(8, 8, emb_dim=12)(x, emb), x)
