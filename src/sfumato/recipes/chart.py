"""Curves as SVG inside a page: a line a curve, a band for its spread, and nothing that a browser must fetch or run."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 560, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 24  # of what is drawn, in the units of the picture
BUCKETS = 160  # points of a curve, at most
BLUR = 1.5  # buckets: the deviation of the kernel that a curve of more points is smoothed with

Point = tuple[float, float]


class Curve(NamedTuple):
    """A line through `points`, its name, the spread around it (x, low, high), and a colour by its number."""

    name: str
    points: list[Point]
    band: Sequence[tuple[float, float, float]] = ()
    colour: int = 0
    dots: bool = False


class _Axis(NamedTuple):
    """A range of numbers brought to a range of places, by their logarithms or not."""

    low: float
    high: float
    log: bool
    begin: float
    end: float

    def place(self, value: float) -> float:
        low, high, value = (math.log(v) for v in (self.low, self.high, value)) if self.log else (*self[:2], value)
        return self.begin + (self.end - self.begin) * (value - low) / (high - low)


# Numbers --------------------------------------------------------------------------------------------------
def curve(name: str, points: Sequence[Point], *, log: bool = False, colour: int = 0) -> Curve:
    """A curve through at most `BUCKETS` means of the points, of logarithms with `log`, and the range that they had.

    What is not finite, and with `log` what is not positive, is left out.
    """
    good = [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not log)]
    if len(good) <= BUCKETS:
        return Curve(name, good, colour=colour)
    parts = [good[len(good) * k // BUCKETS : len(good) * (k + 1) // BUCKETS] for k in range(BUCKETS)]
    steps = [sum(x for x, _ in part) / len(part) for part in parts]
    band = [(x, min(y for _, y in part), max(y for _, y in part)) for x, part in zip(steps, parts, strict=True)]
    means = [sum(math.log(y) if log else y for _, y in part) / len(part) for part in parts]
    smooth = [math.exp(y) if log else y for y in _blurred(means)]
    return Curve(name, list(zip(steps, smooth, strict=True)), band, colour)


def _blurred(values: list[float]) -> list[float]:
    reach = math.ceil(3 * BLUR)
    kernel = [math.exp(-0.5 * (k / BLUR) ** 2) for k in range(-reach, reach + 1)]
    out = []
    for i in range(len(values)):
        near = [(kernel[k + reach], values[i + k]) for k in range(-reach, reach + 1) if 0 <= i + k < len(values)]
        out.append(sum(w * v for w, v in near) / sum(w for w, _ in near))
    return out


def number(value: float) -> str:
    """Three digits, and no more than a person wants to read."""
    if value != 0 and not 1e-3 <= abs(value) < 1e5:  # noqa: PLR2004
        return f"{value:.2g}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"  # noqa: PLR2004


def ticks(low: float, high: float, *, log: bool) -> list[float]:
    """A few round numbers from `low` to `high`."""
    if log and high / low > 20:  # noqa: PLR2004
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        each, digits = max(1, len(powers) // 5), (1, 2, 5) if len(powers) <= 4 else (1,)  # noqa: PLR2004
        found = [digit * 10.0**p for p in powers if p % each == 0 for digit in digits]
        return [value for value in found if low <= value <= high]
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (m * step) <= 5)  # noqa: PLR2004
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


# Drawing --------------------------------------------------------------------------------------------------
def chart(title: str, curves: Sequence[Curve], *, log: bool = False) -> str:
    """A figure with its title, the last number of each curve, and the curves over the steps; "" if there are none."""
    curves = [c for c in curves if c.points]
    if not curves:
        return ""
    x, y = _axes(curves, log=log)
    drawn = "".join(
        [*_grid(x, y), *(_band(c, x, y, n) for n, c in enumerate(curves)), *(_line(c, x, y) for c in curves)]
    )
    last = " ".join(
        f'<span class="k c{c.colour}">{escape(c.name)} <b>{number(c.points[-1][1])}</b></span>' for c in curves
    )
    label = escape(f"{title} over {number(x.low)} to {number(x.high)} steps")
    return (
        f'<figure><figcaption><strong>{escape(title)}</strong> {last}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img" aria-label="{label}">{drawn}</svg></figure>'
    )


def _axes(curves: Sequence[Curve], *, log: bool) -> tuple[_Axis, _Axis]:
    xs = [x for c in curves for x, _ in c.points]
    ys = [y for c in curves for _, y in c.points]
    for c in curves:  # the band where it is not far out: a single step must not hide the others
        middle = sorted(y for _, y in c.points)[len(c.points) // 2]
        ys += [v for _, *both in c.band for v in both if _near(v, middle, log=log)]
    log = log and min(ys) > 0
    low, high = min(ys), max(ys)
    if low == high:
        low, high = (low / 1.1, high * 1.1) if log else (low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1)
    first, last = min(xs), max(xs)
    x = _Axis(first, last if last > first else first + 1, False, LEFT, WIDTH - RIGHT)
    return x, _Axis(low, high, log, HEIGHT - BOTTOM, TOP)


def _near(value: float, middle: float, *, log: bool) -> bool:
    return (middle / 30 < value < middle * 30) if log else (value < 4 * middle or middle <= 0)


def _grid(x: _Axis, y: _Axis) -> list[str]:
    out = []
    for value in ticks(y.low, y.high, log=y.log):
        at = f"{y.place(value):.1f}"
        out.append(f'<path class="g" d="M{LEFT} {at}H{WIDTH - RIGHT}"/>')
        out.append(f'<text x="{LEFT - 6}" y="{at}" dy=".32em" text-anchor="end">{number(value)}</text>')
    for value in ticks(x.low, x.high, log=False):
        at = x.place(value)
        side = "end" if at > WIDTH - RIGHT - 20 else "middle"
        out.append(f'<text x="{at:.1f}" y="{HEIGHT - 6}" text-anchor="{side}">{number(value)}</text>')
    return out


def _band(c: Curve, x: _Axis, y: _Axis, n: int) -> str:
    if not c.band or n:  # of the first curve alone: several would hide each other
        return ""
    edges = [(x.place(s), *(y.place(min(max(v, y.low), y.high)) for v in (low, high))) for s, low, high in c.band]
    path = [*((s, low) for s, low, _ in edges), *((s, high) for s, _, high in reversed(edges))]
    return f'<path class="band c{c.colour}" d="M{_path(path)}Z"/>'


def _line(c: Curve, x: _Axis, y: _Axis) -> str:
    places = [(x.place(s), y.place(min(max(v, y.low), y.high))) for s, v in c.points]
    few = len(places) < 2 or c.dots  # noqa: PLR2004
    dots = "".join(f'<circle class="c{c.colour}" cx="{s:.1f}" cy="{v:.1f}" r="2.4"/>' for s, v in places) if few else ""
    return f'<path class="line c{c.colour}" d="M{_path(places)}"/>{dots}'


def _path(places: Sequence[Point]) -> str:
    return "L".join(f"{s:.1f} {v:.1f}" for s, v in places)
