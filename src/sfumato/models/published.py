"""The published networks, by name: sizes of our few classes. docs/networks.md has their parameter counts."""

from dataclasses import dataclass, replace

from sfumato.diffusion.prediction import Prediction
from sfumato.models.config import MapsKind, ScheduleConfig
from sfumato.nets.autoencoder import AutoencoderSize
from sfumato.nets.classifier import ClassifierSize
from sfumato.nets.transformer import TransformerSize
from sfumato.nets.unet import UNetSize
from sfumato.registry import Registry


def _ldm(width: int, mult: tuple[float, ...], **rest: object) -> UNetSize:
    """An LDM without tokens: plain attention."""
    return UNetSize(width=width, mult=mult, **{"channels": 3, "attends": "plain", "head_dim": 32, **rest})  # pyright: ignore[reportArgumentType]


def _adm(width: int, mult: tuple[float, ...], attention: tuple[int, ...], **rest: object) -> UNetSize:
    """ADM: adaptive normalisation, residual changes of size, 64 channels a head, the variance learnt."""
    adm = {"channels": 3, "out_channels": 6, "attends": "plain", "modulation": "scale_shift", "resample": "residual"}
    return UNetSize(width=width, mult=mult, attention=attention, **{**adm, **rest})  # pyright: ignore[reportArgumentType]


def _ddpm(mult: tuple[float, ...], attention: tuple[int, ...], dropout: float = 0.0) -> UNetSize:
    """DDPM: one head, 128 channels."""
    return UNetSize(
        channels=3, width=128, mult=mult, attention=attention, attends="plain", heads=1, dropout=dropout, lineage="ddpm"
    )


SD1 = UNetSize(channels=4, width=320, heads=8, context_dim=768)
SD2 = UNetSize(channels=4, width=320, head_dim=64, context_dim=1024)
TOKENS = {"attends": "transformer"}  # cross-attention

UNETS: Registry[UNetSize] = Registry("U-Net")
for _name, _size in {
    "sd1": SD1,
    "sd1-inpainting": replace(SD1, map_channels=5),
    "instruct-pix2pix": replace(SD1, map_channels=4),
    "sd2": SD2,
    "sd2-v": replace(SD2, upcast=True),
    "sd2-inpainting": replace(SD2, map_channels=5),
    "sd2-depth": replace(SD2, map_channels=1),
    "sd2-unclip-h": replace(SD2, vector_dim=2048, upcast=True),
    "sd2-unclip-l": replace(SD2, vector_dim=1536, upcast=True),
    "sd2-x4-upscaler": UNetSize(
        channels=4,
        map_channels=3,
        width=256,
        mult=(1, 2, 2, 4),
        attention=(2, 4, 8),
        heads=8,
        context_dim=1024,
        cross_only=(1, 2, 4),
        classes=1000,
    ),
    "ldm-celebahq": _ldm(224, (1, 2, 3, 4), attention=(2, 4, 8)),  # and FFHQ, LSUN bedrooms
    "ldm-churches": _ldm(
        192,
        (1, 2, 2, 4, 4),
        channels=4,
        attention=(1, 2, 4, 8),
        heads=8,
        modulation="scale_shift",
        resample="residual",
    ),
    "ldm-cin-vq-f8": _ldm(256, (1, 2, 4), channels=4, attention=(1, 2, 4), context_dim=512, **TOKENS),
    "ldm-cin256": _ldm(192, (1, 2, 3, 5), attention=(2, 4, 8), heads=1, context_dim=512, **TOKENS),
    "ldm-txt2img-1p4b": UNetSize(channels=4, width=320, heads=8, context_dim=1280),
    "ldm-text2img256": _ldm(192, (1, 2, 3, 5), attention=(2, 4, 8), context_dim=640, **TOKENS),
    "ldm-layout2img": _ldm(128, (1, 2, 3, 4), attention=(2, 4, 8), depth=3, context_dim=512, **TOKENS),
    "ldm-inpainting-big": _ldm(256, (1, 2, 3, 4), map_channels=4, attention=(2, 4, 8), heads=8, resample="residual"),
    "ldm-semantic": _ldm(128, (1, 4, 8), map_channels=3, attention=(), heads=8),  # attends in the middle alone
    "ldm-super-resolution": _ldm(160, (1, 2, 2, 4), map_channels=3, attention=(8,)),
    "rdm768": _ldm(448, (1, 2, 3, 4), channels=16, attention=(1, 2, 4), context_dim=768, **TOKENS),
    "ddpm-cifar10": _ddpm((1, 2, 2, 2), (2,), dropout=0.1),
    "ddpm-256": _ddpm((1, 1, 2, 2, 4, 4), (16,)),  # CelebA-HQ, LSUN
    "ddpm-celeba64": _ddpm((1, 2, 2, 2, 4), (4,)),
    "adm-64": _adm(192, (1, 2, 3, 4), (2, 4, 8), blocks=3, classes=1000, dropout=0.1),
    "adm-128": _adm(256, (1, 1, 2, 3, 4), (4, 8, 16), heads=4, classes=1000),
    "adm-256": _adm(256, (1, 1, 2, 2, 4, 4), (8, 16, 32), classes=1000),
    "adm-256-unconditional": _adm(256, (1, 1, 2, 2, 4, 4), (8, 16, 32)),  # LSUN too
    "adm-512": _adm(256, (0.5, 1, 1, 2, 2, 4, 4), (16, 32, 64), stem=128, classes=1000),
    "adm-64-to-256": _adm(192, (1, 1, 2, 2, 4, 4), (8, 16, 32), map_channels=3, heads=4, classes=1000),
    "adm-128-to-512": _adm(192, (1, 1, 2, 2, 4, 4), (16, 32), map_channels=3, classes=1000),
}.items():
    UNETS.add(_name, _size)

