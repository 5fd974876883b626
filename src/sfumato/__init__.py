"""Sfumato: latent diffusion, whole, in Python."""

import os

# Spinning threads starve each other beside a busy process; this must be said before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
