"""The picture of toy_2d.py: one page of panels, numbered as its parts are."""

import io
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sfumato.diffusion.level import Level

CLASSES = ("#e0526a", "#dd8a2e", "#b3a32c", "#58a84c", "#2ea39a", "#3d8dcc", "#7a6ecf", "#c05bb0")
SAMPLERS = {"DDPM": "#7f7f7f", "DDIM": "#3d8dcc", "PLMS": "#dd8a2e", "DPM-Solver++": "#c2336a"}
INK, SOFT = "#333333", "#c4c4c4"
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}
REACH = 2.9


def draw(
    out: Path,
    forward: list[tuple[Level, Tensor, Tensor]],
    loss: tuple[list[float], dict[str, float]],
    score: list[tuple[float, ...]],
    off: tuple[dict[str, list[tuple[int, float, float]]], list[float]],
    walks: list[tuple[str, list[Tensor], Tensor]],
    strong: dict[float, tuple[Tensor, Tensor, Any]],
    density: tuple[Tensor, Tensor],
) -> None:
    """Write the page to `out`. Points are (B, 2, 1, 1), with classes (B,). SystemExit if there is no matplotlib."""
    try:
        import matplotlib as mpl  # noqa: PLC0415
    except ImportError:
        raise SystemExit("there is no picture, for that needs matplotlib (pip install matplotlib)") from None
    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    with plt.rc_context(STYLE):
        page = plt.figure(figsize=(13, 11.2))
        rows = page.add_gridspec(4, 1, left=0.035, right=0.99, top=0.97, bottom=0.015, hspace=0.17)
        squares = [rows[i].subgridspec(1, 5, wspace=0.05) for i in range(4)]
        _forward(page, squares[0], forward)
        curves = rows[1].subgridspec(2, 3, wspace=0.16, height_ratios=(1, 0.06))
        _loss(page.add_subplot(curves[0, 0]), *loss)
        _score(page.add_subplot(curves[0, 1]), score)
        _distance(page.add_subplot(curves[0, 2]), *off)
        _walks(page, squares[2], walks)
        _guided(page, squares[3], strong, forward[0][1])
        _density(page, squares[3], density)
        drawn = io.BytesIO()
        page.savefig(drawn, dpi=95)
        plt.close(page)
    Image.open(drawn).convert("RGB").quantize(256).save(out, format="PNG", optimize=True)  # a third of the bytes


def _square(page: Any, cell: Any, title: str, colour: str = INK) -> Any:
    axis = page.add_subplot(cell, xlim=(-REACH, REACH), ylim=(-REACH, REACH), aspect="equal", xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.set_title(title, color=colour)
    return axis


def _cloud(axis: Any, x: Tensor, k: Tensor) -> None:
    x = x[:1000].flatten(1)
    axis.scatter(*x.T, s=5, c=[CLASSES[c % len(CLASSES)] for c in k[: len(x)]], alpha=0.6, linewidths=0)


def _forward(page: Any, cells: Any, forward: list[tuple[Level, Tensor, Tensor]]) -> None:
    for i, (at, x, k) in enumerate(forward):
        said = rf"t = {float(at.t):.0f}:  $\alpha$ = {float(at.alpha):.2f}, $\sigma$ = {float(at.sigma):.2f}"
        _cloud(_square(page, cells[i], ("1  data", "2  " + said)[i] if i < 2 else said), x, k)  # noqa: PLR2004


def _loss(axis: Any, losses: list[float], marks: dict[str, float]) -> None:
    each = max(1, len(losses) // 80)
    means = torch.tensor(losses)[: len(losses) // each * each].view(-1, each).mean(1)
    axis.plot(each * torch.arange(1, len(means) + 1), means, color=SAMPLERS["DPM-Solver++"], lw=1.3)
    for (name, value), va in zip(marks.items(), ("bottom", "top"), strict=True):
        axis.axhline(value, color=INK, lw=0.8, ls=":")
        axis.text(len(losses), value, name, ha="right", va=va, color=INK)
    axis.set(title=f"3  loss, means of {each} steps", xlabel="step of training")
    axis.set_ylim(0.7 * min(marks.values()), 2.2 * max(marks.values()))


def _score(axis: Any, score: list[tuple[float, ...]]) -> None:
    t, relative, absolute, _ = zip(*score, strict=True)
    axis.plot(t, relative, color=SAMPLERS["DDIM"], lw=1.3, label="of the score, relative")
    axis.plot(t, absolute, color=SAMPLERS["PLMS"], lw=1.3, label=r"of $\epsilon$ = $-\sigma$ score")
    axis.set(title="4  error of the network", xlabel="t", yscale="log")
    axis.legend()


def _distance(axis: Any, off: dict[str, list[tuple[int, float, float]]], floor: list[float]) -> None:
    axis.axhspan(min(floor), max(floor), color=SOFT, alpha=0.4, lw=0)
    axis.text(5, min(floor), " other draws of the data", va="bottom", color=INK)
    for name, points in off.items():
        n, network, exact = zip(*points, strict=True)
        axis.plot(n, network, color=SAMPLERS[name], lw=1.5, label=name)
        axis.plot(n, exact, color=SAMPLERS[name], lw=1, ls=":")
    axis.set(title="5  distance of samples to the data", xlabel="evaluations of the network (dotted: exact denoiser)")
    axis.set(xscale="log", yscale="log")
    axis.set_xticks([5, 10, 20, 40], ["5", "10", "20", "40"])
    axis.set_yticks([0.02, 0.05, 0.1, 0.2], ["0.02", "0.05", "0.1", "0.2"])
    axis.minorticks_off()
    axis.legend()


def _walks(page: Any, cells: Any, walks: list[tuple[str, list[Tensor], Tensor]]) -> None:
    for i, (name, path, k) in enumerate(walks):
        axis = _square(page, cells[i], f"{name}, {len(path) - 1} evaluations", SAMPLERS[name])
        _cloud(axis, path[-1], k)
        some = torch.stack(path)[:, : 5 + 200 // len(path)]
        for line, c in zip(some.flatten(2).transpose(0, 1), k, strict=False):
            axis.plot(*line.T, color=CLASSES[c % len(CLASSES)], lw=0.8, alpha=0.9)


def _guided(page: Any, cells: Any, strong: dict[float, tuple[Tensor, Tensor, Any]], data: Tensor) -> None:
    for i, (scale, (x, k, _)) in enumerate(strong.items()):
        axis = _square(page, cells[i], ("6  " if i == 0 else "") + f"guidance {scale:g}")
        axis.scatter(*data.flatten(1).T, s=5, c=SOFT, alpha=0.5, linewidths=0)
        _cloud(axis, x, k)


def _density(page: Any, cells: Any, density: tuple[Tensor, Tensor]) -> None:
    for i, (values, title) in enumerate(zip(density, ("7  true density", "learnt density"), strict=True)):
        axis = _square(page, cells[3 + i], title)
        shown = {"extent": (-REACH, REACH, -REACH, REACH), "origin": "lower", "interpolation": "bicubic"}
        axis.imshow(values.exp().T.numpy(), cmap="BuPu", vmin=0, vmax=float(density[0].exp().max()), **shown)
