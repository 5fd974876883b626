"""Tensor files made byte by byte, for what no honest program writes."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sfumato.io.stored import Stored, open_stored

DATA = bytes(range(1, 25))  # six float32
NAME = b"ctorch._utils\n_rebuild_tensor_v2\n"


def text(value: str) -> bytes:
    """BINUNICODE."""
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    """LONG1, whatever the size."""
    data = value.to_bytes(9 if abs(value) < 1 << 70 else 200, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def storage(key: str = "0", count: int = 6, kind: str = "FloatStorage") -> bytes:
    """A persistent id."""
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(
    shape: tuple[int, ...] = (2, 3), stride: tuple[int, ...] = (3, 1), offset: int = 0, of: bytes | None = None
) -> bytes:
    """The call that makes a tensor."""
    sides, steps = (b"(" + b"".join(map(number, n)) + b"t" for n in (shape, stride))
    hooks = b"ccollections\nOrderedDict\n)R"
    return NAME + b"(" + (of or storage()) + number(offset) + sides + steps + b"\x89" + hooks + b"tR"


def pickled(*parts: bytes, protocol: int = 2) -> bytes:
    """Opcodes between PROTO and STOP."""
    return b"\x80" + bytes([protocol]) + b"".join(parts) + b"."


def table(**values: bytes) -> bytes:
    """A dict."""
    return b"}(" + b"".join(text(key) + value for key, value in values.items()) + b"u"


def zipped(index: bytes, storages: Mapping[str, bytes] | None = None, **others: bytes) -> bytes:
    """A checkpoint with this data.pkl."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", index)
        for key, data in (storages if storages is not None else {"0": DATA}).items():
            file.writestr(f"archive/data/{key}", data)
        for name, data in others.items():
            file.writestr(f"archive/{name}", data)
    return buffer.getvalue()


def headed(header: Any, data: bytes = DATA) -> bytes:
    """A safetensors file with this header, JSON or bytes."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + data


def field(dtype: str = "F32", shape: tuple[int, ...] = (2, 3), start: int = 0, end: int = 24) -> dict[str, Any]:
    """What a safetensors header says of a tensor."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def opened(path: Path, data: bytes) -> Stored:
    path.write_bytes(data)
    return open_stored(path)


def refusal(path: Path, data: bytes) -> str:
    """The one line about a file, without its name."""
    with pytest.raises(ValueError) as error:  # noqa: PT011
        opened(path, data)
    message = str(error.value)
    assert type(error.value) is ValueError
    assert message.startswith(f"{path} ")
    assert "\n" not in message
    return message.removeprefix(f"{path} ")
