"""The networks against LDM's own code: the same weights, filled by a rule, give the same numbers.

`golden.json` holds statistics and some values of what the original programs put out (torch 2.13, CPU, float32).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fill import CHECKS, TOLERANCE, agrees, fill, inp, places, unit
from sfumato.io.layouts import ddpm, ldm
from sfumato.nets.attention import CrossAttention
from sfumato.nets.autoencoder import Autoencoder, AutoencoderSize, codebook_loss, kl, moments
from sfumato.nets.classifier import Classifier, ClassifierSize
from sfumato.nets.lpips import STAGES, WIDTHS, Lpips
from sfumato.nets.transformer import TransformerEncoder, TransformerSize
from sfumato.nets.unet import UNet, UNetSize

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden.json").read_text())


def check(out: Tensor, name: str) -> None:
    """Compare all that is known of an output."""
    agrees(out, GOLDEN[name], name)


def test_the_rule() -> None:
    assert unit("abc", 3).tolist() == CHECKS["unit"]
    assert inp("x", 3).tolist() == CHECKS["inp"]


def test_cross_attention() -> None:
    net = CrossAttention(16, heads=4, dim_head=8, context_dim=24)
    names = {n: ".".join([ldm.ATTENTION[n.split(".")[0]], n.split(".")[1]]) for n, _ in net.named_parameters()}
    fill(net, places(net, names))
    check(net(inp("x", 2, 5, 16), inp("ctx", 2, 7, 24)), "cross_attention")


IDS = torch.tensor([[5, 17, 99, 0, 3, 42, *[0] * 6], list(range(1, 13))])


def test_text_encoder() -> None:
    net = TransformerEncoder(100, TransformerSize(dim=32, depth=2, length=12, heads=8, dim_head=64, logits=True))
    rules = ldm.bert(net)
    assert {n for r in rules for n in r.theirs} == set(GOLDEN["bert_mini"]["keys"])
    fill(net, rules)
    check(net(IDS), "bert_mini")


def test_clip_text_tower() -> None:
    size = TransformerSize(
        dim=32, depth=3, length=12, heads=4, dim_head=8, causal=True, bias=True, activation="quick_gelu"
    )
    net = TransformerEncoder(100, size)
    rules = ldm.openclip(net)
    assert {n for r in rules for n in r.theirs} == set(GOLDEN["clip_text_mini_last"]["keys"])
    fill(net, rules)
    check(net(IDS), "clip_text_mini_last")


@torch.no_grad()
def test_autoencoder() -> None:
    net = Autoencoder(AutoencoderSize(channels=32, mult=(1, 2, 4, 4), blocks=2, latent_channels=4))
    fill(net, ldm.autoencoder(net, levels=4))
    encoded = net.encoder(inp("img", 1, 3, 32, 32))
    check(encoded, "kl_f8_mini_moments")
    assert kl(*moments(encoded)).item() == pytest.approx(GOLDEN["kl_f8_mini_kl"]["value"], rel=1e-5)


@torch.no_grad()
def test_vq_autoencoder() -> None:
    size = AutoencoderSize(channels=32, mult=(1, 2, 4), blocks=2, latent_channels=3, attention=(2,), codebook=64)
    net = Autoencoder(size)
    fill(net, ldm.autoencoder(net, levels=3))
    z = net.encoder(inp("img", 1, 3, 32, 32))
    check(z, "vq_f4_mini_h")
    assert net.codebook is not None
    check(net.codebook(z), "vq_f4_mini_zq")
    known, found = GOLDEN["vq_f4_mini_idx"], net.codebook.nearest(z).flatten()
    assert found[:16].tolist() == known["first16"]
    assert found.sum() == known["sum"]
    loss = codebook_loss(z, net.codebook(z)).item()
    assert loss == pytest.approx(known["codebook_loss_legacy"], rel=1e-5)


UNETS = {
    "sd1_mini_unet": UNetSize(channels=4, width=32, heads=4, context_dim=24),
    "sd2_mini_unet": UNetSize(channels=4, width=32, head_dim=16, context_dim=24),
    "churches_mini_unet": UNetSize(
        channels=4,
        width=32,
        mult=(1, 2, 2, 4, 4),
        attention=(1, 2, 4, 8),
        attends="plain",
        heads=8,
        modulation="scale_shift",
        resample="residual",
    ),
    "celeba_mini_unet": UNetSize(
        channels=4, width=32, mult=(1, 2, 3, 4), attention=(2, 4, 8), attends="plain", head_dim=16
    ),
    "adm_mini_new_order": UNetSize(
        channels=3,
        width=32,
        mult=(1, 2, 3, 4),
        attention=(1, 2, 4),
        attends="plain",
        head_dim=16,
        out_channels=6,
        classes=10,
        modulation="scale_shift",
        resample="residual",
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("name", UNETS)
def test_unet(name: str) -> None:
    """Stable Diffusion 1 and 2 have the same weights here and differ in how attention splits them."""
    net = UNet(UNETS[name])
    fill(net, ldm.unet(net, linear=name == "sd2_mini_unet", order="by_part" if "new_order" in name else "by_head"))
    assert sum(p.numel() for p in net.parameters()) == GOLDEN[name]["params"]
    x = inp("x", 2, 3, 32, 32) if name.startswith("adm") else inp("x", 2, 4, 16, 16)
    tokens = inp("ctx", 2, 7, 24) if UNETS[name].context_dim else None
    label = torch.tensor([3, 7]) if UNETS[name].classes else None
    check(net(x, torch.tensor([1, 981]), tokens, label=label), name)


@torch.no_grad()
def test_the_two_orders_of_adm_are_not_the_same() -> None:
    net = UNet(UNETS["adm_mini_new_order"])
    fill(net, ldm.unet(net, order="by_head"))
    out = net(inp("x", 2, 3, 32, 32), torch.tensor([1, 981]), label=torch.tensor([3, 7]))
    known = torch.tensor(GOLDEN["adm_mini_new_order"]["first8"])
    assert (out.flatten()[:8] - known).abs().max() > 100 * TOLERANCE


@torch.no_grad()
def test_ddpm_unet() -> None:
    size = UNetSize(channels=3, width=32, mult=(1, 2, 2, 2), attention=(2,), attends="plain", heads=1, lineage="ddpm")
    net = UNet(size)
    fill(net, ddpm.unet(net))
    assert sum(p.numel() for p in net.parameters()) == GOLDEN["ddpm_mini"]["params"]
    check(net(inp("x", 2, 3, 32, 32), torch.tensor([1, 981])), "ddpm_mini")


@torch.no_grad()
def test_adm_classifier() -> None:
    body = UNetSize(
        channels=3,
        width=32,
        mult=(1, 2, 3, 4),
        attention=(1, 2, 4),
        attends="plain",
        head_dim=16,
        modulation="scale_shift",
        resample="residual",
    )
    net = Classifier(ClassifierSize(body=body, classes=10, side=32))
    fill(net, ldm.classifier(net, order="by_head"))
    check(net(inp("x", 2, 3, 32, 32), torch.tensor([1, 981])), "adm_classifier_mini")


@torch.no_grad()
def test_lpips() -> None:
    net = Lpips(stages=5)
    convolutions = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]  # in torchvision's VGG16
    assert len(convolutions) == sum(STAGES)
    names = {
        f"features.{i}.{leaf}": f"features.{place}.{leaf}"
        for i, place in enumerate(convolutions)
        for leaf in ("weight", "bias")
    }
    lins = {f"lin.{k}.weight": f"lin{k}.model.1.weight" for k in range(5)}
    fill(net, places(net, names | lins))
    for k, width in enumerate(WIDTHS):
        net.lin[k].weight.copy_((unit(f"lin{k}.model.1.weight", width).abs() / width).view(1, width, 1, 1))
    a, b = (inp(name, 1, 3, 64, 64).clamp(-1, 1) for name in ("img", "img2"))
    assert net(a, b).item() == pytest.approx(GOLDEN["lpips_rule"]["value"], rel=1e-5)
    assert net(a, a).item() == 0


def test_normalisations_have_the_right_epsilons() -> None:
    """systems.md 23, quirk 10. They are too small for the values above to tell: 1e-6 but in the U-Net's own blocks."""
    net = UNet(UNetSize(channels=4, width=32, mult=(1, 2), blocks=1, attention=(1,), context_dim=24))
    found = {n: m.eps for n, m in net.named_modules() if isinstance(m, torch.nn.GroupNorm)}
    assert found == {n: 1e-6 if n.endswith("transformer.norm") else 1e-5 for n in found}
    assert any("transformer" in n for n in found)
    coder = Autoencoder(AutoencoderSize(channels=32, mult=(1, 2), blocks=1))
    assert {m.eps for m in coder.modules() if isinstance(m, torch.nn.GroupNorm)} == {1e-6}
    layers = [*net.modules(), *TransformerEncoder(9, TransformerSize(dim=8, depth=1)).modules()]
    assert {m.eps for m in layers if isinstance(m, torch.nn.LayerNorm)} == {1e-5}
