"""The names of DDPM's U-Net in its PyTorch form ("Model"), from which LDM's autoencoder descends."""

from sfumato.io.layouts.ldm import VAE_ATTENTION, VAE_RES
from sfumato.io.layouts.rules import Place, Places, Rule, ruled, under
from sfumato.io.layouts.walk import counted
from sfumato.nets.unet import Stage, UNet

STAGE = {**VAE_RES, "emb": "temb_proj"}


def unet(net: UNet) -> list[Rule]:
    """Model, for a network of the ddpm lineage with plain attention."""
    places = {"time.0": Place("temb.dense.0"), "time.2": Place("temb.dense.1"), "conv_in": Place("conv_in")}
    places |= {"norm_out": Place("norm_out"), "conv_out": Place("conv_out")}
    places |= _stage("middle.0.res", "mid.block_1") | _stage("middle.1.res", "mid.block_2")
    places |= under(VAE_ATTENTION, "middle.0.transformer", "mid.attn_1")
    levels = range(len(net.size.mult))
    for way, layers, names in (("down", net.down, levels), ("up", net.up, levels[::-1])):
        for i, layer, level, block in counted(layers):
            there = f"{way}.{names[level]}"
            if isinstance(layer, Stage):
                places |= _stage(f"{way}.{i}.res", f"{there}.block.{block}")
                places |= under(VAE_ATTENTION, f"{way}.{i}.transformer", f"{there}.attn.{block}")
            else:
                places[f"{way}.{i}.conv"] = Place(f"{there}.{way}sample.conv")
    return ruled(net, places)


def _stage(here: str, there: str) -> Places:
    return under(STAGE, here, there)
