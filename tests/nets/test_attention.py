"""Attention by its properties; `test_golden` has the numbers of the original code."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fill import inp
from sfumato.nets.attention import CrossAttention, GatedFeedForward, Heads, PixelAttention, SpatialTransformer
from sfumato.nets.transformer import EncoderLayer, TransformerEncoder, TransformerSize
from tiny import awake


@pytest.fixture
def attention() -> CrossAttention:
    torch.manual_seed(0)
    return CrossAttention(16, heads=4, dim_head=8, context_dim=24).requires_grad_(False)


def test_one_token_leaves_no_choice(attention: CrossAttention) -> None:
    """Softmax over one key is 1: whatever the query, the answer is W_O W_V tau + b."""
    x, tau = inp("x", 2, 5, 16), inp("ctx", 2, 1, 24)
    expected = tau @ attention.to_v.weight.T @ attention.to_out.weight.T + attention.to_out.bias
    torch.testing.assert_close(attention(x, tau), expected.expand(2, 5, 16), rtol=0, atol=1e-6)
    torch.testing.assert_close(attention(-9 * x, tau), expected.expand(2, 5, 16), rtol=0, atol=1e-6)


def test_the_matrices_have_the_right_widths(attention: CrossAttention) -> None:
    """W_Q sees the picture and W_K, W_V the condition; the paper has two of them interchanged."""
    widths = {name: tuple(p.shape) for name, p in attention.named_parameters()}
    assert widths == {
        "to_q.weight": (32, 16),
        "to_k.weight": (32, 24),
        "to_v.weight": (32, 24),
        "to_out.weight": (16, 32),
        "to_out.bias": (16,),
    }


def test_each_head_by_hand(attention: CrossAttention) -> None:
    x, tau = inp("x", 1, 3, 16)[0], inp("ctx", 1, 6, 24)[0]
    heads = []
    for h in range(4):
        rows = slice(8 * h, 8 * h + 8)
        q, k, v = (t @ w.weight[rows].T for t, w in ((x, attention.to_q), (tau, attention.to_k), (tau, attention.to_v)))
        heads.append(torch.softmax(q @ k.T / 8**0.5, dim=1) @ v)
    torch.testing.assert_close(attention(x[None], tau[None])[0], attention.to_out(torch.cat(heads, dim=1)))


def test_masked_tokens_have_no_influence(attention: CrossAttention) -> None:
    x, tau = inp("x", 2, 5, 16), inp("ctx", 2, 7, 24)
    mask = torch.tensor([[True] * 7, [True, False, True, False, False, True, False]])
    other = torch.where(mask[..., None], tau, 50 * inp("other", 2, 7, 24))
    out = attention(x, tau, mask)
    assert torch.equal(attention(x, other, mask), out)
    torch.testing.assert_close(out[1:], attention(x[1:], tau[1:, mask[1]]), rtol=0, atol=1e-6)
    assert not torch.allclose(out[1], attention(x, tau)[1], atol=1e-3)


def test_gates() -> None:
    """geglu(value 2, gate 1) = 2 gelu(1) = 1.68268943, with the exact gelu(1) = 0.8413447."""
    net = GatedFeedForward(1).requires_grad_(False)
    for layer, bias in ((net.proj_in, [2.0] * 4 + [1.0] * 4), (net.proj_out, [0.0])):
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor(bias))
    net.proj_out.weight[0, 0] = 1
    assert net(torch.zeros(1, 1, 1)).item() == pytest.approx(1.68268943, abs=1e-7)


def test_the_text_encoder_has_plain_gelu() -> None:
    layer = EncoderLayer(TransformerSize(dim=1, depth=1, heads=1, dim_head=1)).requires_grad_(False)
    for p in layer.parameters():
        p.zero_()
    layer.mlp_in.bias.fill_(1)
    layer.mlp_out.weight[0, 0] = 1
    assert layer(torch.tensor([[[5.0]]]), None).item() == pytest.approx(5.8413447, abs=1e-6)


def test_a_spatial_transformer_starts_as_nothing_and_wakes() -> None:
    torch.manual_seed(0)
    net = SpatialTransformer(16, heads=Heads(2, 8), depth=2, context_dim=24).requires_grad_(False)
    x, tau = inp("map", 2, 16, 3, 5), inp("ctx", 2, 4, 24)
    assert torch.equal(net(x, tau), x)
    awake(net)
    assert not torch.allclose(net(x, tau), x, atol=1e-2)
    assert not torch.allclose(net(x, tau), net(x, 2 * tau), atol=1e-4)


@pytest.mark.parametrize("kind", ["spatial", "pixel"])
def test_attention_does_not_know_where_a_pixel_is(kind: str) -> None:
    torch.manual_seed(0)
    net = (
        SpatialTransformer(16, heads=Heads(2, 8), depth=1, context_dim=None)
        if kind == "spatial"
        else PixelAttention(16)
    ).requires_grad_(False)
    awake(net)
    x = inp("map", 1, 16, 4, 4)
    torch.testing.assert_close(net(x.flip(3)), net(x).flip(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(net(x.transpose(2, 3)), net(x).transpose(2, 3), rtol=0, atol=1e-5)


# The text encoder -----------------------------------------------------------------------------------------


@pytest.fixture
def encoder() -> TransformerEncoder:
    torch.manual_seed(0)
    net = TransformerEncoder(50, TransformerSize(dim=16, depth=2, length=8, heads=2, dim_head=8)).requires_grad_(False)
    net.positions.weight.mul_(20)  # at its start the encoder hardly looks at them
    return net


IDS = torch.tensor([[3, 14, 15, 9, 26, 5]])
ORDER = torch.tensor([4, 0, 5, 2, 1, 3])


def changed(a: Tensor, b: Tensor) -> list[bool]:
    return [not torch.allclose(x, y, atol=1e-4) for x, y in zip(a[0], b[0], strict=True)]


def test_order_matters_through_positions_alone(encoder: TransformerEncoder) -> None:
    assert all(changed(encoder(IDS[:, ORDER]), encoder(IDS)[:, ORDER]))
    encoder.positions.weight.zero_()
    torch.testing.assert_close(encoder(IDS[:, ORDER]), encoder(IDS)[:, ORDER], rtol=0, atol=1e-5)


def test_every_token_sees_every_other(encoder: TransformerEncoder) -> None:
    other = IDS.clone()
    other[0, 3] = 40
    assert all(changed(encoder(IDS), encoder(other)))


def test_a_mask_hides_padding(encoder: TransformerEncoder) -> None:
    padded = torch.cat([IDS, torch.tensor([[7, 8]])], dim=1)
    mask = torch.arange(8)[None] < 6
    torch.testing.assert_close(encoder(padded, mask)[:, :6], encoder(IDS), rtol=0, atol=1e-5)
    assert all(changed(encoder(padded)[:, :6], encoder(IDS)))


def test_the_last_normalisation(encoder: TransformerEncoder) -> None:
    out = encoder(IDS)
    torch.testing.assert_close(out.mean(2), torch.zeros(1, 6), rtol=0, atol=1e-5)
    torch.testing.assert_close(out.var(2, correction=0), torch.ones(1, 6), rtol=0, atol=1e-3)
