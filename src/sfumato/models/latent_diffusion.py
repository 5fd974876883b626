"""The model: a first stage, a conditioner and a denoiser, and nothing else than their wiring."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.overrides import TorchFunctionMode

from sfumato.conditioning.bert import Bert
from sfumato.conditioning.bert_tokens import bert_tokenizer
from sfumato.conditioning.boxes import Boxes
from sfumato.conditioning.clip import Clip
from sfumato.conditioning.clip_tokens import clip_tokenizer
from sfumato.conditioning.label import Labels, TableRow
from sfumato.conditioning.layout import LayoutTokens
from sfumato.conditioning.segmentation import Segmentation
from sfumato.conditioning.text import Text
from sfumato.diffusion.denoiser import Denoiser
from sfumato.latents.kl import KLFirstStage
from sfumato.latents.pixels import Pixels
from sfumato.latents.tiny import TinyFirstStage
from sfumato.latents.vq import VQFirstStage
from sfumato.models import config
from sfumato.models.config import ModelConfig
from sfumato.nets.autoencoder import Autoencoder, AutoencoderSize
from sfumato.nets.transformer import TransformerEncoder
from sfumato.nets.unet import UNet

AnyFirstStage = KLFirstStage | VQFirstStage | TinyFirstStage | Pixels
AnyConditioner = Text | Clip | Bert | LayoutTokens | Boxes | Labels | TableRow | Segmentation


class LatentDiffusion(nn.Module):
    """A latent diffusion model (Rombach et al. 2022). A conditioner of words needs its tokenizer."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.config = config
        self.first_stage: AnyFirstStage = _first_stage(config.first_stage)  # another may be put in its place
        side = config.resolution // self.first_stage.factor
        self.conditioner = _conditioner(config.conditioner, tokenizer, (side, side))
        net = UNet(config.unet)
        with torch.device("cpu"):  # the schedule is real in a hollow model too
            schedule = config.schedule.build()
        self.denoiser = Denoiser(net, schedule, config.prediction, learned=config.learned)
        self.factor = self.first_stage.factor * net.factor  # what both sides of a picture must divide by

    @property
    def net(self) -> UNet:
        """The network of the denoiser."""
        assert isinstance(self.denoiser.net, UNet)
        return self.denoiser.net

    @property
    def autoencoder(self) -> Autoencoder:
        """The networks of the model's own first stage; there must be one."""
        assert isinstance(self.first_stage, KLFirstStage | VQFirstStage)
        return self.first_stage.net

    @property
    def text(self) -> TransformerEncoder:
        """The transformer of the conditioner; there must be one."""
        assert isinstance(self.conditioner, Text | Clip | Bert | LayoutTokens)
        return self.conditioner.encoder

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, h, w) for a picture of width x height pixels; ValueError if the model cannot take that size."""
        f = self.factor
        if width % f or height % f or min(width, height) < f:
            near = "x".join(f"{max(f, round(side / f) * f)}" for side in (width, height))
            raise ValueError(
                f"size {width}x{height} does not fit this model; both sides must divide by {f} (near: {near})"
            )
        return self.first_stage.channels, height // self.first_stage.factor, width // self.first_stage.factor


def _first_stage(size: AutoencoderSize | None) -> KLFirstStage | VQFirstStage | Pixels:
    if size is None:
        return Pixels()
    return autoencoder_of(size)


def autoencoder_of(size: AutoencoderSize) -> KLFirstStage | VQFirstStage:
    """A first stage of this size."""
    return VQFirstStage(size) if size.codebook else KLFirstStage(size)


def _conditioner(
    kind: config.Conditioning | None, tokenizer: Tokenizer | None, cells: tuple[int, int]
) -> AnyConditioner | None:
    match kind:
        case config.WordsConfig(encoder=size):
            assert tokenizer is not None
            return Text(tokenizer, size)
        case config.ClipConfig(encoder=size, vocabulary=words, pad=pad):
            return Clip(tokenizer or clip_tokenizer(), words, size, pad=pad)
        case config.BertConfig(encoder=size, vocabulary=words):
            return Bert(tokenizer or bert_tokenizer(), words, size)
        case config.LayoutConfig(encoder=size, vocabulary=numbers, names=names, window=window):
            return LayoutTokens(numbers, size, names=names, window=window)
        case config.BoxesConfig():
            return Boxes(
                kind.encoder or kind.perceiver,  # pyright: ignore[reportArgumentType] - the config has one of them
                names=kind.names,
                words=kind.words,
                tokenizer=tokenizer,
                captions=kind.captions,
                most=kind.most,
                bands=kind.bands,
                painted=kind.painted,
                cells=cells,
            )
        case _:
            return _wordless(kind)


def _wordless(
    kind: config.LabelsConfig | config.TableConfig | config.SegmentationConfig | None,
) -> AnyConditioner | None:
    match kind:
        case config.LabelsConfig(classes=classes, dim=dim, null=null):
            return Labels(classes, dim, null=null)
        case config.TableConfig(classes=classes):
            return TableRow(classes)
        case config.SegmentationConfig(classes=classes, channels=channels, stages=stages):
            return Segmentation(classes, channels, stages=stages)
        case None:
            return None


def hollow(config: ModelConfig, tokenizer: Tokenizer | None = None) -> LatentDiffusion:
    """The model with shapes and no numbers: nothing of its size is made until weights are put in."""
    with hollowed():
        return LatentDiffusion(config, tokenizer)


@contextmanager
def hollowed() -> Iterator[None]:
    """Modules that are made in here have shapes and no numbers."""
    with torch.device("meta"), _Uninitialised():
        yield


class _Uninitialised(TorchFunctionMode):
    """Parameters are not drawn: on "meta" there is nothing to draw, and saying so takes torch a second."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
