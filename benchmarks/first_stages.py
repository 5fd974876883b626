"""What does the factor of a first stage cost, and is a codebook as good as a little KL?

    python benchmarks/first_stages.py [--data DIR] [--steps 600] [--out runs/first-stages]

Rombach et al. 2022, table 8, small: trains the recipes kl-f2, kl-f4, kl-f8, vq-f2, vq-f4 and vq-f8 for equally many
steps on the same pictures with the same losses (no adversary: at this length it would only add noise) and measures all
on the same held-out pictures. A finished one is not trained again. Prints a table beside the paper's figures, whether
its order is found again, and, last, one JSON line.
"""

import argparse
import json
import sys
from pathlib import Path

import sfumato  # first: it says how threads wait before torch is imported
from sfumato.cli.parse import override
from sfumato.recipes import RECIPES
from sfumato.recipes.events import Stepped

PAPER = {"kl-f4": 27.53, "kl-f8": 24.19, "vq-f2": 30.85, "vq-f4": 27.43, "vq-f8": 23.07}  # PSNR in dB; no kl-f2
CLOSE = 1.5  # dB between KL and VQ of one factor; 0.1 and 1.1 in the paper


def trained(name: str, data: Path | None, steps: int, out: Path) -> dict[str, float]:
    """PSNR, SSIM, LPIPS and rFD of a recipe after so many steps; those of bicubic scaling with `bicubic `."""
    recipe = RECIPES[name]
    base = recipe.settings(data)
    late = steps * 3 // 4
    changes = ("run.adversary=none", f"run.plan.steps={steps}", f"run.losses.perceptual_from={late}")
    settings = type(base).model_validate(override(base, changes))
    home = out / name
    report = home / "report.json"
    if not report.exists() or json.loads(report.read_text())["provenance"]["recipe"] != settings.model_dump(
        mode="json", exclude={"size"}
    ):
        for event in recipe.run(settings, recipe.material(data, settings), home):
            if isinstance(event, Stepped) and event.progress.every(100):
                p = event.progress
                print(f"{name}: step {p.step} of {p.steps}, l1 {p.losses['l1']:.4f}", file=sys.stderr)
    score = json.loads(report.read_text())["score"]
    return {**score["stage"], **{f"bicubic {k}": v for k, v in score["bicubic"].items()}}


def main() -> None:
    """Train, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("runs/first-stages"))
    asked = parser.parse_args()
    names = [f"{kind}-f{factor}" for kind in ("kl", "vq") for factor in (2, 4, 8)]
    scores = {name: trained(name, asked.data, asked.steps, asked.out) for name in names}
    print("| first stage | PSNR, dB | LPIPS | SSIM | rFD | bicubic PSNR | paper's PSNR |")
    print("|---|---|---|---|---|---|---|")
    for name, s in scores.items():
        paper = f"{PAPER[name]:.2f}" if name in PAPER else "-"
        cells = (f"{s['psnr']:.2f}", f"{s['lpips']:.3f}", f"{s['ssim']:.3f}", f"{s['rfd']:.1f}")
        print(f"| {name} | {' | '.join(cells)} | {s['bicubic psnr']:.2f} | {paper} |")
    db = {name: s["psnr"] for name, s in scores.items()}
    ordered = {k: db[f"{k}-f2"] > db[f"{k}-f4"] > db[f"{k}-f8"] for k in ("kl", "vq")}
    apart = {f: round(db[f"kl-f{f}"] - db[f"vq-f{f}"], 2) for f in (2, 4, 8)}
    for kind, found in ordered.items():
        print(f"{kind}: f2 > f4 > f8 in PSNR: {'yes' if found else 'NO'}")
    close = all(abs(d) < CLOSE for d in apart.values())
    print(f"KL - VQ, dB: {', '.join(f'f{f} {d:+.2f}' for f, d in apart.items())}: {'close' if close else 'NOT close'}")
    found = {"steps": asked.steps, "scores": scores, "ordered": ordered, "close": close}
    print(json.dumps({**found, "sfumato": sfumato.__version__}))


if __name__ == "__main__":
    main()
