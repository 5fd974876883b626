"""What a network predicts, and how the clean picture follows from it."""

from enum import StrEnum

from torch import Tensor

from sfumato.diffusion.level import Level


class Prediction(StrEnum):
    """`target` is what training asks for, `x0` what sampling reads from the answer; they are inverses at any level."""

    EPS = "eps"  # the noise (Ho et al. 2020)
    X0 = "x0"  # the clean picture
    V = "v"  # alpha * eps - sigma * x0 (Salimans & Ho 2022)
    FLOW = "flow"  # eps - x0 (Liu et al. 2022b)

    def target(self, x0: Tensor, eps: Tensor, at: Level) -> Tensor:
        """The right answer of the network for x = alpha * x0 + sigma * eps."""
        match self:
            case Prediction.EPS:
                return eps
            case Prediction.X0:
                return x0
            case Prediction.V:
                return at.alpha * eps - at.sigma * x0
            case Prediction.FLOW:
                return eps - x0

    def x0(self, out: Tensor, x: Tensor, at: Level) -> Tensor:
        """The clean picture that the answer `out` to `x` means. Only EPS is singular at alpha = 0."""
        match self:
            case Prediction.EPS:
                return (x - at.sigma * out) / at.alpha
            case Prediction.X0:
                return out
            case Prediction.V:
                return (at.alpha * x - at.sigma * out) / (at.alpha**2 + at.sigma**2)
            case Prediction.FLOW:
                return (x - at.sigma * out) / (at.alpha + at.sigma)
