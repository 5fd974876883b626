"""Models that are not of text and KL: labels, nothing, pixels, codebooks, pictures with a hole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from files import KINDS, filled, original, single
from sfumato.cli import inspect
from sfumato.conditioning.known_labels import known_labels
from sfumato.generate import Model, generate
from sfumato.io import opening, tensors
from sfumato.io.single_file import write
from sfumato.io.stored import open_stored
from sfumato.latents.canvas import Canvas
from sfumato.latents.kl import KLFirstStage
from sfumato.latents.maps import maps
from sfumato.latents.vq import VQFirstStage
from sfumato.models.config import LayoutConfig
from sfumato.models.latent_diffusion import hollow
from sfumato.nets.autoencoder import AutoencoderSize
from sfumato.nets.transformer import TransformerSize
from sfumato.request import Request
from tiny import awake

SIDE = (16, 16)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, opening.Loaded]:
    folder = tmp_path_factory.mktemp("kinds")
    return {k: opening.load(single(k, folder / f"{k}.safetensors"), precision="float32") for k in KINDS}


def painted(loaded: opening.Loaded, **asked: object) -> Tensor:
    return Model(loaded).generate(**{"steps": 2, "size": SIDE, "guidance": 1.0, **asked}).images


def test_a_label_is_heard_and_guided(opened: dict[str, opening.Loaded]) -> None:
    loaded = opened["labels"]
    one, other = (painted(loaded, label=k, seed=1, guidance=2.0) for k in (1, 2))
    assert (one - other).abs().max() > 0.01
    null = painted(loaded, label=10, seed=1, guidance=1.0)  # the last label is none
    assert torch.equal(painted(loaded, label=1, seed=1, guidance=0.0), null)


def test_a_row_of_the_table_is_heard_and_has_no_other_side(opened: dict[str, opening.Loaded]) -> None:
    loaded = opened["adm"]
    assert (painted(loaded, label=1) - painted(loaded, label=2)).abs().max() > 0.001
    with pytest.raises(ValueError, match="guidance must be 1"):
        painted(loaded, label=1, guidance=2.0)
    learned = painted(loaded, label=1, sampler="ddpm_learned")
    assert learned.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "asked", "said"),
    [
        ("labels", {}, "is asked with a label alone, from 0 to 9"),
        ("labels", {"label": 1, "prompt": "a cat"}, "is asked with a label alone"),
        ("labels", {"label": 11}, "label 11 is out of range; this model has labels 0 to 9"),
        ("churches", {"prompt": "a church"}, "is not asked with anything"),
        ("churches", {"guidance": 2.0}, "is not asked with anything"),
        ("churches", {"label": 1}, "takes no label"),
        ("sd1", {"label": 1}, "is asked with a prompt, not with a label"),
        ("sd2", {"prompt": "a cat"}, "changes a given picture; give it as init"),
    ],
)
def test_a_model_asked_the_wrong_way_says_the_right_one(
    kind: str, asked: dict[str, object], said: str, opened: dict[str, opening.Loaded]
) -> None:
    with pytest.raises(ValueError, match=said):
        painted(opened[kind], **asked)


def test_an_unconditional_model_paints(opened: dict[str, opening.Loaded]) -> None:
    assert (painted(opened["churches"], seed=1) - painted(opened["churches"], seed=2)).abs().max() > 0.01


def test_a_batch_of_labels_is_its_singles(opened: dict[str, opening.Loaded]) -> None:
    loaded = opened["labels"]
    asked = {"steps": 2, "size": SIDE, "guidance": 1.5}
    both = generate(loaded, [Request(label=k, seed=k, **asked) for k in (3, 7)]).images
    for k, image in zip((3, 7), both, strict=True):
        torch.testing.assert_close(
            image, generate(loaded, Request(label=k, seed=k, **asked)).images[0], rtol=0, atol=1e-4
        )


# What inpainting models are shown ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stage() -> KLFirstStage:
    torch.manual_seed(0)
    made = KLFirstStage(AutoencoderSize(channels=32, mult=(1, 2), blocks=1))
    awake(made)
    made.std.fill_(2.0)
    return made.eval().requires_grad_(False)


def canvas() -> Canvas:
    picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    hole = torch.zeros(16, 16)
    hole[4:8, 6:14] = 1
    return Canvas.of(picture, hole)


def test_stable_diffusion_is_shown_the_hole_and_the_picture_with_grey_in_it(stage: KLFirstStage) -> None:
    given = canvas()
    shown = maps("inpainting", stage, given)
    assert given.hole is not None
    assert torch.equal(shown[0, 0], given.hole[::2, ::2])  # nearest, at half the size
    grey = given.picture.clone()
    grey[:, 4:8, 6:14] = 0
    assert torch.equal(shown[:, 1:], stage.encode(grey[None]))


def test_ldm_is_shown_the_picture_with_black_in_the_hole_and_then_the_hole(stage: KLFirstStage) -> None:
    given = canvas()
    shown = maps("inpainting_black", stage, given)
    black = given.picture.clone()
    black[:, 4:8, 6:14] = -1
    assert torch.equal(shown[:, :-1], stage.encode(black[None]))
    assert set(shown[0, -1].flatten().tolist()) == {-1.0, 1.0}
    assert shown[0, -1, 2, 3] == 1


def test_instruct_pix2pix_is_shown_the_latent_as_the_networks_have_it(stage: KLFirstStage) -> None:
    given = canvas()
    torch.testing.assert_close(maps("picture", stage, given), stage.encode(given.picture[None]) * 2)


def test_a_model_that_paints_holes_wants_one(stage: KLFirstStage) -> None:
    with pytest.raises(ValueError, match="paints holes, and the picture has none; give a mask"):
        maps("inpainting", stage, replace(canvas(), hole=None))


def test_what_is_outside_the_hole_is_kept_to_the_bit(opened: dict[str, opening.Loaded]) -> None:
    given = canvas()
    asked = {"prompt": "a cat", "steps": 2, "guidance": 2.0}
    image = Model(opened["sd2"]).generate(init=given.picture, mask=given.hole, **asked).images[0]
    assert given.hole is not None
    assert torch.equal(image[:, given.hole == 0], given.picture[:, given.hole == 0])
    assert (image - given.picture)[:, given.hole == 1].abs().max() > 0.01


# VQ ---------------------------------------------------------------------------------------------------------


def test_a_latent_is_rounded_when_it_is_decoded_and_not_before() -> None:
    torch.manual_seed(0)
    stage = VQFirstStage(AutoencoderSize(channels=32, mult=(1, 2), blocks=1, latent_channels=3, codebook=8))
    awake(stage)
    stage.eval().requires_grad_(False)
    image = torch.rand(1, 3, 8, 8) * 2 - 1
    z = stage.encode(image)
    book = stage.net.codebook
    assert book is not None
    assert not torch.equal(z, book(z))
    torch.testing.assert_close(stage.decode(z), stage.net.decoder(book(z)))
    torch.testing.assert_close(stage.decode(z), stage.decode(book(z)))
    distance = (z.movedim(1, -1)[..., None, :] - book.weight).square().sum(-1)
    assert torch.equal(book.nearest(z), distance.argmin(-1))


@torch.no_grad()
def test_a_picture_of_numbers_that_are_none_is_not_painted(tmp_path: Path) -> None:
    loaded = opening.load(single("churches", tmp_path / "a.safetensors"), precision="float32")
    assert loaded.model.net.conv_out.bias is not None
    loaded.model.net.conv_out.bias[0] = float("nan")
    with pytest.raises(FloatingPointError, match="the weights are damaged"):
        painted(loaded)


# How a file is held ------------------------------------------------------------------------------------------


def test_weights_of_the_right_type_are_windows_on_the_file(tmp_path: Path) -> None:
    path = single("sd1", tmp_path / "a.safetensors")
    loaded = opening.load(path, precision="float32")  # stored in half precision: copied
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    stored = open_stored(path)
    whole = {n: stored.tensor(n).float() for n in stored.entries}
    tensors.write(tmp_path / "b.safetensors", whole, {"sfumato": str(stored.metadata["sfumato"])})
    mapped = opening.load(tmp_path / "b.safetensors", precision="float32")
    spans = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "b.safetensors" in line]
    ranges = [tuple(int(side, 16) for side in span[0].split("-")) for span in spans]
    held = [p.data_ptr() for p in mapped.model.net.parameters()]
    assert all(any(low <= at < high for low, high in ranges) for at in held)
    for one, two in zip(loaded.model.parameters(), mapped.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_bfloat16_paints_nearly_the_same_picture(tmp_path: Path) -> None:
    path = single("labels", tmp_path / "a.safetensors")
    exact, half = (opening.load(path, precision=p) for p in ("float32", "bfloat16"))
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert half.model.first_stage.std.dtype == torch.float64
    assert opening.identity(half)["precision"] == "bfloat16"
    assert "precision" not in opening.identity(exact)
    latents = [Model(m).generate(label=1, steps=2, size=SIDE, guidance=1.0).latents for m in (exact, half)]
    assert latents[1].dtype == torch.float32
    assert (latents[0] - latents[1]).std() < 0.1 * latents[0].std()


# Maps of classes, and small pictures ----------------------------------------------------------------------
def test_a_map_of_classes_is_painted(opened: dict[str, opening.Loaded]) -> None:
    loaded, found = opened["semantic"], torch.zeros(8, 16, dtype=torch.uint8)
    one = painted(loaded, map=found)
    assert one.shape == (1, 3, 8, 16)  # the map's size, and not the one that is asked for
    found[:, 8:] = 3
    other = painted(loaded, map=found)
    assert (one - other).abs().max() > 1e-3
    null = painted(loaded, map=torch.full((8, 16), 255, dtype=torch.uint8))
    torch.testing.assert_close(painted(loaded, map=found, guidance=0.0), null, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="what a map of classes says, and nothing else; give it as map"):
        painted(loaded, map=found, prompt="a field")


def test_what_names_tell_of_a_rescaler(tmp_path: Path) -> None:
    """LDM's own files say nothing of what their models are."""
    tensors.write(tmp_path / "semantic.safetensors", original("semantic"))
    config = opening.describe(tmp_path / "semantic.safetensors").config
    assert config.conditioner == KINDS["semantic"][0].conditioner
    assert config.maps == "segmentation"


