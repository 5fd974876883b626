"""Put the model of a finished run into the package, in few bytes, measured, with its card.

    python tools/bundle_model.py runs/emoji --hardware "2 cores of an AMD EPYC (Zen 4), one thread"
    python tools/bundle_model.py runs/scenes --name scenes --first-stage runs/before --eight-bits --hardware "..."

The card says what `sfumato evaluate` says of the model as it is bundled, so its numbers are those of the weights that ship.
A model that is asked with boxes is measured with `--layout`. If its first stage was given, `--first-stage` names the
run of the same recipe that trained it.
"""

import argparse
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.io import model_folder, opening
from sfumato.io.model_folder import ModelFile
from sfumato.models.config import BoxesConfig

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
Runs = tuple[Path, Path]
"""Those in which the first stage and the denoiser were trained."""
DOORS = tuple(f"denoiser.net.{part}." for part in ("conv_in", "conv_out", "short"))
LARGE = 20_000  # weights

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

LAYOUT_CARD = """# {name}

A latent diffusion model of {side}x{side} pixels that paints {labels} kinds of things where boxes say, trained from nothing by
`sfumato train layout` on a CPU. It is small, and ships so that boxes can be tried offline.

    sfumato generate "3d: on a blue background" --model {name} --boxes layout.json

![The first layouts of the evaluation, real pictures beside painted ones](../../../../../docs/pictures/{name}.png)

The sheet is not picked by hand: the first 24 layouts that `sfumato evaluate {name} --layout` draws, each with its real picture on
the left and what the model painted of its boxes and its prompt on the right, seeds 1 to 24.

## Scores

`sfumato evaluate {name} --layout`: {pictures} layouts of seed 1, {boxes} boxes; the model learnt from those of seed 0. A classifier that
learnt {learnt} real crops ({features}) reads the crop at each asked box: is it what was asked for? docs/layouts.md says what the measures are.

| pictures | right | 95 % | small | medium | large | IoU | distance of crops |
|---|---|---|---|---|---|---|---|
{rows}

By chance: one of {labels} labels is {chance:.1%}, always '{commonest}' {commonest_share:.1%}.

## Data

{material}, put together by seed from the pictures of `src/sfumato/bundled/worlds/emoji-64`, whose licences are there: 1 to 6 things
of {labels} kinds in the styles 3d and flat before plain, fading and striped backgrounds of eight colours (`sfumato data scenes` writes some).

## Recipe, time and hardware

`sfumato train layout` with the recipe in `src/sfumato/recipes/layout.py` as model.json repeats it: the first stage {fs_steps:,}
steps of {fs_batch} pictures in {fs_minutes:.0f} minutes ({psnr} dB on scenes never trained on), the denoiser {steps:,} steps of {batch} ({passes:.0f} passes
over its scenes) in {minutes:.0f} minutes, {skipped} steps skipped. Hardware: {hardware}. The weights are the average ({about}).

## Limits

It knows these {labels} kinds of things, two styles and these backgrounds, and words that it has not read are refused in a label. Where boxes
overlap, it was shown that those that come later in a scene lie in front, but not which those are. It is no product.
"""


