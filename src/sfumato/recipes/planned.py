"""What a training will take: the recipe itself, for three steps of each kind, in a folder that is thrown away."""

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sfumato.data.part import Part, spaced
from sfumato.data.sample import Dataset
from sfumato.data.training import TRIED
from sfumato.io.stored import open_stored
from sfumato.models.config import Closed
from sfumato.recipes.autoencoder import FirstStageRun
from sfumato.recipes.events import Encoded, Event, Found, Ready, Stepped
from sfumato.recipes.first_stage import FirstStageTraining
from sfumato.recipes.material import Material
from sfumato.recipes.memory import Peak
from sfumato.recipes.seen import Seen
from sfumato.recipes.settings import DiffusionTraining
from sfumato.recipes.tiny_decoder import TinyDecoderTraining
from sfumato.train.plan import Plan
from sfumato.train.snapshots import FOLDER, spacing
from sfumato.world import ALONE, World

STEPS = 3  # of each kind
PICTURES = 200  # that are read, at most

Run = Callable[[Any, Any, Path, World], Iterator[Event]]


@dataclass(frozen=True)
class Kind:
    """Steps that cost alike: from `begin` on, so many, and the median of the seconds that three of them took."""

    begin: int
    steps: int
    seconds: float


@dataclass(frozen=True)
class StageCost:
    """What a stage takes: memory beyond what the program had before, the bytes of a checkpoint, how many are kept."""

    stage: str
    steps: int
    batch: int
    weights: int
    critic: int
    memory: int
    kinds: tuple[Kind, ...]
    checkpoint: int
    kept: int

    @property
    def seconds(self) -> float:
        """Of all its steps."""
        return sum(kind.steps * kind.seconds for kind in self.kinds)

    @property
    def samples_a_second(self) -> float:
        """Over all its steps."""
        return self.steps * self.batch / self.seconds


@dataclass(frozen=True)
class Cost:
    """What a run takes: its stages, and before them the reading and the encoding of all pictures."""

    stages: tuple[StageCost, ...]
    pictures: int
    read: float  # seconds
    encoded: float
    latents: int  # bytes
    snapshots: int  # bytes of all

    @property
    def seconds(self) -> float:
        """Of the whole run, without previews, validation and the measures at its end."""
        return self.read + self.encoded + sum(stage.seconds for stage in self.stages)

    @property
    def memory(self) -> int:
        """Bytes, of the stage that takes most."""
        return max(stage.memory for stage in self.stages)

    @property
    def disk(self) -> int:
        """Bytes of latents, checkpoints and snapshots at the end, without pictures and the model itself."""
        return self.latents + self.snapshots + sum(stage.checkpoint * stage.kept for stage in self.stages)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        more = [{"seconds": s.seconds, "samples_a_second": s.samples_a_second} for s in self.stages]
        stages = [asdict(stage) | extra for stage, extra in zip(self.stages, more, strict=True)]
        return asdict(self) | {"stages": stages, "seconds": self.seconds, "memory": self.memory, "disk": self.disk}


@dataclass
class _Probe:
    """What was seen so far of a run of few steps."""

    began: float = field(default_factory=time.perf_counter)
    ready: float = 0.0
    encoding: tuple[float, float] = (0.0, 0.0)  # when it began, and when it ended
    timed: dict[str, list[float]] = field(default_factory=dict)  # by stage
    memory: dict[str, int] = field(default_factory=dict)

    def see(self, event: Event, peak: int) -> None:
        now = time.perf_counter()
        if isinstance(event, Ready):
            self.ready = now - self.began
        elif isinstance(event, Found):
            self.encoding = (now, now)
        elif isinstance(event, Encoded):
            self.encoding = (self.encoding[0], now)
        elif isinstance(event, Stepped):
            self.timed.setdefault(event.stage, []).append(event.progress.seconds)
        if (stage := getattr(event, "stage", None)) is not None:
            self.memory[stage] = max(self.memory.get(stage, 0), peak)


def planned(run: Run, settings: Closed, material: Material | Seen, world: World = ALONE) -> Iterator[Event | Cost]:
    """Run a recipe for a few steps; the events of that, and what the whole run would take.

    ValueError as the recipe's. Nothing stays behind.
    """
    stages = _stages(settings)
    few, n, whole = _few(material)
    last, probe, peak = [*stages][-1], _Probe(), Peak(world.device)
    with TemporaryDirectory(prefix="sfumato-plan-") as folder:
        with closing(_open(run(_short(settings), few, Path(folder), world))) as events:
            for event in events:
                probe.see(event, peak.taken())
                yield event
                if isinstance(event, Stepped) and event.stage == last and event.progress.step == event.progress.steps:
                    break  # what follows are pictures and measures
        costs = [_cost(name, plan, dearer, probe, Path(folder)) for name, (plan, dearer) in stages.items()]
        latents, each = (
            sum(p.stat().st_size for p in Path(folder).glob(names))
            for names in ("latents/**/*.safetensors", f"diffusion/{FOLDER}/step-{STEPS}_*")
        )
    more = whole / n
    read = min(whole, TRIED) / n if isinstance(material, Seen) else more
    begin, end = probe.encoding
    yield Cost(
        tuple(costs),
        whole,
        probe.ready * read,
        (end - begin) * more,
        round(latents * more),
        each * _snapshots(settings),
    )


