"""TAESD's files, by all their names, are the same tiny first stage, and stand in for a model's own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tiny
from files import single
from fill import inp, parameter
from sfumato.cli.main import main
from sfumato.generate import Model
from sfumato.io import first_stages, opening, pictures, shapes, tensors
from sfumato.io.layouts import ldm
from sfumato.io.layouts.rules import Layout
from sfumato.io.stored import open_stored
from sfumato.latents.autoencoding import psnr
from sfumato.latents.canvas import Canvas
from sfumato.latents.kl import KLFirstStage
from sfumato.latents.maps import maps
from sfumato.latents.tiny import TinyFirstStage
from sfumato.models.latent_diffusion import LatentDiffusion
from sfumato.nets.autoencoder import AutoencoderSize
from sfumato.nets.tiny import TinySize

SIZE = TinySize(width=8, blocks=2, levels=1)  # for the first stage of `files`, f2 with four channels
CONVOLUTION = {"kernel_size": 3, "padding": 1}


class Block(nn.Module):
    """A block as TAESD's program has it, by the names that it gives its tensors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        convs = [nn.Conv2d(width, width, **CONVOLUTION) for _ in range(3)]
        self.conv = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])


def originals(size: TinySize) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The files of an encoder and of a decoder as TAESD's program writes them."""
    width = size.width
    encoder: list[nn.Module] = [nn.Conv2d(3, width, **CONVOLUTION), Block(width)]
    decoder: list[nn.Module] = [nn.Identity(), nn.Conv2d(size.latent_channels, width, **CONVOLUTION), nn.ReLU()]
    for _ in range(size.levels):
        encoder += [nn.Conv2d(width, width, stride=2, bias=False, **CONVOLUTION)]
        encoder += [Block(width) for _ in range(size.blocks)]
        decoder += [Block(width) for _ in range(size.blocks)]
        decoder += [nn.Identity(), nn.Conv2d(width, width, bias=False, **CONVOLUTION)]
    encoder += [nn.Conv2d(width, size.latent_channels, **CONVOLUTION)]
    decoder += [Block(width), nn.Conv2d(width, 3, **CONVOLUTION)]
    state = [nn.Sequential(*layers).state_dict() for layers in (encoder, decoder)]
    one, two = ({n: parameter(f"{half}.{n}", t.shape) for n, t in s.items()} for half, s in enumerate(state))
    return one, two


def renamed(size: TinySize) -> dict[str, Tensor]:
    """The same as diffusers has them: both in one, and the decoder counted without what bounds its latents."""
    encoder, decoder = originals(size)
    moved = {f"{int(n.split('.')[0]) - 1}.{n.split('.', 1)[1]}": t for n, t in decoder.items()}
    both = {f"encoder.layers.{n}": t for n, t in encoder.items()} | {f"decoder.layers.{n}": t for n, t in moved.items()}
    return both


def config(size: TinySize) -> dict[str, object]:
    """The configuration as diffusers writes it."""
    widths, counts = [size.width] * (size.levels + 1), [size.blocks] * size.levels
    return {
        "_class_name": "AutoencoderTiny",
        "_diffusers_version": "0.42.0",
        "act_fn": "relu",
        "block_out_channels": widths,
        "decoder_block_out_channels": widths,
        "encoder_block_out_channels": widths,
        "force_upcast": False,
        "in_channels": 3,
        "latent_channels": size.latent_channels,
        "latent_magnitude": 3,
        "latent_shift": 0.5,
        "num_decoder_blocks": [*counts, 1],
        "num_encoder_blocks": [1, *counts],
        "out_channels": 3,
        "scaling_factor": 1.0,
        "shift_factor": 0.0,
        "upsample_fn": "nearest",
        "upsampling_scaling_factor": 2,
    }


def folder(path: Path, said: dict[str, object], state: dict[str, Tensor]) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(said))
    tensors.write(path / "diffusion_pytorch_model.safetensors", state)
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("taesd")
    encoder, decoder = originals(SIZE)
    tensors.write(path / "both.safetensors", renamed(SIZE))
    tensors.write(path / "decoder.safetensors", decoder)
    tensors.write(path / "encoder.safetensors", encoder)
    torch.save(decoder, path / "decoder.pth")
    folder(path / "folder", config(SIZE), renamed(SIZE))
    eight = {n: t.to(torch.float8_e4m3fn) if t.ndim > 1 else t for n, t in renamed(SIZE).items()}
    tensors.write(path / "eight.safetensors", eight)
    tensors.write(path / "sixteen.safetensors", renamed(replace(SIZE, latent_channels=16)))
    for kind in ("clip", "adm"):
        single(kind, path / f"{kind}.safetensors")
    return path


