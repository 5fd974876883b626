"""A picture carries what made it, in its own chunk and in the line that other tools read."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from sfumato.io import infotext, pictures
from sfumato.request import Request

IMAGE = torch.arange(3 * 4 * 5).reshape(3, 4, 5) * 4 / 127.5 - 1  # whole levels
PROMPTS = [
    "",
    'a "red" apple, \\n 3d',
    "ein Stück Käse",
    "猫 🍎 \N{COMBINING ACUTE ACCENT}",
    "two\nlines\r\n\ttab",
    "\0\x7f",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_parameters_and_pixels_come_back(tmp_path: Path, prompt: str) -> None:
    path, request = tmp_path / "x.png", Request(prompt=prompt, negative=prompt[::-1], seed=2**64 - 1, size=(5, 4))
    given = {"request": request.model_dump(mode="json"), "model": {"name": "tiny"}}
    pictures.save_png(IMAGE, path, given, infotext.write(request, "tiny"))
    found = pictures.parameters_of(path)
    assert found == given
    assert Request.model_validate(found["request"]) == request
    assert torch.equal(pictures.decode(path.read_bytes()), IMAGE)
    with Image.open(path) as picture:
        picture.load()
        assert picture.info["parameters"].split("\n")[-1].startswith("Seed: 18446744073709551615, Size: 5x4")
        assert picture.info["parameters"].startswith(prompt)
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]


@given(st.dictionaries(st.text(), JSON, min_size=1))
def test_any_parameters_come_back(tmp_path_factory: pytest.TempPathFactory, parameters: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.png"
    pictures.save_png(IMAGE, path, parameters)
    assert pictures.parameters_of(path) == parameters


def test_a_picture_without_parameters_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    for save in (
        lambda: pictures.save_png(IMAGE, path, {}),
        lambda: pictures.to_pil(IMAGE).save(path, "JPEG"),
        lambda: path.write_bytes(b""),
    ):
        save()
        with pytest.raises(
            ValueError, match=r"x\.png holds no sfumato parameters; only pictures that sfumato wrote do$"
        ):
            pictures.parameters_of(path)
    with pytest.raises(ValueError, match=r"y\.png cannot be opened \(No such file or directory\)$"):
        pictures.parameters_of(tmp_path / "y.png")


def whole() -> bytes:
    buffer = io.BytesIO()
    text = PngImagePlugin.PngInfo()
    text.add_itxt("sfumato", '{"request": {"prompt": "ä 猫"}, "n": [1, 2]}')
    pictures.to_pil(IMAGE).save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


WHOLE = whole()


def read(path: Path) -> None:
    """Both readers give what they promise, or a line."""
    for look, kind in ((pictures.parameters_of, dict), (lambda p: pictures.decode(p.read_bytes()), torch.Tensor)):
        try:
            assert isinstance(look(path), kind)
        except ValueError as error:
            assert "\n" not in str(error)  # noqa: PT017


@settings(max_examples=150)
@given(st.data())
def test_any_bytes_are_parameters_or_a_line(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path, content = tmp_path_factory.getbasetemp() / "broken.png", bytearray(WHOLE)
    if data.draw(st.booleans()):
        content = bytearray(data.draw(st.sampled_from([b"", WHOLE[:8], WHOLE[:33]])) + data.draw(st.binary()))
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    read(path)


@given(st.text(st.characters(codec="latin-1", exclude_characters="\0")) | JSON.map(json.dumps) | st.just("[" * 100_000))
def test_any_text_in_the_chunk_is_parameters_or_a_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path, info = tmp_path_factory.getbasetemp() / "text.png", PngImagePlugin.PngInfo()
    info.add_text("sfumato", text)
    pictures.to_pil(IMAGE).save(path, "PNG", pnginfo=info)
    read(path)


def test_the_line_for_other_tools() -> None:
    request = Request(
        prompt="a red apple, 3d",
        negative="blur",
        sampler="dpmpp_2m",
        spacing="trailing",
        steps=20,
        guidance=3.5,
        seed=7,
        size=(64, 48),
    )
    assert infotext.write(request, "emoji") == (
        "a red apple, 3d\n"
        "Negative prompt: blur\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: trailing, CFG scale: 3.5, Seed: 7, Size: 64x48, "
        "Model: emoji, Version: sfumato"
    )
    varied = request.model_copy(
        update={"sampler": "dpmpp_2m_sde", "spacing": "align_your_steps", "strength": 0.75, "eta": 0.5, "tiling": True}
        | {"variation_seed": 9, "variation_strength": 0.1}
    )
    assert infotext.write(varied, "emoji").splitlines()[2] == (
        "Steps: 20, Sampler: DPM++ 2M SDE, Schedule type: Align Your Steps, CFG scale: 3.5, Seed: 7, Size: 64x48, "
        "Model: emoji, Denoising strength: 0.75, Eta: 0.5, Variation seed: 9, Variation seed strength: 0.1, "
        "Tiling: True, Version: sfumato"
    )
    assert "Sampler: dpmpp_3m," in infotext.write(request.model_copy(update={"sampler": "dpmpp_3m"}), "emoji")
    bare = infotext.write(Request(prompt="x", sampler="ddim", size=(8, 8)), 'my, "own": one')
    assert bare == 'x\nSampler: DDIM, Seed: 0, Size: 8x8, Model: "my, \\"own\\": one", Version: sfumato'


def test_a_sheet_has_its_pictures_in_rows() -> None:
    images = torch.stack([torch.full((3, 2, 3), v) for v in (-1.0, -0.5, 0.0)])
    sheet = pictures.sheet(images, columns=2, gap=1)
    expected = np.ones((7, 9))
    expected[1:3, 1:4], expected[1:3, 5:8], expected[4:6, 1:4] = -1, -0.5, 0
    assert sheet.shape == (3, 7, 9)
    np.testing.assert_array_equal(sheet[1].numpy(), expected)


def test_the_digest_is_of_the_pixels_as_they_are_saved() -> None:
    assert pictures.digest(IMAGE) == pictures.digest(IMAGE + 0.3 / 127.5)
    assert pictures.digest(IMAGE) != pictures.digest(IMAGE + 0.7 / 127.5)
    assert pictures.digest(None) == ""
