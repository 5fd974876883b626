"""The layout model that ships paints what it is asked for where it is asked for it."""

from __future__ import annotations

import json

import pytest

from sfumato.cli.main import main


@pytest.mark.slow
def test_it_paints_what_boxes_ask_for_and_without_them_what_chance_would(capsys: pytest.CaptureFixture[str]) -> None:
    """On scenes of a seed that nobody chose anything by."""
    assert main(["evaluate", "scenes", "--layout", "--n", "60", "--seed", "77", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    right = {name: kind["right"]["all"] for name, kind in found["kinds"].items()}
    assert found["labels"] == 64
    assert right["real"]["share"] > 0.9
    assert right["boxes and prompt"]["share"] > 0.5
    assert right["boxes alone"]["share"] > 0.5
    assert right["nothing"]["low"] < 1 / 64 + 0.01
    assert right["nothing"]["share"] < 0.08
