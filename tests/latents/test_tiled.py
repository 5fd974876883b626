"""Strips of rows give what the whole network gives, with the same work, and leave nothing behind."""

from __future__ import annotations

import errno
import itertools
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import tiny
from fill import inp
from sfumato.cli.main import main
from sfumato.diffusion.noise import seeded
from sfumato.generate import generate
from sfumato.io import model_folder, opening, pictures
from sfumato.io.model_folder import Loaded
from sfumato.latents import feature_map
from sfumato.latents.canvas import Canvas
from sfumato.latents.feature_map import FeatureMap, Moments, Scratch, ScratchFile, scratch_folder
from sfumato.latents.kl import KLFirstStage
from sfumato.latents.maps import maps
from sfumato.latents.pixels import Pixels
from sfumato.latents.tiled import Bounds, scratch_bytes, spared, tiled
from sfumato.latents.tiny import TinyFirstStage
from sfumato.latents.vq import VQFirstStage
from sfumato.nets.autoencoder import AutoencoderSize
from sfumato.nets.seamless import seamless
from sfumato.nets.tiny import TinySize
from sfumato.request import Request

Stage = KLFirstStage | VQFirstStage

SIZES = {
    "published": AutoencoderSize(channels=8, mult=(1, 2, 2), blocks=1, latent_channels=3),
    "groups of many": AutoencoderSize(channels=34, mult=(1, 2), blocks=1, latent_channels=3, z_channels=5),
    "ours": AutoencoderSize(channels=8, mult=(1, 2), blocks=1, latent_channels=3, patch=2, shortcut="linear"),
    "vq": AutoencoderSize(channels=8, mult=(2, 1), blocks=2, latent_channels=3, attention=(1, 2), codebook=20),
    "no attention": AutoencoderSize(channels=4, mult=(1, 1), blocks=1, latent_channels=2, middle_attention=False),
}
BOUNDS = {
    "as it comes": Bounds(),
    "one row": Bounds(strip=1),
    "some rows": Bounds(strip=40_000),
    "one row, in files": Bounds(strip=1, map=0),
    "some rows, large ones in files": Bounds(strip=15_000, map=20_000),
}
ROUNDING = 1e-4  # of a standard deviation, in float32 through all layers
EXACT = 1e-11  # the same in float64