def _open(events: Iterator[Event]) -> Generator[Event, None, None]:
    yield from events


def _cost(stage: str, plan: Plan, dearer: tuple[int, ...], probe: _Probe, out: Path) -> StageCost:
    begins = (0, *dearer)
    timed = [sorted(probe.timed[stage][STEPS * k : STEPS * (k + 1)])[STEPS // 2] for k in range(len(begins))]
    kinds = [
        Kind(begin, end - begin, seconds)
        for begin, end, seconds in zip(begins, (*dearer, plan.steps), timed, strict=True)
    ]
    saved = out / stage.replace(" ", "-") / f"step-{STEPS * len(begins)}"
    entries = open_stored(saved / "state.safetensors").entries
    own, critic = (
        sum(math.prod(e.shape) for name, e in entries.items() if name.startswith(begin) and name.endswith(end))
        for begin, end in (("ema.", ""), ("phase ", ".exp_avg"))
    )
    size = sum(p.stat().st_size for p in saved.iterdir())
    kept = min(plan.keep, -(-plan.steps // plan.save))
    return StageCost(stage, plan.steps, plan.batch, own, critic, probe.memory[stage], tuple(kinds), size, kept)


def _snapshots(settings: Closed) -> int:
    """How often they are taken."""
    if not isinstance(settings, DiffusionTraining) or not settings.diffusion.averages:
        return 0
    steps = settings.diffusion.plan.steps
    return -(-steps // (settings.diffusion.snapshots or spacing(steps)))


# Less of it -----------------------------------------------------------------------------------------------
def _stages(settings: Closed) -> dict[str, tuple[Plan, tuple[int, ...]]]:
    """The stages by name, each with its plan and the steps from which on a step takes longer."""
    match settings:
        case FirstStageTraining(run=run):
            return {"first stage": (run.plan, run.dearer)}
        case TinyDecoderTraining(plan=plan):
            return {"tiny decoder": (plan, ())}
        case DiffusionTraining(first_stage=first, given=given, diffusion=run):
            alone = {"diffusion": (run.plan, ())}
            if first is None or given is not None or settings.model.first_stage is None:
                return alone
            return {"first stage": (first.plan, first.dearer), **alone}
    raise ValueError("what this recipe will take cannot be measured yet; a run of few steps says it: plan.steps=5")


def _short(settings: Closed) -> Closed:
    """The same with three steps of each kind, and without what is not a step."""
    match settings:
        case FirstStageTraining(run=run):
            return settings.model_copy(update={"run": _first(run)})
        case TinyDecoderTraining(plan=plan):
            return settings.model_copy(update={"plan": replace(plan, steps=STEPS)})
        case DiffusionTraining(first_stage=first, diffusion=run):
            less = run.model_copy(update={"plan": replace(run.plan, steps=STEPS), "validation": 0, "latents": None})
            return settings.model_copy(update={"first_stage": first and _first(first), "diffusion": less})
    raise AssertionError("a recipe whose stages are not known")


def _first(run: FirstStageRun) -> FirstStageRun:
    """The perceptual term and the adversary begin in the same order as they would, each after three steps."""
    at = {begin: STEPS * k for k, begin in enumerate(run.dearer, 1)}
    losses, adversary = run.losses, run.adversary
    if losses.perceptual > 0:
        losses = replace(losses, perceptual_from=at.get(losses.perceptual_from, 0))
    if adversary:
        adversary = replace(adversary, start=at.get(adversary.start, 0))
    plan = replace(run.plan, steps=STEPS * (len(at) + 1))
    return run.model_copy(update={"plan": plan, "losses": losses, "adversary": adversary})


def _few(material: Material | Seen) -> tuple[Material | Seen, int, int]:
    """The same with few pictures, how many these are, and of how many."""

    def some(whole: Dataset) -> Dataset:
        return Part(whole, spaced(len(whole), PICTURES))

    if isinstance(material, Seen):
        n = len(material.training)
        return replace(material, training=some(material.training), held_out=None), min(n, PICTURES), n
    n = len(material.told)
    few = replace(material, pictures=some(material.pictures), told=some(material.told), held_out=None, validation=None)
    return few, min(n, PICTURES), n
