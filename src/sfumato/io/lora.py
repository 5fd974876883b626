"""LoRA: low-rank changes of a model's weights, read from files of every style, added and taken away again.

    W' = W + weight * alpha / rank * up @ down

with down (rank, in) and up (out, rank); a convolution's down is (rank, in, height, width) and its up (out, rank, 1, 1)
(Hu et al. 2021, sec. 4.1; the convolutions are LoCon's).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sfumato.conditioning.clip import Clip
from sfumato.conditioning.text import Text
from sfumato.io import lora_scale, tensors
from sfumato.io.layouts import diffusers, ldm
from sfumato.io.layouts.rules import Rule, prefixed
from sfumato.io.lora_keys import Key, Part, Role, named, parsed
from sfumato.io.origin import Origin
from sfumato.io.stored import Stored, open_stored
from sfumato.models.latent_diffusion import LatentDiffusion
from sfumato.nets.unet import UNet

__all__ = ["Applied", "Lora", "Patch", "apply", "lora_of", "read_lora", "write_lora"]

PREFIX: dict[Part, str] = {"unet": "lora_unet_", "text": "lora_te_"}
STALE = (
    "format",
    lora_scale.ADAPTER,
    "lora_alpha",
    "r",
    "sshs_model_hash",
    "sshs_legacy_hash",
    "modelspec.hash_sha256",
)
"""Metadata that are not true any more of a file that is written anew."""
KINDS = {768: ("stable-diffusion-v1", "sd_v1"), 1024: ("stable-diffusion-v2-512", "sd_v2")}


@dataclass(frozen=True, eq=False)
class Patch:
    """What is added to one layer: alpha / rank * up @ down."""

    key: str  # of `down` in the file
    part: Part
    layer: str  # its name in diffusers' or LDM's network, with underscores
    down: Tensor  # (rank, in) or (rank, in, height, width)
    up: Tensor  # (out, rank) or (out, rank, 1, 1)
    alpha: float

    @property
    def rank(self) -> int:
        """At most so many directions change."""
        return self.down.shape[0]

    def change(self, weight: float, shape: torch.Size, like: Tensor) -> Tensor:
        """weight * alpha / rank * (up @ down), of this shape, in single precision or the higher one of `like`."""
        kind = {"device": like.device, "dtype": torch.promote_types(like.dtype, torch.float32)}
        product = self.up.flatten(1).to(**kind) @ self.down.flatten(1).to(**kind)
        return product.mul_(weight * self.alpha / self.rank).reshape(shape)


@dataclass(frozen=True, eq=False)
class Lora:
    """All of a file. Its tensors are windows on it."""

    path: Path
    patches: tuple[Patch, ...]
    metadata: Mapping[str, str]


def read_lora(path: Path) -> Lora:
    """A LoRA in the style of kohya's scripts, PEFT or diffusers, told by its keys.

    Where a file has no alphas, they are those of PEFT's configuration: in the metadata, or for keys "base_model.model."
    in adapter_config.json beside the file; where nothing is said, the scale is 1. ValueError of one line if the file is
    none, has half of a pair, or is LoHa, LoKr, DoRA or other kin.
    """
    stored = open_stored(path)
    try:
        said = cache(partial(lora_scale.settings, path, stored.metadata))
        patches = tuple(_patch(stored, keys, said) for keys in _grouped(stored).values())
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None
    return Lora(path, patches, {k: v for k, v in stored.metadata.items() if isinstance(v, str)})


Pair = dict[Role, tuple[str, Key]]
"""The keys of one layer, as they are written and what they say."""
Said = Callable[..., Mapping[str, Any]]
"""What PEFT's configuration says of a part."""


def _grouped(stored: Stored) -> dict[tuple[Part, str], Pair]:
    """The keys by layer."""
    found: dict[tuple[Part, str], Pair] = {}
    for name in stored.entries:
        key = parsed(name)
        pair = found.setdefault((key.part, key.layer), {})
        if key.role in pair:
            both = f"{named(pair[key.role][0])} and {named(name)}"
            raise ValueError(f"has {both}, which are for one layer; give a file with one LoRA")
        pair[key.role] = (name, key)
    return found


