"""What a large picture takes through the tiled first stage: memory and time, and how far it is from the whole one.

    python benchmarks/tiled.py [--what decode] [--small 512] [--large 2048] [--compare 2048] [--precision float32]

A first stage of Stable Diffusion's size, with weights that are drawn, not trained, takes latents to pictures (or
pictures to latents). Each run is a process of its own, one after the other: whole at the small size, tiled at the large
one, and both at the size where they are compared, which the whole one needs the memory for (15 GiB to decode 2048).
Memory is the growth of the peak of the resident set (VmHWM), weights included, from before the first stage is made;
the ratio of the times is of the processor's, for other programs may run beside. Needs Linux. Prints a card and one JSON
line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.latents.kl import KLFirstStage


def resident(kind: str) -> float:
    """MiB of the process: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(f"{kind}:")).split()[1]) / 1024


def first_stage(precision: str) -> KLFirstStage:
    """Of Stable Diffusion's size: no layer is silent, and pictures have a spread of about half."""
    import torch

    from sfumato.latents.kl import KLFirstStage
    from sfumato.models.latent_diffusion import hollowed
    from sfumato.nets.autoencoder import AutoencoderSize

    with hollowed():
        stage = KLFirstStage(AutoencoderSize())
    stage = stage.to_empty(device="cpu").eval().requires_grad_(False)
    draw = torch.Generator().manual_seed(0)
    for name, p in stage.named_parameters():
        p.normal_(generator=draw)
        if p.ndim > 1:
            p.mul_(p[0].numel() ** -0.5)
        else:
            p.mul_(0.1).add_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    stage.mean.zero_()
    stage.std.fill_(1.0)
    last = stage.net.decoder.conv_out
    last.weight.mul_(0.5 / stage.decode(torch.randn(1, 4, 8, 8, generator=draw)).std())
    return stage.to(getattr(torch, precision))


def run(asked: argparse.Namespace) -> dict[str, Any]:
    """One of the processes."""
    import torch

    from sfumato.latents.tiled import tiled

    before = resident("VmRSS")
    stage = first_stage(asked.precision)
    draw = torch.Generator().manual_seed(1)
    if asked.what == "decode":
        given = torch.randn(1, 4, asked.side // 8, asked.side // 8, generator=draw)
    else:
        given = torch.rand(1, 3, asked.side, asked.side, generator=draw) * 2 - 1
    made = tiled(stage) if asked.run == "tiled" else stage
    began, worked = time.perf_counter(), time.process_time()
    with torch.no_grad():
        out: Tensor = getattr(made, asked.what)(given)
    seconds, work = time.perf_counter() - began, time.process_time() - worked
    mib = resident("VmHWM") - before
    if asked.out is not None:
        out.float().numpy().tofile(asked.out)
    weights = sum(p.numel() * p.element_size() for p in stage.parameters()) / 2**20
    took = {"seconds": round(seconds, 1), "cpu_seconds": round(work, 1)}
    return {"mib": round(mib), **took, "weights": round(weights), "std": round(float(out.std()), 2)}


def measured(asked: argparse.Namespace, how: str, side: int, out: Path | None) -> dict[str, Any]:
    """One run in a process of its own."""
    arguments = [sys.executable, __file__, "--run", how, "--side", str(side), "--what", asked.what]
    arguments += ["--precision", asked.precision, *(["--out", str(out)] if out else [])]
    done = subprocess.run(arguments, check=True, stdout=subprocess.PIPE)
    found = json.loads(done.stdout.splitlines()[-1])
    times = f"{found['seconds']:8.1f} s, {found['cpu_seconds']:8.1f} of the processor"
    print(f"{how:6} {side:5} {times}   {found['mib']:6} MiB", flush=True)
    return found


def difference(a: Path, b: Path, channels: int) -> dict[str, float]:
    """Of two results, of the largest in a pixel's channels: in levels of 255 if they are pictures."""
    import numpy as np

    x, y = (np.fromfile(path, np.float32).reshape(channels, -1) for path in (a, b))
    off = 127.5 * np.abs(x - y).max(0)
    return {
        "max": float(f"{off.max():.3g}"),
        "q999": float(f"{np.quantile(off, 0.999):.3g}"),
        "over_2": float((off >= 2).mean()),  # noqa: PLR2004
    }


def main() -> int:
    """Run the benchmark, or one of its processes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--what", choices=["decode", "encode"], default="decode")
    parser.add_argument("--small", type=int, default=512)
    parser.add_argument("--large", type=int, default=2048)
    parser.add_argument("--compare", type=int)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--run", choices=["whole", "tiled"])
    parser.add_argument("--side", type=int)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.run:
        print(json.dumps(run(asked)))
        return 0
    at = asked.compare or asked.large
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    print(f"{asked.what}, {asked.precision}, one picture of so many pixels a side; memory with the weights", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        files = {how: Path(folder) / how for how in ("tiled", "whole")}
        small = measured(asked, "whole", asked.small, None)
        large = measured(asked, "tiled", asked.large, files["tiled"])
        tiled = large if at == asked.large else measured(asked, "tiled", at, files["tiled"])
        whole = measured(asked, "whole", at, files["whole"])
        off = difference(files["tiled"], files["whole"], 3 if asked.what == "decode" else 4)
    memory, times = large["mib"] / small["mib"], tiled["cpu_seconds"] / whole["cpu_seconds"]
    print(
        f"memory of {asked.large} tiled to {asked.small} whole: {memory:.2f}; tiled to whole, time at {at}: {times:.2f}"
    )
    print(
        f"difference at {at}, in 1/255: {off['max']} at most, {off['q999']} on 99.9 %; 2 or more: {off['over_2']:.2%}"
    )
    report = {"what": asked.what, "precision": asked.precision, "small": [asked.small, small]}
    report |= {"large": [asked.large, large], "compared": [at, tiled, whole], "difference": off}
    print(json.dumps({**report, "memory": round(memory, 3), "time": round(times, 3)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
