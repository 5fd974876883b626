"""Asked with boxes: each matters, where it is and what it is called, alone and with all else that can be asked."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import laid
from fill import inp
from sfumato.boxes import Box, described
from sfumato.cond import Cond
from sfumato.generate import Model, Result, generate
from sfumato.io import opening
from sfumato.io.model_folder import Loaded
from sfumato.request import MOST_BOXES, Request, requested

KINDS = list(laid.CONFIGS)
PICTURE = (0.5 * inp("init", 3, 24, 16)).clamp(-1, 1)
HOLE = torch.zeros(24, 16)
HOLE[5:14, 3:9] = 1
EXACT = 1e-9


@pytest.fixture(scope="module")
def models() -> dict[str, Loaded]:
    return {kind: laid.loaded(kind) for kind in KINDS}


@pytest.fixture
def exact(models: dict[str, Loaded]) -> Iterator[dict[str, Loaded]]:
    """In float64, where a batch of another size rounds as little as a picture alone."""
    torch.set_default_dtype(torch.float64)
    yield {kind: replace(one, model=copy.deepcopy(one.model).double()) for kind, one in models.items()}
    torch.set_default_dtype(torch.float32)


def asked(kind: str, **more: Any) -> Request:
    return requested(**{"boxes": laid.boxes(kind), "seed": 7, "steps": 3, **more})


def far(a: Result, b: Result) -> float:
    return (a.images - b.images).abs().max().item()


# What is heard --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_where_boxes_are_and_what_they_are_called_is_heard(models: dict[str, Loaded], kind: str) -> None:
    one, two = laid.boxes(kind)
    loaded = models[kind]
    as_asked = generate(loaded, asked(kind))
    for boxes in ((one,), (), (one, two._replace(x0=0.6)), (one._replace(label=two.label), two)):
        assert far(as_asked, generate(loaded, asked(kind, boxes=boxes))) > 1e-3


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "ldm"])  # whose sequence has an order
def test_boxes_have_no_order(exact: dict[str, Loaded], kind: str) -> None:
    one, other = (
        generate(exact[kind], asked(kind, boxes=boxes)) for boxes in (laid.boxes(kind), laid.boxes(kind)[::-1])
    )
    torch.testing.assert_close(one.images, other.images, rtol=0, atol=EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_without_boxes_it_paints_too(exact: dict[str, Loaded], kind: str) -> None:
    none, empty = (generate(exact[kind], asked(kind, boxes=boxes)) for boxes in (None, ()))
    assert torch.equal(none.images, empty.images)
    assert none.requests[0].boxes is None
    alone = generate(exact[kind], asked(kind, boxes=None, guidance=1))
    torch.testing.assert_close(none.images, alone.images, rtol=0, atol=EXACT)  # what is said is nothing


def test_a_caption_and_boxes_are_both_heard(models: dict[str, Loaded]) -> None:
    loaded = models["words"]
    both = generate(loaded, asked("words", prompt="a red apple, 3d"))
    assert (both.tokens, both.dropped, both.unknown) == (7, 0, ())
    assert far(both, generate(loaded, asked("words"))) > 1e-3
    assert far(both, generate(loaded, asked("words", prompt="a red apple, 3d", boxes=None))) > 1e-3
    assert generate(loaded, asked("words", prompt="a zog")).unknown == ("zog",)


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_leads_from_no_box_and_from_what_is_not_to_be_seen(exact: dict[str, Loaded], kind: str) -> None:
    loaded, prompt = exact[kind], {"negative": "two dogs"} if kind == "words" else {}
    nothing = generate(loaded, asked(kind, guidance=0, **prompt))
    negative = asked(kind, boxes=None, guidance=1, prompt=prompt.get("negative", ""))
    torch.testing.assert_close(nothing.images, generate(loaded, negative).images, rtol=0, atol=EXACT)
    one, more = (generate(loaded, asked(kind, guidance=scale)) for scale in (1, 3))
    assert far(one, more) > 1e-3
    if prompt:
        assert far(more, generate(loaded, asked(kind, guidance=3, **prompt))) > 1e-3
        assert far(one, generate(loaded, asked(kind, guidance=1, **prompt))) < EXACT


def shown(loaded: Loaded, monkeypatch: pytest.MonkeyPatch, request: Request, **more: Any) -> Tensor:
    """The maps that the network is told of."""
    kind = loaded.model.conditioner
    assert isinstance(kind, nn.Module)
    found: list[Cond] = []
    forward = type(kind).forward

    def spied(self: nn.Module, batch: dict[str, Tensor]) -> Cond:
        found.append(forward(self, batch))
        return found[-1]

    with monkeypatch.context() as patch:
        patch.setattr(type(kind), "forward", spied)
        generate(loaded, request, **more)
    assert found[0].maps is not None
    return found[0].maps


@pytest.mark.parametrize("kind", laid.PAINTED)
@pytest.mark.parametrize(("size", "cells"), [((16, 16), (4, 4)), ((24, 16), (4, 6)), ((16, 32), (8, 4))])
def test_boxes_are_painted_on_the_cells_of_the_latent(
    models: dict[str, Loaded], monkeypatch: pytest.MonkeyPatch, kind: str, size: tuple[int, int], cells: tuple[int, int]
) -> None:
    label, _ = laid.LABELS[kind]
    maps = shown(models[kind], monkeypatch, asked(kind, size=size, boxes=[Box(label, 0.5, 0.0, 1.0, 0.25)]))
    rows, columns = cells
    assert maps.shape == (1, 4, rows, columns)
    painted = (maps[0] != 0).any(0)
    expected = torch.zeros(cells, dtype=torch.bool)
    expected[: rows // 4, columns // 2 :] = True
    assert torch.equal(painted, expected)


def test_boxes_go_with_a_larger_canvas(models: dict[str, Loaded], monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts of the picture that is painted: of the given one with what is painted around it."""
    request = asked("words", extend=(0, 0, 16, 0), boxes=[Box("dog", 0.5, 0.0, 1.0, 1.0)])
    maps = shown(models["words"], monkeypatch, request, init=PICTURE)
    assert maps.shape[2:] == (6, 8)
    assert torch.equal((maps[0] != 0).any(0), (torch.arange(8) >= 4).expand(6, 8))


