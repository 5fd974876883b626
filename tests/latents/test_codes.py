"""A codebook's loss pulls where it should, and entries that nothing chooses come back where the latents are."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fill import inp
from sfumato.diffusion.noise import Address, Stream
from sfumato.latents.autoencoding import Autoencoding, Losses
from sfumato.latents.codes import Codes, perplexity, start_from_latents
from sfumato.nets.autoencoder import Autoencoder, AutoencoderSize, Codebook, codebook_loss, straight_through

SIZE = AutoencoderSize(channels=8, mult=(1, 2), blocks=1, latent_channels=2, codebook=8, middle_attention=False)


def leaves() -> tuple[Tensor, Tensor]:
    return inp("z", 2, 3, 4, 4).requires_grad_(), inp("q", 2, 3, 4, 4).requires_grad_()


# The loss -------------------------------------------------------------------------------------------------


def test_the_weight_is_on_the_commitment_and_the_slip_is_its_mirror() -> None:
    """d/dz mean |z - q|^2 = 2 (z - q) / n, times 0.25 for the encoder; in LDM's slip for the entries instead."""
    plain, legacy = ([*leaves()] for _ in range(2))
    losses = [codebook_loss(*plain), codebook_loss(*legacy, legacy=True)]
    z, q = plain
    assert torch.equal(losses[0], losses[1])
    torch.testing.assert_close(losses[0], 1.25 * (z - q).square().mean(), rtol=1e-6, atol=0)
    mine = torch.autograd.grad(losses[0], plain)
    theirs = torch.autograd.grad(losses[1], legacy)
    assert torch.equal(mine[0], -theirs[1])
    assert torch.equal(mine[1], -theirs[0])
    assert torch.equal(mine[0], -0.25 * mine[1])  # a power of two: exact
    torch.testing.assert_close(mine[1], -2 * (z - q).detach() / z.numel(), rtol=1e-6, atol=0)


def test_the_commitment_can_be_weighed() -> None:
    z, q = leaves()
    mine = torch.autograd.grad(codebook_loss(z, q, commitment=2.0), [z, q])
    assert torch.equal(mine[0], -2 * mine[1])


def test_the_gradient_goes_straight_through() -> None:
    z, q = leaves()
    out = straight_through(z, q)
    torch.testing.assert_close(out, q, rtol=0, atol=3e-7)
    weights = inp("w", 2, 3, 4, 4)
    (out * weights).sum().backward()
    assert z.grad is not None
    assert torch.equal(z.grad, weights)
    assert q.grad is None


def test_a_setting_of_the_loss_chooses_the_slip() -> None:
    torch.manual_seed(0)
    net = Autoencoder(SIZE)
    found = {}
    for beta in ("fixed", "legacy"):
        losses = Losses(perceptual=0, beta=beta)
        outcome = Autoencoding(net, None, losses, steps=9)({"image": inp("x", 2, 3, 8, 8)}, Address.of(0, [0, 1]))
        net.zero_grad()
        outcome.loss.backward()
        assert net.codebook is not None
        assert net.codebook.weight.grad is not None
        found[beta] = outcome.loss.detach(), net.codebook.weight.grad.clone()
    assert torch.equal(found["fixed"][0], found["legacy"][0])
    torch.testing.assert_close(found["fixed"][1], 4 * found["legacy"][1], rtol=1e-6, atol=0)
    assert found["fixed"][1].abs().max() > 0


# Who is in use --------------------------------------------------------------------------------------------


def test_perplexity_counts_entries() -> None:
    assert perplexity(torch.full((16,), 7)).item() == pytest.approx(16, rel=1e-6)
    assert perplexity(torch.tensor([0, 9, 0, 0])).item() == pytest.approx(1, rel=1e-6)
    assert perplexity(torch.tensor([5, 0, 5, 0])).item() == pytest.approx(2, rel=1e-6)
    assert perplexity(torch.tensor([3, 1])).item() == pytest.approx(4 / 3**0.75, rel=1e-6)


@given(counts=st.lists(st.integers(0, 1000), min_size=1, max_size=20).filter(any))
def test_perplexity_is_between_one_and_the_entries_in_use(counts: list[int]) -> None:
    found = perplexity(torch.tensor(counts)).item()
    assert 1 - 1e-6 <= found <= sum(c > 0 for c in counts) * (1 + 1e-6)


def test_an_entry_is_dead_when_its_patience_is_over() -> None:
    codes = Codes(4, patience=3, until=100)
    dead = [int(codes.chosen(torch.tensor([[step % 2, 0]]), step)["dead codes"]) for step in range(1, 7)]
    assert dead == [0, 0, 2, 2, 2, 2]  # entries 2 and 3, from step 0 + 3 on
    codes = Codes(2, patience=3, until=100)
    codes.chosen(torch.tensor([0, 1]), 5)
    assert [int(codes.chosen(torch.tensor([0]), step)["dead codes"]) for step in (6, 7, 8, 9)] == [0, 0, 1, 1]
    said = codes.chosen(torch.tensor([0, 1, 0, 1]), 10)
    assert int(said["dead codes"]) == 0
    assert said["perplexity"].item() == pytest.approx(2)


# How they come back ---------------------------------------------------------------------------------------

LATENTS = inp("latents", 3, 2, 4, 4) + 50  # far from all entries
AT = Address.of(7, [3, 1, 4], 20)


