"""Decoding gives right pixels for every kind of picture, and one human line for anything else."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from folders import encoded
from sfumato.io import pictures
from sfumato.io.pictures import decode, header, to_pil


def noise(mode: str = "RGB", width: int = 12, height: int = 9) -> Image.Image:
    shape = (height, width, len(mode)) if len(mode) > 1 else (height, width)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), mode=None)


def test_png_round_trip_is_exact() -> None:
    pixels = torch.arange(256).repeat(3).reshape(3, 16, 16)
    image = pixels / 127.5 - 1
    assert torch.equal(decode(encoded(to_pil(image))), image)


def test_to_pil_rounds_and_clamps() -> None:
    image = torch.tensor([-3.0, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1, 2.0]).expand(3, 1, 4)
    assert np.asarray(to_pil(image))[0, :, 0].tolist() == [0, 0, 1, 255]


def test_to_pil_wants_three_channels() -> None:
    with pytest.raises(ValueError, match="shape"):
        to_pil(torch.zeros(1, 4, 4))


def test_alpha_is_composited_on_white() -> None:
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert torch.equal(decode(encoded(clear)), torch.ones(3, 2, 2))
    assert torch.equal(decode(encoded(clear, "WEBP", lossless=True)), torch.ones(3, 2, 2))
    palette = Image.new("P", (2, 2), 0)
    assert torch.equal(decode(encoded(palette, "GIF", transparency=0)), torch.ones(3, 2, 2))


def test_sixteen_bits_are_scaled() -> None:
    wide = Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16))
    assert (((decode(encoded(wide)) + 1) * 127.5).round()[0, 0]).tolist() == [0, 100, 255]


def levels(image: torch.Tensor) -> np.ndarray:
    """(H, W, 3), 8 bits."""
    return ((image + 1) * 127.5).round().permute(1, 2, 0).numpy().astype(int)


def test_half_clear_pixels_are_mixed_with_white_to_the_level() -> None:
    """c a + 255 (1 - a), for every colour and alpha, to the nearest of 255 levels."""
    colour, alpha = np.meshgrid(np.arange(256), np.arange(256))
    rgba = np.stack([colour, colour, colour, alpha], axis=2).astype(np.uint8)
    exact = colour * (alpha / 255) + 255 * (1 - alpha / 255)
    data = encoded(Image.fromarray(rgba))
    assert np.abs(levels(decode(data))[..., 0] - exact).max() <= 0.5 + 1e-9
    assert header(io.BytesIO(data)).alpha


def test_sixteen_bits_of_colour_keep_their_upper_byte() -> None:
    rows = np.array([[[0, 257 * 100, 65535], [255, 256, 0x64FF]]], dtype=">u2")
    ihdr = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", zlib.compress(b"\0" + rows.tobytes()))
    data += chunk(b"IEND", b"")
    assert levels(decode(data)).tolist() == [[[0, 100, 255], [0, 1, 100]]]
    assert header(io.BytesIO(data)).deep
    assert header(io.BytesIO(encoded(Image.fromarray(np.zeros((2, 2), np.uint16))))).deep


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize(
    ("ink", "colour"),
    [
        ((0, 0, 0, 0), (255, 255, 255)),
        ((0, 255, 255, 0), (255, 0, 0)),
        ((255, 0, 255, 0), (0, 255, 0)),
        ((255, 255, 0, 0), (0, 0, 255)),
        ((0, 0, 0, 255), (0, 0, 0)),
        ((0, 0, 0, 100), (155, 155, 155)),
        ((51, 102, 204, 0), (204, 153, 51)),
        ((51, 102, 204, 85), (136, 102, 34)),
    ],
)
def test_ink_becomes_light(ink: tuple[int, int, int, int], colour: tuple[int, int, int]) -> None:
    """(1 - c)(1 - k) of cyan, magenta, yellow and black."""
    data = encoded(Image.new("CMYK", (8, 8), ink), "JPEG", quality=100)
    assert np.array_equal(levels(decode(data)), np.broadcast_to(colour, (8, 8, 3)))
    assert header(io.BytesIO(data)) == (8, 8, False, False, False, True)


@pytest.mark.parametrize(("mode", "kind"), [("CMYK", "JPEG"), ("L", "PNG"), ("1", "PNG"), ("P", "GIF"), ("LA", "PNG")])
def test_every_mode_becomes_rgb(mode: str, kind: str) -> None:
    image = decode(encoded(noise().convert(mode), kind))
    assert image.shape == (3, 9, 12)
    assert image.dtype == torch.float32
    assert -1 <= image.min() <= image.max() <= 1


# What EXIF's orientations say of rows and columns, TIFF 6.0, "Orientation".
TURNS = {
    1: lambda x: x,
    2: lambda x: x.flip(2),
    3: lambda x: x.flip(1, 2),
    4: lambda x: x.flip(1),
    5: lambda x: x.transpose(1, 2),
    6: lambda x: x.rot90(-1, (1, 2)),
    7: lambda x: x.transpose(1, 2).flip(1, 2),
    8: lambda x: x.rot90(1, (1, 2)),
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", TURNS)
def test_exif_turns_the_picture(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"PNG": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}[kind]
    straight = decode(encoded(noise(), kind, **options))
    data = encoded(noise(), kind, exif=exif, **options)
    assert torch.equal(decode(data), TURNS[orientation](straight))
    head = header(io.BytesIO(data))
    assert (head.height, head.width) == decode(data).shape[1:]
    assert head.turned == (orientation != 1)


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_an_orientation_that_is_none_turns_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noise(), exif=exif)
    assert torch.equal(decode(data), decode(encoded(noise())))
    assert header(io.BytesIO(data)) == (12, 9, False, False, False, False)


def test_a_damaged_exif_block_is_no_reason_to_refuse() -> None:
    assert decode(encoded(noise(), "JPEG", exif=b"Exif\x00\x00garbage")).shape == (3, 9, 12)


def test_size_keeps_the_middle_square() -> None:
    wide = Image.new("RGB", (90, 30), "red")
    wide.paste(Image.new("RGB", (30, 30), "blue"), (30, 0))
    image = decode(encoded(wide), size=10)
    assert image.shape == (3, 10, 10)
    assert torch.equal(image[:, 5, 5], torch.tensor([-1.0, -1.0, 1.0]))
    assert image[0, :, 2:8].max() < -0.9  # no red but at the rim


def test_pictures_too_large_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", 100)
    with pytest.raises(ValueError, match="12 x 9; at most 100 pixels"):
        decode(encoded(noise()))


@pytest.mark.parametrize(
    ("side", "said"), [(60_000, "the picture is huge"), (5_001, "is 5001 x 5001; at most 25,000,000")]
)
def test_a_bomb_is_refused_from_its_header(side: int, said: str) -> None:
    """A sound file of a few bytes, with nothing in it yet: what is said cannot come from its pixels."""
    data = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"")
    )
    for read in (lambda: decode(data), lambda: header(io.BytesIO(data))):
        with pytest.raises(ValueError, match=said):
            read()


@pytest.mark.parametrize("data", [b"", b"hello", encoded(noise(), "TIFF"), encoded(noise(), "PPM")])
def test_other_kinds_are_named_as_unreadable(data: bytes) -> None:
    with pytest.raises(ValueError, match="PNG, JPEG, WebP, GIF and BMP"):
        decode(data)


def test_a_wrong_size_is_said() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        decode(encoded(noise()), size=0)


ALLOCATOR = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("on_white", MemoryError()),
        ("_upright", MemoryError()),
        ("from_pil", MemoryError()),
        ("from_pil", RuntimeError(ALLOCATOR)),
    ],
    ids=["as it is read", "as it is turned", "numpy's", "torch's"],
)
def test_no_memory_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception) -> None:
    def fail(_: object) -> None:
        raise error

    (tmp_path / "x.png").write_bytes(encoded(noise()))
    monkeypatch.setattr(pictures, where, fail)
    with pytest.raises(MemoryError, match=r"^there is not enough memory for a picture of 12 x 9$"):
        decode(encoded(noise()), size=4)
    with pytest.raises(MemoryError, match=r"/x\.png: there is not enough memory for a picture of 12 x 9$"):
        pictures.read(tmp_path / "x.png")


def test_nor_is_it_before_the_size_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    (tmp_path / "x.png").write_bytes(encoded(noise()))
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(MemoryError, match=r"/x\.png: there is not enough memory to read it$"):
        pictures.read(tmp_path / "x.png")


SAMPLES = [
    encoded(noise()),
    encoded(noise("RGBA")),
    encoded(noise(), "JPEG"),
    encoded(noise(), "WEBP"),
    encoded(noise().convert("P"), "GIF"),
    encoded(noise(), "BMP"),
]


@pytest.mark.parametrize("data", SAMPLES)
def test_a_header_says_what_decoding_finds(data: bytes) -> None:
    head = header(io.BytesIO(data))
    assert (head.height, head.width) == decode(data).shape[1:]
    assert (head.turned, head.alpha, head.deep, head.cmyk) == (False, data == SAMPLES[1], False, False)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutated_bytes_raise_nothing_but_a_line(draw: st.DataObject) -> None:
    data = bytearray(draw.draw(st.sampled_from(SAMPLES)))
    for _ in range(draw.draw(st.integers(0, 4))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    data = data[: draw.draw(st.integers(0, len(data)))] if draw.draw(st.booleans()) else data
    try:
        image = decode(bytes(data), size=8)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert image.shape == (3, 8, 8)
        assert bool(image.isfinite().all())
        head = header(io.BytesIO(bytes(data)))
        assert head.width > 0 < head.height
