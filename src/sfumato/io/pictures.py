"""Pictures cross the border here: bytes of a file on one side, float tensors in [-1, 1] on the other."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin
from torch import Tensor

from sfumato.boxes import Window
from sfumato.io import atomic
from sfumato.latents.tiled import out_of_memory

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 25_000_000
T = TypeVar("T")
Size = int | tuple[int, int]
"""The side of a square, or width and height."""
_ORIENTATION = 0x0112  # of EXIF; 1 is upright
_ON_ITS_SIDE = 5  # and more: width and height change places

# What Pillow raises on broken files, apart from the OSError and ValueError it documents.
_BROKEN = (
    *(OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, AttributeError, OverflowError),
    *(RuntimeError, AssertionError, struct.error, zlib.error, Image.DecompressionBombError),
)


def decode(data: bytes, *, size: Size | None = None, window: Window | None = None) -> Tensor:
    """The bytes of a PNG, JPEG, WebP, GIF or BMP file -> (3, H, W) float32 in [-1, 1], RGB.

    Turned as EXIF says, alpha composited on white, first frame only. With `size`, the shorter side becomes
    `size` and the middle square is kept; of a pair, width and height, the middle with their ratio. With a `window`,
    that part of the picture is kept instead, whatever its ratio, and scaled to `size`. Anything
    unreadable is a ValueError of one line, and a MemoryError, which says how large the picture is, where memory runs
    out: that is no fault of the picture's.
    """
    assert window is None or size is not None
    return _decoded(data, size, from_pil, window)


def rgb(data: bytes, *, size: Size | None = None) -> Image.Image:
    """The same as a picture of 8 bits."""
    return _decoded(data, size, lambda picture: picture)


def _decoded(data: bytes, size: Size | None, made: Callable[[Image.Image], T], window: Window | None = None) -> T:
    if size is not None and (size if isinstance(size, int) else min(size)) < 1:
        raise ValueError(f"size is {size}; it must be at least 1 pixel")
    picture = _open(io.BytesIO(data))
    width, height = picture.size
    try:
        return made(_pixels(picture, size, window))
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
    raise MemoryError(f"there is not enough memory for a picture of {width} x {height}")


def _pixels(picture: Image.Image, size: Size | None, window: Window | None) -> Image.Image:
    """All of it read, upright, on white, and cut if a size is said; ValueError if it is damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd palettes and profiles; the pixels are what counts
            picture.load()
            picture = on_white(_upright(picture))
            if size is None:
                return picture
            return _cut(picture, _pair(size)) if window is None else _cut_out(picture, _pair(size), window)
    except _BROKEN as error:
        raise ValueError(f"the picture is damaged ({_line(error)}); save it again or leave it out") from None


