"""What a single file says of its model beside its networks, and what LDM's configuration beside it says."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from sfumato.diffusion.prediction import Prediction
from sfumato.io.shapes import FoundUNet
from sfumato.io.stored import Stored
from sfumato.models.config import ScheduleConfig, complaint, sized
from sfumato.models.published import Training
from sfumato.nets.unet import UNetSize

LARGEST = 10**6  # characters of a configuration
NAMES = {"epsilon": Prediction.EPS, "eps": Prediction.EPS, "v": Prediction.V, "v_prediction": Prediction.V}
NAMES |= {"x0": Prediction.X0, "sample": Prediction.X0}


class UNetParams(BaseModel):
    """Of the U-Net: what no shape says."""

    model_config = ConfigDict(extra="ignore")
    num_heads: int = Field(default=-1, ge=-1, le=4096)
    num_head_channels: int = Field(default=-1, ge=-1, le=65536)
    use_new_attention_order: bool | None = None


class UNetConfig(BaseModel):
    """The U-Net's own part."""

    model_config = ConfigDict(extra="ignore")
    params: UNetParams = UNetParams()


class Params(BaseModel):
    """`model.params` of LDM's configurations: the keys that are read. What they name is never imported."""

    model_config = ConfigDict(extra="ignore")
    linear_start: float | None = Field(default=None, gt=0, lt=1)
    linear_end: float | None = Field(default=None, gt=0, lt=1)
    timesteps: int | None = Field(default=None, ge=2, le=100_000)
    beta_schedule: Literal["linear", "sqrt_linear", "cosine"] = "linear"
    parameterization: Literal["eps", "v", "x0"] | None = None
    scale_factor: float | None = None
    unet_config: UNetConfig = UNetConfig()


@dataclass(frozen=True)
class Beside:
    """The configuration beside a file, if there is one."""

    path: Path
    params: Params | None

    def size(self, size: UNetSize) -> tuple[UNetSize, tuple[str, ...]]:
        """The size with the heads that the configuration names, and that it does.

        ValueError if the widths do not divide by them.
        """
        said = self.params.unet_config.params if self.params else UNetParams()
        if said.num_head_channels > 0:
            size, why = replace(size, heads=None, head_dim=said.num_head_channels), "channels a head"
        elif said.num_heads > 0:
            size, why = replace(size, heads=said.num_heads), "heads"
        else:
            return size, ()
        attending = {w for i, w in enumerate(size.widths) if 2**i in size.attention} | {size.widths[-1]}
        wrong = [w for w in attending if w % (size.heads or size.head_dim)]
        if wrong:
            raise ValueError(f"{self.path} names heads that {wrong[0]} channels cannot be split into")
        return size, (f"{size.heads or size.head_dim} {why} after all, says the .yaml",)


def beside(path: Path) -> Beside:
    """LDM's configuration beside a file. ValueError if it is there and is none."""
    there = path.with_suffix(".yaml")
    if not there.is_file():
        return Beside(there, None)
    try:
        with there.open(encoding="utf-8") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST or ("&" in text and "*" in text):  # anchors can make a mountain of a line
            raise ValueError
        params = yaml.safe_load(text)["model"]["params"]
    except Exception:  # the library raises whatever its parts do
        raise ValueError(f"{there} is not the configuration of an LDM model; mend it or move it away") from None
    try:
        return Beside(there, Params.model_validate(params))
    except ValidationError as error:
        raise ValueError(f"{there}: {complaint(error)}; mend it or move it away") from None