CLASSIFIERS: Registry[ClassifierSize] = Registry("classifier")
for _side, _mult, _at, _blocks in (
    (64, (1, 2, 3, 4), (2, 4, 8), 4),
    (128, (1, 1, 2, 3, 4), (4, 8, 16), 2),
    (256, (1, 1, 2, 2, 4, 4), (8, 16, 32), 2),
    (512, (0.5, 1, 1, 2, 2, 4, 4), (16, 32, 64), 2),
):
    _stem = 64 if _side == 512 else None  # noqa: PLR2004
    _body = _adm(128, _mult, _at, blocks=_blocks, stem=_stem)
    CLASSIFIERS.add(f"adm-classifier-{_side}", ClassifierSize(body=_body, classes=1000, side=_side))

FIRST_STAGES: Registry[AutoencoderSize] = Registry("first stage")
for _name, _size in {
    "kl-f4": AutoencoderSize(mult=(1, 2, 4), latent_channels=3),
    "kl-f8": AutoencoderSize(),  # Stable Diffusion's
    "kl-f16": AutoencoderSize(mult=(1, 1, 2, 2, 4), latent_channels=16, attention=(16,)),
    "kl-f32": AutoencoderSize(mult=(1, 1, 2, 2, 4, 4), latent_channels=64, attention=(16, 32)),
    "vq-f4": AutoencoderSize(mult=(1, 2, 4), latent_channels=3, codebook=8192),
    "vq-f4-noattn": AutoencoderSize(mult=(1, 2, 4), latent_channels=3, codebook=8192, middle_attention=False),
    "vq-f8": AutoencoderSize(mult=(1, 2, 2, 4), attention=(8,), codebook=16384),
    "vq-f8-n256": AutoencoderSize(mult=(1, 2, 2, 4), attention=(8,), codebook=256),
    "vq-f16": AutoencoderSize(mult=(1, 1, 2, 2, 4), latent_channels=8, attention=(16,), codebook=16384),
    "sd2-x4-upscaler-vae": AutoencoderSize(mult=(1, 2, 4)),
}.items():
    FIRST_STAGES.add(_name, _size)