@pytest.fixture
def model(home: Path) -> LatentDiffusion:
    return opening.load(home / "clip.safetensors", precision="float32").model


def put(model: LatentDiffusion, path: Path) -> TinyFirstStage:
    first_stages.put(model, path)
    assert isinstance(model.first_stage, TinyFirstStage)
    return model.first_stage


# What is read --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [TinySize(), TinySize(latent_channels=16), SIZE, TinySize(width=3, blocks=1, levels=4), TinySize(levels=2)]
)
def test_the_size_is_in_the_shapes(size: TinySize) -> None:
    _, decoder = originals(size)
    assert shapes.tiny({n: tuple(t.shape) for n, t in renamed(size).items()}) == size
    assert shapes.tiny({n: tuple(t.shape) for n, t in decoder.items()}) == replace(size, encoder=False)
    halves = {n: tuple(t.shape) for n, t in renamed(size).items() if n.startswith("decoder.")}
    assert shapes.tiny(halves) == replace(size, encoder=False)


def test_all_names_are_the_same_network(home: Path, model: LatentDiffusion) -> None:
    z = inp("z", 1, 4, 4, 4)
    stages = {n: put(model, home / n) for n in ("both.safetensors", "folder", "decoder.safetensors", "decoder.pth")}
    first = stages["both.safetensors"]
    for stage in stages.values():
        assert torch.equal(stage.decode(z), first.decode(z))
    assert torch.equal(stages["folder"].encode(first.decode(z)), first.encode(first.decode(z)))
    encoder, decoder = originals(SIZE)
    held = dict(first.net.named_parameters())
    assert len(held) == len(encoder) + len(decoder)
    assert torch.equal(held["decoder.layers.2.conv_middle.weight"], decoder["3.conv.2.weight"])
    assert torch.equal(held["decoder.layers.5.weight"], decoder["6.weight"])
    assert torch.equal(held["encoder.layers.5.bias"], encoder["5.bias"])
    assert {p.dtype for p in held.values()} == {torch.float32}
    assert not any(p.requires_grad for p in held.values())


def test_eight_bits_are_widened(home: Path, model: LatentDiffusion) -> None:
    held = dict(put(model, home / "eight.safetensors").named_parameters())
    exact = dict(put(model, home / "both.safetensors").named_parameters())
    assert {p.dtype for p in held.values()} == {torch.float32}
    for name, p in held.items():
        rounded = exact[name].to(torch.float8_e4m3fn).float() if p.ndim > 1 else exact[name]
        assert torch.equal(p, rounded), name
    assert any(not torch.equal(p, exact[name]) for name, p in held.items())


def test_it_is_computed_in_what_the_model_is(home: Path) -> None:
    model = opening.load(home / "clip.safetensors", precision="bfloat16").model
    stage = put(model, home / "eight.safetensors")
    assert {p.dtype for p in stage.parameters()} == {torch.bfloat16}
    assert stage.decode(inp("z", 1, 4, 2, 2)).dtype == torch.float32


# What it stands in for ---------------------------------------------------------------------------------------------


def test_without_an_encoder_the_models_own_encodes(home: Path, model: LatentDiffusion) -> None:
    own = model.first_stage
    image = 0.5 * inp("img", 1, 3, 8, 8)
    latent = own.encode(image)
    assert torch.equal(put(model, home / "decoder.safetensors").encode(image), latent)
    assert model.first_stage is not own
    assert put(model, home / "decoder.safetensors").encoder is own  # not one behind the other
    assert not torch.equal(put(model, home / "both.safetensors").encode(image), latent)


def test_the_models_statistics_stay_and_it_can_go_back(home: Path, model: LatentDiffusion, tmp_path: Path) -> None:
    own = model.first_stage
    assert isinstance(own, KLFirstStage)
    own.mean.copy_(torch.tensor([0.5, -1.0, 2.0, 0.0]).view(1, 4, 1, 1))
    stage = put(model, home / "both.safetensors")
    assert stage.std == own.std != 1
    canvas = Canvas.of(0.5 * inp("img", 3, 8, 8), None)
    shown = maps("picture", stage, canvas)  # as the large one's networks have it, for InstructPix2Pix
    torch.testing.assert_close(shown, stage.encode(canvas.picture[None]) * own.std.float())
    names = {n.removeprefix("net."): t for n, t in own.state_dict().items() if n.startswith("net.")}
    layout = Layout(tuple(ldm.autoencoder(own.net, levels=2)))
    tensors.write(tmp_path / "vae.safetensors", layout.write(names))
    first_stages.put(model, tmp_path / "vae.safetensors")
    again = model.first_stage
    assert isinstance(again, KLFirstStage)
    assert again.state_dict().keys() == own.state_dict().keys()
    assert all(torch.equal(t, own.state_dict()[n]) for n, t in again.state_dict().items())


