"""LPIPS from files: the bundled ones, and those of others, whatever they call their tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fill import inp, parameter
from sfumato.io import tensors
from sfumato.io.feature_networks import ALEXNET_FILE, MOBILENET_FILE, VGG16_FILE, alexnet, perceptual
from sfumato.nets.lpips import ALEXNET, STAGES, VGG16, Lpips, Stage

PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # of convolutions in torchvision's VGG16
SLICES = (4, 9, 16, 23, 30)  # where those of the package of LPIPS end
PACKAGE = {  # lpips 0.1.4, LPIPS(net="alex") with the bundled weights, of the rule's pictures
    "noise": [0.0841625, 0.0633662],
    "near": [0.0006330, 0.0007930],
    "blurred": [0.2775990, 0.3130608],
}


def rule_pictures(kind: str) -> tuple[Tensor, Tensor]:
    a, b = (inp(name, 2, 3, 48, 37).clamp(-1, 1) for name in ("img", "img2"))
    return a, {"noise": b, "near": (a + 0.1 * b).clamp(-1, 1), "blurred": F.avg_pool2d(a, 3, 1, 1)}[kind]


@torch.no_grad()
@pytest.mark.parametrize("kind", PACKAGE)
def test_alexnet_says_what_the_package_of_its_authors_says(kind: str) -> None:
    a, b = rule_pictures(kind)
    torch.testing.assert_close(alexnet()(a, b), torch.tensor(PACKAGE[kind]), rtol=1e-5, atol=2e-7)


def windows(x: Tensor, kernel: int, stride: int) -> Tensor:
    """(C, H, W) -> (h, w, C, kernel, kernel)."""
    return x.unfold(1, kernel, stride).unfold(2, kernel, stride).permute(1, 2, 0, 3, 4)


def plain(picture: Tensor, weights: dict[str, Tensor]) -> list[Tensor]:
    """AlexNet's five maps, window by window: (h, w, C) each, float64, of unit length in C."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x, maps = ((picture - shift[:, None, None]) / scale[:, None, None]).double(), []
    for i, (pool, stride, padding) in enumerate(((0, 4, 2), (3, 1, 2), (3, 1, 1), (0, 1, 1), (0, 1, 1))):
        if pool:
            x = windows(x, 3, 2).amax((-1, -2)).movedim(-1, 0)
        w, b = weights[f"features.{i}.weight"].double(), weights[f"features.{i}.bias"].double()
        padded = torch.zeros(x.shape[0], x.shape[1] + 2 * padding, x.shape[2] + 2 * padding, dtype=torch.float64)
        padded[:, padding : padding + x.shape[1], padding : padding + x.shape[2]] = x
        x = torch.einsum("hwcij,ocij->ohw", windows(padded, w.shape[-1], stride), w) + b[:, None, None]
        x = x * (x > 0)
        maps.append((x / (x.square().sum(0).sqrt() + 1e-10)).movedim(0, -1))
    return maps


@torch.no_grad()
def test_alexnet_is_what_its_equations_say() -> None:
    net, weights = alexnet(), tensors.load(ALEXNET_FILE)
    a, b = (inp(name, 2, 3, 35, 40).clamp(-1, 1) for name in ("a", "b"))
    for k in range(2):
        expected = 0.0
        for i, (f, g) in enumerate(zip(plain(a[k], weights), plain(b[k], weights), strict=True)):
            lin = weights[f"lin.{i}.weight"].double().flatten()
            expected += float(((f - g).square() @ lin).mean())
        assert net(a, b)[k].item() == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("network", [alexnet, lambda: perceptual()[0]], ids=["alexnet", "vgg16"])
def test_a_distance(network: Callable[[], Lpips]) -> None:
    net = network()
    a, b = (inp(name, 3, 3, 40, 33).clamp(-1, 1) for name in ("a", "b"))
    assert net(a, a).tolist() == [0.0, 0.0, 0.0]
    assert bool((net(a, b) > 0).all())
    torch.testing.assert_close(net(a, b), net(b, a), rtol=1e-6, atol=0)
    torch.testing.assert_close(net(a, b)[1:], net(a[1:], b[1:]), rtol=1e-4, atol=0)
    assert all(lin.weight.min() >= 0 for lin in net.lin)
    assert not any(p.requires_grad for p in net.parameters())


@torch.no_grad()
@pytest.mark.parametrize(("stages", "classifier", "side"), [(5, ALEXNET, 31), (3, VGG16, 4), (5, VGG16, 16)])
def test_the_smallest_picture_is_the_smallest(stages: int, classifier: Sequence[Stage], side: int) -> None:
    net = Lpips(stages, classifier)
    assert net.smallest == side
    fits = inp("a", 1, 3, side, side + 3)
    assert net(fits, -fits).isfinite().all()
    small = inp("a", 1, 3, side + 3, side - 1)
    with pytest.raises(ValueError, match=f"pictures of {side - 1}x{side + 3} are too small for LPIPS; it needs {side}"):
        net(small, small)
    with pytest.raises(RuntimeError):  # not one pixel less would do
        net._maps(small)


def test_the_bundled_files_are_those_that_the_notice_names() -> None:
    text = (Path(__file__).resolve().parents[2] / "NOTICE").read_text(encoding="utf-8")
    named = dict(re.findall(r"(\w+) +([0-9a-f]{64})$", text, re.MULTILINE))
    assert named == {path.stem: tensors.sha256(path) for path in (ALEXNET_FILE, VGG16_FILE, MOBILENET_FILE)}


Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


