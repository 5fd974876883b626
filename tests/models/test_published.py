"""The published networks have exactly as many parameters as their authors say, built without memory for them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sfumato.models.latent_diffusion import hollowed
from sfumato.models.published import CLASSIFIERS, ENCODERS, FIRST_STAGES, UNETS
from sfumato.nets.autoencoder import Autoencoder
from sfumato.nets.classifier import Classifier
from sfumato.nets.transformer import TransformerEncoder
from sfumato.nets.unet import UNet

COUNTS = {
    "sd1": 859_520_964,
    "sd1-inpainting": 859_535_364,
    "instruct-pix2pix": 859_532_484,
    "sd2": 865_910_724,
    "sd2-v": 865_910_724,
    "sd2-inpainting": 865_925_124,
    "sd2-depth": 865_913_604,
    "sd2-unclip-h": 870_173_124,
    "sd2-unclip-l": 869_517_764,
    "sd2-x4-upscaler": 473_398_020,
    "ldm-celebahq": 274_056_163,
    "ldm-churches": 294_966_916,
    "ldm-cin-vq-f8": 394_984_196,
    "ldm-cin256": 400_920_579,
    "ldm-txt2img-1p4b": 872_300_484,
    "ldm-text2img256": 403_623_939,
    "ldm-layout2img": 246_277_379,
    "ldm-inpainting-big": 387_245_827,
    "ldm-semantic": 215_229_315,
    "ldm-super-resolution": 113_622_563,
    "rdm768": 1_335_480_400,
    "ddpm-cifar10": 35_746_307,
    "ddpm-256": 113_673_219,
    "ddpm-celeba64": 78_700_803,
    "adm-64": 295_904_454,
    "adm-128": 421_529_606,
    "adm-256": 553_838_086,
    "adm-256-unconditional": 552_814_086,
    "adm-512": 558_997_638,
    "adm-64-to-256": 311_795_910,
    "adm-128-to-512": 308_835_270,
    "adm-classifier-64": 65_438_568,
    "adm-classifier-128": 42_568_040,
    "adm-classifier-256": 54_096_360,
    "adm-classifier-512": 54_448_360,
    "kl-f4": 55_312_063,
    "kl-f8": 83_653_863,
    "kl-f16": 69_610_963,
    "kl-f32": 103_880_131,
    "vq-f4": 55_322_782,
    "vq-f4-noattn": 53_219_486,
    "vq-f8": 67_717_295,
    "vq-f8-n256": 67_652_783,
    "vq-f16": 69_593_371,
    "sd2-x4-upscaler-vae": 55_325_927,
    "clip-vit-l-14": 123_060_480,
    "openclip-vit-h-14": 340_387_840,
    "ldm-bert-1280": 581_994_042,
    "ldm-bert-640": 186_154_682,
    "ldm-layout": 58_858_496,
}


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def built(name: str) -> nn.Module:
    with hollowed():
        if name in UNETS:
            return UNet(UNETS[name])
        if name in CLASSIFIERS:
            return Classifier(CLASSIFIERS[name])
        if name in FIRST_STAGES:
            return Autoencoder(FIRST_STAGES[name])
        return TransformerEncoder(*ENCODERS[name])


@pytest.mark.parametrize("name", COUNTS)
def test_parameters(name: str) -> None:
    assert count(built(name)) == COUNTS[name]


def test_every_published_size_is_counted() -> None:
    assert {*UNETS, *CLASSIFIERS, *FIRST_STAGES, *ENCODERS} == COUNTS.keys()


def test_nothing_is_made() -> None:
    net = built("sd1")
    assert all(p.device.type == "meta" for p in net.parameters())
    assert not torch.cuda.is_initialized()
