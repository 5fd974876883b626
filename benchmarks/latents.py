"""What do latents that are kept save a training step?

    python benchmarks/latents.py [--data DIR] [--first-stage emoji] [--steps 12] [--batch 64] [--out runs/latents]

Two runs of the recipe `emoji` on a first stage that is there, with equal settings but for one: latents encoded once and
read from the cache, or encoded at each step. `--first-stage kl-f8` and the like are the published ones, untrained:
their time does not depend on their weights. Their steps are taken in turn in one process. Prints the median time of a
step of each, their ratio, and what encoding once cost; last, one JSON line.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import sfumato  # first: it says how threads wait before torch is imported
from sfumato.cli.parse import override
from sfumato.io import first_stage_folder
from sfumato.io.first_stage_folder import FirstStageFile
from sfumato.models.latent_diffusion import autoencoder_of
from sfumato.models.published import FIRST_STAGES
from sfumato.recipes import RECIPES, diffusion
from sfumato.recipes.events import Encoded, Event, Stepped

WARM = 3  # steps that are not counted


def untrained(name: str, out: Path) -> Path:
    """A published first stage with the weights that it begins with."""
    size = FIRST_STAGES[name]
    stage = autoencoder_of(size)
    stage.std.fill_(0.5)  # so that nothing is measured that a trained one says
    first_stage_folder.save(
        out, FirstStageFile(name=name, size=size, resolution=64, provenance={}), "untrained", stage.state_dict()
    )
    return out


def begun(how: str, asked: argparse.Namespace) -> Iterator[Event]:
    """A run with latents encoded `how`."""
    recipe = RECIPES["emoji"]
    base = diffusion.on(recipe.settings(asked.data), asked.first_stage)
    changes = [
        f"diffusion.encode={how}",
        f"diffusion.plan.steps={asked.steps + WARM}",
        f"diffusion.plan.batch={asked.batch}",
    ]
    changes += ["diffusion.plan.save=1000000", "diffusion.plan.preview=1000000"]
    settings = type(base).model_validate(override(base, changes))
    return recipe.run(settings, recipe.material(asked.data, settings), asked.out / how)


def step(events: Iterator[Event]) -> float:
    """The seconds that the next step takes, its batch included."""
    began = time.perf_counter()
    for event in events:
        if isinstance(event, Stepped):
            return time.perf_counter() - began
        if isinstance(event, Encoded):
            print(f"{event.done:,} of {event.total:,} encoded after {time.perf_counter() - began:.1f} s")
    raise AssertionError("the run ended")


def main() -> None:
    """Time both in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--first-stage", default="emoji")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("runs/latents"))
    asked = parser.parse_args()
    name, published = asked.first_stage, asked.first_stage in FIRST_STAGES
    asked.first_stage = untrained(name, asked.out / "first-stage") if published else Path(name)
    runs = {how: begun(how, asked) for how in ("once", "always")}
    first = {how: step(events) for how, events in runs.items()}
    took: dict[str, list[float]] = {how: [] for how in runs}
    for k in range(1, asked.steps + WARM):
        for how, events in runs.items():
            seconds = step(events)
            if k >= WARM:
                took[how].append(seconds)
    median = {how: statistics.median(seconds) for how, seconds in took.items()}
    ratio = median["always"] / median["once"]
    for how, seconds in median.items():
        print(f"{how}: {seconds:.3f} s a step; {first[how]:.1f} s to the end of the first")
    print(f"encoding at each step takes {ratio:.2f} times as long")
    print(json.dumps({"median": median, "ratio": ratio, "steps": asked.steps, "sfumato": sfumato.__version__}))


if __name__ == "__main__":
    main()