# Batches and what is dropped ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_different_layouts_share_a_batch(exact: dict[str, Loaded], kind: str) -> None:
    one, two = laid.boxes(kind)
    layouts = [(one, two), (), (two,), None]
    requests = [asked(kind, boxes=boxes, seed=i, size=(24, 16)) for i, boxes in enumerate(layouts)]
    together = generate(exact[kind], requests)
    for image, request in zip(together.images, requests, strict=True):
        torch.testing.assert_close(image, generate(exact[kind], request).images[0], rtol=0, atol=EXACT)
    assert [r.boxes for r in together.requests] == layouts


@pytest.mark.parametrize("kind", KINDS)
def test_of_too_many_the_smallest_are_dropped_and_counted(models: dict[str, Loaded], kind: str) -> None:
    most = models[kind].model.conditioner.most  # pyright: ignore
    label, other = laid.LABELS[kind]
    large = [Box(label, 0, 0, 0.5 + i / 100, 1) for i in range(most)]
    small = [Box(other, 0.2, 0.2, 0.25, 0.25 + i / 100) for i in range(4)]
    result = generate(models[kind], asked(kind, boxes=[*small[:2], *large, *small[2:]]))
    assert result.boxes_dropped == 4
    only = generate(models[kind], asked(kind, boxes=large))
    assert only.boxes_dropped == 0
    assert torch.equal(result.images, only.images)
    assert len(result.requests[0].boxes or ()) == most + 4  # as they were asked for
    again = generate(models[kind], [asked(kind), result.requests[0]])
    assert again.boxes_dropped == 4


def test_a_box_as_thin_as_can_be_is_painted(models: dict[str, Loaded]) -> None:
    for kind in KINDS:
        label, _ = laid.LABELS[kind]
        boxes = [Box(label, 0.3, 0.3, 0.3 + 1.1e-6, 1.0), Box(label, 1 - 1.1e-6, 1 - 1.1e-6, 1.0, 1.0)]
        assert generate(models[kind], asked(kind, boxes=boxes)).images.isfinite().all()
        none = [Box(label, 0.3, 0.3, 0.3 + 1e-9, 1.0)]  # in float32, as a data set may have one
        cond = models[kind].model.conditioner.laid([""], [none], (4, 4))  # pyright: ignore
        assert all(part is None or part.isfinite().all() for part in (cond.tokens, cond.vector, cond.maps))


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_told_nearly_the_same(kind: str, tmp_path: Path) -> None:
    exact, half = (opening.load(laid.folder(tmp_path / p, kind), precision=p) for p in ("float32", "bfloat16"))
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert generate(half, asked(kind)).latents.dtype == torch.float32
    conds = [m.model.conditioner.laid([""], [laid.boxes(kind)], (4, 6)) for m in (exact, half)]  # pyright: ignore
    for one, other in zip(*((c.tokens, c.vector, c.maps) for c in conds), strict=True):
        assert (one is None) == (other is None)
        assert one is None or (one - other).std() < 0.03 * one.std()


