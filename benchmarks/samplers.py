# ruff: noqa: E402  # the tests' mixture must be found first
"""How near does each sampler come to the exact end of the flow, for how many evaluations of the network?

    python benchmarks/samplers.py [--out docs/pictures/samplers.png] [--table docs/samplers-table.md]

For every registered sampler: the root mean square error of the final latent to a reference of 1,000 steps of Heun's
method, at 5 to 50 evaluations, on the analytic Gaussian mixture of the tests (steps even in log-SNR on Stable
Diffusion's table) and on the bundled model (its own schedule, spacing and guidance). Prints a table and, last, one JSON
line; draws a plot. A sampler that adds fresh noise goes elsewhere on purpose: its number says how far that is from the
deterministic end.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

import sfumato  # first: it says how threads wait before torch is imported

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from mixture import THREE, for_sampler
from sfumato.diffusion.denoiser import Denoise
from sfumato.diffusion.drive import Asked, steps
from sfumato.diffusion.grid import SPACINGS, Grid
from sfumato.diffusion.guidance import guided
from sfumato.diffusion.noise import seeded
from sfumato.diffusion.samplers import SAMPLERS, Entry, start
from sfumato.diffusion.schedule import scaled_linear

EVALUATIONS = (5, 6, 8, 10, 12, 15, 20, 25, 50)
TOLERANCES = (0.3, 0.1, 0.03, 0.01, 0.003)
REFERENCE_STEPS = 1000
PROMPTS = ("a red apple, 3d", "a hedgehog, flat", "a panda, 3d", "a violin, flat")
Curve = list[tuple[int, float]]  # (evaluations, error)


def runs(entry: Entry, grid_of: Callable[[int], Grid]) -> Iterator[tuple[Grid, dict[str, float]]]:
    """The grids on which this sampler costs each number of evaluations, or the tolerances if it chooses its steps."""
    if entry.adaptive:
        for tolerance in TOLERANCES:
            yield grid_of(20), {"rtol": tolerance, "atol": tolerance}
        return
    for wanted in EVALUATIONS if entry.name != "langevin" else (100,):
        fitting = [n for n in range(entry.least, wanted + 1) if entry.evaluations(grid_of(n)) == wanted]
        if fitting or entry.name == "langevin":
            yield grid_of(fitting[-1] if fitting else entry.least), {}


def curve(entry: Entry, x: Tensor, grid_of: Callable[[int], Grid], denoise: Denoise, end: Tensor) -> Curve:
    """(evaluations, root mean square error to `end`) of each run."""
    points: Curve = []
    for grid, options in runs(entry, grid_of):
        noise = seeded(range(100, 100 + len(x)))
        *asked, sample = steps(start(entry, x, grid, noise, **options), denoise)
        assert isinstance(sample, Tensor)
        points.append((sum(isinstance(a, Asked) for a in asked), float((sample - end).square().mean().sqrt())))
    return points


def ended(name: str, x: Tensor, grid: Grid, denoise: Denoise) -> Tensor:
    """The sample of a sampler without noise."""
    *_, sample = steps(start(SAMPLERS[name], x, grid, None), denoise)
    assert isinstance(sample, Tensor)
    return sample


def on_mixture() -> tuple[dict[str, Curve], float]:
    """Curves on the exact mixture, and how well the reference is known."""
    schedule = scaled_linear()

    def grid_of(n: int) -> Grid:
        return SPACINGS["logsnr"](schedule, n)

    first = grid_of(1).levels[0]
    pure = torch.randn(256, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = first.alpha * THREE.draw(256, seed=1) + first.sigma * pure
    end = ended("heun", x, grid_of(REFERENCE_STEPS), THREE.x0)
    other = ended("dpmpp_2m", x, grid_of(REFERENCE_STEPS), THREE.x0)
    curves = {e.name: curve(e, x, grid_of, for_sampler(e), end) for e in SAMPLERS.values()}
    return curves, float((end - other).square().mean().sqrt())


@torch.no_grad()
def on_model() -> tuple[dict[str, Curve], float]:
    """Curves on the bundled model, as `sfumato generate` samples it, and how well the reference is known."""
    loaded = sfumato.load("emoji").loaded
    model, defaults = loaded.model, loaded.file.defaults
    cond, null = (model.conditioner.of(texts) for texts in (list(PROMPTS), [""] * len(PROMPTS)))
    denoise = model.denoiser.bind(guided(cond, null, scale=defaults.guidance))

    def grid_of(n: int) -> Grid:
        return SPACINGS[defaults.spacing](model.denoiser.schedule, n)

    size = loaded.file.config.resolution
    x = grid_of(1).levels[0].sigma * seeded(range(len(PROMPTS)))(
        torch.empty(len(PROMPTS), *model.latent_shape(size, size))
    )
    end = ended("heun", x, grid_of(REFERENCE_STEPS), denoise)
    other = ended("dpmpp_2m", x, grid_of(REFERENCE_STEPS), denoise)
    able = [e for e in SAMPLERS.values() if not e.needs_spread]
    return {e.name: curve(e, x, grid_of, denoise, end) for e in able}, float((end - other).square().mean().sqrt())


def table(curves: dict[str, Curve]) -> str:
    """Markdown: a row a sampler, a column a number of evaluations."""
    head = (
        "| sampler | " + " | ".join(map(str, EVALUATIONS)) + " | other |\n|---|" + "---:|" * len(EVALUATIONS) + "---|\n"
    )
    rows = []
    for name, points in curves.items():
        known = dict(points)
        cells = [f"{known[n]:.4f}" if n in known and not SAMPLERS[name].adaptive else "" for n in EVALUATIONS]
        others = ", ".join(f"{e:.4f} at {n}" for n, e in points if SAMPLERS[name].adaptive or n not in EVALUATIONS)
        rows.append(f"| `{name}` | " + " | ".join(cells) + f" | {others} |")
    return head + "\n".join(rows) + "\n"


def draw(panels: dict[str, dict[str, Curve]], path: Path) -> None:
    """Two rows, those that follow the flow and those that add noise; a column a test."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(panels), figsize=(5.4 * len(panels) + 1.6, 9), squeeze=False)
    colours = mpl.colormaps["tab20"].colors
    for row, noisy in enumerate((False, True)):
        chosen = [name for name, entry in SAMPLERS.items() if entry.stochastic == noisy]
        for column, (title, curves) in enumerate(panels.items()):
            axis = axes[row][column]
            for k, name in enumerate(chosen):
                n, error = zip(*curves.get(name, [(float("nan"), float("nan"))]), strict=True)
                style = ("-", "--")[k >= len(colours)]
                axis.plot(n, error, style, marker=".", color=colours[k % len(colours)], label=name, linewidth=1.2)
            axis.set(xscale="log", yscale="linear" if noisy else "log")
            axis.set_title(f"{title}, {'fresh noise' if noisy else 'no fresh noise'}")
            axis.set_xticks(EVALUATIONS, [str(n) for n in EVALUATIONS])
            axis.minorticks_off()
            axis.grid(alpha=0.25)
            axis.set(xlabel="evaluations of the network", ylabel="RMSE to 1,000 steps of Heun's method")
        axes[row][-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def main() -> None:
    """Run, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("samplers.png"), help="the plot")
    parser.add_argument("--table", type=Path, help="a Markdown file for both tables")
    asked = parser.parse_args()
    mixture, mixture_known = on_mixture()
    model, model_known = on_model()
    text = f"On the mixture:\n\n{table(mixture)}\nOn the bundled model:\n\n{table(model)}"
    print(text)
    if asked.table:
        asked.table.write_text(text, encoding="utf-8")
    draw({"mixture": mixture, "bundled model": model}, asked.out)
    found = {
        "benchmark": "samplers",
        "reference": {"steps": REFERENCE_STEPS, "known_within": {"mixture": mixture_known, "model": model_known}},
        "rmse": {"mixture": mixture, "model": model},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
