"""Folders of small pictures, and tars of them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

from PIL import Image


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The bytes of a file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def shade(level: int, size: tuple[int, int] = (6, 4)) -> Image.Image:
    """One colour, that of a level."""
    return Image.new("RGB", size, (level, 0, 0))


def fill(root: Path, files: Mapping[str, str | bytes | int]) -> Path:
    """Numbers are pictures of that shade."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, int):
            shade(content).save(path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def line(**fields: object) -> str:
    """A line of metadata.jsonl."""
    return json.dumps(fields) + "\n"


def tar(files: Mapping[str, bytes | str], layout: int = tarfile.USTAR_FORMAT) -> bytes:
    """A shard."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=layout) as file:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
