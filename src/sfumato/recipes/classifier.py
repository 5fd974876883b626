"""A classifier of noisy pictures, which pulls what a model paints to a class (Dhariwal & Nichol 2021, sec. 4)."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from sfumato import __version__
from sfumato.conditioning.label import checked
from sfumato.data.part import Mirrored
from sfumato.data.sample import Dataset
from sfumato.diffusion.noise import Address, Stream
from sfumato.diffusion.objective import Times, classifier_loss
from sfumato.diffusion.schedule import Schedule
from sfumato.io import classifier_folder, model_folder, opening
from sfumato.io.classifier_folder import ClassifierFile, LoadedClassifier
from sfumato.io.model_folder import Loaded
from sfumato.latents.first_stage import FirstStage
from sfumato.latents.pixels import Pixels
from sfumato.latents.tiny import TinyFirstStage
from sfumato.models.config import Closed, within_bounds
from sfumato.nets.autoencoder import drawn
from sfumato.nets.classifier import Classifier, ClassifierSize
from sfumato.nets.unet import UNetSize
from sfumato.outcome import Outcome
from sfumato.recipes import classes
from sfumato.recipes.beginning import rests_on
from sfumato.recipes.events import Event, Found, Ready, Wrote, reported
from sfumato.recipes.latents import latents_of
from sfumato.recipes.material import Material
from sfumato.train.batches import indices
from sfumato.train.fit import Batch, Phase
from sfumato.train.parallel import check, recompute
from sfumato.train.plan import Plan
from sfumato.train.stage import train
from sfumato.train.state import State
from sfumato.world import ALONE, World, hardware

STAGE = "classifier"
JUDGED = 500  # pictures, at most, that it is judged by
PARTS = (0.0, 0.25, 0.5, 0.75)  # of the clock, at which it is


class ClassifierTraining(Closed):
    """All settings of a run. Every one can be set from the command line by its path: `plan.steps=2000`."""

    name: str = Field(default="classifier", min_length=1)
    model: Annotated[str, AfterValidator(lambda path: model_folder.from_anywhere(path) if path else path)] = ""
    """The model that it is for: its latents are what it reads, through the noise of its schedule."""
    body: UNetSize  # the way down; its channels are the model's
    plan: Plan
    times: Times = "uniform"
    flips: bool = False


def settings(_data: Path | None) -> ClassifierTraining:
    """ADM's classifier in small. 200 steps took 60 s of processor time and read 40 % of unseen pictures of nine groups
    (docs/recipes.md); its 1,500 were not run here."""
    body = UNetSize(
        channels=3,
        width=32,
        mult=(1, 2),
        blocks=1,
        attention=(1, 2),
        attends="plain",
        head_dim=32,
        modulation="scale_shift",
        resample="residual",
    )
    plan = Plan(steps=1500, batch=32, rate=1e-3, warmup=50, weight_decay=0.05, ema=0.995, save=250)
    return ClassifierTraining(body=body, plan=plan)


def material(data: Path | None, settings: ClassifierTraining) -> Material:
    """A folder of classes, or the emoji world by groups, at the size of the model's pictures."""
    if not settings.model:
        raise ValueError("a classifier is for a model; say which: --set model=runs/x")
    return classes.of_size(data, opening.describe(settings.model).config.resolution)


class Classifying(nn.Module):
    """The objective: the label of noisy latents."""

    def __init__(self, net: Classifier, schedule: Schedule, times: Times) -> None:
        super().__init__()
        self.net, self.schedule = net, schedule
        self.times: Times = times

    def forward(self, batch: Batch, at: Address) -> Outcome:
        """`batch`: "mean" (B, C, h, w) of the latents, "logvar" of those that are drawn; "label" (B,)."""
        z = batch["mean"]
        if "logvar" in batch:
            z = drawn(z, batch["logvar"], at.normal(z, Stream.ENCODE))
        return Outcome(classifier_loss(self.net, self.schedule, z, batch["label"], at, kind=self.times).mean())


