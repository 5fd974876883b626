"""What the documents show, runs."""

import math
import re
from pathlib import Path

import pytest

from contracts.test_every_sampler import declared, error, size, solved, stretch
from models.test_published import COUNTS
from sfumato.diffusion.samplers import SAMPLERS
from sfumato.diffusion.schedule import Flow

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture(autouse=True)
def _registry_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for inner in ("_things", "_names"):
        monkeypatch.setattr(SAMPLERS, inner, dict(getattr(SAMPLERS, inner)))


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_python_blocks_run_in_order(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = BLOCK.findall((ROOT / name).read_text(encoding="utf-8"))
    assert blocks
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "document"}
    for block in blocks:
        exec(compile(block, name, "exec"), namespace)


def test_the_example_sampler_keeps_its_promise() -> None:
    """Ralston's method of CONTRIBUTING.md is of second order on the exact denoiser of a Gaussian mixture."""
    exec(compile(BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text())[0], "CONTRIBUTING.md", "exec"), {})
    entry, path = SAMPLERS["ralston"], Flow()
    (x, end), (a, b) = solved(), stretch(path)
    few, many = (error(entry, path, a, b, n, "lam", x * size(a), end * size(b)) for n in (84, 168))
    assert math.log2(few / many) >= declared(entry) - 0.2


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "docs/formalism.md", "docs/house.md", "docs/emoji.md"]
)
def test_files_that_documents_name_are_there(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    named = re.findall(r"`((?:src|tests|tools|docs|recipes|diffusion|nets|latents|train|io)/[\w./-]+\.\w+)`", text)
    assert named
    for path in named:
        assert (ROOT / path).exists() or (ROOT / "src/sfumato" / path).exists(), path


def test_the_table_of_networks_is_what_the_tests_count() -> None:
    text = (ROOT / "docs" / "networks.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| ([\d,]{7,}) \|", text, re.MULTILINE)
    assert {name: int(count.replace(",", "")) for name, count in rows} == COUNTS
