"""The critic and the Perceiver against the original code: the same weights, filled by a rule, give the same numbers.

`golden_families.json` holds statistics and some values of what the original programs put out, and their parameters.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fill import agrees, fill, inp, parameter, places
from sfumato.nets.patchgan import PatchGan, PatchGanSize
from sfumato.nets.perceiver import DecoderSize, PerceiverIO, PerceiverSize

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden_families.json").read_text())


def check(out: Tensor, name: str) -> None:
    """Compare all that is known of an output."""
    agrees(out, GOLDEN[name], name)


@torch.no_grad()
def test_patchgan() -> None:
    """Its layers stand in one sequence, as in the original, where this is called "main"."""
    net = PatchGan(PatchGanSize(width=16))
    fill(net, places(net, {name: name.replace("layers.", "main.", 1) for name, _ in net.named_parameters()}))
    assert {name.split(".")[1] for name, _ in net.named_parameters()} == set(map(str, (0, 2, 3, 5, 6, 8, 9, 11)))
    check(net(inp("img", 1, 3, 64, 64)), "patchgan_mini_eval")


def layer(here: str, attention: str, mlp: str | None) -> dict[str, str]:
    """Modules of a layer of ours by their names in lucidrains' Perceiver, where keys and values are one matrix."""
    names = {"to_q": "fn.to_q", "to_k": "fn.to_kv", "to_v": "fn.to_kv", "to_out": "fn.to_out"}
    names |= {"norm": "norm", "norm_context": "norm_context"}
    places = {f"{here}.attention.{a}": f"{attention}.{b}" for a, b in names.items()}
    if mlp is not None:
        inside = {"norm": "norm", "proj_in": "fn.net.0", "proj_out": "fn.net.2"}
        places |= {f"{here}.mlp.{a}": f"{mlp}.{b}" for a, b in inside.items()}
    return places


@torch.no_grad()
def test_perceiver_io() -> None:
    plain = {"bias": False, "gated": True, "widening": 4}
    size = PerceiverSize(channels=20, latents=8, dim=32, rounds=1, depth=2, heads=4, keys=32, read_keys=8, **plain)
    net = PerceiverIO(size, DecoderSize(queries=12, out=6, keys=8, residual=False, mlp=False))
    places = layer("perceiver.readings.0", "cross_attend_blocks.0", "cross_attend_blocks.1")
    for k in range(2):
        places |= layer(f"perceiver.blocks.0.{k}", f"layers.{k}.0", f"layers.{k}.1")
    places |= layer("decoder.ask", "decoder_cross_attn", None) | {"decoder.out": "to_logits"}
    shapes, used = GOLDEN["perceiver_io_mini"]["keys"], set()
    for name, p in net.named_parameters():
        module, _, leaf = name.rpartition(".")
        original = "latents" if name == "perceiver.latents" else f"{places[module]}.{leaf}"
        whole = parameter(original, shapes[original])
        if "to_kv" in original:
            whole = whole.chunk(2)[module.endswith("to_v")]
        assert p.shape == whole.shape, name
        p.copy_(whole)
        used.add(original)
    assert used == set(shapes)
    check(net(inp("data", 2, 10, 20), queries=inp("q", 5, 12)), "perceiver_io_mini")
