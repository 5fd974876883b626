"""Boxes are a set: neither their order nor batch mates matter, and what is painted covers their area and no more."""

from __future__ import annotations

import pickle
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from fill import inp
from sfumato.boxes import Box, Layout
from sfumato.cond import Cond
from sfumato.conditioning.boxes import Boxes
from sfumato.conditioning.vocabulary import vocabulary
from sfumato.models.config import BoxesConfig
from sfumato.nets.perceiver import PerceiverSize
from sfumato.nets.transformer import TransformerSize
from tiny import CAPTIONS, awake

LABELS = ("cat", "dog", "red apple")
READER = TransformerSize(dim=16, depth=2, heads=2, dim_head=8)
WORDS = TransformerSize(dim=12, depth=1, length=10, heads=2, dim_head=6)
PERCEIVER = PerceiverSize(channels=12, latents=3, dim=16, rounds=2, depth=1, heads=2, read_heads=2)
KNOWN = vocabulary([*CAPTIONS, *LABELS])
CELLS = (5, 7)


def make(
    reader: TransformerSize | PerceiverSize = READER, *, named: bool = True, captions: bool = True, most: int = 4
) -> Boxes:
    torch.manual_seed(0)
    words = None if named and not captions else WORDS
    names = LABELS if named else ()
    net = Boxes(
        reader,
        names=names,
        words=words,
        tokenizer=KNOWN,
        captions=captions,
        most=most,
        bands=4,
        painted=6,
        cells=CELLS,
    ).requires_grad_(False)
    parts = dict(net.named_parameters())
    for name in ("words.tokens.weight", "words.positions.weight", "reader.latents", "scene"):
        if name in parts:
            parts[name].mul_(5)  # at its start it hardly tells anything apart
    awake(net)
    return net.eval()


NETS = {
    "names": make(captions=False),
    "names and captions": make(),
    "words": make(named=False, captions=False),
    "words and captions": make(named=False),
    "perceiver": make(PERCEIVER, named=False),
    "perceiver of names": make(PERCEIVER, captions=False),
}
every = pytest.mark.parametrize("net", NETS.values(), ids=NETS.keys())

GRID = 24  # sides lie on no cell's edge but by chance
sides = st.integers(0, GRID)
spans = st.tuples(sides, sides).filter(lambda p: p[0] != p[1]).map(lambda p: (min(p) / GRID, max(p) / GRID))
box = st.builds(lambda k, x, y: Box(LABELS[k], x[0], y[0], x[1], y[1]), st.integers(0, 2), spans, spans)
layouts = st.lists(box, max_size=4).map(tuple)


def told(net: Boxes, *samples: tuple[Layout, str], cells: tuple[int, int] = CELLS) -> Cond:
    return net.laid([caption for _, caption in samples], [layout for layout, _ in samples], cells)


def counted(cond: Cond, i: int = 0) -> Tensor:
    """The tokens of a sample that count."""
    assert cond.tokens is not None
    return cond.tokens[i] if cond.mask is None else cond.tokens[i][cond.mask[i]]


def same(a: Cond, b: Cond, i: int = 0, k: int = 0, atol: float = 2e-6) -> None:
    """Sample i of one and k of another mean the same, whatever padding is between."""
    torch.testing.assert_close(counted(a, i), counted(b, k), rtol=0, atol=atol)
    for one, other in ((a.vector, b.vector), (a.maps, b.maps)):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one[i], other[k], rtol=0, atol=atol)


A = (Box("cat", 0.1, 0.2, 0.5, 0.9), Box("red apple", 0.3, 0.3, 1.0, 0.6), Box("cat", 0.0, 0.0, 0.25, 0.25))
B = (Box("dog", 0.5, 0.5, 1.0, 1.0),)


# A set ---------------------------------------------------------------------------------------------------------