ENCODERS: Registry[tuple[int, TransformerSize]] = Registry("text encoder")
"""The number of words, and the size."""
for _name, _entry in {
    "clip-vit-l-14": (
        49408,
        TransformerSize(dim=768, depth=12, heads=12, causal=True, bias=True, activation="quick_gelu"),
    ),
    "openclip-vit-h-14": (
        49408,
        TransformerSize(dim=1024, depth=23, heads=16, causal=True, bias=True),
    ),  # the last layer is not used
    "ldm-bert-1280": (30522, TransformerSize(dim=1280, depth=32, logits=True)),
    "ldm-bert-640": (30522, TransformerSize(dim=640, depth=32, logits=True)),
    "ldm-layout": (8192, TransformerSize(dim=512, depth=16, length=92, logits=True)),
}.items():
    ENCODERS.add(_name, _entry)


@dataclass(frozen=True)
class Training:
    """How the models of a U-Net were trained, as far as their files do not say."""

    resolution: int
    schedule: ScheduleConfig
    scale: float = 1.0  # what LDM multiplies latents by
    prediction: Prediction = Prediction.EPS
    maps: MapsKind | None = None
    like: str = "as the published model"  # how that is known


def _scaled(end: float, start: float = 0.0015) -> ScheduleConfig:
    return ScheduleConfig(kind="scaled_linear", start=start, end=end)


_SD = _scaled(0.012, 0.00085)
_KL_F8 = 0.18215
_ADM, _COSINE = ScheduleConfig(kind="linear"), ScheduleConfig(kind="cosine")

TRAININGS: dict[str, Training] = {
    "sd1": Training(512, _SD, _KL_F8),
    "sd1-inpainting": Training(512, _SD, _KL_F8, maps="inpainting"),
    "instruct-pix2pix": Training(512, _SD, _KL_F8, maps="picture"),
    "sd2": Training(512, _SD, _KL_F8),
    "sd2-v": Training(768, _SD, _KL_F8, Prediction.V),
    "sd2-inpainting": Training(512, _SD, _KL_F8, maps="inpainting"),
    "sd2-depth": Training(512, _SD, _KL_F8, maps="depth"),
    "sd2-unclip-h": Training(768, _SD, _KL_F8, Prediction.V),
    "sd2-unclip-l": Training(768, _SD, _KL_F8, Prediction.V),
    "sd2-x4-upscaler": Training(512, _scaled(0.02, 0.0001), 0.08333, Prediction.V, "low_resolution"),
    "ldm-celebahq": Training(256, _scaled(0.0195)),
    "ldm-churches": Training(256, _scaled(0.0155)),
    "ldm-cin-vq-f8": Training(256, _scaled(0.0195)),
    "ldm-cin256": Training(256, _scaled(0.0195)),
    "ldm-txt2img-1p4b": Training(256, _SD, _KL_F8),
    "ldm-text2img256": Training(256, _scaled(0.0195)),
    "ldm-layout2img": Training(256, _scaled(0.0205)),
    "ldm-inpainting-big": Training(256, _scaled(0.0205), maps="inpainting_black"),
    "ldm-semantic": Training(256, _scaled(0.0205), maps="segmentation"),
    "ldm-super-resolution": Training(256, _scaled(0.0155), maps="low_resolution"),
    "rdm768": Training(768, _scaled(0.015), 0.22765929),
    "ddpm-cifar10": Training(32, _ADM),
    "ddpm-256": Training(256, _ADM),
    "ddpm-celeba64": Training(64, _ADM),
    "adm-64": Training(64, _COSINE),
    "adm-128": Training(128, _ADM),
    "adm-256": Training(256, _ADM),
    "adm-256-unconditional": Training(256, _ADM),
    "adm-512": Training(512, _ADM),
    "adm-64-to-256": Training(256, _ADM, maps="low_resolution"),
    "adm-128-to-512": Training(512, _ADM, maps="low_resolution"),
}
