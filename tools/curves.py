"""Draw what the runs of first stages wrote into their metrics: errors, bottleneck, adversary.

    python tools/curves.py RUN ... --out docs/pictures/first-stages-curves.png

A RUN is the folder of `sfumato train`. Lines are means of 25 steps. matplotlib is among the extras "dev".
"""

import argparse
import json
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

PANELS = {
    "mean absolute error": ("l1",),
    "perceptual distance": ("lpips",),
    "KL, nats a number of the picture / codebook loss": ("kl", "codebook"),
    "perplexity of a batch": ("perplexity",),
    "critic's loss": ("critic",),
    "adaptive weight": ("adversary weight",),
}
MEAN = 25


def lines(run: Path) -> list[dict[str, float]]:
    """The metrics of a run."""
    path = run / "first-stage" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def curve(metrics: list[dict[str, float]], names: tuple[str, ...]) -> tuple[list[float], list[float]]:
    """Steps and means of the first of these that is there."""
    found = next((n for n in names if any(n in m for m in metrics)), None)
    points = [(m["step"], m[found]) for m in metrics if found and found in m]
    parts = [points[i : i + MEAN] for i in range(0, len(points), MEAN)]
    return [p[-1][0] for p in parts], [sum(y for _, y in p) / len(p) for p in parts]


def main() -> None:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    figure, axes = plt.subplots(2, 3, figsize=(12, 6), layout="constrained")
    read = {run.resolve().name: lines(run) for run in asked.runs}
    for axis, (title, names) in zip(axes.flat, PANELS.items(), strict=True):
        for name, metrics in read.items():
            axis.plot(*curve(metrics, names), label=name, linewidth=1.2)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    figure.savefig(asked.out, dpi=80)


if __name__ == "__main__":
    main()