@every
def test_the_order_of_boxes_means_nothing(net: Boxes) -> None:
    there, back = (told(net, (layout, CAPTIONS[0])) for layout in (A, A[::-1]))
    a, b = counted(there), counted(back)
    if there.mask is None:
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)
    else:  # its tokens change places with it
        order = [0, 3, 2, 1, *range(4, len(a))]
        torch.testing.assert_close(a, b[order], rtol=0, atol=2e-6)
    torch.testing.assert_close(there.vector, back.vector, rtol=0, atol=2e-6)
    torch.testing.assert_close(there.maps, back.maps, rtol=0, atol=2e-6)


@every
def test_neither_batch_mates_nor_padding_mean_anything(net: Boxes) -> None:
    samples = [(A, CAPTIONS[0]), ((), "two dogs in the rain"), (B, "")]
    batch = told(net, *samples)
    for i, sample in enumerate(samples):
        same(batch, told(net, sample), i)


@every
def test_two_joined_are_a_batch_of_two(net: Boxes) -> None:
    one, other = (A, CAPTIONS[0]), (B, CAPTIONS[2])
    joined, batch = Cond.cat([told(net, one), told(net, other)]), told(net, one, other)
    for i in range(2):
        same(joined, batch, i, i)


@every
def test_what_is_told_is_told_apart(net: Boxes) -> None:
    """Another place, another label, one more box of the same; another caption, where captions are read."""
    first = A[0]
    other = [(), (first,), (first, first), (first._replace(x0=0.15),), (first._replace(label="dog"),)]
    vectors = told(net, *((layout, "") for layout in other)).vector
    assert vectors is not None
    assert torch.pdist(vectors).min() > 1e-3
    captions = told(net, ((first,), CAPTIONS[0]), ((first,), CAPTIONS[1])).vector
    assert captions is not None
    assert (torch.pdist(captions).min() > 1e-3) == net.captions


@every
def test_any_number_of_boxes_and_of_more_than_are_read_the_largest(net: Boxes) -> None:
    wide = [Box(LABELS[k % 3], 0.0, 0.0, 0.5 + k / 20, 1.0) for k in range(4)]
    small = [Box(LABELS[k % 3], 0.1, 0.1, 0.2 + k / 20, 0.3) for k in range(5)]
    mixed = [small[0], wide[0], small[1], wide[1], small[2], small[3], wide[2], small[4], wide[3]]
    same(told(net, (tuple(mixed), "")), told(net, (tuple(wide), "")))


@every
def test_the_null_condition_is_no_caption_and_no_box(net: Boxes) -> None:
    null, empty = net.null(2), told(net, ((), ""), ((), ""))
    assert null.maps is not None
    assert null.maps.shape == (2, 6, 1, 1)
    for i in range(2):
        same(replace(null, maps=null.maps.expand(-1, -1, *CELLS)), empty, i, i)
    mixed = told(net, (A, ""), (B, "")).where(torch.tensor([True, False]), null)
    same(mixed, told(net, (A, "")))
    same(mixed, told(net, ((), "")), 1)


@every
def test_what_workers_send_comes_back(net: Boxes) -> None:
    batch = net.collate([{"caption": "a pear", "boxes": A}, {"boxes": ()}])
    again = net(pickle.loads(pickle.dumps(batch)))
    assert torch.equal(again.tokens, net(batch).tokens)
    assert torch.equal(again.maps, net(batch).maps)


def test_without_a_caption_it_is_the_empty_one() -> None:
    net = NETS["words and captions"]
    one, other = (net(net.collate([sample])) for sample in ({"boxes": A}, {"boxes": A, "caption": ""}))
    assert torch.equal(one.tokens, other.tokens)


@pytest.mark.parametrize("reader", [READER, PERCEIVER])
def test_a_perceiver_gives_as_many_tokens_whatever_is_told(reader: TransformerSize | PerceiverSize) -> None:
    cond = told(make(reader, named=False), (A, "a red apple"))
    assert cond.tokens is not None
    assert cond.tokens.shape == ((1, 3, 16) if isinstance(reader, PerceiverSize) else (1, 1 + 3 + 5, 16))
    assert (cond.mask is None) == isinstance(reader, PerceiverSize)


