"""SIGTERM at the command line: a step is finished and saved, everything else ends at once, and it is no failure."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fill import inp
from quick import features_are_means
from sfumato.cli.main import main
from sfumato.io import pictures
from sfumato.recipes import delivered, first_stage, latents, pixels
from sfumato.train import fit, stop

PIXELS = [
    *("model.unet.width=8", "model.unet.mult=[1,2]", "model.unet.head_dim=8", "defaults.steps=1"),
    *("diffusion.plan.steps=8", "diffusion.plan.save=3", "diffusion.plan.preview=4", "diffusion.plan.batch=3"),
    *("diffusion.plan.warmup=2", "defaults.guidance=1.0"),
]
STAGE = [
    *("size.channels=4", "size.mult=[1,2]", "size.latent_channels=2", "resolution=32", "run.crop=16"),
    *("run.plan.steps=4", "run.plan.batch=2", "run.plan.save=3", "run.losses.perceptual=0", "run.adversary=none"),
]
WHOLE = [
    *("model.unet.width=16", "model.unet.mult=[1,2]", "model.unet.head_dim=8", "model.unet.attention=[2]"),
    *("model.unet.context_dim=16", "model.unet.vector_dim=16", "model.unet.channels=2", "model.resolution=32"),
    *(f"model.conditioner.encoder.{s}" for s in ("dim=16", "depth=1", "length=10", "heads=2")),
    *("diffusion.plan.steps=2", "diffusion.plan.batch=2", "defaults.steps=1", "defaults.guidance=1.0"),
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for i in range(6):
        pictures.save_png((inp(f"{i}", 3, 32, 32) / 2).clamp(-1, 1), tmp_path / "things" / f"{i}.png", {})
        (tmp_path / "things" / f"{i}.txt").write_text("a thing")
    return tmp_path / "things"


@pytest.fixture(autouse=True)
def handler(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The one of before is back afterwards."""
    features_are_means(monkeypatch)
    before = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) is before
    assert not stop.asked()


def at_call(owner: Any, name: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM at the n-th call of a function, once."""
    real: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def called(*given: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == n:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*given, **more)

    monkeypatch.setattr(owner, name, called)


def train(recipe: str, out: Path, *more: Any, capsys: pytest.CaptureFixture[str]) -> str:
    """The last line that it says."""
    arguments = [str(x) for x in ("train", recipe, "--out", out, *more)]
    code = main(arguments)
    said = capsys.readouterr().err
    assert code == 0, said
    return said.splitlines()[-1]


def weights(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (out / "model").glob("*.safetensors")}


@pytest.mark.parametrize("step", [3, 4, 8])
@pytest.mark.parametrize("where", [(fit, "_gradients"), (fit, "Progress")], ids=["in a step", "at its end"])
def test_in_a_stage(
    where: tuple[Any, str], step: int, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("pixels", tmp_path / "whole", "--data", data, "--set", *PIXELS, capsys=capsys)
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        at_call(*where, step, patch)
        said = train("pixels", out, "--data", data, "--set", *PIXELS, capsys=capsys)
    assert said == f"stopped at step {step}; go on with: sfumato train pixels --out {out} --resume"
    assert (out / "diffusion" / f"step-{step}" / "manifest.json").is_file()
    assert train("pixels", out, "--resume", capsys=capsys).startswith("model: ")
    assert weights(out) == weights(tmp_path / "whole")
    last = Path("diffusion") / "step-8" / "state.safetensors"
    assert (out / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()


def test_while_a_preview_of_a_stage_is_made(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The preview is finished first."""
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        at_call(delivered, "generate", 1, patch)
        said = train("pixels", out, "--data", data, "--set", *PIXELS, capsys=capsys)
    assert said == f"stopped at step 4; go on with: sfumato train pixels --out {out} --resume"
    assert sorted(p.name for p in (out / "samples").iterdir()) == ["step-4.png"]
    assert (out / "diffusion" / "step-4").is_dir()


def test_after_the_last_step(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train("pixels", tmp_path / "whole", "--data", data, "--set", *PIXELS, capsys=capsys)
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        at_call(delivered, "generate", 2, patch)
        said = train("pixels", out, "--data", data, "--set", *PIXELS, capsys=capsys)
    assert said == f"stopped; go on with: sfumato train pixels --out {out} --resume"
    assert not (out / "samples" / "step-8.png").exists()
    train("pixels", out, "--resume", capsys=capsys)
    assert weights(out) == weights(tmp_path / "whole")


def test_while_latents_are_encoded_or_a_report_is_made(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "stage"
    with pytest.MonkeyPatch.context() as patch:
        at_call(first_stage, "report", 1, patch)
        said = train("kl-f4", out, "--data", data, "--set", *STAGE, capsys=capsys)
    assert said == f"stopped; go on with: sfumato train kl-f4 --out {out} --resume"
    assert not (out / "report.md").exists()
    train("kl-f4", out, "--resume", capsys=capsys)
    assert (out / "report.md").is_file()

    made = tmp_path / "made"
    given = ("--data", data, "--first-stage", out, "--set", *WHOLE)
    with pytest.MonkeyPatch.context() as patch:
        at_call(latents, "posterior", 1, patch)
        said = train("emoji", made, *given, capsys=capsys)
    assert said == f"stopped; go on with: sfumato train emoji --out {made} --resume"
    assert not list((made / "latents").rglob("part-*"))
    assert train("emoji", made, "--resume", capsys=capsys).startswith("model: ")


def test_before_anything_is_written(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        at_call(pixels, "opened", 2, patch)
        said = train("pixels", out, "--data", data, "--set", *PIXELS, capsys=capsys)
    assert said == "stopped before anything was written"
    assert not out.exists()


def test_an_interrupt_is_as_before(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        calls = iter([0] * 5)

        def interrupted(*_: Any, **__: Any) -> Any:
            os.kill(os.getpid(), signal.SIGINT)
            return next(calls)

        patch.setattr(fit, "_gradients", interrupted)
        arguments = ["train", "pixels", "--out", str(out), "--data", str(data), "--set", *PIXELS]
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
        try:
            assert main(arguments) == 130
        finally:
            signal.signal(signal.SIGINT, before)
    said = capsys.readouterr().err.splitlines()
    assert said[-2:] == [
        f"stopped; go on with: sfumato train pixels --out {out} --resume",
        "sfumato: interrupted",
    ]
