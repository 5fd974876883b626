"""The measure itself: which captions are drawn, and what share of pictures is judged right."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sfumato.data.sample import Sample
from sfumato.evaluate.fidelity import Gallery, Score, drawn
from sfumato.nets.mobilenet import MobileNetV2


@given(n=st.integers(0, 40), of=st.integers(1, 30), seed=st.integers(0, 2**64 - 1))
def test_what_is_drawn_is_different_and_always_the_same(n: int, of: int, seed: int) -> None:
    chosen = drawn(n, of=of, seed=seed)
    assert chosen == drawn(n, of=of, seed=seed)
    assert len(set(chosen)) == len(chosen) == min(n, of)
    assert set(chosen) <= set(range(of))
    assert drawn(min(n, of), of=of, seed=seed) == drawn(of, of=of, seed=seed)[:n]  # more only adds


def test_seeds_draw_differently_and_evenly() -> None:
    assert drawn(10, of=1000, seed=0) != drawn(10, of=1000, seed=1)
    counts = torch.bincount(torch.tensor([drawn(5, of=20, seed=seed) for seed in range(400)]).flatten(), minlength=20)
    assert counts.sum() == 2000
    assert ((counts - 100).abs() < 5 * (100 * 0.75) ** 0.5).all()  # five deviations


class Known:
    """Stands in for the network: a picture's features are its first two pixels, made a unit vector by `pooled`."""

    def pooled(self, images: Tensor, size: int = 224) -> Tensor:
        return images[:, 0, 0, :2]


class Pictures:
    """Real pictures at given angles, in degrees."""

    fields = frozenset({"image"})

    def __init__(self, rows: list[tuple[str, str, str, float]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int, /) -> Sample:
        ident, style, group, angle = self.rows[i]
        image = torch.zeros(3, 1, 2)
        image[0, 0] = 7 * vector(angle)
        return {"image": image, "meta": {"id": ident, "style": style, "group": group}}


def vector(degrees: float) -> Tensor:
    angle = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angle.cos(), angle.sin()])


def meta(ident: str, group: str, style: str = "3d") -> Mapping[str, str | list[str]]:
    return {"id": ident, "style": style, "group": group}


@pytest.fixture
def gallery() -> Gallery:
    rows = [
        (ident, "3d", group, angle)
        for ident, group, angle in (
            ("apple", "fruit", 0),
            ("pear", "fruit", 10),
            ("dog", "animal", 20),
            ("cat", "animal", 30),
            ("bus", "vehicle", 40),
            ("car", "vehicle", 50),
            ("sun", "sky", 60),
        )
    ]
    rows += [("apple", "flat", "fruit", 61.0), ("sun", "flat", "sky", 1.0)]  # rivals of their own style only
    net: MobileNetV2 = Known()
    return Gallery(Pictures(rows), net)


@pytest.mark.parametrize(
    ("angle", "asked", "hits"),
    [
        (1.0, meta("apple", "fruit"), (1, 1, 1)),
        (6.0, meta("apple", "fruit"), (0, 1, 1)),  # the pear is nearer, and a fruit
        (16.0, meta("apple", "fruit"), (0, 1, 0)),  # the dog is nearest
        (41.0, meta("apple", "fruit"), (0, 0, 0)),  # five others are nearer
        (34.0, meta("pear", "fruit"), (0, 1, 0)),  # the fifth
        (39.0, meta("pear", "fruit"), (0, 0, 0)),  # the sixth
        (3.0, meta("sun", "sky"), (0, 0, 0)),  # the sun at 1 degree is flat
        (3.0, meta("sun", "sky", "flat"), (1, 1, 1)),
    ],
)
def test_one_picture(gallery: Gallery, angle: float, asked: Mapping[str, str], hits: tuple[int, int, int]) -> None:
    assert gallery.judge(vector(angle)[None], [asked]) == Score(1, *map(float, hits))


def test_shares_of_several(gallery: Gallery) -> None:
    made = torch.stack([vector(a) for a in (1, 6, 16, 41, 52)])
    asked = [meta("apple", "fruit")] * 4 + [meta("car", "vehicle")]
    score = gallery.judge(made, asked)
    assert score.n == 5
    assert [score.top1, score.top5, score.group] == pytest.approx([2 / 5, 4 / 5, 3 / 5])


def test_no_pictures_have_no_hits(gallery: Gallery) -> None:
    assert gallery.judge(torch.zeros(0, 2), []) == Score(0, 0.0, 0.0, 0.0)