@every
def test_gradients_reach_every_parameter(net: Boxes) -> None:
    try:
        net.requires_grad_()
        cond = told(net, (A, CAPTIONS[0]), (B, CAPTIONS[2]))
        assert cond.tokens is not None
        assert cond.maps is not None
        tokens = cond.tokens if cond.mask is None else cond.tokens * cond.mask[..., None]
        total = (tokens * inp("tokens", *tokens.shape)).sum() + (cond.maps * inp("maps", *cond.maps.shape)).sum()
        total.backward()
        assert all(p.grad is not None and p.grad.any() for p in net.parameters())
    finally:
        net.zero_grad()
        net.requires_grad_(False)


# What is painted -----------------------------------------------------------------------------------------------

PAINTER = NETS["names"]


def cover(layout: Layout, cells: tuple[int, int]) -> tuple[Tensor, Tensor]:
    batch = PAINTER.collate([{"boxes": layout}], cells)
    return batch["box_rows"][0], batch["box_columns"][0]


def painted(layout: Layout, cells: tuple[int, int] = CELLS) -> Tensor:
    maps = told(PAINTER, (layout, ""), cells=cells).maps
    assert maps is not None
    return maps[0]


shapes = st.tuples(st.integers(1, 13), st.integers(1, 13))


@given(layouts.filter(len), shapes)
def test_the_parts_of_cells_that_are_covered_are_the_area_of_a_box(layout: Layout, cells: tuple[int, int]) -> None:
    rows, columns = cover(layout, cells)
    for one, down, across in zip(layout, rows, columns, strict=True):
        assert float((down[:, None] * across).sum()) / (cells[0] * cells[1]) == pytest.approx(one.area, abs=1e-6)
        assert float(down.min()) >= 0
        assert float(down.max()) <= 1


@given(layouts.filter(len), shapes)
def test_mirrored_boxes_cover_what_is_mirrored(layout: Layout, cells: tuple[int, int]) -> None:
    rows, columns = cover(layout, cells)
    other_rows, other_columns = cover(tuple(one.mirrored() for one in layout), cells)
    assert torch.equal(rows, other_rows)
    torch.testing.assert_close(columns.flip(-1), other_columns, rtol=0, atol=1e-5)


@given(box, shapes)
def test_nothing_is_painted_outside_of_a_box(one: Box, cells: tuple[int, int]) -> None:
    maps = painted((one,), cells)
    high, wide = cells
    for y in range(high):
        for x in range(wide):
            there = min(one.x1, (x + 1) / wide) > max(one.x0, x / wide) + 1e-6
            there = there and min(one.y1, (y + 1) / high) > max(one.y0, y / high) + 1e-6
            assert bool(maps[:, y, x].any()) == there


@given(shapes)
def test_no_box_paints_nothing_at_all(cells: tuple[int, int]) -> None:
    assert torch.equal(painted((), cells), torch.zeros(6, *cells))


@settings(max_examples=20)
@given(st.lists(box, min_size=2, max_size=4))
def test_what_objects_paint_adds_up(layout: list[Box]) -> None:
    net = NETS["words and captions"]
    assert net.paint is not None
    batch = net.collate([{"boxes": tuple(layout), "caption": ""}], CELLS)
    n = len(layout)
    parts = [batch[name] for name in ("boxes", "box_mask", "box_rows", "box_columns")]
    objects = torch.randn(1, n, 16, generator=torch.Generator().manual_seed(n))
    together = net.paint(objects, *parts)
    alone = [net.paint(objects[:, k : k + 1], *(part[:, k : k + 1] for part in parts)) for k in range(n)]
    torch.testing.assert_close(together, torch.stack(alone).sum(0), rtol=0, atol=1e-5)


def test_what_is_painted_knows_of_the_caption_and_of_the_other_boxes() -> None:
    net = NETS["words and captions"]
    one, other = Box("cat", 0.0, 0.0, 0.25, 0.25), Box("dog", 0.5, 0.5, 1.0, 1.0)
    maps = [
        net.laid([said], [boxes], CELLS).maps for said, boxes in (("", (one,)), ("red", (one,)), ("", (one, other)))
    ]
    alone, captioned, together = (m[0, :, 0, 0] for m in maps if m is not None)
    assert not torch.equal(alone, captioned)
    assert not torch.equal(alone, together)