@pytest.mark.parametrize("kind", ["clip", "labels"])
def test_pictures_are_decoded_by_it_from_the_same_latents(kind: str, home: Path, tmp_path: Path) -> None:
    loaded = opening.load(single(kind, tmp_path / "a.safetensors"), precision="float32")
    own = loaded.model.config.first_stage
    assert own is not None
    asked = {"prompt": "a cat"} if kind == "clip" else {"label": 1}
    before = Model(loaded).generate(**asked, steps=2, size=(16, 16), seed=1)
    _, decoder = originals(replace(SIZE, latent_channels=own.latent_channels))
    tensors.write(tmp_path / "tiny.safetensors", decoder)
    stage = put(loaded.model, tmp_path / "tiny.safetensors")
    after = Model(loaded).generate(**asked, steps=2, size=(16, 16), seed=1)
    assert torch.equal(before.latents, after.latents)
    assert torch.equal(after.images, stage.decode(after.latents).clamp(-1, 1))
    assert not torch.equal(before.images, after.images)
    tiled = Model(loaded).generate(**asked, steps=2, size=(16, 16), seed=1, tiling=True)
    assert tiled.images.isfinite().all()
    init = after.images[0]
    changed = Model(loaded).generate(**asked, steps=2, seed=1, init=init, strength=0.5)
    assert changed.images.shape == (1, 3, 16, 16)


