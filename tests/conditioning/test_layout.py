"""LDM's sequence of numbers says a layout as its authors' program did, and can be read back to within half a cell."""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fill import inp
from sfumato.boxes import WHOLE, Box, Modifier, Window
from sfumato.cond import Cond
from sfumato.conditioning.known_labels import known_labels
from sfumato.conditioning.layout import LayoutTokens, modifiers
from sfumato.nets.transformer import TransformerSize
from tiny import awake

NAMES = tuple(f"c{k}" for k in range(340))
NONE = 8191
HALF = 1 / 178  # half a cell of 89, of the picture's side


def make(
    vocabulary: int = 8192, length: int = 92, names: Sequence[str] = NAMES, *, window: bool = True
) -> LayoutTokens:
    torch.manual_seed(0)
    size = TransformerSize(dim=8, depth=1, length=length, heads=2, dim_head=4)
    net = LayoutTokens(vocabulary, size, names=names, window=window).requires_grad_(False)
    net.encoder.tokens.weight.mul_(30)  # at its start it hardly tells numbers apart
    net.encoder.positions.weight.mul_(30)
    awake(net)
    return net.eval()


NET = make()
SMALL = make(16, 5, names=("a",))


def objects(sequence: Sequence[int]) -> list[tuple[int, ...]]:
    """Those that are there, three numbers each."""
    triples = [tuple(sequence[k : k + 3]) for k in range(0, 90, 3)]
    assert all(t == (NONE,) * 3 for t in triples if t[0] == NONE)
    return [t for t in triples if t[0] != NONE]


# Numbers that are known ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "sides", "numbers"),
    [("c5", (0.25, 0.5, 0.75, 0.75), (5, 3982, 6097)), ("c0", (0.0, 0.0, 1.0, 1.0), (0, 0, 8099))],
)
def test_an_object_is_its_class_and_two_corners(
    label: str, sides: tuple[float, float, float, float], numbers: tuple[int, ...]
) -> None:
    sequence = NET.sequence([Box(label, *sides)])
    assert sequence == [*numbers, *[NONE] * 87, 0, 8099]


@pytest.mark.parametrize(
    ("net", "x", "y", "number"),
    [
        (NET, 0.0, 1.0, 8010),
        (NET, 1.0, 0.0, 89),
        (SMALL, 2 / 3, 1 / 3, 6),
        (SMALL, 1.0, 1.0, 15),
        # Python's round: a half goes to the even line
        (NET, 0.5, 0.0, 44),  # 44.5
        (NET, 0.5, 0.5, 44 * 90 + 44),
        (SMALL, 0.5, 0.0, 2),  # 1.5
        (SMALL, 1 / 6, 0.0, 0),  # 0.5
        (SMALL, 5 / 6, 0.0, 2),  # 2.5
    ],
)
def test_a_corner_is_a_number(net: LayoutTokens, x: float, y: float, number: int) -> None:
    assert net._corners(Box("a", x, y, 1, 1))[0] == number
    assert net._corners(Window(0, 0, x, y))[1] == number


def test_a_number_is_a_corner() -> None:
    assert NET._point(3982) == pytest.approx((0.247191, 0.494382), abs=1e-6)
    assert NET._point(8099) == (1.0, 1.0)


def test_a_layout_of_nothing_is_padding_and_the_window() -> None:
    assert NET.sequence([]) == [NONE] * 90 + [0, 8099]
    assert NET.layout(NET.sequence([])) == ((), WHOLE)


# Any layout ----------------------------------------------------------------------------------------------------

FINE = 997  # a prime: no side lies on half a cell but the edges' own


def spans() -> st.SearchStrategy[tuple[float, float]]:
    pairs = st.tuples(st.integers(0, FINE), st.integers(0, FINE)).filter(lambda p: p[0] != p[1])
    return pairs.map(lambda p: (min(p) / FINE, max(p) / FINE))


def boxes(most: int = 30, least: int = 0) -> st.SearchStrategy[list[Box]]:
    one = st.builds(
        lambda k, x, y, m: Box(NAMES[k], x[0], y[0], x[1], y[1], m),
        st.integers(0, 339),
        spans(),
        spans(),
        st.integers(0, 15),
    )
    return st.lists(one, min_size=least, max_size=most)