# With a given picture -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_hole_boxes_are_painted_and_the_rest_stays_to_the_bit(models: dict[str, Loaded], kind: str) -> None:
    loaded = models[kind]
    result = generate(loaded, asked(kind), init=PICTURE, mask=HOLE)
    kept = (HOLE == 0).expand(1, 3, -1, -1)
    assert torch.equal(result.images[kept], PICTURE[None][kept])
    none = generate(loaded, asked(kind, boxes=None), init=PICTURE, mask=HOLE)
    assert (result.images - none.images)[~kept].abs().max() > 1e-3
    again = generate(loaded, result.requests[0], init=PICTURE, mask=HOLE)
    assert torch.equal(again.images, result.images)


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_changed_by_boxes(models: dict[str, Loaded], kind: str) -> None:
    changed, none = (
        generate(models[kind], asked(kind, boxes=boxes, strength=0.7, steps=5), init=PICTURE)
        for boxes in (laid.boxes(kind), None)
    )
    assert far(changed, none) > 1e-3
    first_stage = models[kind].model.first_stage
    kept = generate(models[kind], asked(kind, strength=0), init=PICTURE)
    torch.testing.assert_close(kept.images, first_stage.decode(first_stage.encode(PICTURE[None])).clamp(-1, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_inversion_with_what_is_there_comes_back_near_the_picture(models: dict[str, Loaded], kind: str) -> None:
    loaded = models[kind]
    words = {"prompt": "two dogs", "source": "two dogs"} if kind == "words" else {}
    same = {"steps": 40, "guidance": 1.0, "strength": 0.5, **words}
    z = loaded.model.first_stage.encode(PICTURE[None])
    inverted = generate(loaded, asked(kind, inversion=True, **same), init=PICTURE)
    noised = generate(loaded, asked(kind, **{**same, "source": ""}), init=PICTURE)
    back, astray = ((r.latents - z).square().mean().sqrt() for r in (inverted, noised))
    assert back < 0.35 * astray


def test_inversion_says_of_the_picture_what_its_source_and_the_boxes_do(exact: dict[str, Loaded]) -> None:
    loaded, picture = exact["words"], PICTURE.double()
    common = {"inversion": True, "guidance": 1.0, "strength": 0.5, "prompt": "two dogs", "steps": 10}
    results = [
        generate(loaded, asked("words", **common, **more), init=picture)
        for more in ({"source": "two dogs"}, {"source": "a pear"}, {"source": "two dogs", "boxes": None})
    ]
    assert far(results[0], results[1]) > 1e-4
    assert far(results[0], results[2]) > 1e-4
    two = [asked("words", **common, source="x", boxes=boxes) for boxes in (laid.boxes("words"), None)]
    together = generate(loaded, two, init=picture)  # each has its own boxes
    for image, one in zip(together.images, two, strict=True):
        torch.testing.assert_close(image, generate(loaded, one, init=picture).images[0], rtol=0, atol=EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tile_has_its_boxes(models: dict[str, Loaded], kind: str) -> None:
    plain, tile, none = (
        generate(models[kind], asked(kind, **more)) for more in ({}, {"tiling": True}, {"tiling": True, "boxes": None})
    )
    assert far(plain, tile) > 1e-3
    assert far(tile, none) > 1e-3


# From Python ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_are_given_as_dictionaries_and_as_boxes(models: dict[str, Loaded], kind: str) -> None:
    boxes = laid.boxes(kind)
    one = Model(models[kind]).generate(boxes=list(boxes), seed=7, steps=3)
    two = Model(models[kind]).generate(boxes=[described(box) for box in boxes], seed=7, steps=3)
    assert one.requests == two.requests
    assert torch.equal(one.images, two.images)
    stored = one.requests[0].model_dump(mode="json", exclude_none=True)
    assert Request.model_validate(stored) == one.requests[0]
    assert torch.equal(generate(models[kind], Request.model_validate(stored)).images, one.images)


def test_modifiers_are_heard_and_kept() -> None:
    named = laid.loaded("ldm", names=("apple", "dog"))
    plain, group = (Box("dog", 0.1, 0.2, 0.6, 0.9, modifiers) for modifiers in (0, 1))
    results = [generate(named, Request(boxes=(box,), steps=3)) for box in (plain, group)]
    assert far(*results) > 1e-3
    stored = results[1].requests[0].model_dump(mode="json")
    assert stored["boxes"] == [{"label": "dog", "box": [0.1, 0.2, 0.6, 0.9], "modifiers": ["group"]}]
    assert Request.model_validate(stored).boxes == (group,)
    many = laid.loaded("ldm", names=("apple", "dog", *map(str, range(250))))
    with pytest.raises(ValueError, match=r"boxes\[0\]: the box of 'dog' has modifiers that this model has no numbers"):
        generate(many, Request(boxes=(group,), steps=3))
    with pytest.raises(ValueError, match="the box of '3' has modifiers that this model has no numbers for"):
        generate(laid.loaded("ldm"), Request(boxes=(group._replace(label="3"),), steps=3))


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        ("names", {"prompt": "a dog"}, r"this model is asked with boxes alone; leave the prompts out"),
        ("ldm", {"negative": "a dog"}, r"this model is asked with boxes alone; leave the prompts out"),
        ("words", {"label": 3}, r"this model is asked with boxes, not with a label"),
        ("words", {"boxes": [Box("dog", 0, 0, 1, 1), Box("dgo", 0, 0, 1, 1)]}, r"boxes\[1\]: unknown word 'dgo'; did"),
        ("words", {"boxes": [Box("!", 0, 0, 1, 1)]}, r"boxes\[0\]: unknown word '!'"),
        ("names", {"boxes": [Box("dgo", 0, 0, 1, 1)]}, r"boxes\[0\]: unknown label 'dgo'; did you mean 'dog'\? known"),
        ("ldm", {"boxes": [Box("399", 0, 0, 1, 1)]}, r"boxes\[0\]: unknown label '399'; this model knows no names"),
        ("ldm", {"boxes": [Box("dog", 0, 0, 1, 1)]}, r"boxes\[0\]: unknown label 'dog'; this model knows no names"),
        ("ldm", {"inversion": True, "source": "a dog"}, r"this model is asked with boxes alone; leave source out"),
        ("words", {"size": (20, 16)}, r"size 20x16 does not fit this model"),
    ],
)
def test_what_cannot_be_asked_is_a_line(models: dict[str, Loaded], kind: str, more: dict[str, Any], said: str) -> None:
    init = {"init": PICTURE} if "inversion" in more else {}
    with pytest.raises(ValueError, match=said) as error:
        generate(models[kind], asked(kind, **more), **init)
    assert "\n" not in str(error.value)


def test_of_many_names_some_are_said() -> None:
    names = tuple(f"thing {i:03}" for i in range(200))
    with pytest.raises(ValueError, match=r"did you mean 'thing 150'\? known: thing 000, .*, thing 023 and 176 more$"):
        generate(laid.loaded("names", names=names), Request(boxes=(Box("thing150", 0, 0, 1, 1),), steps=2))


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ([{"label": "dog", "box": [0, 0, 1]}], "boxes.0: the box of 'dog' is four finite numbers: left, top, right"),
        ([{"label": "dog", "box": [0, 0, 10**400, 1]}], "boxes.0: the box of 'dog' is four finite numbers"),
        ([{"label": "dog", "box": [0, 0, float("nan"), 1]}], "boxes.0: the box of 'dog' is four finite numbers"),
        ([{"label": "dog", "box": [0, 0, True, 1]}], "boxes.0: the box of 'dog' is four finite numbers"),
        ([{"label": "dog", "box": [0, 0, 2, 1]}], r"boxes.0: the box of 'dog' is \[0, 0, 2, 1\], outside the picture"),
        ([{"label": "dog", "box": [1, 0, 0, 1]}], r"boxes.0: the box of 'dog' is \[1, 0, 0, 1\]; left comes before ri"),
        ([{"label": "dog", "box": [0, 0, 0, 1]}], r"boxes.0: the box of 'dog' is \[0, 0, 0, 1\], which has no area"),
        ([{"label": "", "box": [0, 0, 1, 1]}], "boxes.0: a box's label is text of 1 to 200 characters"),
        ([{"label": "dog", "bbox": [0, 0, 1, 1]}], 'boxes.0: a box looks like {"label": "cat", "box": '),
        ([Box("dog", 0, 0, 0, 0)], "boxes.0: the box of 'dog' is .*, which has no area"),
        (["dog"], "boxes.0: a box looks like"),
        ("dog", "boxes: input should be a valid tuple"),
        ([Box("dog", 0, 0, 1, 1)] * (MOST_BOXES + 1), "boxes: tuple should have at most 1000 items"),
    ],
)
def test_boxes_that_are_none_are_a_line(boxes: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        requested(boxes=boxes)
    assert "\n" not in str(error.value)


NUMBERS = st.integers() | st.floats() | st.floats(0, 1) | st.sampled_from([10**400, True, None, "1"])
SOME = st.none() | NUMBERS | st.text() | st.lists(NUMBERS, max_size=5)


@given(st.lists(st.dictionaries(st.sampled_from(["label", "box", "modifiers", "unit"]), SOME) | SOME, max_size=3))
def test_anything_given_as_boxes_is_a_request_or_a_line(boxes: Any) -> None:
    try:
        made = requested(boxes=boxes)
    except ValueError as error:
        line = str(error)
    else:
        assert Request.model_validate(made.model_dump(mode="json")) == made
        return
    assert len(line.splitlines()) == 1
