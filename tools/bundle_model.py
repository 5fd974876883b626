"""Put the model of a finished run into the package, in few bytes, measured, with its card.

    python tools/bundle_model.py runs/emoji --hardware "2 cores of an AMD EPYC (Zen 4), one thread"

The card says what `sfumato evaluate` says of the model as it is bundled, so its numbers are those of the weights that ship.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.io import model_folder, opening

ROOT = Path(__file__).resolve().parent.parent
GRID = ROOT / "docs" / "pictures" / "emoji.png"

CARD = """# {name}

A latent diffusion model of {side}x{side} pixels that paints emoji from a caption, trained from nothing by
`sfumato train emoji` on a CPU. It is small and knows little: the {concepts} concepts that it was shown, in the styles
{styles}. It ships so that everything in this project can be tried offline.

![The first 64 prompts of the evaluation](../../../../../docs/pictures/emoji.png)

The grid is not picked by hand: the first 64 of the captions that `sfumato evaluate {name}` draws, seeds 0 to 63.

## Scores

`sfumato evaluate {name}`, by pooled MobileNetV2 features: is the real picture that the caption names the nearest one of its
style? The ceiling is the same question for the first stage's reconstructions of the real pictures.

| captions | n | | top-1 | top-5 | group |
|---|---|---|---|---|---|
{rows}

First stage: PSNR {psnr:.2f} dB on {psnr_n} pictures of concepts that were never trained on.

## Data

{material}: {diffusion} pictures for the denoiser, {first} pictures (all concepts, four styles) for the first stage. Both leave
out the concepts and the single styles that `sfumato.data.emoji` withholds. The pictures and their licences are in
`src/sfumato/bundled/worlds/emoji-64`.

## Recipe, time and hardware

`sfumato train emoji` with the recipe in `src/sfumato/recipes/emoji.py` as model.json repeats it: the first stage {fs_steps:,}
steps of {fs_batch} pictures in {fs_minutes:.0f} minutes, the denoiser {steps:,} steps of {batch} ({passes:.0f} passes over its
pictures) in {minutes:.0f} minutes, {skipped} steps skipped. Hardware: {hardware}. The weights are the average
({about}).

## Limits

It does not know what it was not shown; words that it has not read are spelt out and mean nothing to it. People, places,
flags, symbols and most objects are not among its concepts. It is no product.
"""


def main() -> int:
    """Run the tool."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", default="emoji")
    parser.add_argument("--hardware", required=True)
    asked = parser.parse_args()

    loaded = opening.load(asked.run / "model")
    home = model_folder.BUNDLED / asked.name
    entry = loaded.file.weights[loaded.weights]
    provenance = {**loaded.file.provenance, "hardware": asked.hardware}
    model_folder.save(
        home,
        loaded.file.model_copy(update={"name": asked.name, "provenance": provenance}),
        {
            loaded.weights: (
                f"{entry.about}, rounded to half precision, the convolutions of the first stage to a quarter",
                loaded.model.state_dict(),
            )
        },
        tokenizer=model_folder.tokenizer(asked.run / "model", loaded.file.config),
        kept_as=small,
    )
    command = [
        sys.executable,
        "-m",
        "sfumato.cli.main",
        "evaluate",
        asked.name,
        "--json",
        "--sheet",
        str(GRID),
    ]
    scores = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    (home / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    (home / "README.md").write_text(card(asked.name, asked.run, scores, asked.hardware), encoding="utf-8")
    print(home)
    return 0


def small(name: str, weight: Tensor) -> torch.dtype:
    """Half precision; a quarter for the convolutions of the first stage, which only correct its linear maps."""
    convolution = name.startswith("first_stage.") and ".layers." in name and weight.ndim == 4  # noqa: PLR2004
    return torch.float8_e4m3fn if convolution else torch.float16


def card(name: str, run: Path, scores: dict[str, Any], hardware: str) -> str:
    """The text of the card."""
    file = model_folder.describe(name)
    said = file.provenance
    plan, first = said["recipe"]["diffusion"]["plan"], said["recipe"]["first_stage"]["plan"]
    rows = [
        f"| {captions} | {s['n']} | {who} | {s['top1']:.1%} | {s['top5']:.1%} | {s['group']:.1%} |"
        for captions, both in scores["fidelity"].items()
        for who, s in both.items()
    ]
    return CARD.format(
        name=name,
        side=file.config.resolution,
        concepts=scores["concepts"],
        styles=" and ".join(scores["styles"]),
        rows="\n".join(rows),
        psnr=scores["first_stage_psnr"]["db"],
        psnr_n=scores["first_stage_psnr"]["n"],
        material=said["material"],
        diffusion=said["pictures"]["diffusion"],
        first=said["pictures"]["first stage"],
        fs_steps=first["steps"],
        fs_batch=first["batch"],
        fs_minutes=minutes(run / "first-stage"),
        steps=said["steps"],
        batch=plan["batch"],
        passes=said["images"] / said["pictures"]["diffusion"],
        minutes=minutes(run / "diffusion"),
        skipped=said["skipped"],
        hardware=hardware,
        about=file.weights[file.default].about,
    )


def minutes(stage: Path) -> float:
    """What the steps of a stage took, from its metrics."""
    lines = (stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return sum(json.loads(line)["seconds"] for line in lines) / 60


if __name__ == "__main__":
    sys.exit(main())
