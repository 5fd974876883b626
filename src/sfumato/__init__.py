"""Sfumato: latent diffusion, whole, in Python.

import sfumato
model = sfumato.load("emoji")
pictures = model.generate(prompt="a red apple, 3d", seed=7).pil()
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

# Spinning threads starve each other beside a busy process; this must be said before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from sfumato.cond import Cond
    from sfumato.generate import Model, Result, load
    from sfumato.models.latent_diffusion import LatentDiffusion
    from sfumato.request import Request
    from sfumato.train.fit import fit

__version__ = "0.1.0"
__all__ = ["Cond", "LatentDiffusion", "Model", "Request", "Result", "fit", "load"]

_HOMES = {
    "Cond": "cond",
    "LatentDiffusion": "models.latent_diffusion",
    "Model": "generate",
    "Request": "request",
    "Result": "generate",
    "fit": "train.fit",
    "load": "generate",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first used: `import sfumato` alone costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sfumato' has no attribute '{name}'")
    return getattr(importlib.import_module(f"sfumato.{_HOMES[name]}"), name)