def test_a_small_picture_is_shown_as_it_is(opened: dict[str, opening.Loaded], monkeypatch: pytest.MonkeyPatch) -> None:
    """At the latents' resolution, where the first stage has the factor of the model."""
    loaded, small = opened["larger"], (0.3 * torch.randn(3, 6, 8)).clamp(-1, 1)
    seen: list[Tensor] = []
    net = loaded.model.denoiser.net
    forward = type(net).forward

    def spied(self: nn.Module, x: Tensor, t: Tensor, *told: Tensor | None, **more: Tensor) -> Tensor:
        seen.append(told[3] if told[3] is not None else x)
        return forward(self, x, t, *told, **more)

    monkeypatch.setattr(type(net), "forward", spied)
    assert painted(loaded, init=small).shape == (1, 3, 12, 16)
    assert torch.equal(seen[0][0], small)
    for wrong in ({"mask": torch.zeros(6, 8)}, {"strength": 0.5}, {"inversion": True}, {"extend": (8, 0, 0, 0)}):
        with pytest.raises(ValueError, match="takes no mask, no inversion and no strength"):
            painted(loaded, init=small, **wrong)
    with pytest.raises(ValueError, match="the picture would be 2050x2; each side has 1 to 2048 pixels"):
        painted(loaded, init=torch.zeros(3, 1, 1025))


