"""Captions as bytes and pictures as patches: padding means nothing, order does, and the empty one is the null."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fill import inp
from sfumato.cond import Cond
from sfumato.conditioning.perceived import Bytes, BytesSize, Patches, PatchesSize
from sfumato.nets.perceiver import PerceiverSize

SIZE = PerceiverSize(channels=12, latents=4, dim=16, rounds=2, depth=1, heads=2, read_heads=2)
CAPTIONS = ("a red apple", "ein grüner Apfel, 3d", "リンゴ", "")


def make_bytes(length: int = 40) -> Bytes:
    torch.manual_seed(0)
    bytes_ = Bytes(BytesSize(perceiver=SIZE, length=length)).requires_grad_(False)
    for weight in (bytes_.table.weight, bytes_.positions.weight, bytes_.perceiver.latents):
        weight.mul_(30)  # at its start it hardly tells anything apart
    return bytes_


def make_patches() -> Patches:
    torch.manual_seed(0)
    patches = Patches(PatchesSize(perceiver=SIZE, patch=4, bands=3, grid=8)).requires_grad_(False)
    patches.perceiver.latents.mul_(30)
    return patches


BYTES, PATCHES = make_bytes(), make_patches()
IMAGES = inp("images", 3, 3, 12, 8).clamp(-1, 1)


def tokens(cond: Cond) -> Tensor:
    assert cond.tokens is not None
    assert cond.mask is None
    assert cond.vector is None
    return cond.tokens


def of(images: Tensor) -> Tensor:
    return tokens(PATCHES(PATCHES.collate([{"image": image} for image in images])))


# Captions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("caption", CAPTIONS)
def test_padding_never_changes_a_caption(caption: str) -> None:
    (length,) = BYTES.count([caption])
    longer = "two dogs in the rain in the green"
    assert BYTES.count([longer])[0] > length
    torch.testing.assert_close(tokens(BYTES.of([caption, longer]))[:1], tokens(BYTES.of([caption])), rtol=0, atol=1e-6)


def test_captions_are_told_apart_and_so_is_their_order() -> None:
    found = tokens(BYTES.of([*CAPTIONS, "elppa der a", "red a apple", "a red apple "])).flatten(1)
    assert (torch.cdist(found, found) + torch.eye(len(found))).min() > 0.05


def test_order_matters_through_positions_alone() -> None:
    net = make_bytes()
    net.positions.weight.zero_()
    torch.testing.assert_close(tokens(net.of(["elppa der a"])), tokens(net.of(["a red apple"])), rtol=0, atol=1e-6)


def test_bytes_are_those_of_utf8() -> None:
    """Three letters of three bytes each; a surrogate, which has no bytes, is read as a question mark."""
    assert BYTES.count(["リンゴ", "Äpfel", "", "\ud800"]) == [9, 6, 0, 1]
    batch = BYTES.collate([{"caption": "é"}, {"caption": "\ud800"}])
    assert batch["bytes"].tolist() == [[0xC3, 0xA9], [ord("?"), 256]]
    assert batch["bytes_mask"].tolist() == [[True, True], [True, False]]


def test_what_is_too_long_is_not_read_and_is_counted() -> None:
    long = "red " * 12
    assert BYTES.count([long, "red"]) == [48, 3]
    assert BYTES.dropped([long, "red"]) == [8, 0]
    torch.testing.assert_close(tokens(BYTES.of([long + "dogs"])), tokens(BYTES.of([long])), rtol=0, atol=0)
    assert not torch.allclose(tokens(BYTES.of([long[:39]])), tokens(BYTES.of([long])), atol=1e-4)
    assert BYTES.unknown(["zyzzyva"]) == ()


def test_the_null_condition_is_the_empty_caption() -> None:
    torch.testing.assert_close(tokens(BYTES.null(3)), tokens(BYTES.of(["", "", ""])), rtol=0, atol=1e-6)


@settings(max_examples=30)
@given(st.lists(st.text(), min_size=1, max_size=4))
def test_any_captions_have_a_finite_condition(captions: list[str]) -> None:
    found = tokens(BYTES.of(captions))
    assert found.shape == (len(captions), 4, 16)
    assert found.isfinite().all()


def test_gradients_reach_the_bytes_that_were_read() -> None:
    net = make_bytes().requires_grad_()
    weight = inp("weight", 2, 4, 16)  # the mean of a normalised token is a constant
    (tokens(net.of(["abba", "c"])) * weight).sum().backward()
    read = net.table.weight.grad
    assert read is not None
    assert read.abs().sum(1).nonzero().flatten().tolist() == sorted(b"abc")  # nothing flows to padding
    places = net.positions.weight.grad
    assert places is not None
    assert places.abs().sum(1).nonzero().flatten().tolist() == [0, 1, 2, 3]
    assert all(p.grad is not None and p.grad.any() for p in net.perceiver.parameters())


def test_dropping_the_condition() -> None:
    cond, null = BYTES.of(["abba", "c", "d"]), BYTES.null(3)
    mixed = tokens(cond.where(torch.tensor([True, False, True]), null))
    expected = torch.stack([tokens(cond)[0], tokens(null)[1], tokens(cond)[2]])
    assert torch.equal(mixed, expected)
    assert not torch.allclose(tokens(cond)[1], tokens(null)[1], atol=1e-2)


# Pictures -----------------------------------------------------------------------------------------------------


def test_a_batch_of_pictures_is_its_singles() -> None:
    torch.testing.assert_close(of(IMAGES), torch.cat([of(i[None]) for i in IMAGES]), rtol=0, atol=1e-6)


def test_where_a_patch_is_matters_through_its_position_alone() -> None:
    """Patches changed about within a picture: another picture, but not for a network that sees no positions."""
    moved = IMAGES.roll(4, dims=2)  # by one patch
    assert (of(moved) - of(IMAGES)).abs().max() > 1e-2
    blind = make_patches().double()  # in single precision the order of summing differs by the machine
    blind.embed.weight[:, 3 * 4**2 :] = 0
    a, b = (tokens(blind({"pictures": images.double()})) for images in (moved, IMAGES))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_every_pixel_is_seen() -> None:
    pictures = IMAGES.clone().requires_grad_()
    (tokens(PATCHES({"pictures": pictures})) * inp("weight", 3, 4, 16)).sum().backward()
    assert pictures.grad is not None
    assert bool((pictures.grad != 0).all())


def test_no_picture_is_a_condition_that_is_learnt() -> None:
    net = make_patches().requires_grad_()
    null = tokens(net.null(3))
    assert null.shape == of(IMAGES).shape
    (null * inp("weight", 3, 4, 16)).sum().backward()
    assert net.nothing.grad is not None
    assert net.nothing.grad.any()
    cond = PATCHES({"pictures": IMAGES})
    mixed = tokens(cond.where(torch.tensor([True, False, True]), PATCHES.null(3)))
    expected = torch.stack([tokens(cond)[0], tokens(PATCHES.null(1))[0], tokens(cond)[2]])
    torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(mixed[1], tokens(cond)[1], atol=1e-2)


def test_pictures_that_cannot_be_cut_are_refused() -> None:
    with pytest.raises(ValueError, match="10x8 cannot be cut into patches of 4"):
        PATCHES.collate([{"image": torch.zeros(3, 8, 10)}])
    with pytest.raises(ValueError, match="different sizes"):
        PATCHES.collate([{"image": torch.zeros(3, 8, 8)}, {"image": torch.zeros(3, 8, 12)}])
