"""`sfumato evaluate --layout`: the whole command with a tiny model, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from console import Run, Said
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

import tiny_layout
from sfumato.cli import layouts
from sfumato.data import scenes
from sfumato.data.sample import Dataset
from sfumato.evaluate import features, layout
from sfumato.io import pictures

ROWS = ("real", "reconstructed", "boxes and prompt", "boxes alone", "prompt alone", "nothing")


class Small:
    """A crop in sixteen pixels."""

    name, dim = "sixteen pixels", 48

    def __call__(self, images: Tensor) -> Tensor:
        return adaptive_avg_pool2d(images, 4).flatten(1)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few labels, few crops to learn, and no network that looks at them."""
    monkeypatch.setattr(layouts, "LABELS", scenes.LABELS[:6])
    monkeypatch.setattr(layout, "LEARNT", 100)
    monkeypatch.setattr(features, "smaller", lambda side: Small())


@pytest.fixture
def laid(home: Path) -> Path:
    return tiny_layout.folder(home / "laid")


def refused(said: Said) -> str:
    assert said.code == 2, said
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.usefixtures("quick")
def test_the_whole_of_it(sfumato: Run, laid: Path, home: Path) -> None:
    said = sfumato("evaluate", laid, "--layout", "--n", 12, "--sheet", "sheet.png", "--out", "score.json", "--json")
    assert (said.code, said.err) == (0, "")
    found = json.loads(said.out)
    assert json.loads((home / "score.json").read_text()) == found
    assert tuple(found["kinds"]) == ROWS
    assert (found["model"], found["data"], found["seed"], found["pictures"]) == ("laid", "scenes of seed 1", 1, 12)
    assert found["labels"] == 6
    assert 100 <= found["learnt"] < 106
    right = {name: kind["right"]["all"] for name, kind in found["kinds"].items()}
    assert {one["n"] for one in right.values()} == {found["boxes"]}
    assert right["real"]["share"] > right["boxes and prompt"]["share"]
    assert right["real"]["low"] < right["real"]["share"] <= right["real"]["high"]
    assert not {"layouts", "real", "painted"} & found.keys()
    with Image.open("sheet.png") as picture:  # 24 pictures of 192, eight in a row, two pixels about each
        assert picture.size == (8 * 194 + 2, 3 * 194 + 2)
    assert pictures.parameters_of(home / "sheet.png")["pairs"] == ["real", "painted"]
    other = json.loads(sfumato("evaluate", laid, "--layout", "--n", 12, "--json", "--seed", 2).out)
    assert other["data"] == "scenes of seed 2"
    assert other["boxes"] != found["boxes"]


@pytest.mark.usefixtures("quick")
def test_what_a_person_reads(sfumato: Run, laid: Path) -> None:
    said = sfumato("evaluate", laid, "--layout", "--n", 12)
    assert (said.code, said.err) == (0, "")
    rows = said.out.splitlines()
    assert all(row.startswith(f"{name} ") for row, name in zip(rows[1:7], ROWS, strict=True))
    assert all(len(row) <= 110 for row in rows)
    about = "\n".join(rows[7:])
    for part in (
        "12 layouts (scenes of seed 1), ",
        "real crops of other pictures (sixteen pixels)",
        "by chance: one of 6 labels is 16.7%; always '",
        "distance: not measured: it takes 200 crops",
    ):
        assert part in about


