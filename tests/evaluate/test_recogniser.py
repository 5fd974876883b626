"""Who reads crops reads those that it learnt, and of scenes those that it did not."""

from __future__ import annotations

import pytest
import torch

from sfumato.boxes import Box
from sfumato.data import scenes
from sfumato.data.scenes import Scenes
from sfumato.evaluate import features
from sfumato.evaluate.crops import crops
from sfumato.evaluate.judge import Judge, Right, size_of
from sfumato.evaluate.recogniser import LEAST, Recogniser, learnt
from sfumato.evaluate.share import share

AXES = 10 * torch.eye(3) + 5


def taught(**counts: int) -> Recogniser:
    """Labels by the axis on which their features lie, so many of each."""
    labels = [label for label, n in counts.items() for _ in range(n)]
    rows = torch.cat([AXES[k].expand(n, 3) for k, n in enumerate(counts.values())])
    return learnt(rows, labels)


def test_what_was_learnt_is_read() -> None:
    known = taught(pear=LEAST, apple=LEAST + 3, fig=LEAST)
    assert known.labels == ("apple", "fig", "pear")
    assert known.read(AXES) == ["pear", "apple", "fig"]
    assert known.read(torch.zeros(0, 3)) == []


def test_labels_that_are_seldom_are_not_learnt() -> None:
    known = taught(pear=LEAST, apple=LEAST, fig=LEAST - 1)
    assert known.labels == ("apple", "pear")
    assert known.read(AXES[:2]) == ["pear", "apple"]
    with pytest.raises(ValueError, match=r"^there are 9 boxes to learn labels from, and fewer than 2 labels with 5"):
        taught(pear=LEAST, apple=LEAST - 1)


def box(label: str, side: float, x: float = 0.0) -> Box:
    return Box(label, x, 0.0, x + side, side)


def test_shares_in_all_and_by_what_boxes_are_like() -> None:
    layouts = (
        (box("pear", 0.2), box("apple", 0.19)),  # the apple hides the pear
        (box("apple", 0.4), box("fig", 0.4, 0.5), box("quince", 0.4)),  # none knows quinces, which hide the apple
        (box("pear", 0.7),),
    )
    judge = Judge(layouts, taught(pear=LEAST, apple=LEAST, fig=LEAST))
    assert judge.unjudged == 1
    assert judge.commonest == ("pear", 2 / 5)
    seen = AXES[[0, 2, 1, 2, 1, 1]]  # pear, fig, apple, fig, apple, apple
    assert judge.right(seen) == Right(
        share(3, 5), {"small": share(1, 2), "medium": share(2, 2), "large": share(0, 1)}, share(2, 2)
    )


def test_sizes_are_of_the_sides_of_a_square_as_large() -> None:
    sides = (0.33, 0.34, 0.49, 0.51)
    assert [size_of(box("pear", side)) for side in sides] == ["small", "medium", "medium", "large"]
    assert size_of(Box("pear", 0.0, 0.0, 1.0, 0.1)) == "small"
    assert size_of(Box("pear", 0.0, 0.0, 1.0, 0.12)) == "medium"


def test_without_a_label_that_is_known_there_is_nothing_to_judge() -> None:
    with pytest.raises(ValueError, match=r"^no label that is asked for is among those to learn, as 'quince'$"):
        Judge([(box("quince", 0.5),)], taught(pear=LEAST, apple=LEAST))


def test_real_crops_of_scenes_are_read() -> None:
    """Five labels, in two styles, before any background, behind and before others, by the real network."""
    labels = scenes.LABELS[:5]
    net = features.smaller(64)
    sets = [[Scenes(n, seed=seed, labels=labels)[i] for i in range(n)] for seed, n in ((2, 16), (1, 10))]
    rows = [net(crops(torch.stack([s["image"] for s in part]), [s["boxes"] for s in part], 64)) for part in sets]
    known = learnt(rows[0], [box.label for s in sets[0] for box in s["boxes"]])
    judge = Judge([s["boxes"] for s in sets[1]], known)
    assert known.labels == tuple(sorted(labels))
    right = judge.right(rows[1]).all
    assert right.n > 20
    assert right.hits / right.n > 0.9
    shuffled = judge.right(rows[1].roll(7, 0)).all
    assert shuffled.hits / shuffled.n < 0.5