def _patch(stored: Stored, pair: Pair, said: Said) -> Patch:
    for role, other in (("down", "up"), ("up", "down"), ("alpha", "down")):
        if role in pair and other not in pair:
            raise ValueError(f"has {named(pair[role][0])} and nothing that goes {other} beside it; it is not whole")
    (name, key), (up, _) = pair["down"], pair["up"]
    shapes = stored.entries[name].shape, stored.entries[up].shape
    if not _fits(*shapes):
        both = " and ".join("x".join(map(str, shape)) or "one number" for shape in shapes)
        raise ValueError(f"has {named(name)} and its pair of {both}, which cannot be multiplied; it is damaged")
    for each in (name, up):
        if not stored.entries[each].dtype.is_floating_point:
            raise ValueError(f"has {named(each)} as whole numbers; a LoRA has fractions, so it is damaged")
    alpha = _alpha(stored, pair, said, rank=shapes[0][0])
    return Patch(name, key.part, key.layer, stored.tensor(name), stored.tensor(up), alpha)


def _fits(down: tuple[int, ...], up: tuple[int, ...]) -> bool:
    """Whether the two are the halves of one layer."""
    layers = len(down) in (2, 4) and len(up) in (2, 4) and set(up[2:]) <= {1}
    return layers and 0 not in (*down, *up) and down[0] == up[1]


def _alpha(stored: Stored, pair: Pair, said: Said, *, rank: int) -> float:
    if "alpha" not in pair:
        key = pair["down"][1]
        return lora_scale.alpha(said(key.part, beside=key.alone), key.path, rank)
    name, entry = pair["alpha"][0], stored.entries[pair["alpha"][0]]
    value = float(stored.tensor(name).flatten()[0]) if math.prod(entry.shape) == 1 else math.nan
    if not math.isfinite(value):
        raise ValueError(f"has {named(name)} that is not one number; it is damaged")
    return value


def lora_of(
    path: Path, model: LatentDiffusion, pairs: Mapping[str, tuple[Tensor, Tensor]], *, alpha: float, origin: Origin
) -> Lora:
    """A LoRA, to be written at `path`, of changes (down, up) of layers of this model by our names, in theirs.

    The names are those of diffusers' networks, as kohya's scripts write them. ValueError if a layer has no name there.
    """
    named_there: dict[str, tuple[Part, str, Rule]] = {}
    for (part, layer), rule in _places(model, origin).items():
        for name in rule.ours:
            named_there.setdefault(name, (part, layer, rule))
    patches = []
    for name, pair in pairs.items():
        if f"{name}.weight" not in named_there:
            raise ValueError(f"the layer {name} has no name in a LoRA's file; leave it out")
        part, layer, rule = named_there[f"{name}.weight"]
        down, up = (rule.form.write([half.detach()])[0] for half in pair)
        patches.append(Patch(f"{PREFIX[part]}{layer}.lora_down.weight", part, layer, down, up, alpha))
    side = model.config.resolution
    return Lora(path, tuple(patches), {"modelspec.resolution": f"{side}x{side}"})


def write_lora(path: Path, lora: Lora) -> None:
    """Write a safetensors file in kohya's style, whole or not at all; it takes the place of what is there.

    Layers keep the names they have (diffusers' or LDM's), tensors their types. The metadata are the LoRA's own with
    Stability AI's ModelSpec 1.0.0, `ss_network_dim` and `ss_network_alpha` ("Dynamic" where layers differ).
    """
    out: dict[str, Tensor] = {}
    for patch in lora.patches:
        name = PREFIX[patch.part] + patch.layer
        out |= {f"{name}.lora_down.weight": patch.down, f"{name}.lora_up.weight": patch.up}
        out[f"{name}.alpha"] = torch.tensor(patch.alpha)
    tensors.write(path, out, _metadata(path.stem, lora))


def _metadata(title: str, lora: Lora) -> dict[str, str]:
    kind, base = _kind(lora)
    said = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{kind}/lora",
        "modelspec.implementation": "https://github.com/CompVis/latent-diffusion",
        "modelspec.title": title,
        "modelspec.resolution": "512x512",
        "ss_base_model_version": base,
        **{name: value for name, value in lora.metadata.items() if name not in STALE},
        "ss_network_module": "networks.lora",
        "ss_network_dim": _common(str(p.rank) for p in lora.patches),
        "ss_network_alpha": _common(f"{p.alpha:g}" for p in lora.patches),
    }
    return {name: said[name] for name in sorted(said) if said[name]}


