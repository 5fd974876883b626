"""Perceivers by their invariances and their published sizes; `test_golden_families` has numbers of original code."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fill import inp
from sfumato.nets.perceiver import (
    DecoderSize,
    Perceiver,
    PerceiverClassifier,
    PerceiverIO,
    PerceiverSize,
    fourier_positions,
)

SMALL = PerceiverSize(channels=6, latents=5, dim=16, rounds=2, depth=1, heads=2, read_heads=2)
DATA = inp("data", 3, 9, 6)
ORDER = torch.tensor([4, 0, 8, 5, 2, 7, 1, 3, 6])


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def make(size: PerceiverSize = SMALL) -> Perceiver:
    torch.manual_seed(0)
    net = Perceiver(size).requires_grad_(False)
    net.latents.mul_(50)  # at their start the latents are all alike
    return net


def make_io(**decoder: int) -> PerceiverIO:
    torch.manual_seed(0)
    net = PerceiverIO(SMALL, DecoderSize(queries=4, out=3, **decoder)).requires_grad_(False)
    net.perceiver.latents.mul_(50)
    return net


# Published sizes ----------------------------------------------------------------------------------------------


def test_perceiver_io_for_imagenet() -> None:
    """Fourier features: 258 of the position and three colours; one learned query of 1024 channels."""
    with torch.device("meta"):
        net = PerceiverIO(PerceiverSize(channels=261), DecoderSize(queries=1024, out=1000, learned=1))
    assert count(net) == 48_440_627


def test_perceiver_for_imagenet() -> None:
    """2103.03206 says 44.9 million, for one latent transformer in all rounds and two cross-attentions in eight."""
    with torch.device("meta"):
        net = PerceiverClassifier(PerceiverSize(channels=261, reads=8), 1000)
    assert round(count(net) / 1e6, 1) == 44.9


def test_perceiver_io_for_language() -> None:
    """The byte model of 2107.14795: 201,108,230 with its table of 262 bytes, its positions and a bias for each byte."""
    reading = {"read_heads": 8, "read_keys": 256, "read_values": 1280}
    size = PerceiverSize(channels=768, latents=256, dim=1280, rounds=1, depth=26, heads=8, keys=256, **reading)
    decoder = DecoderSize(queries=768, heads=8, keys=256, values=768, residual=False, learned=2048)
    with torch.device("meta"):
        net = PerceiverIO(size, decoder)
    assert count(net) + 262 * 768 + 2048 * 768 + 262 == 201_108_230


# Reading ------------------------------------------------------------------------------------------------------


def test_rows_have_no_order_of_their_own() -> None:
    net = make()
    torch.testing.assert_close(net(DATA[:, ORDER]), net(DATA), rtol=0, atol=1e-5)
    places = 3 * fourier_positions((9,), 2)[:, :1] * torch.eye(6)[0]  # in one channel
    assert not torch.allclose(net(DATA[:, ORDER] + places), net(DATA + places), atol=1e-2)


def test_latents_have_no_order_either() -> None:
    """Permuting the learnt latents permutes what becomes of them: nothing tells them apart but what they are."""
    net = make()
    out = net(DATA)
    order = torch.tensor([3, 1, 4, 0, 2])
    net.latents.copy_(net.latents[order])
    torch.testing.assert_close(net(DATA), out[:, order], rtol=0, atol=1e-5)


def test_a_mask_hides_rows() -> None:
    net = make()
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[1, [0, 3, 8]] = False
    out = net(DATA, mask)
    noise = torch.where(mask[..., None], DATA, 50 * inp("other", 3, 9, 6))
    assert torch.equal(net(noise, mask), out)
    torch.testing.assert_close(out[1:2], net(DATA[1:2, mask[1]]), rtol=0, atol=1e-5)
    assert not torch.allclose(out[1], net(DATA)[1], atol=1e-2)
    torch.testing.assert_close(out[[0, 2]], net(DATA)[[0, 2]], rtol=0, atol=1e-5)


def test_the_mask_hides_rows_at_every_reading() -> None:
    net = make(PerceiverSize(channels=6, latents=5, dim=16, rounds=3, depth=1, heads=2, reads=3))
    mask = torch.arange(9)[None].expand(3, -1) < 6
    noise = torch.where(mask[..., None], DATA, 50 * inp("other", 3, 9, 6))
    assert torch.equal(net(noise, mask), net(DATA, mask))


@pytest.mark.parametrize("rows", [1, 2, 300])
def test_the_output_has_one_size_for_inputs_of_any_length(rows: int) -> None:
    out = make()(inp("long", 2, rows, 6))
    assert out.shape == (2, 5, 16)
    assert out.isfinite().all()


def test_rows_that_are_repeated_count_no_more_than_once() -> None:
    """Softmax over the same keys twice is the same mean: attention knows shares, not numbers."""
    net = make()
    torch.testing.assert_close(net(DATA.repeat(1, 3, 1)), net(DATA), rtol=0, atol=1e-5)


# Rounds -------------------------------------------------------------------------------------------------------


def sized(*, rounds: int, reads: int, shared: bool) -> PerceiverSize:
    return PerceiverSize(channels=6, latents=5, dim=16, rounds=rounds, depth=2, heads=2, reads=reads, shared=shared)


@pytest.mark.parametrize(("reads", "readings"), [(1, 1), (2, 2), (4, 2)])
def test_shared_rounds_cost_no_weights(reads: int, readings: int) -> None:
    """One block for all rounds, and all readings but the first alike."""
    with torch.device("meta"):
        one = Perceiver(sized(rounds=1, reads=1, shared=True))
        many = Perceiver(sized(rounds=4, reads=reads, shared=True))
    assert count(many) - count(one) == (readings - 1) * count(one.readings[0])


def test_a_shared_perceiver_is_an_unshared_one_with_equal_weights() -> None:
    shared = make(sized(rounds=4, reads=3, shared=True))
    free = make(sized(rounds=4, reads=3, shared=False))
    assert (len(free.readings), len(free.blocks)) == (3, 4)
    free.latents.copy_(shared.latents)
    for i, reading in enumerate(free.readings):
        reading.load_state_dict(shared.readings[min(i, 1)].state_dict())
    for block in free.blocks:
        block.load_state_dict(shared.blocks[0].state_dict())
    torch.testing.assert_close(free(DATA), shared(DATA), rtol=0, atol=0)
    assert not torch.allclose(make(sized(rounds=4, reads=2, shared=True))(DATA), shared(DATA), atol=1e-3)


def test_an_unshared_perceiver_learns_each_round_alone() -> None:
    torch.manual_seed(0)
    net = Perceiver(sized(rounds=3, reads=3, shared=False))
    net(DATA).square().mean().backward()
    gradients = [p.grad for p in net.parameters()]
    assert all(g is not None and g.isfinite().all() and g.any() for g in gradients)


@pytest.mark.parametrize("reads", [0, 3])
def test_it_cannot_read_more_often_than_it_thinks(reads: int) -> None:
    with pytest.raises(ValueError, match=f"2 rounds can read 1 to 2 times, not {reads}"):
        Perceiver(sized(rounds=2, reads=reads, shared=True))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="3 heads do not divide keys of 16"):
        Perceiver(PerceiverSize(channels=6, latents=5, dim=16, heads=3))


def test_logits_are_those_of_the_mean_latent() -> None:
    torch.manual_seed(0)
    net = PerceiverClassifier(SMALL, 7).requires_grad_(False)
    mean = net.perceiver(DATA).mean(1)
    torch.testing.assert_close(net(DATA), mean @ net.logits.weight.T + net.logits.bias)
    torch.testing.assert_close(net(DATA[:, ORDER]), net(DATA), rtol=0, atol=1e-5)


# Decoding -----------------------------------------------------------------------------------------------------


def test_each_answer_depends_on_its_query_alone() -> None:
    net = make_io()
    queries = inp("q", 7, 4)
    out = net(DATA, queries=queries)
    for o in range(7):
        torch.testing.assert_close(net(DATA, queries=queries[o : o + 1]), out[:, o : o + 1], rtol=0, atol=1e-6)
    changed = queries.clone()
    changed[2] = 5.0 * torch.arange(4)
    different = (net(DATA, queries=changed) - out).abs().amax((0, 2)) > 1e-5
    assert different.tolist() == [o == 2 for o in range(7)]


def test_queries_may_be_one_set_or_one_for_each_sample() -> None:
    net = make_io()
    queries = inp("q", 3, 7, 4)
    each = torch.cat([net(DATA[i : i + 1], queries=queries[i]) for i in range(3)])
    torch.testing.assert_close(net(DATA, queries=queries), each, rtol=0, atol=1e-6)


def test_learned_queries_are_queries() -> None:
    net = make_io(learned=2)
    own = net.decoder.queries
    assert own is not None
    torch.testing.assert_close(net(DATA), net(DATA, queries=own.detach()), rtol=0, atol=0)
    with pytest.raises(ValueError, match="no queries of its own"):
        make_io()(DATA)


def test_a_decoder_by_hand() -> None:
    """Without residual and network an answer is W_O softmax(q k / sqrt(d)) v + b; with the residual the query more."""
    torch.manual_seed(0)
    net = PerceiverIO(SMALL, DecoderSize(queries=4, residual=False, mlp=False)).requires_grad_(False)
    latents, queries = inp("z", 1, 5, 16), inp("q", 7, 4)
    attention = net.decoder.ask.attention
    q, context = (nn.functional.layer_norm(t, t.shape[-1:]) for t in (queries, latents[0]))
    k, v = attention.to_k(context), attention.to_v(context)
    found = attention.to_out(torch.softmax(attention.to_q(q) @ k.T / math.sqrt(16), dim=1) @ v)
    torch.testing.assert_close(net.decoder(latents, queries)[0], found, rtol=0, atol=1e-5)
    net.decoder.ask.residual = True
    torch.testing.assert_close(net.decoder(latents, queries)[0], queries + found, rtol=0, atol=1e-5)


def test_it_learns_to_copy_the_row_that_is_asked_for() -> None:
    """Rows are a position and a value; asked for a position, the network answers with the value there."""
    torch.manual_seed(0)
    places = torch.eye(4)
    size = PerceiverSize(channels=5, latents=4, dim=24, rounds=1, depth=1, heads=2, read_keys=24)
    net = PerceiverIO(size, DecoderSize(queries=4, out=1, keys=24))
    nn.init.normal_(net.perceiver.latents)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)

    def batch() -> tuple[Tensor, Tensor]:
        values = torch.randint(0, 2, (64, 4, 1), generator=generator) * 2.0 - 1
        return torch.cat([places.expand(64, -1, -1), values], dim=2)[:, torch.randperm(4, generator=generator)], values

    for _ in range(250):
        data, values = batch()
        optimizer.zero_grad()
        (net(data, queries=places) - values).square().mean().backward()
        optimizer.step()
    data, values = batch()
    assert (net(data, queries=places) - values).square().mean() < 0.1  # the best answer without reading has 1


# Positions ----------------------------------------------------------------------------------------------------


def test_positions_of_a_line_by_hand() -> None:
    """Three places, frequencies 1 and 2: -1, 0, 1 and their sines and cosines of pi and two pi."""
    expected = torch.tensor([[-1.0, 0, 0, -1, 1], [0, 0, 0, 1, 1], [1, 0, 0, -1, 1]])
    torch.testing.assert_close(fourier_positions((3,), 2, (4,)), expected, rtol=0, atol=1e-6)


def test_positions_of_a_picture() -> None:
    """64 bands on two axes are 258 features; the first axis is the slow one, and each has its own columns."""
    assert fourier_positions((4, 3), 64).shape == (12, 258)
    grid = fourier_positions((4, 3), 2, (8, 8)).unflatten(0, (4, 3))  # y, x, sin y, sin y, sin x, sin x, cos ...
    down, along = [0, 2, 3, 6, 7], [1, 4, 5, 8, 9]
    assert not grid[..., down].diff(dim=1).any()
    assert not grid[..., along].diff(dim=0).any()
    torch.testing.assert_close(grid[:, 0, down], fourier_positions((4,), 2, (8,)))
    torch.testing.assert_close(grid[0, :, along], fourier_positions((3,), 2, (8,)))


def test_the_fastest_frequency_is_at_the_limit_of_the_grid() -> None:
    """With n cells the highest band turns n / 2 times over the length of 2: cos(pi n p / 2)."""
    p = torch.linspace(-1, 1, 9)
    torch.testing.assert_close(fourier_positions((9,), 3)[:, -1], torch.cos(math.pi * 4.5 * p), rtol=0, atol=1e-5)
