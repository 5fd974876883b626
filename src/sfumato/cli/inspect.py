"""`sfumato inspect FILE`: what a file or folder holds, and how that is known."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from sfumato.cli.parse import parse
from sfumato.conditioning.boxes import Boxes
from sfumato.conditioning.layout import LayoutTokens
from sfumato.io import first_stage_folder, first_stages, opening
from sfumato.io.embedding import read_embedding
from sfumato.io.first_stage_folder import FirstStageFile
from sfumato.io.lora import read_lora
from sfumato.io.opening import Opened
from sfumato.io.recognise import UNET, holds_unet, part
from sfumato.io.stored import open_stored
from sfumato.models.latent_diffusion import AnyConditioner, hollow, hollowed
from sfumato.nets.tiny import TinySize
from sfumato.registry import MANY, SHOWN

ASKED = {
    "words": "captions",
    "clip": "prompts",
    "bert": "captions",
    "layout": "boxes, as LDM's sequence of numbers",
    "boxes": "boxes with labels",
    "labels": "a label",
    "table": "a label",
    "segmentation": "a map of classes",
    None: "nothing",
}


KNOWN = ("labels", "words")  # of a model that is asked with boxes


@dataclass
class Inspect:
    """Say what model a file or a folder holds and how that is known, without reading its weights."""

    path: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PATH")]
    """A .safetensors or .ckpt file, a folder of diffusers, a model folder, the run of a model or of a first stage alone
    (runs/kl-f4), or the name of a bundled model."""
    ask: bool = False
    """Where nothing written says what the network predicts, ask it: reads its weights."""
    json: bool = False
    """Print one JSON object, and nothing else, on standard output."""


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    asked = parse(Inspect, arguments, verb="inspect")
    report = _part(Path(asked.path))
    if report is None:
        found = opening.opened(asked.path)
        report = reported(opening.asked(found) if asked.ask and not found.sure else found)
    if asked.json:
        print(json.dumps(report, ensure_ascii=False))
        return 0
    for key, value in report.items():
        if key != "config" and value not in ("", [], {}):
            first, *more = (_brief(value) if key in KNOWN else _plain(value)).splitlines() or [""]
            print("\n".join([f"{key:18} {first}", *(f"{'':18} {line}" for line in more)]))
    return 0


def _part(path: Path) -> dict[str, Any] | None:
    """What is to say of a file, or a folder, that changes or completes a model; None if it is none of those."""
    if folder := first_stage_folder.find(path):
        return _trained(path, first_stage_folder.describe(folder))
    if not path.is_file() or path.name == "model.json":
        return None
    opening.not_weights_alone(path)
    stored = open_stored(path)
    names = [name.removeprefix(UNET) for name in stored.entries]
    kind, _ = (None if holds_unet(names) else part(names)) or (None, "")
    if kind not in ("lora", "embedding", "first stage"):
        return None
    said: dict[str, Any] = {"path": str(path), "kind": kind, "tensors": len(names), "says of itself": _metadata(path)}
    if kind == "lora":
        patches = read_lora(path).patches
        where = Counter(patch.part for patch in patches)
        ranks = sorted({patch.rank for patch in patches})
        return {**said, "changes": {f"layers of the {k}": n for k, n in where.items()}, "ranks": ranks}
    if kind == "embedding":
        found = read_embedding(path)
        return {**said, "word": found.name, "vectors": f"{len(found.vectors)} of {found.vectors.shape[1]} numbers"}
    size, read = first_stages.opened(path)
    with hollowed():
        net = first_stages.stage_of(size).net
    read(net, {f"net.{name}": tuple(p.shape) for name, p in net.named_parameters()})
    count = sum(p.numel() for p in net.parameters())
    return {**said, "first stage": _first_stage(size), "parameters": f"{count:,}"}


def _trained(path: Path, file: FirstStageFile) -> dict[str, Any]:
    stage = first_stages.loaded(path).stage
    mean, std = (stage.get_buffer(name).flatten().tolist() for name in ("mean", "std"))
    statistics = {"latents times": float(f"{1 / std[0]:.5g}"), "after minus": ", ".join(f"{m:.4g}" for m in mean)}
    return {
        "path": str(path),
        "kind": "first stage",
        "name": file.name,
        "resolution": f"{file.resolution}x{file.resolution}",
        "first stage": _first_stage(file.built),
        "parameters": f"{sum(p.numel() for p in stage.parameters()):,}",
        **(statistics if file.size else {}),
        "weights": file.weights.about if file.weights else "",
    }


def reported(found: Opened) -> dict[str, Any]:
    """What is to say of a model; ValueError, naming a key, if its tensors are not all in their places."""
    config = found.file.config
    model = hollow(config, found.tokenizer)
    stored, passed = found.read(model, found.file.default, None)
    parts = {"unet": model.net, "first stage": model.first_stage, "conditioner": model.conditioner}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items() if part is not None}
    types = {str(stored[name].dtype).removeprefix("torch.") for name, _ in model.named_parameters()}
    predicts = config.prediction.value
    return {
        "path": str(found.path),
        "name": found.file.name,
        "resolution": f"{config.resolution}x{config.resolution}",
        "parameters": {name: f"{n:,}" for name, n in counts.items() if n},
        "heads": f"{config.unet.heads} in each place" if config.unet.heads else f"of {config.unet.head_dim} channels",
        "stored as": sorted(types),
        "first stage": _first_stage(config.first_stage),
        "latents times": float(f"{found.scale:.7g}") if config.first_stage and found.file.origin else "",
        "asked with": ASKED[config.conditioner.kind if config.conditioner else None],
        **_asked_with_boxes(model.conditioner),
        "shown": config.maps or "",
        "predicts": predicts if found.sure else f"{predicts}, or v: nothing says it (see --ask)",
        "schedule": {k: v for k, v in config.schedule.model_dump().items() if v is not None},
        "weight sets": list(found.sets),
        "how that is known": list(found.why),
        "passed over": _summary(passed),
        "says of itself": _metadata(found.path),
        "config": config.model_dump(mode="json"),
    }


def _asked_with_boxes(kind: AnyConditioner | None) -> dict[str, Any]:
    """What a model that is asked with boxes takes and knows."""
    if not isinstance(kind, Boxes | LayoutTokens):
        return {}
    said = {"boxes": f"up to {kind.most}", "captions": "beside the boxes or alone" if kind.captions else ""}
    if kind.names:
        return {**said, "labels": list(kind.names)}
    if isinstance(kind, Boxes):
        return {**said, "labels": "by their words", "words": list(kind.known_words)}
    return {**said, "labels": f"classes by number, 0 to {kind.none - 1}"}


def _first_stage(size: first_stages.Size | None) -> str:
    if size is None:
        return "none: it paints pixels"
    kind = first_stages.kind(size)
    if isinstance(size, TinySize):
        more = " (TAESD), with an encoder" if size.encoder else " (TAESD), a decoder alone"
    else:
        more = f", {size.codebook} entries" if size.codebook else ""
    return f"{kind}{more}, f{size.factor}, {size.latent_channels} channels"


def _summary(passed: Sequence[str]) -> str:
    """The keys that say nothing to the model: how many, and whose they are."""
    groups = Counter(name.split(".")[0] for name in passed).most_common(6)
    return f"{len(passed)} tensors ({', '.join(f'{k}: {n}' for k, n in groups)})" if passed else ""


def _metadata(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    said = open_stored(path).metadata
    return {k: v if len(str(v)) <= 200 else f"{str(v)[:200]}..." for k, v in said.items() if k != "sfumato"}  # noqa: PLR2004


def _brief(known: Any) -> str:
    """How many labels or words there are, and some of them."""
    if isinstance(known, str):
        return known
    more = f" and {len(known) - SHOWN:,} more (--json lists them)" if len(known) > MANY else ""
    return f"{len(known):,}: {', '.join(known[:SHOWN] if more else known)}{more}"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items())
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)
