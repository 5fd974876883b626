"""What the small recipes reach on the emoji world, measured on pictures of concepts that they never saw.

    python benchmarks/tasks.py maps runs/maps                # writes a folder of pictures with maps of their colours
    python benchmarks/tasks.py super-resolution runs/super-resolution
    python benchmarks/tasks.py inpainting runs/inpainting
    python benchmarks/tasks.py semantic runs/semantic
    python benchmarks/tasks.py class-to-image runs/class-to-image --classifier runs/classifier

Prints one JSON object. Super-resolution and inpainting are held against what needs no model: bicubic scaling, and the
mean of what is around the hole; both by PSNR (dB, higher is better) and LPIPS (lower is better). Of "semantic" it is
the share of pixels whose colour is of the class that was asked for; of "class-to-image" the share of pictures that the
classifier reads as they were asked for, without its help and with it.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import sfumato  # first: it says how threads wait before torch is imported
from sfumato.data import Emoji, Split
from sfumato.data.degradation import degraded
from sfumato.data.holes import holes
from sfumato.data.part import spaced
from sfumato.diffusion.noise import Address
from sfumato.generate import Given, generate
from sfumato.io import atomic, classifier_folder, feature_networks, opening, pictures
from sfumato.io.model_folder import Loaded
from sfumato.latents.autoencoding import psnr
from sfumato.recipes.shown import drawn
from sfumato.request import Request

SIDE, SHOWN = 64, 8
COLOURS = torch.tensor(  # white, black, grey, red, orange, yellow, green, blue, skin, brown
    [
        *([255, 255, 255], [30, 30, 30], [150, 150, 150], [220, 50, 60], [250, 150, 50]),
        *([255, 210, 70], [90, 170, 80], [70, 130, 220], [250, 200, 160], [130, 80, 50]),
    ]
)


def colours(image: Tensor) -> Tensor:
    """(H, W) uint8: the nearest of COLOURS."""
    far = ((image + 1) * 127.5).permute(1, 2, 0)[:, :, None] - COLOURS
    return far.square().sum(-1).argmin(-1).to(torch.uint8)


def maps(home: Path, n: int) -> None:
    """A folder of pictures and maps, as `sfumato train semantic` takes it."""
    world = Emoji(size=SIDE)
    (home / "masks").mkdir(parents=True)
    for i in spaced(len(world), n):
        image = world[i]["image"]
        pictures.save_png(image, home / "images" / f"{i:05}.png", {})
        Image.fromarray(colours(image).numpy()).save(home / "masks" / f"{i:05}.png")


def unseen(n: int) -> Tensor:
    """(n, 3, 64, 64) of concepts that no recipe is trained on."""
    world = Emoji(split=Split.CONCEPT, size=SIDE)
    return torch.stack([world[i]["image"] for i in spaced(len(world), n)])


def against(real: Tensor, **painted: Tensor) -> dict[str, float]:
    """PSNR and LPIPS of some pictures of the same things."""
    lpips, _ = feature_networks.perceptual(None)
    assert lpips is not None
    out = {}
    for name, images in painted.items():
        out[f"psnr, {name}"] = psnr(images, real).mean().item()
        with torch.no_grad():
            out[f"lpips, {name}"] = lpips(images, real).mean().item()
    return out


def shown(given: list[Given], images: Tensor, real: Tensor, path: Path) -> None:
    """What was given, what it became, and what is true, in rows."""
    rows = [torch.stack([drawn(g, SIDE) for g in given[:SHOWN]]), images[:SHOWN], real[:SHOWN]]
    pictures.save_png(pictures.sheet(torch.cat(rows), columns=len(rows[0])), path, {})


def super_resolution(loaded: Loaded, n: int, out: Path) -> dict[str, float]:
    """Against bicubic scaling, of pictures that were made small as in training."""
    real, factor = unseen(n), loaded.file.config.larger
    small = degraded(real, Address.of(1, list(range(n))), factor=factor)
    given = [Given(init=x) for x in small]
    images = torch.cat([generate(loaded, Request(seed=i), init=g.init).images for i, g in enumerate(given)])
    shown(given, images, real, out)
    cubic = F.interpolate(small, scale_factor=factor, mode="bicubic").clamp(-1, 1)
    return against(real, model=images, bicubic=cubic)


def inpainting(loaded: Loaded, n: int, out: Path) -> dict[str, float]:
    """Against the mean of what is around the hole."""
    real = unseen(n)
    hole = holes(Address.of(1, list(range(n))), SIDE, SIDE)
    given = [Given(x, m) for x, m in zip(real, hole, strict=True)]
    images = torch.cat(
        [generate(loaded, Request(seed=i), init=g.init, mask=g.mask).images for i, g in enumerate(given)]
    )
    shown(given, images, real, out)
    kept = 1 - hole[:, None]
    mean = (real * kept).sum((2, 3), keepdim=True) / kept.sum((2, 3), keepdim=True)
    return against(real, model=images, mean=real * kept + mean * (1 - kept))


def semantic(loaded: Loaded, n: int, out: Path) -> dict[str, float]:
    """The share of pixels of the colour that was asked for, in the pictures and in pictures asked with other maps."""
    real = unseen(n)
    given = [Given(map=colours(x)) for x in real]
    images = torch.cat([generate(loaded, Request(seed=i), map=g.map).images for i, g in enumerate(given)])
    shown(given, images, real, out)
    asked, found = torch.stack([g.map for g in given if g.map is not None]), torch.stack([colours(x) for x in images])
    return {
        "of the class asked for": (asked == found).double().mean().item(),
        "of the class of another map": (asked.roll(1, 0) == found).double().mean().item(),
    }


def class_to_image(loaded: Loaded, n: int, out: Path, classifier: Path) -> dict[str, float]:
    """Read by the classifier where no noise is left."""
    reader, names = classifier_folder.load(classifier), loaded.file.classes or ()
    labels = [i % len(names) for i in range(n)]
    asked = [Request(label=label, seed=i) for i, label in enumerate(labels)]
    found = {}
    for name, pull in (("alone", None), ("pulled", 4.0)):
        requests = [r.model_copy(update={"classifier_scale": pull}) for r in asked]
        result = generate(loaded, requests, classifier=None if pull is None else reader)
        read = reader.net(result.latents, torch.zeros(n)).argmax(1)
        found[name] = (read == torch.tensor(labels)).double().mean().item()
        pictures.save_png(pictures.sheet(result.images, columns=len(names)), out.with_stem(f"{out.stem}-{name}"), {})
    return {**found, "by chance": 1 / len(names)}


def main() -> None:
    """Write maps, or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = {"super-resolution": super_resolution, "inpainting": inpainting, "semantic": semantic}
    parser.add_argument("task", choices=["maps", *tasks, "class-to-image"])
    parser.add_argument("home", type=Path, help="a run, or the folder that is written")
    parser.add_argument("--classifier", type=Path)
    parser.add_argument("-n", type=int, default=None)
    asked = parser.parse_args()
    if asked.task == "maps":
        maps(asked.home, asked.n or 2000)
        return
    loaded, n, out = opening.load(asked.home), asked.n or 36, asked.home / "measured.png"
    with torch.no_grad():
        if asked.task == "class-to-image":
            found = class_to_image(loaded, n, out, asked.classifier)
        else:
            found = tasks[asked.task](loaded, n, out)
    said = {"task": asked.task, **found, "pictures": n, "sfumato": sfumato.__version__}
    atomic.write_bytes(asked.home / "measured.json", json.dumps(said, indent=2).encode())
    print(json.dumps(said))


if __name__ == "__main__":
    main()
