"""A run as one page of HTML that needs nothing else: curves, pictures, settings, and what it rests on."""

import base64
import io
import json
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from sfumato.io import atomic, pictures
from sfumato.recipes import beginning
from sfumato.recipes.chart import Curve, chart, curve, number
from sfumato.recipes.events import Event, Found, Wrote
from sfumato.recipes.log import Line, lines
from sfumato.recipes.style import STYLE
from sfumato.recipes.validation import NAME as VALIDATION
from sfumato.train.stage import METRICS, ROLLBACKS
from sfumato.train.stop import Stopped

NAME = "report.html"
MOST = 20_000  # lines of a log that are looked at
WIDEST = 1100  # pixels of a picture in the page
SMALL = 150_000  # bytes up to which a PNG is put in as it is
EARLIER = 4  # previews shown beside the newest
PLAN = {"first-stage": ("first_stage", "run"), "tiny-decoder": ("",), "diffusion": ("diffusion",)}  # where it is
_STEP = re.compile(r"step-(\d+)\.png")
_OWN = ("step", "loss", "rate", "norm", "seconds", "images")


def followed(events: Iterator[Event], out: Path) -> Iterator[Event]:
    """The events of a run, whose page is written after each preview, and where it ends, is stopped or goes wrong.

    The first time it is said where.
    """
    said = False
    try:
        for event in events:
            yield event
            if isinstance(event, Wrote) and event.what == "preview":
                wrote = _written(out)
                if not said:
                    yield wrote
                said = True
    except (Stopped, FloatingPointError):
        if (out / beginning.NAME).exists():
            _written(out)
        raise
    _written(out)


def _written(out: Path) -> Event:
    """A training does not end because of its page."""
    try:
        return Wrote("page", write(out))
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, MemoryError) as error:
        return Found(f"the page of the run cannot be written ({error}); the training goes on")


def write(out: Path, to: Path | None = None) -> Path:
    """Write the page of the run in `out`, at the end of a stage or in the middle; ValueError if there is no run."""
    path = to or out / NAME
    atomic.write_bytes(path, page(out).encode("utf-8", "backslashreplace"))
    return path


def page(out: Path) -> str:
    """The page, which is a function of the files in `out`."""
    began = _began(out)
    settings = began["settings"]
    stages = [path.parent for name in PLAN if (path := out / name / METRICS).exists()]
    name = str(settings.get("name", out.name))
    sections = [
        *(_stage(stage, settings) for stage in stages),
        _findings(out),
        _table("What it rests on", [("data", began["data"] or "the bundled pictures"), *_flat(began["rests on"])]),
        _table("Weights", _weights(out)),
        _table("Settings", list(_flat(settings)), closed=True),
    ]
    done = "finished" if (out / "model").is_dir() and all(_done(s, settings) for s in stages) else "not finished"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\';img-src data:;'
        f"style-src 'unsafe-inline'\"><title>{escape(name)}</title><style>{STYLE}</style></head><body><main>"
        f"<header><h1>{escape(name)}</h1><p>recipe {escape(str(began['recipe']))}, {done}</p></header>"
        f"{''.join(sections)}</main></body></html>\n"
    )


