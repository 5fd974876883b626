"""The one line of parameters that other tools read in the PNG chunk "parameters"."""

import json
from typing import Any, Protocol


class Parameters(Protocol):
    """What is written."""

    prompt: str
    negative: str
    sampler: str | None
    spacing: str | None
    steps: int | None
    guidance: float | None
    seed: int
    size: tuple[int, int] | None


LABELS = {"ddim": "DDIM", "ddpm": "DDPM", "heun": "Heun", "plms": "PLMS", "dpmpp_2m": "DPM++ 2M"}


def write(request: Parameters, model: str) -> str:
    """Prompt, negative prompt and "key: value" pairs, as the field writes them."""
    width, height = request.size or (0, 0)
    pairs = {
        "Steps": request.steps,
        "Sampler": LABELS.get(request.sampler or "", request.sampler),
        "Schedule type": request.spacing,
        "CFG scale": request.guidance,
        "Seed": request.seed,
        "Size": f"{width}x{height}",
        "Model": model,
        "Version": "sfumato",
    }
    lines = [request.prompt]
    if request.negative:
        lines.append(f"Negative prompt: {request.negative}")
    lines.append(", ".join(f"{k}: {_quoted(v)}" for k, v in pairs.items() if v is not None))
    return "\n".join(lines)


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ',:\n"') else text
