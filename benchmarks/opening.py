"""How long a single file of Stable Diffusion takes to its first denoised step, and how much memory; beside diffusers.

    python benchmarks/opening.py FILE.safetensors --config FOLDER [--rounds 3] [--size 512] [--precision default]

FILE is a Stable Diffusion checkpoint; FOLDER a folder of diffusers with the configurations of the same model, which
diffusers wants beside it when it may not ask its hub. Each program runs in a process of its own, one after the other,
in turns, from its start to the end of the first of 20 guided steps. Needs the extra `peers`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROMPT = "a photograph of an astronaut riding a horse"


def ours(asked: argparse.Namespace) -> None:
    """Open, and take the first step."""
    import sfumato
    from sfumato.generate import Preview

    model = sfumato.load(asked.file, precision="auto" if asked.precision == "default" else asked.precision)
    side = (asked.size, asked.size)
    run = model.sample(prompt=PROMPT, sampler="ddim", spacing="leading", steps=20, guidance=7.5, size=side)
    event = next(run)
    assert isinstance(event, Preview)
    assert event.x0.isfinite().all()
    run.close()


class Enough(Exception):
    """The first step is done."""


def theirs(asked: argparse.Namespace) -> None:
    """The same with diffusers."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    own = {} if asked.precision == "default" else {"torch_dtype": getattr(torch, asked.precision)}
    config = str(asked.config)
    pipe = StableDiffusionPipeline.from_single_file(str(asked.file), config=config, local_files_only=True, **own)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)

    def done(_pipe: object, _step: int, _t: object, _kept: dict[str, object]) -> dict[str, object]:
        raise Enough

    try:
        pipe(
            PROMPT,
            num_inference_steps=20,
            guidance_scale=7.5,
            height=asked.size,
            width=asked.size,
            callback_on_step_end=done,
        )
    except Enough:
        return
    raise AssertionError("the first step was never done")


def measured(asked: argparse.Namespace, who: str) -> dict[str, float]:
    """Seconds and mebibytes of one program in a process of its own."""
    arguments = [sys.executable, __file__, str(asked.file), "--config", str(asked.config), "--size", str(asked.size)]
    arguments += ["--precision", asked.precision]
    began = time.time()
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    out = subprocess.run(
        [*arguments, "--run", who], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    found = json.loads(out.stdout.splitlines()[-1])
    return {"seconds": found["at"] - began, "mib": found["mib"]}


def main() -> int:
    """Run the benchmark, or one of its two programs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--precision", choices=["default", "float32", "bfloat16"], default="default")
    parser.add_argument("--run", choices=["sfumato", "diffusers"])
    asked = parser.parse_args()
    if asked.run:
        (ours if asked.run == "sfumato" else theirs)(asked)
        print(json.dumps({"at": time.time(), "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        return 0
    runs: dict[str, list[dict[str, float]]] = {"sfumato": [], "diffusers": []}
    with asked.file.open("rb") as file:  # both find the file in memory
        while file.read(1 << 24):
            pass
    for _ in range(asked.rounds):
        for who, results in runs.items():
            results.append(measured(asked, who))
    weights = asked.file.stat().st_size / 2**20
    report = {
        who: {key: round(statistics.median(r[key] for r in results), 2) for key in ("seconds", "mib")}
        for who, results in runs.items()
    }
    ratio = report["sfumato"]["seconds"] / report["diffusers"]["seconds"]
    print(f"file: {weights:.0f} MiB; medians of {asked.rounds}, {asked.size} pixels, from the program's start")
    for who, found in report.items():
        beside = found["mib"] - weights
        print(f"{who:10} {found['seconds']:7.2f} s   {found['mib']:7.0f} MiB, {beside:+.0f} beside the weights")
    print(f"ratio of the times: {ratio:.2f}")
    print(json.dumps({"file_mib": round(weights), "size": asked.size, **report, "ratio": round(ratio, 3)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