def _kind(lora: Lora) -> tuple[str, str]:
    """The model that it is for, as ModelSpec and as kohya's scripts name it, by the width of its text."""
    for patch in lora.patches:
        if patch.layer.endswith(("attn2_to_k", "self_attn_q_proj")) and patch.down.shape[1] in KINDS:
            return KINDS[patch.down.shape[1]]
    return "latent-diffusion", ""


def _common(values: Iterable[str]) -> str:
    first, *others = set(values)
    return "Dynamic" if others else first


# On a model -----------------------------------------------------------------------------------------------


class _Change(NamedTuple):
    rule: Rule
    patch: Patch


class _Use(NamedTuple):
    """A LoRA on a model: for each of our weights, what changes it."""

    changes: dict[str, _Change]
    weight: float


class _Worn(NamedTuple):
    """What a model has on: its own weights that are away for now, and the LoRAs in the order they came."""

    originals: dict[str, nn.Parameter]
    uses: tuple[_Use, ...]


_worn: WeakKeyDictionary[LatentDiffusion, _Worn] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Applied:
    """A LoRA that is on a model."""

    model: LatentDiffusion
    lora: Lora
    weight: float
    _use: _Use

    @property
    def names(self) -> frozenset[str]:
        """Our weights that it changes."""
        return frozenset(self._use.changes)

    def remove(self) -> None:
        """Take it off again, in any order; a weight that nothing changes any more is the very tensor that it was.

        ValueError if it is off already, or part of the model.
        """
        originals, uses = self._found()
        _put(self.model, originals, [use for use in uses if use is not self._use], self.names)

    def merge(self) -> None:
        """Make it part of the model, as if the model had been loaded with it; others stay on.

        ValueError if it is off already, or part of the model.
        """
        originals, uses = self._found()
        merged = {name: _sum(originals[name], name, [self._use]) for name in self.names}
        _put(self.model, {**originals, **merged}, [use for use in uses if use is not self._use], self.names)

    def _found(self) -> _Worn:
        worn = _worn.get(self.model)
        if worn is None or not any(use is self._use for use in worn.uses):
            raise ValueError(f"{self.lora.path} is not on this model any more")
        return worn


@torch.no_grad()
def apply(model: LatentDiffusion, lora: Lora, *, weight: float = 1.0, origin: Origin) -> Applied:
    """Add weight * alpha / rank * up @ down to the weights of a model, all or none. Several can be on at once.

    Sums are taken in single precision in the order in which the LoRAs came, and rounded once. Weights are replaced, not
    written to: a file that they are windows on stays as it is. `origin` is the model's.

    Raises:
        ValueError: a key fits no layer of the model, or a layer of another shape.
    """
    if not math.isfinite(weight):
        raise ValueError(f"the weight of {lora.path} is {weight}; it must be a number, mostly from 0 to 1")
    own, places = dict(model.named_parameters()), _places(model, origin)
    changes: dict[str, _Change] = {}
    for patch in lora.patches:
        rule = places.get((patch.part, patch.layer))
        wrong = _unknown(model, patch) if rule is None else _misfit(patch, rule, own)
        if rule is None or wrong:
            raise ValueError(f"{lora.path}: {named(patch.key)} {wrong}")
        if changes.keys() & set(rule.ours):
            raise ValueError(f"{lora.path}: {named(patch.key)} is for a layer that has another key too; give one LoRA")
        changes |= dict.fromkeys(rule.ours, _Change(rule, patch))
    use = _Use(changes, weight)
    worn = _worn.get(model, _Worn({}, ()))
    _put(model, {name: own[name] for name in changes} | worn.originals, [*worn.uses, use], changes)
    return Applied(model, lora, weight, use)


