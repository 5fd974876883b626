"""Holes for a network to paint: rectangles and strokes of a broad brush, by their address."""

import math
from typing import Literal

import torch
from torch import Tensor

from sfumato.diffusion.noise import Address, Stream

Holes = Literal["both", "rectangles", "strokes"]
RECTANGLES, SMALLEST, LARGEST = 3, 0.2, 0.6  # at most so many, and their sides in terms of the picture's
STROKES, CORNERS = 4, 6  # at most so many, each with so many corners
NARROW, BROAD = 0.06, 0.2  # of a stroke
LONGEST = 0.4  # from corner to corner
_EACH = 4 + 2 * CORNERS


def holes(at: Address, height: int, width: int, kind: Holes = "both") -> Tensor:
    """(B, height, width), 1 in the hole: half of them rectangles, half strokes, as those of large masks in LaMa are
    (Suvorov et al. 2022, sec. 3.3). There is always one, and about a quarter of a picture is in it."""
    draws = at.uniform(Stream.HOLE, 2 + STROKES * _EACH)
    return torch.stack([_hole(u.tolist(), height, width, kind) for u in draws])


def _hole(u: list[float], height: int, width: int, kind: Holes) -> Tensor:
    rest = u[2:]
    if kind == "rectangles" or (kind == "both" and u[0] < 0.5):  # noqa: PLR2004
        hole = torch.zeros(height, width)
        for k in range(1 + int(u[1] * RECTANGLES)):
            where, high, across, wide = rest[4 * k : 4 * k + 4]
            hole[_interval(where, high, height), _interval(across, wide, width)] = 1
        return hole
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    hole = torch.zeros(height, width, dtype=torch.bool)
    for k in range(1 + int(u[1] * STROKES)):
        _stroke(hole, x, y, rest[_EACH * k : _EACH * (k + 1)])
    return hole.float()


def _interval(where: float, long: float, side: int) -> slice:
    n = max(1, round(side * (SMALLEST + long * (LARGEST - SMALLEST))))
    begin = int(where * (side - n + 1))
    return slice(begin, begin + n)


def _stroke(hole: Tensor, x: Tensor, y: Tensor, u: list[float]) -> None:
    """A line with round ends through some corners, each a turn and a length from the one before."""
    height, width = hole.shape
    unit = min(height, width)
    at, radius = (u[0] * width, u[1] * height), unit * (NARROW + u[2] * (BROAD - NARROW)) / 2
    for k in range(1 + int(u[3] * CORNERS)):
        angle, length = 2 * math.pi * u[4 + 2 * k], unit * LONGEST * u[5 + 2 * k]
        to = (
            min(max(at[0] + length * math.cos(angle), 0.0), width),
            min(max(at[1] + length * math.sin(angle), 0.0), height),
        )
        hole |= _distance(x, y, at, to) <= max(radius, 1.0)
        at = to


def _distance(x: Tensor, y: Tensor, a: tuple[float, float], b: tuple[float, float]) -> Tensor:
    """Of every pixel from the line between two points."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    part = ((x - a[0]) * dx + (y - a[1]) * dy) / max(dx * dx + dy * dy, 1e-9)
    part = part.clamp(0, 1)
    return torch.hypot(x - a[0] - part * dx, y - a[1] - part * dy)
