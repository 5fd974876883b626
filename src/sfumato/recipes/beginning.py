"""What a run began with, in its config.json: recipe, data, settings, and what it takes from outside."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError
from torch import nn

from sfumato.data.fingerprint import Fingerprint
from sfumato.io import atomic, tensors
from sfumato.models.config import Closed
from sfumato.recipes.events import Event, Ready
from sfumato.world import ALONE, World

NAME = "config.json"
LOCK = ".lock"


@dataclass(frozen=True)
class Beginning:
    """All that a run is a function of, with its code."""

    recipe: str
    data: Path | None
    settings: Closed
    rests_on: dict[str, str] | None = None  # what it takes from outside -> a fingerprint; None before that is known


def read(out: Path, recipe: str, kind: type[Closed]) -> Beginning:
    """What the run in `out` began with; ValueError if there is none, or one of another recipe."""
    path = out / NAME
    try:
        stored = json.loads(path.read_bytes())
        data, began, rests_on = stored["data"], stored["recipe"], dict(stored["rests on"])
        home = Path(data) if data else None
        settings = kind.model_validate(_whole(stored["settings"])) if began == recipe else None
    except FileNotFoundError:
        raise ValueError(f"{out} holds no run to go on with; leave --resume out to begin one") from None
    except (ValidationError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path} is damaged, or of another version; it must be the file that this program wrote"
        ) from None
    if settings is None:
        raise ValueError(f"{out} holds a run of the recipe {began}; go on with: sfumato train {began}")
    return Beginning(recipe, home, settings, rests_on)


def _whole(settings: Any) -> Any:
    """Settings that do not say `diffusion.validation` are of a run from before there was one: it holds none out."""
    match settings:
        case {"diffusion": {**diffusion}}:
            return {**settings, "diffusion": {"validation": 0, **diffusion}}
        case _:
            return settings


def settled(beginning: Beginning, events: Iterator[Event], out: Path, world: World = ALONE) -> Iterator[Event]:
    """The events of a run. When it is ready, what it began with is written, or compared if it was known before.

    From then on nobody else can train in `out`. ValueError if one does, or if something that the run takes from
    outside is not what it was.
    """
    with ExitStack() as stack:
        for event in events:
            if not isinstance(event, Ready):
                yield event
                continue
            world.by_first(lambda: stack.enter_context(_held(out)))
            if beginning.rests_on is not None:
                _compare(beginning.rests_on, event.rests_on)
            else:
                now = replace(beginning, rests_on=event.rests_on)
                world.by_first(lambda: (check_free(out), _write(out, now)))  # noqa: B023 - called here


def check_free(out: Path) -> None:
    """ValueError if there is a run in `out`."""
    if (out / NAME).exists():
        raise ValueError(f"{out} already holds a run; add --resume to go on with it, or choose another --out")


@contextmanager
def _held(out: Path) -> Iterator[None]:
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"another process trains in {out}; wait for it, or choose another --out") from None
    except NotImplementedError:  # some file systems know no locks
        pass
    try:
        yield
    finally:
        lock.release()


def rests_on(
    pictures: Fingerprint, features: Path | None, stage: nn.Module | None = None, *, base: nn.Module | None = None
) -> dict[str, str]:
    """What a run takes from outside: pictures; a file of features, a first stage and a whole model, if there are."""
    found = {"pictures": f"{pictures.n:,}, sha256 {pictures.sha256}"}
    if features is not None:
        found["features"] = f"sha256 {tensors.sha256(features)}"
    if stage is not None:
        found["weights of the first stage"] = f"sha256 {tensors.digest(stage.state_dict())}"
    if base is not None:
        found["weights of the base"] = f"sha256 {tensors.digest(base.state_dict())}"
    return found


def _write(out: Path, beginning: Beginning) -> None:
    data = str(beginning.data.resolve()) if beginning.data else None
    said = {
        "recipe": beginning.recipe,
        "data": data,
        "rests on": beginning.rests_on,
        "settings": beginning.settings.model_dump(mode="json"),
    }
    atomic.write_bytes(out / NAME, json.dumps(said, indent=2).encode())


def _compare(then: dict[str, str], now: dict[str, str]) -> None:
    for name in sorted(then.keys() | now.keys()):
        was, found = then.get(name, "nothing"), now.get(name, "nothing")
        if was != found:
            raise ValueError(
                f"the run began with other {name} than there are now ({_short(was)} then, {_short(found)} now); "
                "put them back, or begin another run with another --out"
            )


def _short(fingerprint: str) -> str:
    """Without most of the hash."""
    head, sign, digest = fingerprint.rpartition("sha256 ")
    return f"{head}{sign}{digest[:12]}"