def _places(model: LatentDiffusion, origin: Origin) -> dict[tuple[Part, str], Rule]:
    """Which of our weights is a layer there: the matrices and convolutions, by diffusers' names and by LDM's."""
    net, size = model.denoiser.net, model.config.unet
    assert isinstance(net, UNet)
    if size.lineage != "adm" or size.resample != "conv":
        raise ValueError("a LoRA fits U-Nets of Stable Diffusion's kind, and this model's is another")
    layers = diffusers.unet(net, linear=origin.linear) + ldm.unet(net, linear=origin.linear, order=origin.order)
    parts: dict[Part, list[Rule]] = {"unet": prefixed(layers, "denoiser.net.", "")}
    if _tower(model):
        parts["text"] = prefixed(ldm.clip(model.text), "conditioner.encoder.", "text_model.")
    found: dict[tuple[Part, str], Rule] = {}
    for part, rules in parts.items():
        for rule in rules:
            module = model.get_submodule(rule.ours[0].rpartition(".")[0])
            if rule.ours[0].endswith(".weight") and isinstance(module, nn.Linear | nn.Conv2d):
                layer = rule.theirs[0].removesuffix(".weight").replace(".", "_")
                assert found.setdefault((part, layer), rule).ours == rule.ours
    return found


def _tower(model: LatentDiffusion) -> bool:
    """Whether the model has a text tower with CLIP's layers, whose names our own of words have too."""
    tower = isinstance(model.conditioner, Clip | Text)
    return tower and model.text.logits is None


def _unknown(model: LatentDiffusion, patch: Patch) -> str:
    if patch.part == "text" and not _tower(model):
        return "is for a text tower of CLIP, which this model has none of; give a LoRA for this model"
    where = "text tower" if patch.part == "text" else "U-Net"
    return f"fits no layer of this model's {where}; it is for another kind of model, or none for Stable Diffusion"


def _misfit(patch: Patch, rule: Rule, own: Mapping[str, Tensor]) -> str | None:
    """What is wrong with a patch for a layer, if something is."""
    outs, ins, *pixels = _theirs(rule, own)
    layer = [part for part in rule.theirs[0].split(".")[:-1] if not part.isdigit()][-1]
    other = f"is for another kind of model: its {layer}"
    if patch.down.shape[1] != ins:
        return f"{other} reads {patch.down.shape[1]} channels, this model's {ins}"
    if patch.up.shape[0] != outs:
        return f"{other} gives {patch.up.shape[0]} channels, this model's {outs}"
    here, there = ("x".join(map(str, sides)) if set(sides) - {1} else "1x1" for sides in (patch.down.shape[2:], pixels))
    return f"{other} looks at {here} pixels, this model's at {there}" if here != there else None


def _theirs(rule: Rule, own: Mapping[str, Tensor]) -> torch.Size:
    """The shape of a layer's weight there."""
    return rule.form.write([torch.empty(own[name].shape, device="meta") for name in rule.ours])[0].shape


@torch.no_grad()
def _put(
    model: LatentDiffusion, originals: Mapping[str, nn.Parameter], uses: Sequence[_Use], names: Iterable[str]
) -> None:
    """The model with these LoRAs on, where `names` are the weights that may be others than before: all or none."""
    new = {}
    for name in names:
        _follow(originals[name], model.get_parameter(name))
        on = [use for use in uses if name in use.changes]
        new[name] = _sum(originals[name], name, on) if on else originals[name]
    for name, parameter in new.items():
        above, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(above), leaf, parameter)
    away = {name: original for name, original in originals.items() if new.get(name) is not original}
    _worn[model] = _Worn(away, tuple(uses))


@torch.no_grad()
def _sum(original: nn.Parameter, name: str, uses: list[_Use]) -> nn.Parameter:
    """A weight with LoRAs added: in single precision at least, rounded once."""
    total = original.to(torch.promote_types(original.dtype, torch.float32))
    for use in uses:
        rule, patch = use.changes[name]
        shapes = {n: original for n in rule.ours}  # all of a rule are of one shape
        change = patch.change(use.weight, _theirs(rule, shapes), like=original)
        total = total + rule.form.read([change])[rule.ours.index(name)]
    return nn.Parameter(total.to(original.dtype), requires_grad=original.requires_grad)


def _follow(original: nn.Parameter, current: nn.Parameter) -> None:
    """Bring a weight that is away to where the model is now, and to its type."""
    if (original.device, original.dtype) != (current.device, current.dtype):
        original.data = original.data.to(current.device, current.dtype)