# Boxes ----------------------------------------------------------------------------------------------------

CAT = {"label": "cat", "box": [0.1, 0.2, 0.6, 0.9]}
TREE = {"label": "tree", "box": [0.5, 0.0, 1.0, 1.0]}


def test_boxes_are_heard_and_a_seed_is_a_picture(opened: dict[str, opening.Loaded]) -> None:
    loaded = opened["layout"]
    asked = ([], [CAT], [CAT, TREE], [CAT | {"label": "dog"}], [CAT | {"box": [0.3, 0.2, 0.6, 0.9]}])
    pictures = [painted(loaded, boxes=boxes, seed=1) for boxes in asked]
    assert torch.pdist(torch.stack(pictures).flatten(1)).min() > 0.05
    assert torch.equal(pictures[2], painted(loaded, boxes=[CAT, TREE], seed=1))
    assert torch.equal(pictures[0], painted(loaded, seed=1))  # nothing is said: no object
    assert torch.equal(pictures[0], painted(loaded, boxes=[CAT], seed=1, guidance=0.0))
    assert (painted(loaded, boxes=[CAT], seed=1, guidance=3.0) - pictures[1]).abs().max() > 0.01


def test_a_batch_of_layouts_is_its_singles(opened: dict[str, opening.Loaded]) -> None:
    loaded, asked = opened["layout"], {"steps": 2, "size": SIDE, "guidance": 1.0}
    layouts = [(CAT,), (TREE, CAT, CAT), ()]
    both = generate(loaded, [Request(boxes=boxes, seed=k, **asked) for k, boxes in enumerate(layouts)])
    for k, boxes in enumerate(layouts):
        alone = generate(loaded, Request(boxes=boxes, seed=k, **asked)).images[0]
        torch.testing.assert_close(both.images[k], alone, rtol=0, atol=1e-4)


