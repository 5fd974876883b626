"""From a picture to the noise that paints it: DDIM's inversion, and the closing question of any sampler."""

from torch import Tensor

from sfumato.diffusion.grid import Grid
from sfumato.diffusion.level import Level
from sfumato.diffusion.move import move, noise_in
from sfumato.diffusion.samplers.registry import Sampler


def ddim_inversion(x: Tensor, grid: Grid, *, corrections: int = 0) -> Sampler:
    """Encode: DDIM's step backwards, with the noise found in `x` at the noisier level (Song et al. 2021a, sec. 4.3).

    `grid` leads up (see Grid.upward). Each of the `corrections` asks again where the step came to: with enough of them
    it is the exact inverse of ddim's step, so that encoding and sampling is a round trip (Pan et al. 2023). LDM's
    program asks at the wrong clock here; this one does not.
    """
    for a, b in grid.steps():
        y = x
        for _ in range(1 + corrections):
            y = move(x, a, b, eps=noise_in(y, (yield y, b), b))
        x = y
    return x


def denoised(sampler: Sampler, end: Level) -> Sampler:
    """The sampler, and one question more at the `end` of its grid, whose answer is the sample: "denoise to zero".

    A clean level behind the grid does the same, but counts as a step where a sampler counts its steps.
    """
    x = yield from sampler
    return (yield x, end)