def read(path: Path | str, *, size: int | None = None) -> Tensor:
    """`decode` the bytes of a file; its errors name the file, ValueError also one that cannot be opened."""
    try:
        if Path(path).exists() and not Path(path).is_file() and not Path(path).is_dir():
            raise ValueError("it is a pipe or a device; give a file")
        return decode(Path(path).read_bytes(), size=size)
    except OSError as error:
        raise ValueError(f"{path} cannot be opened ({error.strerror or error})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except MemoryError as error:
        raise MemoryError(f"{path}: {str(error) or 'there is not enough memory to read it'}") from None


def read_mask(path: Path, *, of: Path, size: int | None = None) -> Tensor:
    """The mask (H, W) of a picture, 1 where it is white and 0 where it is black; halves go to the nearer.

    Cut as the picture `of` is by `read` with the same `size`; ValueError if the files differ in size.
    """
    mine, theirs = (_sides(file) for file in (path, of))
    if mine != theirs:
        sizes = f"{path} is {mine[0]}x{mine[1]} and {of} is {theirs[0]}x{theirs[1]}"
        raise ValueError(f"{sizes}; a mask has the same size")
    return (read(path, size=size).mean(0) >= 0).float()


def decode_map(data: bytes, *, size: Size | None = None) -> Tensor:
    """The bytes of an 8-bit picture of classes -> (H, W) uint8: the index in the palette, or the grey level, as it is.

    Cut as `decode` cuts the picture that it belongs to; a pixel is the nearest one's. ValueError of one line if it is a
    picture of colours.
    """
    picture = _open(io.BytesIO(data))
    if picture.mode not in ("P", "L", "1"):
        raise ValueError(
            f"a map has a class for each pixel, in 8 bits, grey or with a palette; this has the mode {picture.mode}"
        )
    try:
        picture.load()
        found = picture if picture.mode != "1" else picture.convert("L").point(bool)
        found = found if size is None else _cut(found, _pair(size), Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(found, dtype=np.uint8))
    except _BROKEN as error:
        raise ValueError(f"the picture is damaged ({_line(error)}); save it again or leave it out") from None


def read_map(path: Path, *, size: int | None = None) -> Tensor:
    """`decode_map` the bytes of a file; its errors name the file."""
    try:
        return decode_map(path.read_bytes(), size=size)
    except OSError as error:
        raise ValueError(f"{path} cannot be opened ({error.strerror or error})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _sides(path: Path) -> tuple[int, int]:
    try:
        with path.open("rb") as file:
            return header(file)[:2]
    except OSError as error:
        raise ValueError(f"{path}: the file cannot be opened ({error.strerror or error})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


class Header(NamedTuple):
    """What a file says of its picture before its pixels are decoded."""

    width: int  # of the picture as `decode` gives it, turned as EXIF says
    height: int
    turned: bool  # by EXIF
    alpha: bool
    deep: bool  # 16 bits
    cmyk: bool


def header(file: BinaryIO) -> Header:
    """What a file says of its picture, pixels not decoded; ValueError as in `decode`."""
    picture = _open(file)
    orientation = _orientation(picture)
    on_its_side = orientation in range(_ON_ITS_SIDE, 9)
    rows = f"{getattr(picture, 'tile', '')}" if picture.format == "PNG" else ""
    return Header(
        *(reversed(picture.size) if on_its_side else picture.size),
        turned=orientation in range(2, 9),
        alpha=_has_alpha(picture),
        deep=picture.mode.startswith("I") or ";16" in rows,
        cmyk=picture.mode == "CMYK",
    )


def orientation(file: BinaryIO) -> int:
    """How EXIF says that a picture is turned, from 2 to 8, or 1; from 5 on width and height change places."""
    found = _orientation(_open(file))
    return found if found in range(2, 9) else 1


def _orientation(picture: Image.Image) -> int:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # not picture.getexif(): that of PNG decodes the pixels to look behind them
            return Image.Image.getexif(picture).get(_ORIENTATION, 1)
    except _BROKEN:
        return 1


def from_pil(picture: Image.Image) -> Tensor:
    """An RGB picture -> (3, H, W) float32 in [-1, 1]."""
    pixels = torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.uint8))  # (H, W, 3)
    return pixels.permute(2, 0, 1).contiguous().float() / 127.5 - 1


def to_pil(image: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] -> an RGB picture; rounded, not truncated, so that `decode` inverts it exactly."""
    if image.ndim != 3 or image.shape[0] != 3:  # noqa: PLR2004
        raise ValueError(f"a picture has shape (3, height, width), not {tuple(image.shape)}")
    pixels = image.detach().float().clamp(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())


def save_png(
    image: Tensor, path: Path, parameters: Mapping[str, Any], infotext: str = "", *, new: bool = False
) -> None:
    """Write (3, H, W) in [-1, 1] as PNG, whole or not at all, with its parameters inside.

    The text chunk "sfumato" holds `parameters` as JSON; "parameters" holds `infotext`, which other tools read. With
    `new`, FileExistsError if the file is there.
    """
    text = PngImagePlugin.PngInfo()
    if infotext:
        _add(text, "parameters", infotext)
    if parameters:
        _add(text, "sfumato", json.dumps(parameters, ensure_ascii=False))
    buffer = io.BytesIO()
    to_pil(image).save(buffer, "PNG", pnginfo=text)
    atomic.write_bytes(path, buffer.getvalue(), new=new)


def parameters_of(path: Path) -> dict[str, Any]:
    """The "sfumato" parameters in a PNG; ValueError of one line if there are none."""
    try:
        with path.open("rb") as file:
            picture = _open(file)
            picture.load()
            found = json.loads(getattr(picture, "text", {}).get("sfumato", ""))
    except OSError as error:
        raise ValueError(f"{path} cannot be opened ({error.strerror or error})") from None
    except _BROKEN:
        raise ValueError(f"{path} holds no sfumato parameters; only pictures that sfumato wrote do") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no sfumato parameters; only pictures that sfumato wrote do")
    return found


def sheet(images: Tensor, *, columns: int, gap: int = 2) -> Tensor:
    """Pictures (N, 3, H, W) in one (3, ., .), `columns` in a row, on white."""
    n, c, h, w = images.shape
    rows = -(-n // columns)
    out = images.new_ones(c, rows * (h + gap) + gap, columns * (w + gap) + gap)
    for i, image in enumerate(images):
        y, x = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        out[:, y : y + h, x : x + w] = image
    return out


def on_white(picture: Image.Image) -> Image.Image:
    """Any mode -> RGB: alpha on white, 16-bit scaled to 8, palette and CMYK converted."""
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        wide = np.asarray(picture, dtype=np.float64)
        scaled = np.clip(wide / 257 if picture.mode != "F" else wide, 0, 255).round().astype(np.uint8)
        return Image.fromarray(scaled).convert("RGB")
    if _has_alpha(picture):
        clear = picture.convert("RGBA")
        ground = Image.new("RGBA", clear.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, clear).convert("RGB")
    return picture.convert("RGB")


def _has_alpha(picture: Image.Image) -> bool:
    return not {"A", "a"}.isdisjoint(picture.getbands()) or "transparency" in picture.info


def _open(file: BinaryIO) -> Image.Image:
    """The picture behind its header, pixels not yet read; kind and size are checked here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        raise ValueError(f"the picture is huge; at most {MAX_PIXELS:,} pixels are read, scale it down") from None
    except _BROKEN:
        raise ValueError("not a picture of a known kind; PNG, JPEG, WebP, GIF and BMP can be read") from None
    width, height = picture.size
    if width < 1 or height < 1:
        raise ValueError(f"the picture is {width} x {height}; it has no pixels")
    if width * height > MAX_PIXELS:
        raise ValueError(f"the picture is {width} x {height}; at most {MAX_PIXELS:,} pixels are read, scale it down")
    return picture


def _add(text: PngImagePlugin.PngInfo, key: str, value: str) -> None:
    """A plain chunk where latin-1 can say it, an international one elsewhere."""
    try:
        value.encode("latin-1")
        text.add_text(key, value)
    except UnicodeEncodeError:
        text.add_itxt(key, value)


def _upright(picture: Image.Image) -> Image.Image:
    """Turned as EXIF says; a damaged EXIF block says nothing."""
    try:
        return ImageOps.exif_transpose(picture)
    except _BROKEN:
        return picture


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _cut(
    picture: Image.Image, size: tuple[int, int], resampling: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """The middle of it with the sides' ratio of `size`, as large as it can be, scaled to that."""
    (width, height), (w, h) = picture.size, size
    if picture.size == size:
        return picture
    wide, high = (width, width * h / w) if width * h <= height * w else (height * w / h, height)
    left, top = (width - wide) / 2, (height - high) / 2
    return picture.resize(size, resampling, box=(left, top, left + wide, top + high))


def _cut_out(picture: Image.Image, size: tuple[int, int], window: Window) -> Image.Image:
    """What is seen through a window, scaled; the picture as it is if that is all of it."""
    left, right = (x * picture.width for x in (window.x0, window.x1))
    top, bottom = (y * picture.height for y in (window.y0, window.y1))
    box = (max(left, 0.0), max(top, 0.0), min(right, picture.width), min(bottom, picture.height))
    if picture.size == size and box == (0, 0, *size):
        return picture
    return picture.resize(size, Image.Resampling.LANCZOS, box=box)


def _line(error: BaseException) -> str:
    """The first line of a message; the kind of error when there is none."""
    return (str(error) or type(error).__name__).splitlines()[0]


def digest(image: Tensor | None) -> str:
    """SHA-256 of the 8-bit pixels of a picture (3, H, W), a mask (H, W) or a map (H, W) uint8, as hex."""
    if image is None:
        return ""
    if image.dtype == torch.uint8:
        return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()
    return hashlib.sha256(to_pil(image if image.ndim > 2 else image.expand(3, -1, -1)).tobytes()).hexdigest()  # noqa: PLR2004
