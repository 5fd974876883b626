"""Discretised logistic mixtures: probabilities of 8-bit pixels, colours in turn (Salimans et al. 2017, sec. 2.1-2.2).

A pixel value v in [-1, 1] is one of 256 levels, 2 / 255 apart. Its probability under a logistic with mean m and scale s
is the mass between the middles to its neighbours, sigmoid((v + 1/255 - m) / s) - sigmoid((v - 1/255 - m) / s); the
first and the last level have all that is beyond them. In each part of the mixture green's mean moves with red, and
blue's with red and green.

A network's output (B, 10 M, H, W) holds M mixture logits, then three times M means, M log-scales and M coefficients
before their tanh. The means and log-scales are those of red, green and blue; the coefficients are those of green on
red, of blue on red and of blue on green.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

HALF = 1 / 255  # of the distance of two levels
LEAST_LOG_SCALE = -7.0
EDGE = 0.999  # beyond it are the first level and the last
CLIP = 1e-5  # uniform numbers are kept this far from 0 and 1


class Mixture(NamedTuple):
    """The parameters of each pixel's mixture."""

    logits: Tensor  # (B, M, H, W)
    means: Tensor  # (B, 3, M, H, W), of green and blue without the part of the other colours
    log_scales: Tensor  # (B, 3, M, H, W)
    coefficients: Tensor  # (B, 3, M, H, W): green on red, blue on red, blue on green


def mixture(out: Tensor) -> Mixture:
    """A network's output (B, 10 M, H, W) as parameters; ValueError if its channels are no multiple of ten."""
    if out.shape[1] % 10:
        raise ValueError(f"a mixture for RGB has ten channels a part, and {out.shape[1]} are no multiple of that")
    m = out.shape[1] // 10
    means, log_scales, coefficients = out[:, m:].unflatten(1, (3, 3, m)).unbind(2)
    return Mixture(out[:, :m], means, log_scales.clamp_min(LEAST_LOG_SCALE), coefficients.tanh())


def log_prob(value: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """The log-probability, in nats, of a level `value` under one logistic; shapes broadcast.

    With a and b the upper and lower edge in units of the scale, sigmoid(a) - sigmoid(b) is sigmoid(a) sigmoid(-b)
    (1 - exp(b - a)), which has a logarithm that is exact for the smallest of probabilities. (The published code takes
    the density in the middle instead where a level has less than 1e-5.) Black and white pictures drive scales up
    without end, until 1 - exp(b - a) is rounded to 0; hence it is written as (a - b) times a ratio near 1.
    """
    centred, inverse = value - mean, (-log_scale).exp()
    upper, lower = inverse * (centred + HALF), inverse * (centred - HALF)
    width = (2 * HALF * inverse).clamp_min(1e-30)  # a - b
    narrowing = math.log(2 * HALF) - log_scale + torch.log(-torch.expm1(-width) / width)
    inside = F.logsigmoid(upper) + F.logsigmoid(-lower) + narrowing
    edge = torch.where(value > EDGE, F.logsigmoid(-lower), inside)
    return torch.where(value < -EDGE, F.logsigmoid(upper), edge)


def log_likelihood(image: Tensor, out: Tensor) -> Tensor:
    """The log-probability in nats of each pixel, its three colours together (B, H, W).

    `image` (B, 3, H, W) of levels in [-1, 1], `out` (B, 10 M, H, W).
    """
    parts = mixture(out)
    red, green, _ = (c[:, None] for c in image.unbind(1))  # (B, 1, H, W)
    means = torch.stack([_mean(parts, colour, red, green) for colour in range(3)], dim=1)
    each = log_prob(image[:, :, None], means, parts.log_scales).sum(1)  # (B, M, H, W)
    return torch.logsumexp(each + parts.logits.log_softmax(1), dim=1)


def bits_per_dim(image: Tensor, out: Tensor) -> Tensor:
    """The mean number of bits that a colour of a pixel takes, for each picture (B,): a uniform guess has 8."""
    return -log_likelihood(image, out).mean((1, 2)) / (3 * math.log(2))


def drawn(out: Tensor, uniform: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) of the mixtures `out` (B, 10 M, H, W), of levels in [-1, 1].

    `uniform` (B, M + 3, H, W) in [0, 1]: M numbers choose the part of the mixture (Gumbel's maximum), one draws each
    colour. Each colour is rounded to its level before the next is drawn, so pictures have the probabilities of
    `log_likelihood`, but for the 1e-5 cut off at both ends. (The published code feeds back what is not rounded.)
    """
    parts, uniform = mixture(out), uniform.clamp(CLIP, 1 - CLIP)
    m = parts.logits.shape[1]
    chosen = (parts.logits - (-uniform[:, :m].log()).log()).argmax(1, keepdim=True)  # (B, 1, H, W)
    index = chosen[:, None].expand(-1, 3, -1, -1, -1)
    one = Mixture(parts.logits.gather(1, chosen), *(p.gather(2, index) for p in parts[1:]))
    noise = uniform[:, m:].logit() * one.log_scales[:, :, 0].clamp_max(60.0).exp()  # (B, 3, H, W), finite
    red = green = torch.zeros_like(one.logits)
    colours: list[Tensor] = []
    for colour in range(3):
        value = _level(_mean(one, colour, red, green) + noise[:, colour : colour + 1])
        colours.append(value)
        red, green = colours[0], colours[-1]
    return torch.cat(colours, dim=1)


def _mean(parts: Mixture, colour: int, red: Tensor, green: Tensor) -> Tensor:
    """The means (B, M, H, W) of one colour, given those before it (B, 1, H, W)."""
    on_red, blue_on_red, blue_on_green = parts.coefficients.unbind(1)
    mean = parts.means[:, colour]
    if colour == 1:
        return mean + on_red * red
    return mean if colour == 0 else mean + blue_on_red * red + blue_on_green * green


def _level(value: Tensor) -> Tensor:
    """The nearest of the 256 levels."""
    return ((value.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