def run(settings: ClassifierTraining, material: Material, out: Path, world: World = ALONE) -> Iterator[Event]:
    """Train in the folder `out`, going on from what is there. The last events name the folder and how well it reads.

    ValueError, before anything is done, if the pictures have no classes, or not the model's.
    """
    check(settings.plan, world)
    loaded = opening.load(settings.model, precision="float32")
    if len(material.classes) < 2:  # noqa: PLR2004
        raise ValueError(f"there are no two classes ({material.about}); put the pictures of each into a folder")
    theirs = loaded.file.classes
    if theirs is not None and theirs != material.classes:
        names = ", ".join(theirs)
        raise ValueError(f"the model was trained on other classes than these ({material.about}); it knows {names}")
    config = loaded.file.config
    side = config.resolution // (1 if config.first_stage is None else config.first_stage.factor)
    body = replace(settings.body, channels=config.unet.channels)
    within_bounds("body", body)
    if side % 2 ** (len(body.mult) - 1):
        raise ValueError(f"body.mult halves {side} positions a side {len(body.mult) - 1} times; leave some out")
    size = ClassifierSize(body=body, classes=len(material.classes), side=side)
    return _run(settings, material, out, world, loaded, size)


def _run(
    settings: ClassifierTraining, material: Material, out: Path, world: World, loaded: Loaded, size: ClassifierSize
) -> Iterator[Event]:
    stage, plan = loaded.model.first_stage, settings.plan
    assert not isinstance(stage, TinyFirstStage)
    learnt = Mirrored(material.told) if settings.flips else material.told
    given = None if isinstance(stage, Pixels) else stage
    yield Ready(rests_on(material.fingerprint, None, given))
    latents = yield from latents_of(stage, learnt, out / "latents", world, calibrate=False)
    ways = [material.ways(learnt[i])[0]["label"] for i in range(len(learnt))]
    labels = checked(ways, size.classes)
    torch.manual_seed(plan.seed)
    net = Classifier(size)
    objective = Classifying(net, loaded.model.denoiser.schedule, settings.times)

    part = world.part(plan.batch)

    def batches(step: int) -> Batch:
        index = indices(step, batch=plan.batch, n=len(labels), seed=plan.seed)[part]
        return {"index": index, **latents(index), "label": labels[index]}

    objective.to(world.device)
    recompute(objective, plan)
    state = State(objective, plan)
    yield from reported(STAGE, train(Phase(objective, state), batches, out / STAGE, world), state)
    state.ema.copy_to(objective)
    net.cpu()
    if not world.first:
        return
    provenance = {
        "recipe": settings.model_dump(mode="json"),
        "model": {"name": loaded.file.name, "sha256": opening.digest(loaded)},
        "material": material.about,
        "pictures": len(learnt),
        "hardware": hardware(world),
        "sfumato": __version__,
        "torch": torch.__version__,
    }
    config = loaded.file.config
    factor = 1 if config.first_stage is None else config.first_stage.factor
    file = ClassifierFile(
        name=settings.name,
        size=size,
        factor=factor,
        schedule=config.schedule,
        classes=material.classes,
        provenance=provenance,
    )
    about = f"average of the weights, decay {plan.ema}, {state.step} steps"
    classifier_folder.save(out / "model", file, about, net.state_dict())
    yield Wrote(STAGE, out / "model")
    read = LoadedClassifier(net.eval().requires_grad_(False), file, out / "model")
    judged = material.held_out or material.told
    shares = [right(read, loaded.model.denoiser.schedule, stage, judged, part) for part in PARTS]
    said = ", ".join(f"{share:.0%} at {part:g}" for share, part in zip(shares, PARTS, strict=True))
    unseen = "pictures that it never saw" if material.held_out else "its own pictures"
    yield Found(f"{unseen} read right, by the part of the clock that has passed: {said}")


@torch.no_grad()
def right(read: LoadedClassifier, schedule: Schedule, stage: FirstStage, pictures: Dataset, part: float) -> float:
    """The share of pictures, at most 500, whose class is read right through the noise of this part of the clock."""
    chosen = range(min(len(pictures), JUDGED))
    images, labels = zip(*((pictures[i]["image"], pictures[i]["label"]) for i in chosen), strict=True)
    z = torch.cat([stage.encode(some) for some in torch.stack(images).split(64)])
    low, high = schedule.span
    level = schedule.level(torch.tensor(low + part * (high - low), dtype=torch.float64))
    noise = Address.of(0, list(chosen)).normal(z, Stream.NOISE)
    x = level.alpha.to(z) * z + level.sigma.to(z) * noise
    found: Tensor = read.net(x, level.t.to(torch.float32).expand(len(x))).argmax(1)
    return (found == torch.tensor(labels)).double().mean().item()