# Others' files --------------------------------------------------------------------------------------------
@cache
def filled() -> dict[str, Tensor]:
    """All of a network of VGG16's form, by the rule, with other numbers than any that ships."""
    shapes = {name: p.shape for name, p in Lpips(len(STAGES)).named_parameters()}
    rule = {name: parameter(name, shape) for name, shape in shapes.items()}
    return {name: (t.abs() / t.numel() if name.startswith("lin") else t).half() for name, t in rule.items()}


def vgg16(stages: int) -> dict[str, Tensor]:
    """The part of it that `stages` stages need, under our names."""
    return {name: filled()[name] for name, _ in Lpips(stages).named_parameters()}


def as_torchvision(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    def theirs(name: str) -> str:
        kind, i, leaf = name.split(".")
        return f"lin{i}.model.1.weight" if kind == "lin" else f"features.{PLACES[int(i)]}.{leaf}"

    return {theirs(name): t for name, t in ours.items()}


def as_package(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    def theirs(name: str) -> str:
        place = re.fullmatch(r"features\.(\d+)\.(\w+)", name)
        if not place:
            return name
        slice_ = next(k for k, end in enumerate(SLICES, 1) if int(place[1]) < end)
        return f"net.slice{slice_}.{place[1]}.{place[2]}"

    found = {theirs(name): t for name, t in as_torchvision(ours).items()}
    again = {name.replace("lin", "lins.", 1): t.clone() for name, t in found.items() if name.startswith("lin")}
    return found | again | {"scaling_layer.shift": torch.zeros(1, 3, 1, 1), "scaling_layer.scale": torch.ones(1)}


def as_checkpoint(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    network = {f"loss.perceptual_loss.{name}": t for name, t in as_package(ours).items()}
    return network | {"encoder.conv_in.weight": torch.zeros(4), "loss.logvar": torch.zeros(())}


@torch.no_grad()
@pytest.mark.parametrize("stages", [3, 4, 5])
def test_files_of_others_are_the_same_network(stages: int, tmp_path: Path) -> None:
    ours = vgg16(stages)
    own = Lpips(stages)
    tensors.fill(own, ours, source=tmp_path)
    a, b = (inp(name, 1, 3, 32, 32).clamp(-1, 1) for name in ("img", "img2"))
    expected = own(a, b)
    assert expected.item() > 1e-5
    said = "LPIPS 0.1, VGG16" if stages == 5 else f"VGG16 to relu{stages}_3 with LPIPS 0.1 weights"
    for k, names in enumerate((dict, as_torchvision, as_package, as_checkpoint)):
        path = tmp_path / f"{k}.safetensors"
        tensors.write(path, names(ours))
        net, name = perceptual(path)
        assert torch.equal(net(a, b), expected)
        assert name == f"{said} ({path.name})"
    torch.save({"state_dict": as_checkpoint(ours)}, tmp_path / "kl-f8.ckpt")
    assert torch.equal(perceptual(tmp_path / "kl-f8.ckpt")[0](a, b), expected)


def test_without_a_file_it_is_the_bundled_one() -> None:
    net, name = perceptual()
    assert name == "VGG16 to relu3_3 with LPIPS 0.1 weights (bundled)"
    assert perceptual(VGG16_FILE)[1] == f"VGG16 to relu3_3 with LPIPS 0.1 weights ({VGG16_FILE.name})"
    assert len(net.features) == sum(STAGES[:3])


def test_classifiers_of_torchvision_may_be_in_the_file(tmp_path: Path) -> None:
    tensors.write(tmp_path / "x.safetensors", as_torchvision(vgg16(5)) | {"classifier.0.weight": torch.zeros(2)})
    assert perceptual(tmp_path / "x.safetensors")[1] == "LPIPS 0.1, VGG16 (x.safetensors)"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: as_torchvision({k: v for k, v in t.items() if "lin" not in k}), "holds no LPIPS of VGG16"),
        (lambda t: {k: v for k, v in t.items() if k[:5] not in ("lin.0", "lin.1", "lin.2")}, "holds no LPIPS of VGG16"),
        (lambda t: {k: v for k, v in t.items() if k != "features.3.bias"}, "lacks tensor 'features.3.bias'"),
        (lambda t: {k: v for k, v in t.items() if k != "lin.1.weight"}, "lacks tensor 'lin.1.weight'"),
        (lambda t: as_torchvision(t) | {"net.slice1.0.bias": torch.zeros(64)}, "has an unknown tensor"),
        (lambda t: as_torchvision(t) | {"features.1.weight": torch.zeros(1)}, "unknown tensor 'features.1.weight'"),
        (lambda t: t | {"lin.0.weight": torch.zeros(1, 63, 1, 1)}, "has another shape for tensor 'lin.0.weight'"),
        (lambda t: tensors.load(ALEXNET_FILE), "lacks tensor 'features.10.bias'"),
        (lambda t: {"x": torch.zeros(1)}, "holds no LPIPS of VGG16"),
    ],
    ids=["no lins", "one lin", "a bias", "a lin", "twice", "a place", "a shape", "alexnet", "other"],
)  # fmt: skip
def test_what_is_no_lpips_is_refused_in_a_line(change: Change, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors.write(path, change(vgg16(4)))
    with pytest.raises(ValueError, match=re.escape(said)) as refused:
        perceptual(path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


def test_what_is_no_file_of_tensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_text("hello")
    for path in (tmp_path / "x.safetensors", tmp_path / "nowhere.safetensors", tmp_path):
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            perceptual(path)