def main() -> int:
    """Run the tool."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", default="emoji")
    parser.add_argument("--hardware", required=True)
    parser.add_argument("--first-stage", type=Path, help="the run that trained its first stage, if that was another")
    parser.add_argument(
        "--eight-bits", action="store_true", help="the U-Net's large weights too; measure what that costs"
    )
    asked = parser.parse_args()
    first = asked.first_stage or asked.run

    loaded = opening.load(asked.run / "model")
    home = model_folder.BUNDLED / asked.name
    entry = loaded.file.weights[loaded.weights]
    recipe = loaded.file.provenance["recipe"]
    trained_first = json.loads((first / "config.json").read_text(encoding="utf-8"))["settings"]["first_stage"]
    recipe = {**recipe, "name": asked.name, "first_stage": trained_first, "given": None}
    recipe["diffusion"] = {**recipe["diffusion"], "latents": None}
    provenance = {**loaded.file.provenance, "recipe": recipe, "hardware": asked.hardware}
    parts = "the convolutions of the first stage" + (" and the large weights of the U-Net" if asked.eight_bits else "")
    model_folder.save(
        home,
        loaded.file.model_copy(update={"name": asked.name, "provenance": provenance}),
        {
            loaded.weights: (
                f"{entry.about}, rounded to half precision, {parts} to a quarter",
                loaded.model.state_dict(),
            )
        },
        tokenizer=model_folder.tokenizer(asked.run / "model", loaded.file.config),
        kept_as=partial(small, unet=asked.eight_bits),
    )
    placed = isinstance(loaded.file.config.conditioner, BoxesConfig)
    command = [sys.executable, "-m", "sfumato.cli.main", "evaluate", asked.name, *(["--layout"] if placed else [])]
    command += ["--json", "--sheet", str(PICTURES / f"{asked.name}.png")]
    scores = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    (home / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    written = (layout_card if placed else card)(asked.name, (first, asked.run), scores, asked.hardware)
    (home / "README.md").write_text(written, encoding="utf-8")
    print(home)
    return 0


def small(name: str, weight: Tensor, *, unet: bool) -> torch.dtype:
    """Half precision; a quarter for the convolutions of the first stage, which only correct its linear maps.

    With `unet` a quarter for the U-Net's large weights too, but not for the layers through which numbers come and go.
    """
    convolution = name.startswith("first_stage.") and ".layers." in name and weight.ndim == 4  # noqa: PLR2004
    inner = name.startswith("denoiser.net.") and not name.startswith(DOORS) and weight.numel() > LARGE
    return torch.float8_e4m3fn if convolution or (unet and inner) else torch.float16


def card(name: str, runs: Runs, scores: dict[str, Any], hardware: str) -> str:
    """The text of the card."""
    file = model_folder.describe(name)
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
        diffusion=file.provenance["pictures"]["diffusion"],
        first=file.provenance["pictures"]["first stage"],
        **trained(file, runs, hardware),
    )


def layout_card(name: str, runs: Runs, scores: dict[str, Any], hardware: str) -> str:
    """The text of the card of a model that is asked with boxes."""
    file = model_folder.describe(name)
    rows = []
    for kind, score in scores["kinds"].items():
        right, placed = score["right"], score["placed"]
        sizes = " | ".join(f"{share['share']:.0%}" for share in right["by_size"].values())
        both, iou = right["all"], "-" if placed["iou"] is None else f"{placed['iou']:.2f} ({placed['boxes']} boxes)"
        far = scores["crop_distances"]["distances"][kind]
        within = f"{both['low']:.0%} to {both['high']:.0%}"
        rows.append(f"| {kind} | {both['share']:.1%} | {within} | {sizes} | {iou} | {far:.0f} |")
    said = {
        key: scores[key]
        for key in ("labels", "pictures", "boxes", "learnt", "features", "commonest_share", "commonest")
    }
    return LAYOUT_CARD.format(
        name=name,
        side=file.config.resolution,
        rows="\n".join(rows),
        chance=1 / scores["labels"],
        psnr=file.provenance["first stage psnr, held out"],
        **said,
        **trained(file, runs, hardware),
    )


def trained(file: ModelFile, runs: Runs, hardware: str) -> dict[str, Any]:
    """What the training of a model was."""
    said = file.provenance
    plan, first = said["recipe"]["diffusion"]["plan"], said["recipe"]["first_stage"]["plan"]
    return {
        "material": said["material"],
        "fs_steps": first["steps"],
        "fs_batch": first["batch"],
        "fs_minutes": minutes(runs[0] / "first-stage"),
        "steps": said["steps"],
        "batch": plan["batch"],
        "passes": said["images"] / said["pictures"]["diffusion"],
        "minutes": minutes(runs[1] / "diffusion"),
        "skipped": said["skipped"],
        "hardware": hardware,
        "about": file.weights[file.default].about,
    }


def minutes(stage: Path) -> float:
    """What the steps of a stage took, from its metrics."""
    lines = (stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return sum(json.loads(line)["seconds"] for line in lines) / 60


if __name__ == "__main__":
    sys.exit(main())