def test_of_more_boxes_than_are_read_it_is_said(opened: dict[str, opening.Loaded]) -> None:
    asked = {"steps": 2, "size": SIDE, "guidance": 1.0}
    small = {"label": "dog", "box": [0.0, 0.0, 0.1, 0.1]}
    result = Model(opened["layout"]).generate(boxes=[CAT, small, TREE, CAT, CAT], **asked)
    assert result.boxes_dropped == 1
    assert torch.equal(result.images, painted(opened["layout"], boxes=[CAT, TREE, CAT, CAT]))


@pytest.mark.parametrize(
    ("kind", "asked", "said"),
    [
        (
            "layout",
            {"boxes": [CAT, CAT | {"label": "cta"}]},
            r"^boxes\[1\]: unknown label 'cta'; did you mean 'cat'\? [^\n]*$",
        ),
        (
            "layout",
            {"boxes": [CAT], "prompt": "a cat"},
            "^this model is asked with boxes alone; leave the prompts out$",
        ),
        ("layout", {"label": 1}, "^this model is asked with boxes, not with a label$"),
        ("sd1", {"boxes": [CAT]}, "^this model was not trained with boxes; leave them out, or ask one that was$"),
    ],
)
def test_a_layout_asked_the_wrong_way_says_the_right_one(
    kind: str, asked: dict[str, object], said: str, opened: dict[str, opening.Loaded]
) -> None:
    with pytest.raises(ValueError, match=said):
        painted(opened[kind], **asked)


def test_the_published_layout_model_is_asked_with_its_labels(tmp_path: Path) -> None:
    """A small one of its vocabulary and length, as its authors' program writes it: the file says no labels."""
    config, origin = KINDS["layout"]
    encoder = TransformerSize(dim=32, depth=1, length=92, logits=True)
    config = config.model_copy(update={"conditioner": LayoutConfig(encoder=encoder)})
    path = tmp_path / "model.safetensors"
    tensors.write(path, write(filled(config), hollow(config), origin))
    loaded = opening.load(path, precision="float32")
    kind = loaded.file.config.conditioner
    assert isinstance(kind, LayoutConfig)
    assert kind == LayoutConfig(encoder=encoder, names=known_labels("open-images"))
    assert (loaded.file.defaults.guidance, loaded.file.config.maps) == (1.0, None)
    dog, cat = (painted(loaded, boxes=[CAT | {"label": label}], seed=2) for label in ("Dog", "Cat"))
    assert (dog - cat).abs().max() > 0.01
    with pytest.raises(ValueError, match="unknown label 'Woman'"):  # of its data's names, but united with Person
        painted(loaded, boxes=[CAT | {"label": "Woman"}])
    report = inspect.reported(opening.opened(path))
    assert report["asked with"].startswith("boxes, as LDM's sequence of numbers")
    assert any("340 of Open Images" in line for line in report["how that is known"])
    assert report["parameters"]["conditioner"] == f"{sum(p.numel() for p in loaded.model.text.parameters()):,}"
