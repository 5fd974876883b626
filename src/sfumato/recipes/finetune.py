"""Fine-tuning of all weights: the denoiser of a model that is there, and its conditioner if that is to learn too."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from torch import nn

from sfumato.io.model_folder import Loaded
from sfumato.recipes import base
from sfumato.recipes.base import Tuning
from sfumato.recipes.delivered import delivered
from sfumato.recipes.events import Event, Wrote
from sfumato.recipes.material import Material
from sfumato.recipes.settings import DiffusionRun
from sfumato.recipes.told import Told
from sfumato.recipes.tuning import tuned
from sfumato.train.fit import Objective
from sfumato.train.plan import Plan
from sfumato.train.state import State
from sfumato.world import ALONE, World


class FinetuneTraining(Tuning):
    """All settings of a run. Every one can be set from the command line by its path: `diffusion.plan.steps=2000`."""

    conditioner: bool = False  # whether it learns too


def settings(model: str | None = None) -> FinetuneTraining:
    """For the bundled model, or for another one."""
    small = Plan(steps=300, batch=8, rate=3e-4, warmup=20, ema=0.98, save=100, preview=150)
    large = replace(small, steps=1000, batch=1, rate=1e-5, preview=500)
    return base.on(model, _settings(small, conditioner=True), _settings(large, conditioner=False))


def _settings(plan: Plan, *, conditioner: bool) -> FinetuneTraining:
    return FinetuneTraining(name="finetune", conditioner=conditioner, diffusion=DiffusionRun(plan=plan))


def run(settings: FinetuneTraining, material: Material, out: Path, world: World = ALONE) -> Iterator[Event]:
    """Train in the folder `out`, going on from what is there. The last event names the model folder.

    ValueError, before anything is done, if there is no such model or if it cannot learn so.
    """
    loaded = base.opened(settings)
    change = Whole(settings, loaded, conditioner=settings.conditioner)
    return tuned(settings, loaded, material, change, out, world)


class Whole:
    """All weights of the denoiser, and of the conditioner if it learns too. A `Change`."""

    def __init__(self, settings: Tuning, loaded: Loaded, *, conditioner: bool) -> None:
        model = loaded.model
        parts: dict[str, nn.Module] = {"denoiser": model.denoiser}
        if conditioner and model.conditioner is not None:
            parts["conditioner"] = model.conditioner
        self.settings, self.loaded = settings, loaded
        self.learnt = nn.ModuleDict(parts)
        for parameter in self.learnt.parameters():
            parameter.data = parameter.data.clone()  # it may be a window on a file
            parameter.requires_grad_(True)

    def objective(self, told: Told) -> Objective:
        """As it is."""
        return told

    def shown(self, state: State) -> AbstractContextManager[None]:
        """The average in the place of the weights."""
        return state.ema.shown()

    def written(self, state: State, provenance: dict[str, object], out: Path) -> Wrote:
        """A model folder like the base's."""
        named = {"name": self.settings.name, "default": "ema"}
        file = self.loaded.file.model_copy(update=named)
        copy = Loaded(self.loaded.model, file, out / "model", "ema")
        return delivered(self.settings.diffusion.plan, copy, {}, state, provenance, out)
