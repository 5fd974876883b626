"""The one line of parameters that other tools read in the PNG chunk "parameters"."""

import json
from typing import Any, Protocol

from sfumato.boxes import Box, described
from sfumato.diffusion.samplers import SAMPLERS

SCHEDULE_TYPES = {"karras": "Karras", "exponential": "Exponential", "align_your_steps": "Align Your Steps"}
"""What A1111's web UI calls the spacings that it has too; others go by their own names."""


class Parameters(Protocol):
    """What is written."""

    prompt: str
    negative: str
    boxes: tuple[Box, ...] | None
    sampler: str | None
    spacing: str | None
    steps: int | None
    guidance: float | None
    eta: float | None
    seed: int
    variation_seed: int
    variation_strength: float
    size: tuple[int, int] | None
    tiling: bool
    strength: float | None


def write(request: Parameters, model: str) -> str:
    """Prompt, negative prompt and "key: value" pairs, as the field writes them; boxes are JSON in quotes."""
    width, height = request.size or (0, 0)
    varied = request.variation_strength > 0
    pairs = {
        "Steps": request.steps,
        "Sampler": _label(request.sampler),
        "Schedule type": SCHEDULE_TYPES.get(request.spacing or "", request.spacing),
        "CFG scale": request.guidance,
        "Seed": request.seed,
        "Size": f"{width}x{height}",
        "Model": model,
        "Denoising strength": request.strength,
        "Eta": request.eta,
        "Variation seed": request.variation_seed if varied else None,
        "Variation seed strength": request.variation_strength if varied else None,
        "Tiling": request.tiling or None,
        "Boxes": json.dumps([described(b) for b in request.boxes], ensure_ascii=False) if request.boxes else None,
        "Version": "sfumato",
    }
    lines = [request.prompt]
    if request.negative:
        lines.append(f"Negative prompt: {request.negative}")
    lines.append(", ".join(f"{k}: {_quoted(v)}" for k, v in pairs.items() if v is not None))
    return "\n".join(lines)


def _label(name: str | None) -> str | None:
    """What others call the sampler, where they have it."""
    return SAMPLERS[name].label or name if name else name


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ',:\n"') else text
