"""Small pipelines of diffusers, in memory and as folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pipelines import pipeline


@pytest.fixture(scope="module", params=["sd1-small", "sd2-small"])
def pipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A pipeline and its folder."""
    folder = tmp_path_factory.mktemp(request.param)
    made = pipeline(request.param, folder)
    made.save_pretrained(folder / "pipe")
    return made, folder / "pipe"