windows = st.builds(lambda x, y: Window(x[0], y[0], x[1], y[1]), spans(), spans())


def near(a: Box | Window, b: Box | Window) -> bool:
    return all(abs(getattr(a, s) - getattr(b, s)) <= HALF + 1e-12 for s in ("x0", "y0", "x1", "y1"))


@given(boxes(40), windows)
def test_it_is_always_92_numbers_of_the_vocabulary(layout: list[Box], window: Window) -> None:
    sequence = NET.sequence(layout, window)
    assert len(sequence) == 92
    assert all(isinstance(n, int) and 0 <= n <= NONE for n in sequence)
    assert len(objects(sequence)) == min(30, len(layout))


@given(boxes(), windows)
def test_it_is_read_back_to_within_half_a_cell(layout: list[Box], window: Window) -> None:
    found, seen = NET.layout(NET.sequence(layout, window))
    assert near(seen, window)
    for box, again in zip(layout, found, strict=True):
        assert (again.label, again.modifiers) == (box.label, box.modifiers)
        assert near(box, again)
    assert NET.sequence(found, seen) == NET.sequence(layout, window)


@given(boxes(), windows)
def test_the_mirrored_layout_is_the_mirrored_sequence(layout: list[Box], window: Window) -> None:
    found, seen = NET.layout(NET.sequence([box.mirrored() for box in layout], window.mirrored()))
    plain, where = NET.layout(NET.sequence(layout, window))
    for a, b in zip((*found, seen), (*plain, where), strict=True):
        mirrored = b.mirrored()
        assert all(getattr(a, s) == pytest.approx(getattr(mirrored, s), abs=1e-12) for s in ("x0", "y0", "x1", "y1"))


@given(boxes(least=31, most=40))
def test_of_more_than_thirty_the_smallest_are_dropped(layout: list[Box]) -> None:
    ranked = sorted(range(len(layout)), key=lambda i: -layout[i].area)  # of those as large the first is kept
    assert NET.sequence(layout) == NET.sequence([layout[i] for i in sorted(ranked[:30])])


@pytest.mark.parametrize("modifier", [*Modifier, Modifier.GROUP | Modifier.INSIDE, Modifier(15)])
def test_modifiers_count_on_from_the_classes(modifier: Modifier) -> None:
    box = Box("c7", 0, 0, 1, 1, modifier)
    sequence = NET.sequence([box])
    assert sequence[0] == 7 + 340 * modifier
    assert NET.layout(sequence)[0] == (box,)


@pytest.mark.parametrize(
    ("names", "vocabulary", "said"),
    [(340, 8192, 15), (511, 8192, 15), (512, 8192, 1), (171, 400, 1), (4095, 8192, 1), (4096, 8192, 0), (0, 8192, 0)],
)
def test_modifiers_are_said_as_far_as_there_are_numbers(names: int, vocabulary: int, said: int) -> None:
    assert modifiers(names, vocabulary) == said
    if names:
        assert names * (said + 1) <= vocabulary - 1
        net = make(vocabulary, 5, names=[f"{k}" for k in range(names)])
        (box,), _ = net.layout(net.sequence([Box(f"{names - 1}", 0, 0, 1, 1, 15)]))
        assert box == Box(f"{names - 1}", 0, 0, 1, 1, said)


# The authors' program ------------------------------------------------------------------------------------------


class Annotation(NamedTuple):
    """An object as theirs has it: left, top, width and height."""

    number: int
    modifier: int
    bbox: tuple[float, float, float, float]


