"""The networks by which pictures are compared: those that ship with the project, and others' files of them."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from sfumato.io import tensors
from sfumato.io.stored import open_stored
from sfumato.nets.inception import Inception
from sfumato.nets.lpips import ALEXNET, STAGES, Lpips
from sfumato.nets.mobilenet import MobileNetV2

N = TypeVar("N", bound=nn.Module)
HOME = Path(__file__).resolve().parent.parent / "bundled"
VGG16_FILE = HOME / "lpips" / "vgg16_relu3_3_fp16.safetensors"
ALEXNET_FILE = HOME / "lpips" / "alexnet_fp16.safetensors"
MOBILENET_FILE = HOME / "mobilenet" / "mobilenet_v2_in1k_fp16.safetensors"
ALEXNET_NAME = "LPIPS 0.1, AlexNet (bundled)"
LEAST = 3  # stages that a loss is made of

_PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # of the convolutions in torchvision's VGG16
_PREFIX = "loss.perceptual_loss."  # where LDM's checkpoints of first stages keep the network of their loss
_CONVOLUTION = re.compile(r"(?:features|net\.slice[1-5])\.(\d{1,2})\.(weight|bias)")
_LINEAR = re.compile(r"lin([0-4])\.model\.1\.weight")
_CLASSES = re.compile(r"(fc|AuxLogits)\.")
_PASSED = re.compile(r"lins\.|scaling_layer\.|classifier\.")


def alexnet() -> Lpips:
    """LPIPS with AlexNet's features, which measures: first stages are trained with VGG16's."""
    return _filled(Lpips(len(ALEXNET), ALEXNET), tensors.load(ALEXNET_FILE), ALEXNET_FILE)


def perceptual(path: Path | None = None) -> tuple[Lpips, str]:
    """LPIPS with VGG16's features, which trains, and what a report calls it.

    The bundled weights, up to relu3_3, or those of a file, three to five stages: under our names, under torchvision's
    (`features.N.*`) with the linear layers as `lin{k}.model.1.weight`, or as the package of LPIPS names the whole
    (`net.slice{k}.N.*`), also inside a checkpoint of LDM. ValueError of one line for anything else.
    """
    if path is None:
        net = _filled(Lpips(LEAST), tensors.load(VGG16_FILE), VGG16_FILE)
        return net, f"{_said(LEAST)} (bundled)"
    stored = open_stored(path)
    names = _ours(stored.entries, path)
    stages = sum(name.startswith("lin.") for name in names)
    if not LEAST <= stages <= len(STAGES):
        raise ValueError(
            f"{path} holds no LPIPS of VGG16; 'features.N.weight' and 'lin.K.weight' of 3 to 5 stages are needed"
        )
    net = _filled(Lpips(stages), {ours: stored.tensor(theirs) for ours, theirs in names.items()}, path)
    return net, f"{_said(stages)} ({path.name})"


def inception(path: Path) -> Inception:
    """The Inception network of the FID from a file with the names of pytorch-fid, with its classes or without.

    ValueError of one line for anything else.
    """
    stored = open_stored(path)
    names = [name for name in stored.entries if not _CLASSES.match(name)]
    if "Mixed_7c.branch_pool.conv.weight" not in names:
        raise ValueError(f"{path} holds no Inception of the FID; 'Mixed_7c.branch_pool.conv.weight' is looked for")
    return _filled(Inception(), {name: stored.tensor(name) for name in names}, path)


def mobilenet() -> MobileNetV2:
    """MobileNetV2 trained on ImageNet."""
    return _filled(MobileNetV2(), tensors.load(MOBILENET_FILE), MOBILENET_FILE)


def _said(stages: int) -> str:
    if stages == len(STAGES):
        return "LPIPS 0.1, VGG16"
    return f"VGG16 to relu{stages}_{STAGES[stages - 1]} with LPIPS 0.1 weights"


def _ours(stored: Iterable[str], source: Path) -> dict[str, str]:
    """Our names of the tensors in a file -> theirs."""
    names = {name: name for name in stored}
    if any(name.startswith(_PREFIX) for name in names):
        names = {name.removeprefix(_PREFIX): name for name in names if name.startswith(_PREFIX)}
    if not any(_LINEAR.fullmatch(name) for name in names):
        return names
    found: dict[str, str] = {}
    for name, theirs in names.items():
        if not _PASSED.match(name):
            ours = _our(name)
            if ours is None or ours in found:
                raise ValueError(f"{source} has an unknown tensor '{theirs}'; it is not a file of LPIPS with VGG16")
            found[ours] = theirs
    return found


def _our(name: str) -> str | None:
    if (match := _CONVOLUTION.fullmatch(name)) and int(match[1]) in _PLACES:
        return f"features.{_PLACES.index(int(match[1]))}.{match[2]}"
    match = _LINEAR.fullmatch(name)
    return f"lin.{match[1]}.weight" if match else None


def _filled(net: N, weights: Mapping[str, Tensor], source: Path) -> N:
    """The network with these weights; files do not say how many batches a normalisation has seen."""
    counters = {name: t for name, t in net.state_dict().items() if name.endswith("num_batches_tracked")}
    tensors.fill(net, {**counters, **weights}, source=source)
    return net.eval().requires_grad_(False)
