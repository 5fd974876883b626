"""How long should a thread spin before it sleeps, alone on the machine and beside busy processes?

    python benchmarks/threads.py [--threads 2] [--turns 3] [--busy 0 1 2]

A forward and a backward pass of the recipe `layout`'s network, batches of 32, and a guided sample of the bundled model,
in processes of their own for each way to wait, taken in turns. `passive` is OMP_WAIT_POLICY=PASSIVE, which sleeps at
once; the others are GOMP_SPINCOUNT. Beside so many busy processes that do nothing but count. Prints the median of all
passes in seconds, and last one JSON line.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

import sfumato
from sfumato.nets.unet import UNet
from sfumato.recipes import layout

WAYS = {"passive": {}, **{str(spins): {"GOMP_SPINCOUNT": str(spins)} for spins in (1_000, 10_000, 100_000, 1_000_000)}}
BATCH, PASSES = 32, 6


def measured() -> dict[str, list[float]]:
    """The seconds of some training passes and of some pictures."""
    size = layout.settings(None).model.unet
    net = UNet(size)
    x = torch.randn(BATCH, size.channels + size.map_channels, 12, 12)
    tokens, vector = torch.randn(BATCH, 20, layout.DIM), torch.randn(BATCH, layout.DIM)
    mask = torch.ones(BATCH, 20, dtype=torch.bool)

    def trained() -> None:
        net.zero_grad(set_to_none=True)
        net(x, torch.rand(BATCH), tokens, mask, vector).square().mean().backward()

    model = sfumato.load("emoji")

    def painted() -> None:
        model.generate(prompt="a red apple, 3d", seed=7, steps=10)

    return {"pass": _timed(trained), "picture": _timed(painted)}


def _timed(work: Callable[[], object]) -> list[float]:
    work()
    times = []
    for _ in range(PASSES):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return times


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--busy", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(measured()))
        return 0
    found: dict[str, dict[str, dict[str, float]]] = {}
    for busy in asked.busy:
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        times: dict[str, dict[str, list[float]]] = {way: {} for way in WAYS}
        try:
            for _ in range(asked.turns):
                for way, said in WAYS.items():
                    threads = {"OMP_NUM_THREADS": str(asked.threads), "OMP_WAIT_POLICY": "PASSIVE"}
                    out = subprocess.run(
                        [sys.executable, __file__, "--measure"],
                        env={**os.environ, **threads, **said},
                        check=True,
                        stdout=subprocess.PIPE,
                    ).stdout
                    for what, seconds in json.loads(out).items():
                        times[way].setdefault(what, []).extend(seconds)
        finally:
            for other in others:
                other.kill()
                other.wait()
        medians = {way: {what: statistics.median(s) for what, s in one.items()} for way, one in times.items()}
        found[f"{busy} busy"] = medians
        for way, one in medians.items():
            print(f"{busy} busy  {way:>9}  " + "  ".join(f"{what} {s:.3f}" for what, s in one.items()), flush=True)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