def theirs(found: list[Annotation], crop: tuple[float, float, float, float], *, flip: bool) -> list[int]:
    """A plain form of their builder with the window at the end, of 340 classes, without its shuffling."""

    def overlap(a: float, wide: float, b: float, width: float) -> float:
        return max(0.0, min(a + wide, b + width) - max(a, b))

    def number(x: float, y: float) -> int:
        return round(y * 89) * 90 + round(x * 89)

    def corners(bbox: tuple[float, float, float, float]) -> tuple[int, int]:
        x, y, w, h = bbox
        return number(x, y), number(x + w, y + h)

    def turned(bbox: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        x, y, w, h = bbox
        return (1 - (x + w), y, w, h) if flip else bbox

    out: list[int] = []
    for kind, modifier, bbox in found[:30]:
        if overlap(bbox[0], bbox[2], crop[0], crop[2]) * overlap(bbox[1], bbox[3], crop[1], crop[3]) > 0:
            out += [kind + 340 * modifier, *corners(turned(bbox))]
    out += [8191] * (90 - len(out))
    return [*out, *corners(turned(crop))]


@given(boxes(), windows, st.booleans())
def test_it_is_what_the_authors_program_makes(layout: list[Box], window: Window, flip: bool) -> None:
    annotations = [
        Annotation(NAMES.index(b.label), b.modifiers, (b.x0, b.y0, b.x1 - b.x0, b.y1 - b.y0)) for b in layout
    ]
    crop = (window.x0, window.y0, window.x1 - window.x0, window.y1 - window.y0)
    expected = theirs(annotations, crop, flip=flip)
    uncut = [box for box in layout if box.within(window) is not None]  # as data sets give them
    cut = [inner for box in layout if (inner := box.within(window)) is not None]
    if flip:
        uncut, cut, window = [b.mirrored() for b in uncut], [b.mirrored() for b in cut], window.mirrored()
    found = NET.collate([{"boxes": tuple(cut), "uncut": tuple(uncut), "window": window}])["layout"][0].tolist()
    assert found[90:] == expected[90:]
    assert sorted(objects(found)) == sorted(objects(expected))


def test_a_box_that_begins_left_of_the_window_is_cut_and_not_shifted() -> None:
    """Theirs keeps the width of what it moves to the edge: its right side would be 1.0 of the window, not 0.6."""
    box, window = Box("c1", 0.1, 0.0, 0.6, 1.0), Window(0.3, 0.0, 0.8, 1.0)
    inner = box.within(window)
    assert inner is not None
    assert (inner.x0, inner.x1) == pytest.approx((0.0, 0.6))
    sequence = NET.sequence([inner])
    assert sequence[1] == 0
    assert sequence[2] == 89 * 90 + round(0.6 * 89)


def test_a_box_that_leaves_the_picture_is_cut_and_not_shifted() -> None:
    assert NET.sequence([Box("c1", -0.2, 0.5, 0.3, 1.5)]) == NET.sequence([Box("c1", 0.0, 0.5, 0.3, 1.0)])


def test_a_cut_picture_says_the_boxes_of_the_whole_and_what_is_seen() -> None:
    box, window = Box("c1", 0.1, 0.2, 0.6, 0.9), Window(0.3, 0.0, 0.8, 1.0)
    inner = box.within(window)
    assert inner is not None
    cut = NET.collate([{"boxes": (inner,), "uncut": (box,), "window": window}, {"boxes": (inner,)}])["layout"]
    assert cut[0].tolist() == NET.sequence([box], window)
    assert cut[1].tolist() == NET.sequence([inner])


def test_without_a_window_there_are_three_numbers_an_object() -> None:
    net = make(length=90, window=False)
    sequence = net.sequence([Box("c5", 0.25, 0.5, 0.75, 0.75)], Window(0.1, 0.1, 0.2, 0.2))
    assert sequence == [5, 3982, 6097, *[NONE] * 87]
    assert net.layout(sequence)[1] == WHOLE


# The condition -------------------------------------------------------------------------------------------------

APART = [(), (Box("c3", 0.1, 0.1, 0.5, 0.5),), (Box("c3", 0.1, 0.1, 0.6, 0.5), Box("c9", 0.0, 0.5, 1.0, 1.0))]


def tokens(cond: Cond) -> torch.Tensor:
    assert cond.tokens is not None
    assert (cond.mask, cond.vector, cond.maps, cond.label) == (None,) * 4
    return cond.tokens


def test_a_batch_is_its_singles_and_layouts_are_told_apart() -> None:
    both = tokens(NET.laid([""] * 3, APART, (8, 8)))
    assert both.shape == (3, 92, 8)
    for i, layout in enumerate(APART):
        torch.testing.assert_close(both[i : i + 1], tokens(NET.laid([""], [layout], (4, 2))), rtol=0, atol=1e-6)
    assert torch.pdist(both.flatten(1)).min() > 0.1


def test_the_null_condition_is_a_layout_of_nothing() -> None:
    torch.testing.assert_close(tokens(NET.null(2)), tokens(NET.laid([""] * 2, [()] * 2, (1, 1))), rtol=0, atol=1e-6)


def test_what_workers_send_comes_back() -> None:
    batch = NET.collate([{"boxes": layout} for layout in APART])
    again = pickle.loads(pickle.dumps(batch))
    assert torch.equal(tokens(NET(again)), tokens(NET(batch)))


def test_gradients_reach_the_numbers_that_were_said() -> None:
    net = make().requires_grad_()
    sequence = NET.sequence(APART[1])
    (tokens(net.laid([""], [APART[1]], (1, 1))) * inp("weight", 1, 92, 8)).sum().backward()
    assert net.encoder.tokens.weight.grad is not None
    assert net.encoder.tokens.weight.grad.abs().sum(1).nonzero().flatten().tolist() == sorted({*sequence})
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


def test_no_prompt_is_read() -> None:
    assert NET.heard(["a cat", "zyzzyva"]) == (0, 0, ())
    assert not NET.captions
    assert NET.most == 30


# What is wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "label", "said"),
    [
        (make(names=("cat", "dog"), length=5), "cats", "unknown label 'cats'; did you mean 'cat'? known: cat, dog"),
        (make(names=("cat", "dog"), length=5), "0", "unknown label '0'; known: cat, dog"),
        *(
            (
                make(names=(), length=5),
                label,
                f"unknown label '{label}'; this model knows no names, but classes from 0 to 8190",
            )
            for label in ("cat", "8191", "-1", "1.0", "", "٣", "9" * 5000)
        ),
    ],
)
def test_an_unknown_label_is_one_line(net: LayoutTokens, label: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        net.check(label)
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        net.collate([{"boxes": (Box(label, 0, 0, 1, 1),)}])


def test_without_names_labels_are_numbers() -> None:
    net = make(names=())
    layout = (Box("5", 0.25, 0.5, 0.75, 0.75), Box("8190", 0, 0, 1, 1, Modifier.GROUP))
    sequence = net.sequence(layout)
    assert sequence[:6] == [5, 3982, 6097, 8190, 0, 8099]
    assert [(box.label, box.modifiers) for box in net.layout(sequence)[0]] == [("5", 0), ("8190", 0)]


# Labels that others numbered ------------------------------------------------------------------------------------


def test_the_labels_of_open_images_are_those_of_the_authors() -> None:
    names = known_labels("open-images")
    assert len(set(names)) == len(names) == 340
    assert names[0] == "Tortoise"  # /m/011k07, the first id
    assert names[-2:] == ("Helmet", "Suitcase")  # /m/0zvk5, the last id, and the one that is put behind it
    united = {"Woman", "Man", "Girl", "Boy", "Bull", "Football", "Tennis ball", "Kitchen knife"}
    united |= {"Submarine sandwich", "Sofa bed", "Alarm clock", "Wall clock"}
    assert len(united) == 12
    assert not united & set(names)
    assert {"Person", "Cattle", "Ball", "Knife", "Sandwich", "Couch", "Clock", "Toothbrush"} <= set(names)
    assert modifiers(len(names), 8192) == sum(Modifier)


def test_the_labels_of_coco_stuff_are_sorted_by_their_ids_as_texts() -> None:
    names = known_labels("coco-stuff")
    assert len(set(names)) == len(names) == 171
    ids = sorted(map(str, {*range(1, 91), *range(92, 183)} - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}))
    by_id = dict(zip(ids, names, strict=True))
    known = {"1": "person", "10": "traffic light", "90": "toothbrush", "92": "banner", "124": "grass", "182": "wood"}
    assert {k: by_id[k] for k in known} == known
