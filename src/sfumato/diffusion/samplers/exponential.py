"""What all exponential integrators share: how the change of a guess along half log-SNR weighs in a step.

In both forms of DPM-Solver a step is the plain move with the guess

    g = m + phi2(u) / phi1(u) * D1 + phi3(u) / phi1(u) * D2,
    phi1 = exp(u) - 1,  phi2 = phi1 / u - 1,  phi3 = phi2 / u - 1/2,

where D1 and D2 are h and h^2 times the first and the second derivative of the guess in lam, and u = -h for a guess of
x0, u = h for one of the noise (Lu et al. 2022a, eq. B.3; these phi_k are u times theirs). The SDE's x0 form has
u = -(1 + eta) h.
"""

from typing import Literal

import torch
from torch import Tensor

from sfumato.diffusion.level import Level
from sfumato.diffusion.move import move, noise_in
from sfumato.diffusion.noise import Noise

Form = Literal["x0", "eps"]
"""What is taken for smooth along lam: DPM-Solver++ takes the clean guess, DPM-Solver the noise."""


def guess_of(form: Form, x: Tensor, x0: Tensor, at: Level) -> Tensor:
    """What this form remembers of an answer."""
    return x0 if form == "x0" else noise_in(x, x0, at)


def moved(
    form: Form,
    x: Tensor,
    a: Level,
    b: Level,
    guess: Tensor,
    *,
    fresh: Tensor | float = 0.0,
    noise: Noise | None = None,
) -> Tensor:
    """The plain move with a guess of this form."""
    if form == "x0":
        return move(x, a, b, x0=guess, fresh=fresh, noise=noise)
    return move(x, a, b, eps=guess, fresh=fresh, noise=noise)


def exponent(form: Form, h: Tensor) -> Tensor:
    """u of a step of length `h` in half log-SNR."""
    return -h if form == "x0" else h


def weights(u: Tensor) -> tuple[Tensor, Tensor]:
    """phi2 / phi1 and phi3 / phi1 at `u`, which may be infinite."""
    phi1 = torch.expm1(u)
    phi2 = phi1 / u - 1
    phi3 = phi2 / u - 0.5
    return phi2 / phi1, phi3 / phi1