def _began(out: Path) -> dict[str, Any]:
    """What config.json says, of whatever version and recipe."""
    try:
        found = json.loads((out / beginning.NAME).read_bytes())
        if isinstance(found["settings"], dict) and isinstance(found["rests on"], dict):
            return {name: found[name] for name in ("recipe", "data", "settings", "rests on")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ValueError(f"{out} holds no run; give the folder of one, as runs/emoji")


# Stages ---------------------------------------------------------------------------------------------------
def _stage(home: Path, settings: dict[str, Any]) -> str:
    log = lines(home / METRICS, MOST)
    plan = _plan(home, settings)
    said = [f"<h2>{escape(home.name.replace('-', ' '))}</h2>", _tiles(home, log, plan)]
    said.append(_pictures(home.parent if home.name == "diffusion" else home))
    charts = [
        _of(log, "loss", log_scale=True),
        *_validation(lines(home / VALIDATION)),
        _of(log, "rate", title="learning rate"),
        _of(log, "norm", title="gradient norm", log_scale=True),
        _of(log, "seconds", title="seconds a step", log_scale=True),
    ]
    others = sorted({k for line in log[-1:] for k, v in line.items() if k not in _OWN and isinstance(v, int | float)})
    said.append(f'<div class="charts">{"".join(charts)}</div>')
    if more := "".join(_of(log, name) for name in others):
        said.append(f'<details><summary>terms of the loss</summary><div class="charts">{more}</div></details>')
    return f"<section>{''.join(said)}</section>"


def _of(log: list[Line], key: str, *, title: str | None = None, log_scale: bool = False) -> str:
    points = [(line["step"], float(line[key])) for line in log if isinstance(line.get(key), int | float)]
    return chart(title or key, [curve("", points, log=log_scale)], log=log_scale)


def _validation(found: list[Line]) -> Iterator[str]:
    """The loss with fixed noise, of both kinds of pictures; then of those held out in each part of the clock."""
    try:
        parts = ("held out", "trained on")
        whole = {part: [(line["step"], float(line[part]["loss"])) for line in found] for part in parts}
        bins = list(zip(*([float(v) for v in line["held out"]["bins"]] for line in found), strict=True))
    except (LookupError, TypeError, ValueError):
        return
    yield chart(
        "validation loss",
        [Curve(f"{name},", points, colour=n, dots=True) for n, (name, points) in enumerate(whole.items())],
    )
    steps = [line["step"] for line in found]
    curves = [Curve(f"{n + 1}:", list(zip(steps, bin, strict=True)), colour=10 + n) for n, bin in enumerate(bins)]
    yield chart("validation by time, from picture to noise", curves, log=True)


def _tiles(home: Path, log: list[Line], plan: dict[str, Any]) -> str:
    last = log[-1] if log else {"step": 0}
    steps = plan.get("steps", last["step"])
    seconds = [float(line["seconds"]) for line in log if isinstance(line.get("seconds"), int | float)]
    spent = sum(seconds) / max(1, len(seconds)) * last["step"]
    checked = [line["held out"]["loss"] for line in lines(home / VALIDATION)[-1:] if "held out" in line]
    skipped, backs = _skipped(home), lines(home / ROLLBACKS)
    tiles = [
        ("step", f"{last['step']:,} of {steps:,}"),
        ("loss", number(float(last.get("loss", float("nan"))))),
        *(("validation", number(float(loss))) for loss in checked),
        ("pictures seen", f"{last.get('images', 0):,}"),
        ("seconds a step", number(sorted(seconds)[len(seconds) // 2]) if seconds else "-"),
        ("time in steps", _time(spent)),
        ("steps skipped", f"{skipped:,}"),
        *(
            (f"went back at step {b['at']:,}", f"to {b['step']:,}: {b['cause']}")
            for b in backs
            if {"at", "cause"} <= {*b}
        ),
    ]
    return (
        '<dl class="tiles">'
        + "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in tiles)
        + "</dl>"
    )


def _plan(home: Path, settings: dict[str, Any]) -> dict[str, Any]:
    for name in PLAN[home.name]:
        part = settings if not name else settings.get(name)
        if isinstance(part, dict) and isinstance(part.get("plan"), dict):
            return part["plan"]
    return {}


def _done(home: Path, settings: dict[str, Any]) -> bool:
    log = lines(home / METRICS, 2)
    return bool(log) and log[-1]["step"] == _plan(home, settings).get("steps")


def _skipped(home: Path) -> int:
    """Steps that were not finite, by the newest checkpoint."""
    found = sorted(
        (int(p.parent.name[5:]), p) for p in home.glob("step-*/manifest.json") if p.parent.name[5:].isdigit()
    )
    try:
        return int(json.loads(found[-1][1].read_bytes())["numbers"]["skipped"])
    except (OSError, LookupError, ValueError, TypeError):
        return 0


def _time(seconds: float) -> str:
    if seconds < 90:  # noqa: PLR2004
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"  # noqa: PLR2004


# Pictures -------------------------------------------------------------------------------------------------
def _pictures(home: Path) -> str:
    """The newest preview with what it was asked for, and some before it."""
    found = sorted((int(match[1]), p) for p in home.glob("samples/step-*.png") if (match := _STEP.fullmatch(p.name)))
    shown = [found[(len(found) - 1) * k // EARLIER] for k in range(EARLIER + 1)] if len(found) > EARLIER else found
    out: list[str] = []
    for step, path in reversed(shown):
        uri = _uri(path, WIDEST // 3 if out else WIDEST)
        if uri:
            told = "" if out else f"<small>{escape(_asked(path))}</small>"
            alt = f"preview of step {step:,}"
            out.append(f'<figure><img src="{uri}" alt="{alt}"><figcaption>step {step:,} {told}</figcaption></figure>')
    return f'<div class="pictures">{out[0]}<div>{"".join(out[1:])}</div></div>' if out else ""


def _asked(path: Path) -> str:
    try:
        told = pictures.parameters_of(path).get("captions")
    except ValueError:
        return ""
    return "; ".join(str(one) for one in told if one not in ("", None)) if isinstance(told, list) else ""


def _uri(path: Path, widest: int) -> str:
    """A picture as a link that holds it; "" if it cannot be read."""
    try:
        data = path.read_bytes()
        picture = pictures.rgb(data)
    except (OSError, ValueError, MemoryError):
        return ""
    kind = "png"
    if len(data) > SMALL or max(picture.size) > widest:
        buffer, kind = io.BytesIO(), "jpeg"
        picture.thumbnail((widest, 2 * widest), Image.Resampling.LANCZOS)
        picture.save(buffer, "JPEG", quality=85, optimize=True)
        data = buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


# Words ----------------------------------------------------------------------------------------------------
def _findings(out: Path) -> str:
    """What the report of a first stage found, above the pictures that it was judged by."""
    try:
        findings = [
            (bool(f["good"]), str(f["text"])) for f in json.loads((out / "report.json").read_bytes())["findings"]
        ]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ""
    uri = _uri(out / "held-out.png", WIDEST)
    image = f'<img src="{uri}" alt="pictures, reconstructions and errors">' if uri else ""
    rows = "".join(f'<li class="{"good" if good else "poor"}">{escape(text)}</li>' for good, text in findings)
    return f'<section><h2>Is it good enough?</h2><ul class="findings">{rows}</ul>{image}</section>'


def _weights(out: Path) -> list[tuple[str, str]]:
    """The weight sets of the model, and what each is."""
    for name in ("model.json", "first_stage.json"):
        try:
            found = json.loads((out / "model" / name).read_bytes())["weights"]
            sets = {"weights": found} if "about" in found else found
            return [(key, str(one["about"])) for key, one in sets.items()]
        except (OSError, ValueError, LookupError, TypeError, RecursionError, AttributeError):
            continue
    return []


def _table(title: str, rows: list[tuple[str, Any]], *, closed: bool = False) -> str:
    if not rows:
        return ""
    body = "".join(f"<tr><th>{escape(str(k))}</th><td>{escape(_said(v))}</td></tr>" for k, v in rows)
    table = f'<div class="wide"><table>{body}</table></div>'
    if closed:
        return f"<section><details><summary><h2>{title}</h2></summary>{table}</details></section>"
    return f"<section><h2>{title}</h2>{table}</section>"


def _flat(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
