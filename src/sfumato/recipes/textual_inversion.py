"""Textual inversion: vectors for a new word of CLIP's, and nothing else, learnt from pictures (Gal et al. 2022)."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from sfumato.conditioning.clip import Clip
from sfumato.conditioning.clip_tokens import ids
from sfumato.diffusion.noise import Address
from sfumato.io import tensors
from sfumato.io.model_folder import Loaded
from sfumato.outcome import Outcome
from sfumato.recipes import base
from sfumato.recipes.base import Tuning
from sfumato.recipes.delivered import TRAINED, seen
from sfumato.recipes.events import Event, Wrote
from sfumato.recipes.material import Material, Way
from sfumato.recipes.settings import DiffusionRun
from sfumato.recipes.told import Told
from sfumato.recipes.tuning import LEARNT, tuned
from sfumato.train.fit import Batch, Objective
from sfumato.train.plan import Plan
from sfumato.train.state import State
from sfumato.world import ALONE, World

SENTENCES: dict[str, tuple[str, ...]] = {
    "object": (
        "{}",
        "a picture of {}",
        "a photo that shows {}",
        "{} seen from close by",
        "{} in the middle of the picture",
        "a small picture of {}",
        "a bright photo of {}",
        "this is {}",
        "one {} and nothing else",
        "a good picture of {}",
    ),
    "style": (
        "a picture in the style of {}",
        "a painting in the manner of {}",
        "something drawn as {} would",
        "art that looks like {}",
        "a scene by {}",
        "a small picture in the style of {}",
        "a bright picture in the style of {}",
        "{}, as a way to paint",
    ),
}


class InversionTraining(Tuning):
    """All settings of a run. Every one can be set from the command line by its path: `diffusion.plan.steps=2000`."""

    token: str = ""  # the new word, as it is written in prompts: "<mug-of-mine>"
    vectors: int = Field(default=1, ge=1, le=75)  # that it stands for
    initial: str = ""  # a word that it begins as: "mug"
    kind: Literal["object", "style"] = "object"  # what the sentences say it is


def settings(model: str | None = None) -> InversionTraining:
    """For the bundled model, which is not asked through CLIP, or for another one."""
    plan = Plan(steps=1000, batch=1, rate=5e-3, warmup=20, weight_decay=0.0, ema=0.98, save=100, preview=500)
    given = InversionTraining(name="textual-inversion", diffusion=DiffusionRun(plan=plan, drop=0.0))
    return base.on(model, given, given)


def material(data: Path | None, settings: InversionTraining) -> Material:
    """The pictures of a folder, told in sentences with the new word."""
    whole = base.folder(data, base.side_of(settings, base.described(settings.base)))
    ways = tuple[Way, ...]({"caption": sentence.format(settings.token)} for sentence in SENTENCES[settings.kind])
    return base.material_of(whole, data, lambda _: ways)


def run(settings: InversionTraining, material: Material, out: Path, world: World = ALONE) -> Iterator[Event]:
    """Train in the folder `out`, going on from what is there. The last event names the file.

    ValueError, before anything is done, if there is no such model, if it is not asked through CLIP, or if the words are
    not what they must be.
    """
    loaded = base.opened(settings)
    return tuned(settings, loaded, material, Word(settings, loaded), out, world)


class Word:
    """The vectors of one word. A `Change`."""

    def __init__(self, settings: InversionTraining, loaded: Loaded) -> None:
        conditioner = loaded.model.conditioner
        if not isinstance(conditioner, Clip):
            raise ValueError(
                f"textual inversion is for models that are asked through CLIP, and {settings.base} is not; "
                "give another with --model, or train a LoRA"
            )
        _check(conditioner, settings)
        self.token, self.clip = settings.token, conditioner
        first = conditioner.encoder.tokens.weight[ids(conditioner.tokenizer, settings.initial)]
        self.learnt = Vectors(first.repeat(settings.vectors, 1))
        conditioner.learn(self.token, self.learnt.vectors)

    def objective(self, told: Told) -> Objective:
        """That of the whole model with the vectors as they are now."""

        def objective(batch: Batch, at: Address) -> Outcome:
            return told({**batch, LEARNT: self.learnt.vectors}, at)

        return objective

    @contextmanager
    def shown(self, state: State) -> Iterator[None]:
        """The word is the average of its vectors."""
        self.clip.learn(self.token, self._vectors(state))
        yield

    def written(self, state: State, provenance: Mapping[str, Any], out: Path) -> Wrote:
        """A file of diffusers' kind, with the word as its key."""
        path = out / "model" / f"{_plain(self.token)}.safetensors"
        said = {TRAINED: json.dumps({**provenance, **seen(state.plan, state)})}
        tensors.write(path, {self.token: self._vectors(state)}, {"format": "pt", **said})
        return Wrote("textual inversion", path)

    def _vectors(self, state: State) -> Tensor:
        return state.ema.shadow["vectors"]


class Vectors(nn.Module):
    """(k, dim)."""

    def __init__(self, first: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(first.detach().clone())


def _check(clip: Clip, settings: InversionTraining) -> None:
    token, first = settings.token, ids(clip.tokenizer, settings.initial)
    if not _plain(token) or token != token.strip() or re.search(r"[\s{}()\[\]\\]", token):
        raise ValueError(
            f"token is {token!r}; it must be a word with a letter or digit and no round or square brackets: token=<mug>"
        )
    if len(ids(clip.tokenizer, token)) == 1:
        raise ValueError(f"token is {token!r}, a word that the model knows; take one that it does not, as <{token}>")
    known = clip.encoder.tokens.num_embeddings
    if len(first) != 1 or first[0] >= known:
        raise ValueError(
            f"initial is {settings.initial!r}, which is {len(first)} tokens of the model; give a word that is one, "
            "as initial=cat"
        )


def _plain(token: str) -> str:
    """A word as the name of a file."""
    return re.sub(r"[^\w-]+", "", token)