def stage(size: AutoencoderSize, dtype: torch.dtype = torch.float64, *, torus: bool = False) -> Stage:
    """With no silent layer, and latents that are moved and scaled."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = VQFirstStage(size) if size.codebook else KLFirstStage(size)
    tiny.awake(made.net)
    if isinstance(made, KLFirstStage):
        made.mean.copy_(0.3 * inp("mean", 1, size.latent_channels, 1, 1))
        made.std.fill_(1.7)
    made = made.to(dtype).eval().requires_grad_(False)
    return seamless(made) if torus else made


def latent(of: Stage, height: int, width: int, n: int = 1) -> Tensor:
    return inp("latent", n, of.channels, height, width).to(of.dtype)


def image(of: Stage, height: int, width: int, n: int = 1) -> Tensor:
    return (0.5 * inp("image", n, 3, height * of.factor, width * of.factor)).clamp(-1, 1).to(of.dtype)


def agree(a: Tensor, b: Tensor, part: float) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=part * float(b.std()))


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The scratch files that were made."""
    made, real = [], tempfile.TemporaryFile

    def recorded(**how: Any) -> Any:
        made.append(real(**how))
        return made[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", recorded)
    return made


# The same result ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("torus", [False, True], ids=["plane", "torus"])
@pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_strips_give_what_the_whole_network_gives(size: AutoencoderSize, bounds: Bounds, torus: bool) -> None:
    whole = stage(size, torus=torus)
    strips = tiled(whole, bounds)
    z, x = latent(whole, 5, 3, 2), image(whole, 3, 5, 2)
    agree(strips.decode(z), whole.decode(z), EXACT)
    agree(strips.encode(x), whole.encode(x), EXACT)
    agree(strips.encode(x, seeded([1, 2])), whole.encode(x, seeded([1, 2])), EXACT)


@pytest.mark.parametrize("bounds", [BOUNDS["one row"], BOUNDS["some rows"]], ids=["one row", "some rows"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_in_single_precision_they_differ_by_rounding(size: AutoencoderSize, bounds: Bounds) -> None:
    whole = stage(size, torch.float32)
    z, x = latent(whole, 4, 6), image(whole, 6, 4)
    agree(tiled(whole, bounds).decode(z), whole.decode(z), ROUNDING)
    agree(tiled(whole, bounds).encode(x), whole.encode(x), ROUNDING)


@settings(max_examples=15, deadline=None)
@given(
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    strip=st.integers(1, 60_000),
    limit=st.sampled_from([0, 3_000, None]),
    torus=st.booleans(),
    kind=st.sampled_from(["published", "ours", "vq"]),
)
def test_so_they_do_for_every_shape_and_strip(
    height: int, width: int, strip: int, limit: int | None, torus: bool, kind: str
) -> None:
    assume(height * width > 1)  # torch refuses to normalise a single number
    whole = stage(SIZES[kind], torus=torus)
    strips = tiled(whole, Bounds(strip=strip, map=limit))
    z, x = latent(whole, height, width), image(whole, height, width)
    known = whole.decode(z), whole.encode(x)
    for a, b in zip((strips.decode(z), strips.encode(x)), known, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_in_half_precision_they_are_as_near_the_truth_as_the_whole_network() -> None:
    """Each rounds where the other does, though not always to the same side."""
    truth = stage(SIZES["groups of many"])
    for dtype in (torch.bfloat16, torch.float16):
        whole = stage(SIZES["groups of many"], dtype)
        for name in ("decode", "encode"):
            x = (latent if name == "decode" else image)(whole, 12, 10)
            exact = getattr(truth.to(dtype).double(), name)(x.double())
            off = [
                (getattr(how, name)(x).double() - exact).square().mean().sqrt()
                for how in (tiled(whole, Bounds(strip=30_000)), whole)
            ]
            assert off[0] < 1.1 * off[1]


def test_autocast_and_gradients_do_nothing() -> None:
    whole = stage(SIZES["published"], torch.float32)
    strips, z = tiled(whole), latent(whole, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        cast = strips.decode(z.requires_grad_())
    assert cast.dtype == torch.float32
    assert not cast.requires_grad
    assert torch.equal(cast, strips.decode(z))


def test_files_and_memory_give_the_same_bits() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        whole = stage(SIZES["published"], dtype)
        z, x = latent(whole, 5, 3), image(whole, 5, 3)
        kept, filed = (tiled(whole, Bounds(strip=9_000, map=limit)) for limit in (2**30, 0))
        assert torch.equal(kept.decode(z), filed.decode(z))
        assert torch.equal(kept.encode(x), filed.encode(x))


def test_a_side_that_does_not_divide_is_refused_as_before() -> None:
    with pytest.raises(ValueError, match="a picture of 10x7 does not divide by 4"):
        tiled(stage(SIZES["published"])).encode(torch.zeros(1, 3, 7, 10))


# The same work, in less memory ----------------------------------------------------------------------------


def attended(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    """The products of an attention, which torch does not count on a CPU."""
    return sdpa_flop_count(q, k, v)


ATTENDED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attended}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_nothing_is_computed_twice(size: AutoencoderSize) -> None:
    whole = stage(size, torch.float32)
    strips = tiled(whole, BOUNDS["one row"])
    for name, x in (("decode", latent(whole, 4, 6)), ("encode", image(whole, 4, 6))):
        counts = []
        for how in (whole, strips):
            with FlopCounterMode(display=False, custom_mapping=ATTENDED) as counter:
                getattr(how, name)(x)
            counts.append(counter.get_total_flops())
        assert counts[0] == counts[1] > 0


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that any operation gives."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return out


def test_no_tensor_is_larger_than_the_picture_or_a_strip() -> None:
    whole = stage(AutoencoderSize(channels=16, mult=(1, 2), blocks=1, latent_channels=3, middle_attention=False))
    z, x = latent(whole, 32, 8), image(whole, 32, 8)
    picture, strip = x.numel() * x.element_size(), 15_000
    for name, given_ in (("decode", z), ("encode", x)):
        found = []
        for how in (whole, tiled(whole, Bounds(strip=strip, map=0))):
            with Largest() as largest:
                getattr(how, name)(given_)
            found.append(largest.bytes)
        assert found[0] > 5 * picture
        assert found[1] <= max(picture, strip)


# Statistics -----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(1, 4), st.floats(-1e4, 1e4))
def test_moments_of_strips_are_those_of_the_whole(heights: list[int], width: int, offset: float) -> None:
    x = (offset + inp("x", sum(heights), 6, width)).float()
    moments = Moments(6)
    for rows in x.split(heights):
        moments.add(rows)
    assert moments.count == sum(heights) * width
    whole = x.double()
    torch.testing.assert_close(moments.mean, whole.mean((0, 2)), rtol=0, atol=1e-11)
    squares = (whole - whole.mean((0, 2))[:, None]).square().sum((0, 2))
    torch.testing.assert_close(moments.m2, squares, rtol=1e-9, atol=1e-11)
    grouped = whole.transpose(0, 1).reshape(3, -1)
    mean, variance = moments.grouped(3)
    torch.testing.assert_close(mean, grouped.mean(1), rtol=0, atol=1e-11)
    torch.testing.assert_close(variance, grouped.var(1, correction=0), rtol=1e-9, atol=1e-11)


def test_much_is_added_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x = inp("x", 7, 4, 3)
    once, parts = Moments(4), Moments(4)
    once.add(x)
    monkeypatch.setattr(feature_map, "TOGETHER", 25)
    parts.add(x)
    assert once.count == parts.count == 21
    torch.testing.assert_close(parts.m2, once.m2, rtol=1e-14, atol=0)


# Rows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 2**20])
@pytest.mark.parametrize("wrap", [False, True])
def test_a_window_has_the_rows_about_it_though_they_are_written_over(wrap: bool, limit: int, tmp_path: Path) -> None:
    for height, rows, before, after in itertools.product((1, 2, 5), (1, 2, 3, 9), (0, 1), (0, 1)):
        x = inp("x", height, 2, 3)
        with Scratch(limit, 0, tmp_path) as scratch:
            held = scratch.new(height, 2, 3, x.dtype)
            held.write(0, x)
            held.rewritten()
            for first, last, window, there in held.windows(rows, before=before, after=after, wrap=wrap):
                at = [r % height if wrap else r for r in range(first - before, last + after)]
                inside = [0 <= r < height for r in at]
                assert [k in range(*there.indices(len(at))) for k in range(len(at))] == inside
                assert torch.equal(window[there], x[[r for r in at if 0 <= r < height]])
                held.write(first, 10 + x[first:last])
            assert torch.equal(held.read(0, height), 10 + x)
            torch.testing.assert_close(held.moments.mean, (10 + x).double().mean((0, 2)))


def test_a_map_gives_back_the_picture() -> None:
    x = inp("x", 1, 2, 3, 4)
    assert torch.equal(FeatureMap.of(x).whole(), x)


# Scratch --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 1_500, 4_000])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_what_is_needed_is_what_is_taken(size: AutoencoderSize, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, leave = [], Scratch.__exit__
    monkeypatch.setattr(Scratch, "__exit__", lambda self, *error: (seen.append(self), leave(self, *error))[1])
    whole = stage(size, torch.float32)
    strips, folded = tiled(whole, Bounds(map=limit)), whole.factor // size.patch
    strips.decode(latent(whole, 4, 3))
    strips.encode(image(whole, 4, 3))
    at = {whole.net.decoder: (4, 3), whole.net.encoder: (4 * folded, 3 * folded)}
    for scratch, (net, (height, width)) in zip(seen, at.items(), strict=True):
        assert scratch.peak == scratch.needed == scratch_bytes(net, height, width, limit=limit)
        assert not scratch.maps
    assert seen[0].peak > 0 or limit > 0


def test_stable_diffusion_needs_what_is_said() -> None:
    with torch.device("meta"):
        net = KLFirstStage(AutoencoderSize()).net
    pixels = 2048**2
    assert scratch_bytes(net.decoder, 256, 256, limit=2**26) == 1536 * pixels == 6 * 2**30
    assert scratch_bytes(net.encoder, 2048, 2048, limit=2**26) == 1024 * pixels


def test_nothing_is_left(files: list[Any], tmp_path: Path) -> None:
    whole = stage(SIZES["published"])
    tiled(whole, Bounds(map=0, folder=tmp_path)).decode(latent(whole, 4, 4))
    assert len(files) > 10
    assert all(file.closed for file in files)
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_after_a_failure(files: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = stage(SIZES["published"])
    strips, real, calls = tiled(whole, Bounds(map=0, folder=tmp_path)), F.conv2d, itertools.count()

    def failing(*args: Any) -> Tensor:
        if next(calls) == 9:
            raise RuntimeError("a cosmic ray")
        return real(*args)

    monkeypatch.setattr(F, "conv2d", failing)
    with pytest.raises(RuntimeError, match="a cosmic ray"):
        strips.decode(latent(whole, 4, 4))
    assert len(files) > 2
    assert all(file.closed for file in files)
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_said_before_anything_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = stage(SIZES["published"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    monkeypatch.setattr(F, "conv2d", lambda *_: pytest.fail("it has begun"))
    needed = scratch_bytes(whole.net.decoder, 400, 4, limit=0) / 2**30
    with pytest.raises(OSError, match=f"no room in {tmp_path}: this picture needs {needed:.2f} GiB of scra") as caught:
        tiled(whole, Bounds(map=0, folder=tmp_path)).decode(latent(whole, 400, 4))
    assert caught.value.errno == errno.ENOSPC
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk that is always full")
def test_a_disk_that_fills_meanwhile_is_said_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = stage(SIZES["published"])
    with Path("/dev/full").open("r+b", buffering=0) as full:
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: full)
        with pytest.raises(
            OSError, match=r"there is no room in .*: this picture needs 0\.00 GiB of scratch there; free"
        ):
            tiled(whole, Bounds(map=0, folder=tmp_path)).decode(latent(whole, 4, 4))
        assert full.closed


def test_other_errors_of_a_disk_are_not_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "read").write_bytes(b"1234")
    with (tmp_path / "read").open("rb", buffering=0) as only_read:
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: only_read)
        file = ScratchFile(tmp_path, lambda: OSError("full"))
        with pytest.raises(OSError, match="not open for writing"):
            file.write(0, torch.zeros(1))
        with pytest.raises(OSError, match="ended too early"):
            file.read(0, torch.zeros(2))


def test_scratch_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert scratch_folder() in (Path("/var/tmp"), Path(tempfile.gettempdir()))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert scratch_folder() == tmp_path


# The wrapper ----------------------------------------------------------------------------------------------


def test_weights_are_shared_and_the_given_stage_stays_as_it_was() -> None:
    whole = stage(SIZES["ours"])
    z = latent(whole, 2, 2)
    before = whole.decode(z)
    strips = tiled(whole)
    assert type(strips) is type(whole)
    assert (strips.factor, strips.channels, strips.dtype) == (whole.factor, whole.channels, whole.dtype)
    mine = {p.data_ptr() for p in (*whole.parameters(), *whole.buffers())}
    assert {p.data_ptr() for p in (*strips.parameters(), *strips.buffers())} == mine
    assert torch.equal(whole.decode(z), before)
    again = tiled(strips)
    assert torch.equal(again.decode(z), strips.decode(z))
    assert len(list(again.modules())) == len(list(strips.modules()))  # not wrapped twice


def test_without_networks_there_is_nothing_to_do() -> None:
    pixels = Pixels()
    assert tiled(pixels) is pixels


def lent(size: AutoencoderSize) -> tuple[TinyFirstStage, Stage]:
    """A tiny decoder, and the large first stage that encodes for it."""
    large = stage(size, torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        small = TinyFirstStage(TinySize(width=4, blocks=1, latent_channels=3, levels=2, encoder=False), large)
    return small.eval().requires_grad_(False), large


@pytest.mark.parametrize("size", ["published", "vq", "ours"])
def test_an_encoder_that_is_lent_to_a_tiny_decoder_runs_by_strips(size: str, files: list[Any]) -> None:
    whole, large = lent(replace(SIZES[size], mult=(1, 2) if SIZES[size].patch == 2 else (1, 2, 2)))
    x, z = image(large, 3, 4), latent(large, 3, 4)
    strips = tiled(whole, Bounds(strip=1, map=0))
    assert type(strips) is TinyFirstStage
    agree(strips.encode(x, seeded([3])), whole.encode(x, seeded([3])), ROUNDING)
    assert files
    assert torch.equal(strips.decode(z), whole.decode(z))
    assert whole.encoder is large
    mine = {p.data_ptr() for p in (*whole.parameters(), *whole.buffers())}
    assert {p.data_ptr() for p in (*strips.parameters(), *strips.buffers())} == mine
    files.clear()
    whole.encode(x)
    assert not files  # the given one is as it was


def test_a_tiny_one_without_a_large_one_is_as_it_is() -> None:
    for encoder in (True, False):
        alone = TinyFirstStage(TinySize(width=4, blocks=1, encoder=encoder))
        assert tiled(alone) is alone


NO_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    RuntimeError("could not create a primitive"),
]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A decoder or an encoder that fails at its first call."""

    def once(net: nn.Module, error: BaseException) -> None:
        left, real = [error], net.forward

        def forward(x: Tensor) -> Tensor:
            if left:
                raise left.pop()
            return real(x)

        monkeypatch.setattr(net, "forward", forward)

    return once


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
def test_without_memory_it_is_tried_once_more_by_strips(failing: Any, error: BaseException, files: list[Any]) -> None:
    whole = stage(SIZES["published"])
    z, made = latent(whole, 4, 4), []
    known = whole.decode(z)
    failing(whole.net.decoder, error)

    def decode(how: Any) -> Tensor:
        made.append(how)
        return how.decode(z)

    agree(spared(whole, decode), known, EXACT)
    assert made[0] is whole
    assert len(made) == 2
    agree(spared(whole, decode), known, EXACT)
    assert made[2:] == [whole]


def test_a_lent_encoder_is_tried_once_more_by_strips(failing: Any) -> None:
    whole, large = lent(SIZES["published"])
    x = image(large, 3, 4)
    known = whole.encode(x)
    failing(large.net.encoder, NO_MEMORY[2])
    agree(spared(whole, lambda how: how.encode(x)), known, ROUNDING)


def test_other_failures_and_other_stages_are_not_tried_again(failing: Any) -> None:
    whole, calls = stage(SIZES["published"]), itertools.count()
    failing(whole.net.decoder, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        spared(whole, lambda how: how.decode(latent(whole, 2, 2)))

    def never(_: Any) -> Tensor:
        next(calls)
        raise MemoryError

    with pytest.raises(MemoryError):
        spared(Pixels(), never)
    assert next(calls) == 1
    with pytest.raises(MemoryError):
        spared(whole, never)
    assert next(calls) == 4


def test_a_map_of_a_picture_is_not_normalised_by_strips_either() -> None:
    whole = stage(SIZES["published"], torch.float32)
    canvas = Canvas(image(whole, 3, 3)[0])
    agree(maps("picture", tiled(whole), canvas), maps("picture", whole, canvas), ROUNDING)


# Pictures -------------------------------------------------------------------------------------------------

RED = Request(prompt="a red apple, 3d", seed=7, steps=3)
INIT = (0.5 * inp("init", 3, 24, 16)).clamp(-1, 1)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return opening.load(tiny.folder(tmp_path_factory.mktemp("tiled") / "model"))


@pytest.mark.parametrize("change", [{}, {"tiling": True}, {"n": 2}], ids=["plane", "torus", "two"])
@pytest.mark.parametrize("init", [None, INIT], ids=["from noise", "from a picture"])
def test_a_request_gives_the_same_picture(loaded: Loaded, change: dict[str, Any], init: Tensor | None) -> None:
    request = RED.model_copy(update=change)
    plain, strips = (generate(loaded, request, init=init, tiled=how) for how in (False, True))
    torch.testing.assert_close(strips.images, plain.images, rtol=0, atol=1e-4)
    assert strips.requests == plain.requests


def test_a_picture_is_made_where_memory_was_short(loaded: Loaded, failing: Any) -> None:
    known = generate(loaded, RED, init=INIT)
    failing(loaded.model.autoencoder.encoder, NO_MEMORY[2])
    failing(loaded.model.autoencoder.decoder, NO_MEMORY[0])
    found = generate(loaded, RED, init=INIT)
    torch.testing.assert_close(found.images, known.images, rtol=0, atol=1e-4)


def test_what_a_network_is_shown_is_made_where_memory_was_short(loaded: Loaded, failing: Any) -> None:
    """A network that is shown a picture: here it makes nothing of it, so it need not have been trained so."""
    config = loaded.file.config
    shown = config.model_copy(update={"maps": "picture", "unet": replace(config.unet, map_channels=4)})
    assert shown.first_stage is not None
    model = tiny.model(config=shown)
    other = replace(loaded, model=model, file=loaded.file.model_copy(update={"config": shown}))
    known = generate(other, RED, init=INIT)
    failing(model.autoencoder.encoder, NO_MEMORY[2])
    torch.testing.assert_close(generate(other, RED, init=INIT).images, known.images, rtol=0, atol=1e-4)


def test_it_can_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.folder(tmp_path / "models" / "emoji")
    monkeypatch.setattr(model_folder, "BUNDLED", tmp_path / "models")
    runs, real = [], Scratch.__enter__
    monkeypatch.setattr(Scratch, "__enter__", lambda self: (runs.append(self), real(self))[1])
    for out, flags in (("plain", []), ("strips", ["--tiled"])):
        assert main(["generate", "a pear", "--seed", "7", "--out", str(tmp_path / out), *flags]) == 0
        assert len(runs) == len(flags)
    plain, strips = (pictures.read(tmp_path / out / "a-pear-7.png") for out in ("plain", "strips"))
    assert (plain - strips).abs().max() <= 1.01 / 127.5  # a rounding may go to the other side