def revived(at: Address = AT, z: Tensor = LATENTS, *, until: int = 100, last: tuple[int, ...] = ()) -> Codebook:
    torch.manual_seed(0)
    book = Codebook(8, 2)
    codes = Codes(8, patience=10, until=until)
    codes.last.copy_(torch.tensor(last or (20, 10, 11, 19, 0, 15, 9, 3)))  # 1, 4, 6 and 7 are dead at step 20
    codes.revive(book, z, at)
    return book


def fresh() -> Tensor:
    torch.manual_seed(0)
    return Codebook(8, 2).weight.detach()


def test_dead_entries_and_no_others_go_where_the_latents_are() -> None:
    moved = (revived().weight != fresh()).any(1)
    assert moved.nonzero()[:, 0].tolist() == [1, 4, 6, 7]
    places = LATENTS.movedim(1, -1).reshape(-1, 2)
    entries = revived().weight.detach()[moved]
    assert all(bool((places == entry).all(1).any()) for entry in entries)
    assert len(entries.unique(dim=0)) > 1
    u = AT.uniform(Stream.CODES, 2).flatten()[:4]
    assert torch.equal(entries, places[(u * len(places)).long()])


def test_they_live_again_from_then_on() -> None:
    codes, book = Codes(2, patience=10, until=100), Codebook(2, 2)
    codes.last.copy_(torch.tensor([15, 3]))
    codes.revive(book, LATENTS, AT)
    assert codes.last.tolist() == [15, 20]
    assert int(codes.chosen(torch.tensor([0]), 29)["dead codes"]) == 0
    assert int(codes.chosen(torch.tensor([0]), 30)["dead codes"]) == 1


def test_where_they_go_is_a_function_of_the_address() -> None:
    assert torch.equal(revived().weight, revived().weight)
    for other in (Address.of(8, [3, 1, 4], 20), Address.of(7, [3, 2, 4], 20)):
        assert not torch.equal(revived(other).weight, revived().weight)
    thirty = (30, 20, 21, 29, 10, 25, 19, 13)
    assert not torch.equal(revived(replace(AT, step=30), last=thirty).weight, revived().weight)


@pytest.mark.parametrize("step", [0, 9, 11, 15, 21, 29])
def test_they_wait_for_their_step(step: int) -> None:
    assert torch.equal(revived(replace(AT, step=step), last=(-99,) * 8).weight, fresh())


def test_in_the_end_nothing_is_moved_by_hand() -> None:
    assert not torch.equal(revived(until=20).weight, fresh())
    assert torch.equal(revived(until=19).weight, fresh())
    net = Autoencoder(SIZE)
    assert Autoencoding(net, None, Losses(perceptual=0), steps=50).codes.until == 25


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nothing_is_put_where_no_latent_can_be(value: float) -> None:
    broken = LATENTS.clone()
    broken[1, 0, 2, 3] = value
    assert torch.equal(revived(z=broken).weight, fresh())


def test_where_all_live_nothing_moves() -> None:
    assert torch.equal(revived(last=(20, 19, 18, 17, 16, 15, 14, 13)).weight, fresh())


def test_entries_can_begin_at_latents() -> None:
    book = Codebook(40, 2)
    start_from_latents(book, LATENTS, 5)
    places = LATENTS.movedim(1, -1).reshape(-1, 2)
    first = book.weight.detach().clone()
    assert all(bool((places == entry).all(1).any()) for entry in first)
    assert len(first.unique(dim=0)) > 20  # of 40 draws of 48 places
    start_from_latents(book, LATENTS, 5)
    assert torch.equal(book.weight, first)
    start_from_latents(book, LATENTS, 6)
    assert not torch.equal(book.weight, first)
    assert book.weight.requires_grad


# Which is the nearest -------------------------------------------------------------------------------------


def test_neighbours_are_told_apart_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries 1/512 apart are one number in bfloat16."""
    torch.manual_seed(0)
    net = Autoencoder(SIZE)
    assert net.codebook is not None
    entries = 1 + torch.arange(8.0) / 512
    net.codebook.weight.data.copy_(entries[:, None].expand(-1, 2))
    chosen = torch.tensor([6, 1, 3, 6])
    z = entries[chosen].view(1, 1, 2, 2).expand(1, 2, 2, 2) + 1e-4
    monkeypatch.setattr(net.encoder, "forward", lambda _: z)
    objective = Autoencoding(net, None, Losses(perceptual=0), steps=9)
    with torch.autocast("cpu", torch.bfloat16):
        plain = net.codebook.weight.square().sum(1) - 2 * z.movedim(1, -1).flatten(0, -2) @ net.codebook.weight.T
        assert len(plain.argmin(1).unique()) == 1  # so it has to be turned off
        assert net.codebook.nearest(z).flatten().tolist() == chosen.tolist()
        outcome = objective({"image": inp("x", 1, 3, 4, 4)}, Address.of(0, [0], 5))
    assert (objective.codes.last == 5).nonzero()[:, 0].tolist() == [1, 3, 6]
    assert outcome.said["codebook"].item() == pytest.approx(1.25e-8, rel=1e-2)
    assert outcome.said["perplexity"].item() == pytest.approx(2**1.5, rel=1e-5)  # shares of 1/2, 1/4 and 1/4
