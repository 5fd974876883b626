"""`generate --boxes`, what is inside its pictures, `reproduce` of them, and what `inspect` says of such models."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from console import Run, Said
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import laid
from sfumato.boxes import Box, described
from sfumato.io import infotext, pictures
from sfumato.request import Request

MODELS = {kind: {} for kind in laid.CONFIGS} | {"many": {"names": tuple(f"thing {i:03}" for i in range(200))}}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for kind, changes in MODELS.items():
        laid.folder(root / kind, "names" if kind == "many" else kind, **changes)
    return root


@pytest.fixture(autouse=True)
def here(home: Path, models: Path) -> Path:
    """The folder that commands run in, beside models that are asked with boxes, and layouts for them."""
    for kind in MODELS:
        (home / kind).symlink_to(models / kind)
    for kind in laid.CONFIGS:
        laid.written(home / f"{kind}.json", [described(box) for box in laid.boxes(kind)])
    return home


def asked(sfumato: Run, kind: str, *more: object, boxes: str | None = None) -> Said:
    return sfumato("generate", *more, "--model", kind, "--boxes", boxes or f"{kind}.json", "--seed", 7)


def told(said: Said) -> list[dict[str, Any]]:
    assert said.code == 0, said
    return json.loads(said.out)["pictures"]


def refused(said: Said) -> str:
    assert said.code == 2, said
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert len(said.err) < 900
    return said.err.removeprefix("sfumato: ")


def again(sfumato: Run, path: object, kind: str, *more: object) -> str:
    said = sfumato("reproduce", path, "--model", kind, *more)
    assert said.code == 0, said
    return said.out


SAME = "largest pixel difference: 0 of 255\n"


# Made, and made again ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", laid.CONFIGS)
def test_a_picture_of_boxes_says_them_and_is_made_again(sfumato: Run, here: Path, kind: str) -> None:
    said = asked(sfumato, kind)
    assert (said.code, said.out, said.err) == (0, "pictures/picture-7.png  (seed 7)\n", "")
    path = here / "pictures/picture-7.png"
    found = pictures.parameters_of(path)
    assert found["request"]["boxes"] == [described(box) for box in laid.boxes(kind)]
    assert found["boxes"] == {"file": f"{kind}.json", "dropped": 0}
    (here / f"{kind}.json").unlink()
    assert again(sfumato, path, kind) == SAME


def test_other_boxes_make_another_picture(sfumato: Run, here: Path) -> None:
    asked(sfumato, "names")
    path = here / "pictures/picture-7.png"
    image, parameters = pictures.read(path), pictures.parameters_of(path)
    parameters["request"]["boxes"][0]["box"] = [0.5, 0.5, 1, 1]
    pictures.save_png(image, path, parameters)
    assert int(re.findall(r"\d+", again(sfumato, path, "names"))[0]) > 2
    parameters["request"]["boxes"][0]["box"] = [0.5, 0.5, 1, 2]
    pictures.save_png(image, path, parameters)
    line = refused(sfumato("reproduce", path, "--model", "names"))
    assert "are not understood: boxes.0: the box of 'apple' is [0.5, 0.5, 1, 2], outside the picture" in line


def test_captions_and_boxes_are_both_asked(sfumato: Run, here: Path) -> None:
    (here / "prompts.txt").write_text("a green pear\n")
    one, two = told(asked(sfumato, "words", "two dogs", "--from-file", "prompts.txt", "--negative", "red", "--json"))
    assert (one["request"]["prompt"], two["request"]["prompt"]) == ("two dogs", "a green pear")
    assert one["request"]["boxes"] == two["request"]["boxes"] == [described(b) for b in laid.boxes("words")]
    assert (one["tokens"], one["boxes_dropped"]) == (4, 0)
    assert again(sfumato, one["file"], "words") == SAME
    alone = sfumato("generate", "--model", "words", "--seed", 7, "--json")  # nothing is asked, and that can be painted
    assert "boxes" not in told(alone)[0]["request"]


def test_the_prompt_of_the_file_is_for_those_who_say_none(sfumato: Run, here: Path) -> None:
    boxes = [described(box) for box in laid.boxes("words")]
    laid.written(here / "prompted.json", {"prompt": "two dogs", "boxes": boxes})
    for more, prompt in (((), "two dogs"), (("a red apple",), "a red apple"), (("",), "")):
        (one,) = told(asked(sfumato, "words", *more, "--json", boxes="prompted.json"))
        assert one["request"]["prompt"] == prompt
    laid.written(here / "prompted.json", {"prompt": "two dogs", "boxes": [described(b) for b in laid.boxes("names")]})
    line = refused(asked(sfumato, "names", boxes="prompted.json"))
    assert line == (
        "prompted.json: it has a 'prompt', and this model is asked with boxes alone; leave it out, or say \"\" as the "
        "prompt\n"
    )
    assert asked(sfumato, "names", "", boxes="prompted.json").code == 0
    laid.written(here / "prompted.json", {"prompt": "x" * 8001, "boxes": []})
    line = refused(asked(sfumato, "words", boxes="prompted.json"))
    assert line.startswith("prompted.json: prompt: string should have at most 8000 characters")


@pytest.mark.parametrize(
    ("flags", "size"),
    [((), (16, 16)), (("--size", "24x32"), (24, 32)), (("--init", "init.png", "--extend", "0,8,16,0"), (32, 24))],
)
def test_pixels_are_those_of_the_picture_that_is_painted(
    sfumato: Run, here: Path, flags: tuple[str, ...], size: tuple[int, int]
) -> None:
    width, height = size
    entry = {"label": "dog", "box": [width / 2, height / 4, width, height], "unit": "px"}
    laid.written(here / "px.json", [entry])
    (one,) = told(asked(sfumato, "names", *flags, "--json", boxes="px.json"))
    assert one["request"]["size"] == [width, height]
    assert one["request"]["boxes"] == [{"label": "dog", "box": [0.5, 0.25, 1, 1]}]
    laid.written(here / "px.json", {"boxes": [entry], "size": [2 * width, 2 * height]})
    (one,) = told(asked(sfumato, "names", *flags, "--json", boxes="px.json"))
    assert one["request"]["boxes"] == [{"label": "dog", "box": [0.25, 0.125, 0.5, 0.5]}]


def test_in_a_hole_boxes_are_painted_and_it_is_made_again(sfumato: Run, here: Path) -> None:
    picture, white = pictures.read(here / "init.png"), torch.full((3, 16, 16), -1.0)
    white[:, 4:9, 4:9] = 1
    pictures.save_png(white, here / "mask.png", {})
    given_ = ("--init", "init.png", "--mask", "mask.png")
    (one,) = told(asked(sfumato, "words", "two dogs", *given_, "--negative", "red", "--json"))
    made = pictures.read(here / one["file"])
    assert torch.equal(made[white < 0], picture[white < 0])
    assert not torch.equal(made, picture)
    assert again(sfumato, one["file"], "words", *given_) == SAME
    changed = ("--init", "init.png", "--inversion", "--source", "a pear", "--sampler", "ddim", "--guidance", 1)
    (one,) = told(asked(sfumato, "words", "a red apple", *changed, "--json"))
    assert again(sfumato, one["file"], "words", "--init", "init.png") == SAME


# Many -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [31, 10_000])
def test_of_too_many_boxes_the_smallest_are_dropped_and_said(sfumato: Run, here: Path, n: int) -> None:
    rows = [{"label": "dog", "box": [0, 0, (i + 1) / n, (i + 1) / n]} for i in range(n)]
    laid.written(here / "many.json", rows)
    said = asked(sfumato, "names", "--json", boxes="many.json")
    (one,) = told(said)
    dropped = f"{n - 30:,} of {n:,} boxes were dropped, the smallest; the model reads 30"
    assert " ".join(said.err.split()) == dropped
    assert one["boxes_dropped"] == n - 30
    assert one["boxes"] == {"file": "many.json", "dropped": n - 30}
    assert len(one["request"]["boxes"]) == min(n, 1000)
    assert again(sfumato, one["file"], "names") == SAME
    laid.written(here / "many.json", rows[-30:])
    (only,) = told(asked(sfumato, "names", "--json", boxes="many.json"))
    assert torch.equal(pictures.read(here / only["file"]), pictures.read(here / one["file"]))
    rows[0] = {"label": "dgo", "box": rows[0]["box"]}  # dropped, and wrong
    laid.written(here / "many.json", rows)
    line = refused(asked(sfumato, "names", boxes="many.json"))
    assert line == "many.json, boxes[0]: unknown label 'dgo'; did you mean 'dog'? known: apple, dog, pear\n"


# Drawn ------------------------------------------------------------------------------------------------------


def test_the_boxes_are_drawn_over_a_larger_picture_beside(sfumato: Run, here: Path) -> None:
    said = asked(sfumato, "names", "--draw-boxes")
    assert said.out == "pictures/picture-7.png  (seed 7)\npictures/picture-7-boxes.png\n"
    plain, over = (pictures.read(here / f"pictures/picture-7{end}.png") for end in ("", "-boxes"))
    assert plain.shape == (3, 16, 16)
    larger = plain.repeat_interleave(32, 1).repeat_interleave(32, 2)
    assert over.shape == larger.shape == (3, 512, 512)
    same = (over == larger).all(0)
    one, _ = laid.boxes("names")
    left, top, right, bottom = (round(512 * side) for side in one[1:5])
    assert not same[top, left:right].any()  # on the outline
    assert not same[bottom - 1, left:right].any()
    assert same[top + 60 : bottom - 2, left + 2 : right - 2].all()  # within, under the name
    assert same[:60, :250].all()  # outside of both
    with pytest.raises(ValueError, match="holds no sfumato parameters"):
        pictures.parameters_of(here / "pictures/picture-7-boxes.png")
    (one_,) = told(asked(sfumato, "names", "--draw-boxes", "--json"))
    assert (one_["file"], one_["drawn"]) == ("pictures/picture-7_2.png", "pictures/picture-7_2-boxes.png")
    (here / "pictures/picture-7.png").unlink()  # what was drawn over it stays as it is
    assert asked(sfumato, "names", "--draw-boxes").out.splitlines()[1] == "pictures/picture-7-boxes_2.png"


# What cannot be asked ---------------------------------------------------------------------------------------

DOG = {"label": "dog", "box": [0, 0, 1, 1]}
REFUSED: list[tuple[str, tuple[object, ...], Any, str]] = [
    (
        "emoji",
        ("a dog",),
        [DOG],
        "this model was not trained with boxes; leave --boxes out, or ask one that was (by sfumato",
    ),
    ("names", ("a dog",), [DOG], "this model is asked with boxes alone; leave the prompts out"),
    ("names", ("--label", 3), [DOG], "this model is asked with boxes, not with a label"),
    ("names", (), [DOG, DOG, {"label": "dgo", "box": [0, 0, 1, 1]}], "l.json, boxes[2]: unknown label 'dgo'; did you "),
    ("words", (), [{"label": "red aple", "box": [0, 0, 1, 1]}], "l.json, boxes[0]: unknown word 'aple'; did you mean"),
    ("ldm", (), [DOG], "l.json, boxes[0]: unknown label 'dog'; this model knows no names, but classes from 0 to 398"),
    ("many", (), [{"label": "thing", "box": [0, 0, 1, 1]}], "thing 023 and 176 more"),
    ("names", (), {"boxes": [DOG, {**DOG, "box": [0, 0, 2, 1]}]}, "l.json, boxes[1]: the box of 'dog' is [0, 0, 2, 1]"),
    ("names", (), {"boxes": [DOG], "sise": 3}, "l.json: unknown key 'sise'; did you mean 'size'?"),
    ("names", ("--size", "20x16"), [DOG], "size 20x16 does not fit this model"),
    ("names", ("--size", "axb"), [DOG], "size 'axb' is not understood; write width x height"),
]


@pytest.mark.parametrize(("kind", "more", "content", "said"), REFUSED, ids=[row[3][:40] for row in REFUSED])
def test_a_refusal_is_a_line(
    sfumato: Run, here: Path, kind: str, more: tuple[object, ...], content: Any, said: str
) -> None:
    laid.written(here / "l.json", content)
    assert said in refused(asked(sfumato, kind, *more, boxes="l.json"))
    assert not (here / "pictures").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--boxes", "nowhere.json"), "nowhere.json cannot be opened (No such file or directory)"),
        (("--boxes", "bare"), "bare: it is a folder, a pipe or a device; give a file"),
        (("--boxes", "latin.txt"), "latin.txt: not UTF-8 text; save the file again as UTF-8"),
        (("--boxes", "empty.txt"), "empty.txt, line 3: not JSON (Expecting value); a layout is a list of boxes"),
        (("--boxes",), "--boxes is given without a value"),
        (("--draw-boxes",), "--draw-boxes says nothing without --boxes; give both or neither"),
    ],
)
def test_what_is_no_file_of_boxes(sfumato: Run, flags: tuple[str, ...], said: str) -> None:
    assert said in refused(sfumato("generate", "--model", "names", *flags))


# What others say and read -----------------------------------------------------------------------------------

# The web UI of A1111 takes the last line apart with this expression, if it finds at least three parameters.
PARAMETER = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def read_by_others(text: str) -> dict[str, str]:
    found = PARAMETER.findall(text.strip().split("\n")[-1])
    assert len(found) >= 3
    return {key: json.loads(value) if value[:1] == value[-1:] == '"' else value for key, value in found}


LABELS = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=30).filter(str.strip)
SIDES = st.tuples(st.floats(0, 0.5), st.floats(0.6, 1))


@given(st.lists(st.tuples(LABELS | st.sampled_from(['a "b", c: d', "\\", '"', "Seed: 3, Size: 1x1"]), SIDES, SIDES)))
def test_other_tools_read_the_boxes_as_one_field_more(rows: list[Any]) -> None:
    boxes = tuple(Box(label, x[0], y[0], x[1], y[1]) for label, x, y in rows)
    common = {"prompt": "a dog", "sampler": "ddim", "steps": 3, "size": (8, 8), "seed": 4}
    with_, without = (read_by_others(infotext.write(Request(**common, boxes=b), "tiny")) for b in (boxes, None))
    assert {key: value for key, value in with_.items() if key != "Boxes"} == without
    if boxes:
        assert json.loads(with_["Boxes"]) == [described(box) for box in boxes]
        assert Request(boxes=json.loads(with_["Boxes"])).boxes == boxes
    else:
        assert with_ == without


def test_the_line_in_a_picture(sfumato: Run, here: Path) -> None:
    asked(sfumato, "words", "two dogs", "--negative", "red")
    with Image.open(here / "pictures/two-dogs-7.png") as picture:
        found = read_by_others(picture.info["parameters"])
    assert json.loads(found["Boxes"]) == [described(box) for box in laid.boxes("words")]
    assert (found["Seed"], found["Size"], found["Version"]) == ("7", "16x16", "sfumato")


# inspect ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        ("names", ["asked with boxes with labels", "boxes up to 30", "labels 3: apple, dog, pear"]),
        ("many", ["labels 200: thing 000, thing 001, ", "thing 023 and 176 more (--json lists them)"]),
        (
            "words",
            ["boxes up to 3", "captions beside the boxes or alone", "labels by their words", "words 12: 3d, apple"],
        ),
        (
            "ldm",
            ["asked with boxes, as LDM's sequence of numbers", "boxes up to 3", "labels classes by number, 0 to 398"],
        ),
    ],
)
def test_inspect_says_what_a_model_knows(sfumato: Run, kind: str, lines: list[str]) -> None:
    said = sfumato("inspect", kind)
    assert said.code == 0, said
    text = "\n".join(" ".join(line.split()) for line in said.out.splitlines())
    assert all(line in text for line in lines), text
    assert max(map(len, said.out.splitlines())) < 500


def test_inspect_lists_all_labels_as_json(sfumato: Run) -> None:
    assert json.loads(sfumato("inspect", "many", "--json").out)["labels"] == list(MODELS["many"]["names"])
    assert "labels" not in json.loads(sfumato("inspect", "emoji", "--json").out)


def test_help_says_what_boxes_are(sfumato: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        sfumato("generate", "--help")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--boxes FILE What is to be where, for models that are asked with boxes" in text
    assert '[{"label": "dog", "box": [0.1, 0.2, 0.6, 0.9]}]: left, top, right, bottom' in text
    assert "--draw-boxes" in text


def test_modifiers_that_the_model_has_no_numbers_for_are_a_line_with_file_and_entry(sfumato: Run, home: Path) -> None:
    boxes = [described(box) for box in laid.boxes("ldm")]
    laid.written(home / "said.json", [boxes[0], {**boxes[1], "modifiers": ["inside"]}])
    line = "said.json, boxes[1]: the box of '11' has modifiers that this model has no numbers for; leave them out\n"
    assert refused(asked(sfumato, "ldm", boxes="said.json")) == line
