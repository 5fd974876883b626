"""`sfumato data`: the report on standard output, one line and the exit code for what cannot be trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from console import Run

from folders import fill
from sfumato.data import opened
from sfumato.data.scenes import LABELS, Scenes
from sfumato.io import pictures


def test_check_says_what_is_there(sfumato: Run, home: Path) -> None:
    said = sfumato("data", "check", "captioned")
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines() == [
        "captioned: captions beside the pictures",
        "pictures         1",
        "width            16 to 16, median 16",
        "height           16 to 16, median 16",
        "captions         1 of 1 pictures have one; 1 in all, of 2.0 words each",
        "of these         0 turned by EXIF, 0 with alpha, 0 of 16 bits, 0 CMYK",
    ]


def test_what_cannot_be_trained_on_ends_with_its_line(sfumato: Run, home: Path) -> None:
    trained = sfumato("train", "emoji", "--data", "broken", "--out", "x")
    said = sfumato("data", "check", "broken", "--thorough")
    assert (said.code, said.err) == (2, trained.err)
    assert "line 2: 'file_name' is missing" in said.err
    assert said.out.startswith("broken: metadata.jsonl\n")


def test_json_is_one_object(sfumato: Run, home: Path) -> None:
    fill(home / "many", {f"{i:02}.png": "no" for i in range(30)})
    said = sfumato("data", "check", "many", "--json")
    assert said.code == 2
    found = json.loads(said.out)
    assert len(found["broken"]) == 30
    assert said.err == f"sfumato: {found['refusal']}\n"
    assert found["duplicates"] is None
    assert json.loads(sfumato("data", "check", "captioned", "--json", "--thorough").out)["duplicates"] == []


@pytest.mark.parametrize("arguments", [(), ("--help",), ("check", "--help"), ("scenes", "--help")])
def test_help(sfumato: Run, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as stop:
        sfumato("data", *arguments)
    assert stop.value.code in (0, None)
    assert "usage: sfumato data" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("chek", "x"), "unknown command 'data chek'; did you mean 'data check'? known: data check, data scenes"),
        (("check",), "DIR is missing; see: sfumato data check --help"),
        (("check", "nowhere"), "nowhere: there is no such folder"),
        (("check", "init.png"), "init.png: neither a folder nor a .tar; unpack other archives first"),
        (
            ("check", "captioned", "--part", "val"),
            "captioned: there is no part 'val'; it has no parts, and is read whole",
        ),
        (("check", "captioned", "--draw", "x.jpg"), "--draw is x.jpg; it must be the name of a .png"),
        (("check", "captioned", "--draw", "init.png"), "init.png is there already; choose another name"),
        (("scenes",), "OUT is missing; see: sfumato data scenes --help"),
        (("scenes", "captioned"), "captioned is there already; choose another place"),
        (("scenes", "x", "--size", "8"), "--size is 8; a scene has a side of 32 to 1024 pixels"),
        (
            ("scenes", "x", "--labels", "pizza", "pezza"),
            "unknown label 'pezza'; did you mean 'pizza'? known: " + ", ".join(LABELS),
        ),
        (("scenes", "x", "-n", "0"), "0 scenes cannot be made; ask for 1 to 2^32 - 1"),
    ],
)
def test_refusals(sfumato: Run, home: Path, arguments: tuple[str, ...], line: str) -> None:
    said = sfumato("data", *arguments)
    assert (said.code, said.out, said.err) == (2, "", f"sfumato: {line}\n")


def test_scenes_are_written_and_drawn(sfumato: Run, home: Path) -> None:
    said = sfumato("data", "scenes", "many", "-n", 3, "--seed", 5, "--size", 32)
    assert (said.code, said.out, said.err) == (
        0,
        "many: 3 scenes of 32 x 32 pixels, with boxes of 64 labels and captions\n",
        "",
    )
    whole, scenes = opened(home / "many", size=32), Scenes(3, seed=5, side=32)
    assert [whole[i]["caption"] for i in range(3)] == [scenes[i]["caption"] for i in range(3)]
    looked = sfumato("data", "check", "many", "--draw", "sheet.png")
    assert (looked.code, looked.err) == (0, "sheet.png: 3 of the pictures with their boxes\n")
    assert looked.out.startswith("many: COCO captions and boxes\n")
    assert pictures.read(home / "sheet.png").shape == (3, 228, 3 * 226 + 2)
    found = json.loads(sfumato("data", "check", "many", "--json").out)["boxes"]
    assert found["boxes"] == sum(len(scenes[i]["boxes"]) for i in range(3))


def test_scenes_of_some_labels(sfumato: Run, home: Path) -> None:
    said = sfumato("data", "scenes", "few", "-n", 4, "--size", 32, "--labels", "red apple", "pizza")
    assert (said.code, said.out) == (0, "few: 4 scenes of 32 x 32 pixels, with boxes of 2 labels and captions\n")
    assert {box.label for i in range(4) for box in opened(home / "few", size=32)[i]["boxes"]} <= {"red apple", "pizza"}


def test_what_cannot_be_trained_on_is_drawn_too(sfumato: Run, home: Path) -> None:
    said = sfumato("data", "check", "broken", "--draw", "sheet.png")
    assert (said.code, len(said.err.splitlines())) == (2, 2)
    assert (home / "sheet.png").exists()
