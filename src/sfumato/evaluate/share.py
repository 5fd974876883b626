"""A share of several, and how well so many of them say what it is."""

import math
from dataclasses import dataclass

NORMAL = 1.959963984540054  # within as many deviations lie 95 % of a normal distribution


@dataclass(frozen=True)
class Share:
    """`hits` of `n`, with Wilson's interval (1927), which has the true share in 95 of 100 cases.

    The interval takes the `n` as independent. None of nothing.
    """

    hits: int
    n: int
    share: float | None
    low: float | None
    high: float | None


def share(hits: int, n: int) -> Share:
    """The share of `hits` in `n`."""
    assert 0 <= hits <= n
    if n == 0:
        return Share(hits, n, None, None, None)
    p, z = hits / n, NORMAL
    whole = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / whole
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / whole
    low = 0.0 if hits == 0 else centre - half  # there the two are the same, but for rounding
    return Share(hits, n, p, low, 1.0 if hits == n else centre + half)
