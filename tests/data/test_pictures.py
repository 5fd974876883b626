"""Decoding gives right pixels for every kind of picture, and one human line for anything else."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sfumato.io import pictures
from sfumato.io.pictures import decode, to_pil


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


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


@pytest.mark.parametrize(("mode", "kind"), [("CMYK", "JPEG"), ("L", "PNG"), ("1", "PNG"), ("P", "GIF"), ("LA", "PNG")])
def test_every_mode_becomes_rgb(mode: str, kind: str) -> None:
    image = decode(encoded(noise().convert(mode), kind))
    assert image.shape == (3, 9, 12)
    assert image.dtype == torch.float32
    assert -1 <= image.min() <= image.max() <= 1


def test_exif_turns_the_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    data = encoded(noise(), "JPEG", exif=exif)
    assert decode(data).shape == (3, 12, 9)


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


def test_a_bomb_is_refused_from_its_header() -> None:
    data = bytearray(encoded(noise()))
    data[16:24] = (60_000).to_bytes(4) + (60_000).to_bytes(4)
    with pytest.raises(ValueError, match="picture"):
        decode(bytes(data))


@pytest.mark.parametrize("data", [b"", b"hello", encoded(noise(), "TIFF"), encoded(noise(), "PPM")])
def test_other_kinds_are_named_as_unreadable(data: bytes) -> None:
    with pytest.raises(ValueError, match="PNG, JPEG, WebP, GIF and BMP"):
        decode(data)


def test_a_wrong_size_is_said() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        decode(encoded(noise()), size=0)


SAMPLES = [
    encoded(noise()),
    encoded(noise("RGBA")),
    encoded(noise(), "JPEG"),
    encoded(noise(), "WEBP"),
    encoded(noise().convert("P"), "GIF"),
    encoded(noise(), "BMP"),
]


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