def folder_of(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let any folder hold so many patches of colour."""

    def opened(path: Path, *, size: int) -> Dataset:
        assert size == tiny_layout.SIDE
        return tiny_layout.Patches(n)

    monkeypatch.setattr(layouts, "opened", opened)


@pytest.mark.usefixtures("quick")
def test_of_a_folder_one_in_twenty_is_measured_and_the_others_are_learnt(
    sfumato: Run, laid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(80, monkeypatch)
    found = json.loads(sfumato("evaluate", laid, "--layout", "--data", "mine", "--json").out)
    assert (found["data"], found["pictures"]) == ("mine, one picture in twenty", 4)
    assert found["labels"] == 4
    assert found["kinds"]["real"]["right"]["all"]["share"] == 1
    folder_of(39, monkeypatch)
    line = "mine has 39 pictures; some are measured, others learnt from: it takes 40"
    assert line in refused(sfumato("evaluate", laid, "--layout", "--data", "mine"))


@pytest.mark.usefixtures("quick", "laid")
def test_a_part_that_is_learnt_from_is_not_measured(sfumato: Run, home: Path) -> None:
    """Of a folder without training pictures all are, and so the part for validation too."""
    for i in range(2):
        pictures.save_png(tiny_layout.Patches(2)[i]["image"], home / f"mine/val/{i}.png", {})
        (home / f"mine/val/{i}.bbox").write_text('[{"label": "rose", "bbox": [0, 0, 1, 1]}]')
    for part in ("train", "val"):
        said = sfumato("evaluate", "laid", "--layout", "--data", "mine", "--part", part)
        assert f"the part '{part}' of mine is what training learns from; name another, or none" in refused(said)


@pytest.mark.usefixtures("quick")
def test_a_model_that_reads_no_prompts_is_asked_in_two_ways(sfumato: Run, home: Path) -> None:
    path = tiny_layout.folder(home / "silent", captions=False)
    found = json.loads(sfumato("evaluate", path, "--layout", "--n", 4, "--json").out)
    assert tuple(found["kinds"]) == ("real", "reconstructed", "boxes", "nothing")


@pytest.mark.usefixtures("quick")
def test_a_model_of_few_labels_is_asked_for_scenes_of_these(sfumato: Run, home: Path) -> None:
    known = scenes.LABELS[1:4]
    path = tiny_layout.folder(home / "few", words=f"3d: {' '.join(known)}")
    found = json.loads(sfumato("evaluate", path, "--layout", "--n", 8, "--json").out)
    assert found["data"] == "scenes of seed 1 with the 3 labels that the model knows"
    assert found["labels"] == 3
    one = tiny_layout.folder(home / "one", words=f"3d: {known[0]}")
    line = "this model knows 1 of the 6 labels of scenes; say in --data which pictures with boxes it is measured with"
    assert line in refused(sfumato("evaluate", one, "--layout"))


@pytest.mark.usefixtures("laid")
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("emoji", "--layout"), "this model was not trained with boxes, so it has no layouts to be asked for"),
        (("emojo", "--layout"), "unknown model 'emojo'; did you mean 'emoji'?"),
        (("laid", "--layout", "--n", 0), "n is 0; at least one layout is needed"),
        (("laid", "--layout", "--n", 2**32), "4294967296 scenes cannot be made"),
        (("laid", "--layout", "--seed", -1), "seed is -1; it must be 0 to 2^64 - 1"),
        (("laid", "--layout", "--first-stage"), "--first-stage and --layout measure two things; ask for one after the"),
        (("laid", "--layout", "--size", 16), "--size says nothing without --first-stage; give both or neither"),
        (
            ("laid", "--layout", "--features", "x"),
            "--features says nothing without --first-stage; give both or neither",
        ),
        (("laid", "--layout", "--sheet", "x.jpg"), "x.jpg does not end in .png; the sheet is a PNG"),
        (("laid", "--layout", "--out", "bare"), "bare is a folder; name a file"),
        (("laid", "--layout", "--data", "nowhere"), "nowhere: there is no such folder"),
        (
            ("laid", "--layout", "--data", "captioned"),
            "captioned says nothing of where things are in 1 of 1 pictures, first 0.png; layouts need boxes",
        ),
        (("laid",), "this model is asked with boxes; --layout measures how it paints them"),
        (("laid", "--data", "bare"), "--data says nothing without --first-stage or --layout; give one of them"),
        (("laid", "--out", "x"), "--out says nothing without --first-stage or --layout; give one of them"),
    ],
    ids=lambda x: " ".join(map(str, x))[:50] if isinstance(x, tuple) else "",
)
def test_a_refusal_is_a_line(sfumato: Run, home: Path, arguments: tuple[object, ...], line: str) -> None:
    before = sorted(home.rglob("*"))
    assert line in refused(sfumato("evaluate", *arguments))
    assert sorted(home.rglob("*")) == before
