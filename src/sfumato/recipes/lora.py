"""LoRA: low-rank changes of a model that is there, in a file of their own that fits it and others of its kind."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.conditioning.bert import Bert
from sfumato.conditioning.clip import Clip
from sfumato.conditioning.text import Text
from sfumato.io.lora import Lora, apply, lora_of, write_lora
from sfumato.io.model_folder import Loaded
from sfumato.io.origin import Origin
from sfumato.models.config import Closed
from sfumato.nets.lora import Adapters, Targets, adaptable
from sfumato.recipes import base
from sfumato.recipes.base import Tuning
from sfumato.recipes.delivered import TRAINED, seen
from sfumato.recipes.events import Event, Wrote
from sfumato.recipes.material import Material
from sfumato.recipes.settings import DiffusionRun
from sfumato.recipes.told import Told
from sfumato.recipes.tuning import tuned
from sfumato.train.fit import Objective
from sfumato.train.plan import Plan
from sfumato.train.state import State
from sfumato.world import ALONE, World

FILE = "lora.safetensors"


class Low(Closed):
    """What the changes are."""

    rank: int = Field(default=16, ge=1, le=4096)
    alpha: float | None = Field(default=None, gt=0, allow_inf_nan=False)  # as much as the rank if not said
    targets: Targets = "transformer"
    conditioner: bool = False  # whether the text tower is changed too, where there is one


SMALL = Low(targets="all", conditioner=True)  # of models as small as ours, whose convolutions and words matter more


class LoraTraining(Tuning):
    """All settings of a run. Every one can be set from the command line by its path: `diffusion.plan.steps=2000`."""

    lora: Low = Low()


def settings(model: str | None = None) -> LoraTraining:
    """For the bundled model, or for another one."""
    small = Plan(steps=300, batch=8, rate=2e-3, warmup=20, ema=0.98, save=100, preview=150)
    large = replace(small, steps=1000, batch=1, rate=1e-4, preview=500)
    return base.on(model, _settings(small, SMALL), _settings(large, Low()))


def _settings(plan: Plan, low: Low) -> LoraTraining:
    return LoraTraining(name="lora", lora=low, diffusion=DiffusionRun(plan=plan))


def run(settings: LoraTraining, material: Material, out: Path, world: World = ALONE) -> Iterator[Event]:
    """Train in the folder `out`, going on from what is there. The last event names the file.

    ValueError, before anything is done, if there is no such model, if it cannot learn so, or if the rank is too large.
    """
    loaded = base.opened(settings)
    change = LowRankChange(settings, loaded, settings.lora)
    return tuned(settings, loaded, material, change, out, world)


class LowRankChange:
    """Low-rank changes of the U-Net, and of the text tower if it learns too. A `Change`."""

    def __init__(self, settings: Tuning, loaded: Loaded, low: Low) -> None:
        self.loaded, self.alpha = loaded, low.alpha or low.rank
        model = loaded.model
        layers = {f"denoiser.net.{name}": layer for name, layer in adaptable(model.net, low.targets).items()}
        if low.conditioner and isinstance(model.conditioner, Bert):
            raise ValueError("the model's words go through BERT, which no LoRA changes; set lora.conditioner=false")
        if low.conditioner and isinstance(model.conditioner, Clip | Text):
            tower = adaptable(model.text, low.targets)
            layers |= {f"conditioner.encoder.{name}": layer for name, layer in tower.items()}
        torch.manual_seed(settings.diffusion.plan.seed)
        self.adapters = Adapters(layers, rank=low.rank, alpha=self.alpha)
        self._lora(dict(self.adapters.named_parameters()))  # so that what has no name is known before it is learnt

    @property
    def learnt(self) -> nn.Module:
        """The matrices down and up."""
        return self.adapters

    def objective(self, told: Told) -> Objective:
        """As it is."""
        return told

    @contextmanager
    def shown(self, state: State) -> Iterator[None]:
        """The average of the changes as a LoRA that is put on the model, as those who use the file do."""
        with self.adapters.away():
            applied = apply(self.loaded.model, self._lora(state.ema.shadow), origin=self._origin)
            try:
                yield
            finally:
                applied.remove()

    def written(self, state: State, provenance: dict[str, object], out: Path) -> Wrote:
        """The file, in kohya's style."""
        lora, path = self._lora(state.ema.shadow), out / "model" / FILE
        said = {TRAINED: json.dumps({**provenance, **seen(state.plan, state)})}
        write_lora(path, replace(lora, metadata={**lora.metadata, **said}))
        return Wrote("LoRA", path)

    def _lora(self, tensors: Mapping[str, Tensor]) -> Lora:
        pairs = Adapters.pairs(tensors)
        return lora_of(Path(FILE), self.loaded.model, pairs, alpha=self.alpha, origin=self._origin)

    @property
    def _origin(self) -> Origin:
        return self.loaded.file.origin or Origin()
