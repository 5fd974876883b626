"""TAESD's names: its own, where a half is a file, and those of diffusers' AutoencoderTiny, where both are in one."""

import re
from collections.abc import Iterable

from torch import nn

from sfumato.io.layouts.rules import Place, Places, Rule, prefixed, ruled, under
from sfumato.nets.tiny import TinyAutoencoder, TinyBlock, TinyDecoder, TinyEncoder

BLOCK = {"conv_in": "conv.0", "conv_middle": "conv.2", "conv_out": "conv.4"}
ENCODER, DECODER = "encoder.layers.", "decoder.layers."  # in diffusers' files
MARK = r"((en|de)coder\.layers\.)?\d+\.conv\.0\.weight"
"""The pattern of a tensor's name that every block has, and no other network."""


def autoencoder(net: TinyAutoencoder, *, original: bool) -> list[Rule]:
    """Both halves as diffusers has them, or the decoder alone as in its `original` file."""
    if original:
        return prefixed(half(net.decoder, first=1), "decoder.", "")
    encoder = [] if net.encoder is None else prefixed(half(net.encoder), "encoder.", ENCODER)
    return encoder + prefixed(half(net.decoder), "decoder.", DECODER)


def half(net: TinyEncoder | TinyDecoder, *, first: int = 0) -> list[Rule]:
    """One half, whose first layer is the layer `first` there: what bounds the latent is layer 0 of the original's."""
    places: Places = {}
    for i, layer in enumerate(net.layers):
        here, there = f"layers.{i}", f"{i + first}"
        if isinstance(layer, TinyBlock):
            places |= under(BLOCK, here, there)
        elif isinstance(layer, nn.Conv2d):
            places[here] = Place(there)
    return ruled(net, places)


def is_one(names: Iterable[str]) -> bool:
    """Whether tensors of these names are a tiny first stage, or a half of one."""
    return any(re.fullmatch(MARK, name) for name in names)


def is_original(names: Iterable[str]) -> bool:
    """Whether tensors have the original's names."""
    return not any(name.startswith((ENCODER, DECODER)) for name in names)