def test_the_command_line_inspects_and_uses_it(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for name, what in (("both", "with an encoder"), ("decoder", "a decoder alone")):
        assert main(["inspect", str(home / f"{name}.safetensors"), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["kind"] == "first stage"
        assert found["first stage"] == f"tiny (TAESD), {what}, f2, 4 channels"
    asked = ["generate", "a cat", "--model", str(home / "clip.safetensors"), "--steps", "2", "--size", "16x16"]
    asked += ["--seed", "1", "--out", str(tmp_path), "--json"]
    images = []
    for more in ([], ["--vae", str(home / "both.safetensors")], ["--vae", str(home / "folder")]):
        assert main([*asked, *more]) == 0
        (found,) = json.loads(capsys.readouterr().out)["pictures"]
        assert bool(more) == ("vae" in found["model"])
        images.append(pictures.read(found["file"]))
    assert not torch.equal(images[0], images[1])
    assert torch.equal(images[1], images[2])


# What is refused, in a line that names it -----------------------------------------------------------------------


def without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {n: t for n, t in state.items() if not n.startswith(name)}


def with_(**more: Tensor) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: state | {n.replace("_", "."): t for n, t in more.items()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("decoder.layers.3.conv.2.bias"), "lacks tensor 'decoder.layers.3.conv.2.bias'"),
        (without("decoder.layers.5"), "lacks tensor 'decoder.layers.5.weight'"),
        (without("encoder.layers.0.bias"), "lacks tensor 'encoder.layers.0.bias'"),
        (without("decoder.layers.0.weight"), "its first stage is not whole"),
        (without("decoder.layers.7"), "its first stage is not whole"),
        (without("decoder.layers.2"), "its first stage is not whole"),
        (without("decoder."), "is the encoder of a tiny first stage alone"),
        (with_(decoder_layers_6_spy=torch.zeros(1)), "fits nothing, 'decoder.layers.6.spy'"),
        (with_(spy=torch.zeros(1)), "fits nothing, 'spy'"),
        (with_(decoder_layers_5_bias=torch.zeros(8)), "fits nothing, 'decoder.layers.5.bias'"),
        (with_(decoder_layers_99999999999_weight=torch.zeros(1)), "its first stage is not whole"),
        (with_(**{f"decoder_layers_{'9' * 5000}_weight": torch.zeros(1)}), "its first stage is not whole"),
        (with_(decoder_layers_0_weight=torch.zeros(())), "its first stage is not whole"),
        (with_(decoder_layers_0_weight=torch.zeros(0, 4, 3, 3)), "its first stage is not whole"),
        (
            with_(decoder_layers_0_weight=torch.zeros(9, 4, 3, 3)),
            "'encoder.layers.0.weight' is 8x3x3x3",
        ),
        (with_(decoder_layers_0_weight=torch.zeros(8, 4, 1, 1)), "'decoder.layers.0.weight' is 8x4x1x1"),
        (with_(encoder_layers_5_weight=torch.zeros(5, 8, 3, 3)), "'encoder.layers.5.weight' is 5x8x3x3"),
        (with_(decoder_layers_5_weight=torch.zeros(8, 8, 3, 3, dtype=torch.int8)), "holds whole numbers"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], said: str, tmp_path: Path, model: LatentDiffusion
) -> None:
    path = tmp_path / "t.safetensors"
    tensors.write(path, change(renamed(SIZE)))
    own = model.first_stage
    with pytest.raises(ValueError, match=r"t\.safetensors") as error:
        first_stages.put(model, path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert model.first_stage is own


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("4.conv.2.bias"), "lacks tensor '4.conv.2.bias'"),
        (without("1.weight"), "its first stage is not whole"),
        (with_(**{"0_weight": torch.zeros(1)}), "fits nothing, '0.weight'"),
    ],
)
def test_an_original_decoder_that_is_not_whole_is_refused(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], said: str, tmp_path: Path, model: LatentDiffusion
) -> None:
    tensors.write(tmp_path / "t.safetensors", change(originals(SIZE)[1]))
    with pytest.raises(ValueError, match=r"t\.safetensors") as error:
        first_stages.put(model, tmp_path / "t.safetensors")
    assert said in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"act_fn": "gelu"},
        {"upsample_fn": "bilinear"},
        {"upsampling_scaling_factor": 4},
        {"scaling_factor": 0.18215},
        {"shift_factor": 0.1},
        {"in_channels": 4},
        {"latent_channels": 16},
        {"num_decoder_blocks": [1, 2]},
        {"num_encoder_blocks": [10**9]},
        {"encoder_block_out_channels": [8, 16]},
        {"mid_block": True},
    ],
)
def test_a_configuration_of_another_network_is_refused(
    change: dict[str, object], tmp_path: Path, model: LatentDiffusion
) -> None:
    path = folder(tmp_path / "f", {**config(SIZE), **change}, renamed(SIZE))
    with pytest.raises(ValueError, match=next(iter(change))) as error:
        first_stages.put(model, path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("generate", "a", "--model", "{}/clip.safetensors", "--vae", "{}/encoder.safetensors"), "which cannot paint"),
        (("inspect", "{}/encoder.safetensors"), "encoder of a tiny first stage alone"),
        (
            ("generate", "a", "--model", "{}/clip.safetensors", "--vae", "{}/sixteen.safetensors"),
            "of another kind (tiny, f2, 16 channels) than this model's (KL, f2, 4 channels)",
        ),
        (
            ("generate", "--model", "{}/adm.safetensors", "--label", "1", "--vae", "{}/both.safetensors"),
            "paints pixels",
        ),
        (("generate", "a", "--model", "{}/both.safetensors"), "is a first stage alone: give it with --vae"),
        (("generate", "a", "--model", "{}/decoder.safetensors"), "is a first stage alone: give it with --vae"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: tuple[str, ...], said: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", str(tmp_path)) if arguments[0] == "generate" else ()
    assert main([*(a.format(home) for a in arguments), *out]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


# The published weights, where they are at hand ------------------------------------------------------------------------


def published(name: str) -> Path:
    """A file in the folder that SFUMATO_WEIGHTS names; the test is skipped without it."""
    path = Path(os.environ.get("SFUMATO_WEIGHTS", "")) / name
    if not path.is_file():
        pytest.skip(f"SFUMATO_WEIGHTS names no folder with {name}")
    return path


def smooth(side: int) -> Tensor:
    """A picture of waves and a ramp."""
    at = torch.linspace(0, 1, side)
    y, x = torch.meshgrid(at, at, indexing="ij")
    return torch.stack([(6 * y + 2 * x).sin() * 0.6, (5 * x - 3 * y).cos() * 0.6, 1.2 * x * y - 0.6])[None]


@torch.no_grad()
@pytest.mark.parametrize(("name", "channels", "least"), [("taesd_fp8", 4, 24), ("taesd3_fp8", 16, 30)])
def test_published_weights_give_a_picture_back(name: str, channels: int, least: float) -> None:
    path = published(f"{name}.safetensors")
    first = AutoencoderSize(channels=4, mult=(1, 1, 1, 1), blocks=1, latent_channels=channels)
    unet = replace(tiny.CONFIG.unet, channels=channels)
    given = {**tiny.CONFIG.__dict__, "first_stage": first, "unet": unet, "resolution": 64}
    stage = put(tiny.model(config=tiny.CONFIG.model_validate(given)), path)
    assert shapes.tiny({n: e.shape for n, e in open_stored(path).entries.items()}) == TinySize(latent_channels=channels)
    image = smooth(64)
    z = stage.encode(image)
    assert psnr(stage.decode(z).clamp(-1, 1), image).item() > least
    assert 0.2 < z.std() < 3
    assert psnr(stage.decode(0 * z).clamp(-1, 1), image).item() < 20
