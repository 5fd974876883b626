"""Masks: what is kept stays to the bit, and what is painted is all of the hole."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fill import inp
from sfumato.latents.canvas import Canvas, feathered

PICTURE = inp("picture", 3, 24, 16).clamp(-1, 1)
PAINTED = inp("painted", 2, 3, 24, 16)


@st.composite
def holes(draw: st.DrawFn) -> Tensor:
    """Any (24, 16) of zeros and ones, of points and of rectangles."""
    hole = torch.zeros(24, 16)
    for _ in range(draw(st.integers(0, 4))):
        y, x = draw(st.integers(0, 23)), draw(st.integers(0, 15))
        hole[y : y + draw(st.integers(1, 12)), x : x + draw(st.integers(1, 12))] = draw(st.sampled_from([0.0, 1.0]))
    return hole


@given(hole=holes(), feather=st.integers(0, 9))
def test_what_is_outside_the_hole_is_the_given_picture_to_the_bit(hole: Tensor, feather: int) -> None:
    painted = PAINTED.clone()
    painted[1] = torch.nan  # whatever is painted
    pasted = Canvas(PICTURE, hole).pasted(painted, feather)
    outside = (hole == 0).expand(2, 3, -1, -1)
    assert torch.equal(pasted[outside], PICTURE.expand(2, -1, -1, -1)[outside])


@given(hole=holes(), feather=st.integers(0, 9))
def test_the_hole_and_nothing_else_is_painted(hole: Tensor, feather: int) -> None:
    weight = feathered(hole, feather)
    assert ((weight > 0) == (hole > 0)).all()
    assert (weight <= 1).all()


@given(
    y=st.integers(0, 20), x=st.integers(0, 12), h=st.integers(1, 24), w=st.integers(1, 16), feather=st.integers(0, 9)
)
def test_however_thin_a_hole_is_its_depth_is_seen_in_full(y: int, x: int, h: int, w: int, feather: int) -> None:
    hole = torch.zeros(24, 16)
    hole[y : y + h, x : x + w] = 1
    assert feathered(hole, feather).max() == 1


def test_the_hole_fades_evenly_from_its_edge() -> None:
    hole = torch.zeros(1, 20)
    hole[:, 5:] = 1
    wide = hole.expand(20, -1)
    assert feathered(wide, 3)[10].tolist() == [0] * 5 + [0.25, 0.5, 0.75] + [1] * 12  # the picture's border is no edge
    assert torch.equal(feathered(wide, 0), wide)


@given(hole=holes())
def test_a_latent_is_painted_anew_if_any_of_its_pixels_is(hole: Tensor) -> None:
    latent = Canvas(PICTURE, hole).latent_hole(8)
    assert latent is not None
    expected = [[float(hole[8 * i : 8 * i + 8, 8 * j : 8 * j + 8].any()) for j in range(2)] for i in range(3)]
    assert latent[0, 0].tolist() == expected


def test_a_larger_canvas_holds_the_picture_and_a_hole_around_it() -> None:
    hole = torch.zeros(24, 16)
    hole[3, 4] = 1
    canvas = Canvas.of(PICTURE, hole, (2, 5, 6, 7))
    assert canvas.hole is not None
    assert canvas.picture.shape == (3, 24 + 5 + 7, 16 + 2 + 6)
    assert torch.equal(canvas.picture[:, 5:29, 2:18], PICTURE)
    assert torch.equal(canvas.hole[5:29, 2:18], hole)
    assert canvas.hole.sum() == 36 * 24 - 24 * 16 + 1
    assert torch.equal(canvas.picture[:, 0, 0], PICTURE[:, 0, 0])  # the border goes on
    whole = Canvas.of(PICTURE, None, (0, 0, 8, 0))
    assert whole.hole is not None
    assert whole.hole[:, :16].sum() == 0
    assert whole.hole[:, 16:].all()


def test_a_hole_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="the mask is 24x16 and the picture is 16x24; they must have the same size"):
        Canvas.of(PICTURE, torch.zeros(16, 24))


def test_without_a_hole_nothing_is_pasted() -> None:
    assert Canvas(PICTURE).pasted(PAINTED, 3) is PAINTED
    assert Canvas(PICTURE).latent_hole(8) is None


@pytest.mark.parametrize(
    ("picture", "hole", "said"),
    [
        (torch.zeros(16, 16), None, "a picture has shape"),
        (torch.zeros(1, 3, 16, 16), None, "a picture has shape"),
        (torch.zeros(4, 16, 16), None, "a picture has shape"),
        (torch.zeros(3, 16, 16, dtype=torch.uint8), None, "not (3, 16, 16) of uint8"),
        (torch.full((3, 16, 16), 255.0), None, "a picture has numbers from -1 to 1"),
        (torch.full((3, 16, 16), torch.nan), None, "a picture has numbers from -1 to 1"),
        (torch.zeros(3, 16, 16), torch.zeros(1, 16, 16), "not (1, 16, 16) of float32"),
        (torch.zeros(3, 16, 16), torch.full((16, 16), 0.5), "is 0 or 1 everywhere"),
        (torch.zeros(3, 16, 16), torch.full((16, 16), 255, dtype=torch.uint8), "is 0 or 1 everywhere"),
        (torch.zeros(3, 16, 16), torch.full((16, 16), torch.nan), "is 0 or 1 everywhere"),
    ],
)
def test_what_is_no_picture_or_no_mask_is_refused(picture: Tensor, hole: Tensor | None, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        Canvas.of(picture, hole)


def test_a_mask_of_truths_is_a_mask() -> None:
    hole = PICTURE[0] > 0
    pasted = Canvas.of(PICTURE, hole).pasted(PAINTED, 0)
    assert torch.equal(pasted, torch.where(hole, PAINTED, PICTURE))
