"""Does a model paint the digit that it is asked for?

    python benchmarks/digits.py [--out runs/digits] [--samples 500] [--set diffusion.plan.steps=300]

Writes scikit-learn's 1,797 handwritten digits of 8 x 8 pixels as a folder of classes, trains the recipe `pixels` on it
as `sfumato train pixels` does with `diffusion.validation=0`, and lets a classifier that learnt from them read what it
paints. Prints the share that is read as asked, beside the share of real digits that it reads right (of those it never
saw), how near the samples are to the nearest training picture, and the processor time of the training. A finished run
is not trained again. Needs scikit-learn (pip install -e ".[data]").
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sfumato  # first: it says how threads wait before torch is imported
from sfumato.cli.parse import override
from sfumato.data import opened
from sfumato.generate import generate
from sfumato.io import opening, pictures
from sfumato.io.model_folder import Loaded
from sfumato.recipes import RECIPES
from sfumato.recipes.events import Wrote
from sfumato.request import Request

SIDE, CLASSES, LEVELS = 8, 10, 16
TOGETHER = 100
ALL = "diffusion.validation=0"  # of them are learnt from: none is held out


def written(home: Path) -> Path:
    """The digits as pictures, a folder a class."""
    from sklearn.datasets import load_digits

    found = load_digits()
    for i, (levels, label) in enumerate(zip(found.images, found.target, strict=True)):
        grey = torch.from_numpy(levels).float() / (LEVELS / 2) - 1
        pictures.save_png(grey.expand(3, -1, -1), home / str(label) / f"{i:04}.png", {})
    return home


def classifier(x: Tensor, y: Tensor) -> nn.Module:
    """A small convolutional network that reads digits (N, 1, 8, 8), trained on x, y."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(64 * (SIDE // 2) ** 2, CLASSES),
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    for _ in range(600):
        some = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        F.cross_entropy(net(x[some]), y[some]).backward()
        optimizer.step()
    return net.eval()


def painted(loaded: Loaded, n: int) -> tuple[Tensor, Tensor]:
    """`n` pictures, grey (n, 1, 8, 8), and the label that each was asked with."""
    asked = [Request(label=i % CLASSES, seed=i) for i in range(n)]
    parts = [generate(loaded, asked[k : k + TOGETHER]).images for k in range(0, n, TOGETHER)]
    return torch.cat(parts).mean(1, keepdim=True), torch.arange(n) % CLASSES


@torch.no_grad()
def judged(loaded: Loaded, data: Path, n: int) -> dict[str, float]:
    """Shares of samples and of real digits that the classifier reads right; distances to the nearest real digit."""
    real = opened(data, size=SIDE)
    x = torch.stack([real[i]["image"][:1] for i in range(len(real))])
    y = torch.tensor([real[i]["label"] for i in range(len(real))])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    learnt, unseen = order[len(x) // 4 :], order[: len(x) // 4]
    with torch.enable_grad():
        net = classifier(x[learnt], y[learnt])
    samples, asked = painted(loaded, n)

    def right(images: Tensor, labels: Tensor) -> float:
        return (net(images).argmax(1) == labels).double().mean().item()

    def nearest(images: Tensor, least: int = 1) -> float:
        return torch.cdist(images.flatten(1), x.flatten(1)).kthvalue(least, dim=1).values.median().item()

    return {
        "read as asked": right(samples, asked),
        "real digits read right": right(x[unseen], y[unseen]),
        "distance to the nearest real digit": nearest(samples),
        "of a real one to the nearest other": nearest(x, 2),
    }


def trained(data: Path, home: Path, changes: list[str]) -> float:
    """Train in `home` if there is no model; the seconds of processor time that it took."""
    began = time.process_time()
    recipe = RECIPES["pixels"]
    base = recipe.settings(data)
    settings = type(base).model_validate(override(base, [ALL, *changes]))
    if not (home / "model").exists():
        for event in recipe.run(settings, recipe.material(data, settings), home):
            if isinstance(event, Wrote):
                print(f"{event.what}: {event.path}")
    return time.process_time() - began


def main() -> None:
    """Write, train, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    asked = parser.parse_args()
    data = asked.out / "data"
    if not data.exists():
        written(data)
    seconds = trained(data, asked.out / "run", asked.set)
    found = judged(opening.load(asked.out / "run"), data, asked.samples)
    for name, value in found.items():
        print(f"{name}: {value:.1%}" if "read" in name else f"{name}: {value:.2f}")
    print(json.dumps({**found, "samples": asked.samples, "seconds": seconds, "sfumato": sfumato.__version__}))


if __name__ == "__main__":
    main()
