"""`sfumato encode` keeps what a training reads, and encodes what is new alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from console import Run

from fill import inp
from sfumato.io import pictures


@pytest.fixture
def data(home: Path) -> Path:
    for i in range(5):
        pictures.save_png((0.4 * inp(f"{i}", 3, 20, 24)).clamp(-1, 1), home / "many" / f"{i}.png", {})
        (home / "many" / f"{i}.txt").write_text(f"thing {i}")
    return home / "many"


def test_what_is_new_is_encoded_alone(sfumato: Run, data: Path) -> None:
    said = sfumato("encode", data, "--json")
    assert said.code == 0, said.err
    assert "latents: 5 of 5 pictures are to be encoded" in said.err
    found = json.loads(said.out)
    assert (found["pictures"], found["encoded"], found["size"]) == (5, 5, 16)
    pictures.save_png(inp("new", 3, 20, 24).clamp(-1, 1), data / "3.png", {})
    said = sfumato("encode", data)
    assert said.code == 0, said.err
    assert f"{found['out']}: latents of 5 pictures of 16x16 (tiny), 1 of them new\n" == said.out
    assert sfumato("encode", data, "--size", "24", "--json").out.count('"encoded": 5') == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("encode",), "DIR is missing; see: sfumato encode --help"),
        (("encode", "nowhere"), "nowhere: there is no such folder"),
        (("encode", "many", "--size", "7"), "size 7 does not fit this first stage; it must divide by 4 (near: 8)"),
        (("encode", "many", "--vae", "nowhere"), "unknown model 'nowhere'"),
        (("encode", "many", "--out", "empty.txt"), "empty.txt is a file; choose another place"),
    ],
)
@pytest.mark.usefixtures("data")
def test_a_refusal_is_a_line(sfumato: Run, arguments: tuple[str, ...], said: str) -> None:
    found = sfumato(*arguments)
    assert (found.code, found.out) == (2, "")
    assert said in found.err.splitlines()[-1]
