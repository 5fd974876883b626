"""Checkpoints of a running training: folders `step-N`, written whole, verified when they are read."""

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato.io import atomic, tensors
from sfumato.world import ALONE, World, divided

PLAIN = "state.safetensors"  # of a checkpoint in one file; one of several processes has others
FORMATS = (1, 2, 3)  # that can be read: without a seal, in one file, and in several
SPARE = 2**20  # bytes that a checkpoint may need beside its tensors
NAMED = 4  # damaged ones, at most, that a message names
_NAME = re.compile(r"step-(0|[1-9][0-9]{0,17})")
_LEFT = re.compile(r"\.(step-[0-9]+)\..*tmp")  # by a process that was killed while it wrote
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Found = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors and numbers, as they were saved."""


class Sharing(NamedTuple):
    """How processes read one checkpoint together, of which each has a part."""

    like: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]  # tensors like the checkpoint's, to be filled
    agree: Callable[[int], None]  # is told the step that this process found, -1 for none; raises where others differ


Fits = Callable[[int, Mapping[str, Tensor], Mapping[str, Any]], bool]
"""Whether the content of `step-N`, N first, is what a training can go on from."""


@dataclass(frozen=True)
class Keeping:
    """Which checkpoints stay: the newest few, and landmarks, to go back to from a trend of `trend` steps.

    A landmark is the first in each stretch of so many steps, of those that are planned, each `planned` steps: where a
    training was stopped and saved in between changes nothing of where it goes back to. None are kept for a trend of 0.
    """

    newest: int = 2
    planned: int = 1
    trend: int = 0

    def landmarks(self, steps: Iterable[int]) -> list[int]:
        """Those of the steps, which rise, that are landmarks."""
        if not self.trend:
            return []
        first: dict[int, int] = {}
        for step in steps:
            if step % self.planned == 0:
                first.setdefault(step // self.trend, step)
        return list(first.values())

    def stay(self, steps: list[int], now: int) -> set[int]:
        """Those of the steps that stay when `now` has been saved; what is later is not counted."""
        done = [step for step in steps if step <= now]
        marks = self.landmarks(done)
        old = [step for step in marks if step <= now - self.trend]
        return {*done[-self.newest :], *old[-1:], *(step for step in marks if step > now - self.trend)}


# Writing --------------------------------------------------------------------------------------------------
def save(
    home: Path,
    step: int,
    weights: Mapping[str, Tensor],
    numbers: Mapping[str, Any],
    keeping: Keeping = Keeping(),
    world: World = ALONE,
) -> Path:
    """Write `home/step-N`, then forget those that are not to stay. All processes call it, with what each has.

    OSError of one line if there is no room for it or it cannot be written; those before it are as they were.
    """
    path = home / f"step-{step}"
    need = SPARE + sum(w.numel() * w.element_size() for w in weights.values())

    def begin() -> Path:
        home.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(home).free < need:
            raise OSError(errno.ENOSPC, "the disk is full")
        return atomic.staged(path)

    def end(folder: Path) -> None:
        names = sorted(file.name for file in folder.iterdir())
        digests = {name: tensors.sha256(folder / name) for name in names}
        one = names == [PLAIN]
        manifest = {"format": 2 if one else 3, "sha256": digests[PLAIN] if one else digests, "numbers": dict(numbers)}
        (folder / "manifest.json").write_bytes(_text({**manifest, "seal": _seal(manifest)}))
        atomic.put(folder, path)
        steps = _all(home)
        stay = keeping.stay(list(steps), step)
        for old in (old for n, old in steps.items() if n not in stay and n <= step):
            shutil.rmtree(old)

    try:
        _written(weights, world, begin, end)
    except OSError as error:
        raise failed(home, f"the checkpoint of step {step}", error, need) from None
    return path


def _written(
    weights: Mapping[str, Tensor], world: World, begin: Callable[[], Path], end: Callable[[Path], None]
) -> None:
    """Tensors into a new folder: by the first process, or by all where they are divided among them."""
    staged: list[Path] = []

    def made() -> None:
        staged.append(begin())

    def one() -> None:
        made()
        tensors.write(staged[0] / PLAIN, weights)
        end(staged[0])

    try:
        if not any(divided(w) for w in weights.values()):
            world.by_first(one)
            return
        from sfumato.io import sharded  # noqa: PLC0415 - a second that one process never needs

        world.by_first(made)
        folder = Path(world.told(str(staged[0]) if staged else ""))
        sharded.save(folder, weights)
        world.by_first(lambda: end(folder))
    finally:
        if staged:
            shutil.rmtree(staged[0], ignore_errors=True)


def failed(home: Path, what: str, error: OSError, need: int | None = None) -> OSError:
    """What to raise where `what` could not be written to `home`: why, what is whole, and how to go on."""
    rooms = "" if need is None else f": {_mb(need)} are needed and {_mb(shutil.disk_usage(home).free)} are free"
    whole = next((n for n, path in reversed(_all(home).items()) if _manifest(path) is not None), None)
    last = "no checkpoint was written before" if whole is None else f"the last checkpoint, of step {whole}, is whole"
    do = "make room" if error.errno in _FULL else "put that right"
    why = f"{rooms} ({error.strerror or error})"
    return OSError(f"{what} cannot be written to {home}{why}; {last}; {do} and go on with --resume")


def forget(home: Path, *, after: int) -> None:
    """Remove the checkpoints of later steps."""
    for step, path in _all(home).items():
        if step > after:
            shutil.rmtree(path)


def mend(home: Path) -> None:
    """Remove what processes left behind that were killed while they wrote; nobody else may be writing.

    A checkpoint that was moved aside for another that never came is put back.
    """
    left = [(match, path) for path in home.glob(".step-*tmp") if (match := _LEFT.fullmatch(path.name))]
    for match, path in left:
        if path.name.endswith(".old.tmp") and not (home / match[1]).exists():
            path.replace(home / match[1])
        else:
            shutil.rmtree(path, ignore_errors=True)


# Reading --------------------------------------------------------------------------------------------------
def latest(home: Path, fits: Fits = lambda *_: True, sharing: Sharing | None = None) -> Found | None:
    """The newest checkpoint that is whole and `fits`, or None; others are passed over for the one before.

    With `sharing`, which all processes must give, each gets its parts of it.
    """
    return _first(reversed(_all(home).items()), fits, sharing)


def before(
    home: Path, step: int, keeping: Keeping, fits: Fits = lambda *_: True, sharing: Sharing | None = None
) -> Found | None:
    """The newest landmark up to a step, else the earliest one after it, that is whole and `fits`; or None."""
    steps = _all(home)
    marks = keeping.landmarks(steps)
    order = [*(n for n in reversed(marks) if n <= step), *(n for n in marks if n > step)]
    return _first(((n, steps[n]) for n in order), fits, sharing)


def check_none(home: Path) -> None:
    """ValueError of one line if there are checkpoints, which then are of no use to a training that found none."""
    names = [path.name for path in reversed(_all(home).values())]
    if names:
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        raise ValueError(
            f"no checkpoint in {home} can be used ({', '.join(names[:NAMED])}{more}): damaged, or of another training; "
            "put copies in their place, or remove them to begin this stage anew"
        )


def _first(found: Iterable[tuple[int, Path]], fits: Fits, sharing: Sharing | None) -> Found | None:
    for step, path in found:
        manifest = _manifest(path)
        if manifest is None:
            continue
        weights = _fitting(path, manifest, lambda w, n=step, m=manifest: fits(n, w, m["numbers"]), shared=bool(sharing))
        if weights is None:
            continue
        if sharing is not None:
            sharing.agree(step)  # before they read together
            weights = sharing.like(weights)
        if _filled(path, weights, shared=bool(sharing)):
            return weights, manifest["numbers"]
    if sharing is not None:
        sharing.agree(-1)
    return None


def _fitting(
    path: Path, manifest: Mapping[str, Any], fits: Callable[[Mapping[str, Tensor]], bool], *, shared: bool
) -> dict[str, Tensor] | None:
    """The tensors of a checkpoint if they fit: those of one in several files, or of a shared one, without numbers."""
    try:
        if isinstance(manifest["sha256"], str) and not shared:
            weights = tensors.load(path / PLAIN)
        else:
            from sfumato.io import sharded  # noqa: PLC0415 - a second that one process never needs

            weights = sharded.described(path)
        return weights if fits(weights) else None
    except (ValueError, LookupError, TypeError, RuntimeError):  # the hash of another program's file is right
        return None


def _filled(path: Path, weights: dict[str, Tensor], *, shared: bool) -> bool:
    """Whether there are numbers in the tensors now, and not their shapes alone."""
    if shared or any(v.is_meta for v in weights.values()):
        from sfumato.io import sharded  # noqa: PLC0415 - a second that one process never needs

        for name, v in weights.items():
            weights[name] = torch.empty_like(v, device="cpu") if v.is_meta else v
        try:
            sharded.load(path, weights)
        except ValueError:
            return False
    return True


def _manifest(path: Path) -> dict[str, Any] | None:
    """What the manifest of a checkpoint says, if that and the tensors are as they were written."""
    try:
        text = (path / "manifest.json").read_bytes()
        manifest = json.loads(text)
        body = {name: manifest[name] for name in ("format", "sha256", "numbers")}
        seal = {} if body["format"] == 1 else {"seal": _seal(body)}  # there was none in the first format
        if body["format"] not in FORMATS or _text({**body, **seal}) != text:
            return None
        digests = body["sha256"] if body["format"] == FORMATS[-1] else {PLAIN: body["sha256"]}
        files = {file.name for file in path.glob("*.safetensors")}
        if files != digests.keys() or any(tensors.sha256(path / name) != said for name, said in digests.items()):
            return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return body


def _text(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, indent=2).encode()


def _seal(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(manifest)).hexdigest()


def _all(home: Path) -> dict[int, Path]:
    """Step -> folder, from the first to the last."""
    found = ((_NAME.fullmatch(path.name), path) for path in home.glob("step-*") if path.is_dir())
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