def test_boxes_of_whole_numbers_and_boxes_too_thin_to_be_told_apart_are_boxes() -> None:
    whole, same_box = (painted((Box("cat", *corners),)) for corners in ((0, 0, 1, 1), (0.0, 0.0, 1.0, 1.0)))
    assert torch.equal(whole, same_box)
    thin = painted((Box("cat", 0.5, 0.5, 0.5 + 1e-12, 0.5 + 1e-12),))  # at the middle of a cell
    assert torch.equal(thin, torch.zeros_like(thin))


def test_it_is_painted_at_any_size_and_without_one_at_the_size_of_training() -> None:
    net = NETS["words and captions"]
    maps = net(net.collate([{"boxes": A}])).maps
    assert maps is not None
    assert maps.shape == (1, 6, 5, 7)
    assert painted(A, (12, 3)).shape == (6, 12, 3)
    half = painted((Box("cat", 0.0, 0.0, 1.0, 0.5),), (2, 2))
    assert half[:, 0].any()
    assert not half[:, 1].any()


# Labels and words ----------------------------------------------------------------------------------------------


def test_words_of_labels_are_words_of_captions_and_have_an_order() -> None:
    net = NETS["words"]
    one = Box("red apple", 0, 0, 1, 1)
    same(told(net, ((one,), "")), told(net, ((one._replace(label="Red  Apple"),), "")))
    apart = told(net, ((one,), ""), ((one._replace(label="apple red"),), ""), ((one._replace(label="apple"),), ""))
    assert apart.vector is not None
    assert torch.pdist(apart.vector).min() > 1e-4


def test_what_is_heard_of_prompts() -> None:
    net = NETS["words and captions"]
    assert net.heard(["a red apple", "zyzzyva"]) == (9, 0, ("zyzzyva",))  # letter by letter
    long = "red " * 12
    assert net.heard([long]) == (10, 4, ())
    same(told(net, (A, long)), told(net, (A, "red " * 40)))
    for name in ("names", "words", "perceiver of names"):
        assert NETS[name].heard(["zyzzyva"]) == (0, 0, ())


@pytest.mark.parametrize(
    ("name", "label", "said"),
    [
        ("names", "cats", "unknown label 'cats'; did you mean 'cat'? known: cat, dog, red apple"),
        ("names and captions", "apple", "unknown label 'apple'; did you mean 'red apple'? known: cat, dog, red apple"),
        ("words", "a red appel", "unknown word 'appel'; did you mean 'apple'? known: "),
        ("words and captions", "...", "unknown word '...'; known: "),
        ("perceiver", "", "unknown word ''; known: "),
    ],
)
def test_an_unknown_label_or_word_is_one_line(name: str, label: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}") as caught:
        NETS[name].check(label)
    assert "\n" not in str(caught.value)
    if NETS[name].names:
        with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
            told(NETS[name], ((Box(label, 0, 0, 1, 1),), ""))


@every
def test_known_labels_pass(net: Boxes) -> None:
    for label in LABELS:
        net.check(label)


# Its description -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"names": LABELS}, "say encoder or perceiver, one of them"),
        ({"names": LABELS, "encoder": READER, "perceiver": PERCEIVER}, "say encoder or perceiver, one of them"),
        ({"encoder": READER}, "words says what reads captions, and labels that are not in names"),
        ({"encoder": READER, "names": LABELS, "captions": True}, "words says what reads captions"),
        ({"encoder": READER, "names": ("cat", "cat")}, "'cat' is in it twice"),
        ({"perceiver": replace(PERCEIVER, latents=0), "names": LABELS}, r"perceiver.latents is 0; it must be positive"),
        ({"encoder": READER, "words": replace(WORDS, dim=-1)}, r"words.dim is -1; it must be positive"),
    ],
)
def test_what_cannot_be_built_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        BoxesConfig(**fields)