def schedule(stored: Stored, said: Beside, training: Training) -> tuple[ScheduleConfig, str]:
    """From the betas in the file, else from the configuration beside it, else as the published model's.

    ValueError if the betas in the file are of no schedule that is known here.
    """
    zero = True if "ztsnr" in stored.entries else None
    if "betas" in stored.entries:
        found = _of_betas(stored.tensor("betas"), zero, training.schedule)
        if found is None:
            raise ValueError(f"{stored.path}: its betas are of no schedule that is known here")
        return found, f"schedule {_named(found)}, from the file's betas"
    params = said.params
    if params is not None and params.linear_start is not None and params.linear_end is not None:
        kind = {"linear": "scaled_linear", "sqrt_linear": "linear", "cosine": "cosine"}[params.beta_schedule]
        ends = {} if kind == "cosine" else {"start": params.linear_start, "end": params.linear_end}
        fields = {"kind": kind, "steps": params.timesteps, "terminal_zero": zero, **ends}
        found = sized(ScheduleConfig, said.path, **fields)
        return found, f"schedule {_named(found)}, says the .yaml"
    found = training.schedule.model_copy(update={"terminal_zero": zero})
    return found, f"schedule {_named(found)}, {training.like}"


def _named(found: ScheduleConfig) -> str:
    ends = f" {found.start:g} to {found.end:g}" if found.start and found.end else ""
    return f"{found.kind}{ends}{' with zero terminal SNR' if found.terminal_zero else ''}"


def _of_betas(stored: Tensor, zero: bool | None, like: ScheduleConfig) -> ScheduleConfig | None:
    """The schedule whose table this is, within what the type of the table can say."""
    betas = stored.double().flatten()
    if not stored.is_floating_point() or len(betas) < 2 or not ((betas > 0) & (betas <= 1)).all():  # noqa: PLR2004
        return None
    rounding = 4 * torch.finfo(stored.dtype).eps + 1e-6
    start, end, steps = float(betas[0]), float(betas[-1]), len(betas)
    candidates = [like.model_copy(update={"steps": steps})]
    if start < end < 1:
        candidates += [ScheduleConfig(kind=k, start=start, end=end, steps=steps) for k in ("scaled_linear", "linear")]
    candidates += [ScheduleConfig(kind="cosine", steps=steps)]
    for candidate in candidates:
        for terminal in (zero, True):
            takes = candidate.model_copy(update={"terminal_zero": terminal})
            try:
                table = takes.build()
            except ValueError:  # not with these numbers
                continue
            abar = table.level(torch.arange(steps)).alpha.square()
            known = 1 - abar / torch.cat([abar.new_ones(1), abar[:-1]])
            if torch.allclose(known, betas, rtol=rounding, atol=0):
                return takes
    return None


def prediction(stored: Stored, said: Beside, found: FoundUNet, training: Training) -> tuple[Prediction, str, bool]:
    """What the network predicts, how that is known, and whether it is."""
    declared = str(stored.metadata.get("modelspec.prediction_type", "")).lower()
    if declared in NAMES:
        return NAMES[declared], f"predicts {declared}, says its metadata", True
    if {"v_pred", "ztsnr"} & stored.entries.keys():
        return Prediction.V, "predicts v, says a marker key", True
    if said.params is not None and said.params.parameterization is not None:
        return NAMES[said.params.parameterization], f"predicts {said.params.parameterization}, says the .yaml", True
    if str(stored.metadata.get("modelspec.architecture", "")).endswith("768-v"):
        return Prediction.V, "predicts v, says its metadata", True
    if found.published == "sd2" or (found.published is None and found.linear and found.size.context_dim):
        return training.prediction, "what it predicts is in nothing written: one question to the network tells", False
    return training.prediction, f"predicts {training.prediction.value}, {training.like}", True


def scale(stored: Stored, said: Beside, training: Training) -> float:
    """What latents are multiplied by; ValueError if what is said is no such number."""
    if "scale_factor" in stored.entries:
        given: Any = stored.tensor("scale_factor").double().flatten().tolist()
        return factor_of_latents(given[0] if len(given) == 1 else given, stored.path)
    if said.params is not None and said.params.scale_factor is not None:
        return factor_of_latents(said.params.scale_factor, said.path)
    return training.scale


def factor_of_latents(given: Any, source: object) -> float:
    """A positive number; ValueError if it is none."""
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < math.inf:
        raise ValueError(f"{source}: the factor of the latents is {given!r}; it must be a positive number")
    return float(given)
