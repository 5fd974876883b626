"""A model that is told LDM's sequences trains like any other, with its objects in an order that is drawn."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fill import inp
from held import Held
from sfumato.boxes import Box, Layout, Window
from sfumato.conditioning.layout import LayoutTokens
from sfumato.conditioning.vocabulary import vocabulary
from sfumato.data import Sample
from sfumato.data.fingerprint import Fingerprint
from sfumato.diffusion.noise import Address
from sfumato.generate import generate
from sfumato.io import opening
from sfumato.io.model_folder import Defaults
from sfumato.models.config import BoxesConfig, LayoutConfig, ModelConfig, ScheduleConfig
from sfumato.models.latent_diffusion import LatentDiffusion
from sfumato.nets.transformer import TransformerSize
from sfumato.nets.unet import UNetSize
from sfumato.recipes import RECIPES, layout
from sfumato.recipes.delivered import asked_of
from sfumato.recipes.diffusion import Known, batches_of, run
from sfumato.recipes.material import Material
from sfumato.recipes.settings import DiffusionRun, DiffusionTraining
from sfumato.recipes.told import Told, shuffled
from sfumato.request import Request
from sfumato.train.plan import Plan
from tiny import awake

NAMES = ("cat", "dog", "tree")
ENCODER = TransformerSize(dim=16, depth=1, length=17, heads=2, dim_head=8, logits=True)  # five objects
CONFIG = ModelConfig(
    conditioner=LayoutConfig(encoder=ENCODER, vocabulary=100, names=NAMES),
    unet=UNetSize(channels=3, width=16, mult=(1, 2), blocks=1, attention=(2,), head_dim=8, context_dim=16),
    schedule=ScheduleConfig(kind="cosine"),
    resolution=16,
)
PLAN = Plan(steps=3, batch=4, rate=1e-3, warmup=1, ema=0.9, save=2, preview=2, precision="fp32")


def boxes(n: int) -> Layout:
    return tuple(Box(NAMES[k % 3], 0.1 * k, 0.0, 0.1 * k + 0.3, 1.0) for k in range(n))


class Placed(Held):
    """Pictures with as many boxes as their number says, cut out of larger ones, and a caption."""

    fields = frozenset({"image", "boxes", "caption"})

    def __getitem__(self, i: int, /) -> Sample:
        cut = {"uncut": boxes(i % 5), "window": Window(0.0, 0.0, 0.9, 1.0)}
        return {**super().__getitem__(i), "boxes": boxes(i % 5)[:1], "captions": ("a zebra",), **cut}  # pyright: ignore


PICTURES = Placed([inp(f"{i}", 3, 16, 16).clamp(-1, 1) for i in range(8)])


# What is told ---------------------------------------------------------------------------------------------------


def test_what_is_cut_travels_with_the_boxes() -> None:
    sample = PICTURES[3]
    cut = {"uncut": boxes(3), "window": Window(0.0, 0.0, 0.9, 1.0), "boxes": boxes(1)}
    assert layout.placed(sample) == ({**cut, "caption": ""},)
    assert Counter(map(str, layout.ways(sample))) == {
        str({**cut, "caption": "a zebra"}): 4,
        str({**cut, "caption": ""}): 3,
        str({"boxes": (), "caption": "a zebra"}): 1,  # of a caption alone no object is said, cut or not
    }
    assert layout.placed({"boxes": boxes(2)}) == ({"boxes": boxes(2), "caption": ""},)


def test_the_published_recipe_tells_boxes_alone() -> None:
    settings = RECIPES["ldm-layout2img"].settings(None)
    assert isinstance(settings, DiffusionTraining)
    material = RECIPES["ldm-layout2img"].material(None, settings)
    assert isinstance(material, Material)
    assert material.ways(PICTURES[3]) == layout.placed(PICTURES[3])
    assert "boxes" in material.told.fields


def test_objects_are_told_in_an_order_that_is_drawn() -> None:
    way = {"boxes": boxes(3), "uncut": boxes(4), "window": Window(), "caption": "a zebra"}
    at = Address.of(7, torch.arange(600), 2)
    told = shuffled([way] * 600, at)
    assert all(each.keys() == way.keys() and each["caption"] == "a zebra" for each in told)
    assert all(sorted(each["boxes"]) == sorted(boxes(3)) for each in told)
    orders = Counter(each["uncut"] for each in told)
    assert len(orders) == 24
    assert max(orders.values()) < 60  # 25 are to be expected; five deviations
    again = shuffled([{"boxes": boxes(9)}, way], Address.of(7, torch.tensor([5, 17]), 2))
    assert again[1] == told[17]  # whatever its batch mates
    assert shuffled([way] * 600, Address.of(7, torch.arange(600), 3)) != told
    assert shuffled([{"boxes": ()}], Address.of(7, [0])) == [{"boxes": ()}]
    many = tuple(Box("cat", k / 400, 0.0, 1.0, 1.0) for k in range(300))
    (some,) = shuffled([{"boxes": many}], Address.of(7, [0]))
    assert some["boxes"] != many
    assert sorted(some["boxes"]) == sorted(many)


def known() -> Known:
    return Known(
        lambda index: {"mean": torch.zeros(len(index), 3, 16, 16)}, [layout.placed(PICTURES[i]) for i in range(8)]
    )


def test_a_step_is_told_in_its_order_where_order_matters() -> None:
    torch.manual_seed(0)
    net = LatentDiffusion(CONFIG).conditioner
    assert isinstance(net, LayoutTokens)
    source = batches_of(replace(PLAN, batch=8), net, known())
    batch = source(1)
    for i, sequence in zip(batch["index"].tolist(), batch["layout"].tolist(), strict=True):
        found, window = net.layout(sequence)
        plain, _ = net.layout(net.sequence(boxes(i % 5), window))
        assert sorted(found) == sorted(plain)
    assert torch.equal(source(1)["layout"], batch["layout"])
    seen = {tuple(row) for step in range(40) for row in source(step)["layout"].tolist()}
    orders = Counter(len(net.layout(row)[0]) for row in seen)
    assert [orders[n] for n in range(4)] == [1, 1, 2, 6]  # all that there are


# Training ------------------------------------------------------------------------------------------------------


def test_all_parameters_learn_but_the_head_that_nothing_uses() -> None:
    torch.manual_seed(0)
    model = LatentDiffusion(CONFIG)
    awake(model)
    objective = Told(model, 0.5, "uniform")
    kind = model.conditioner
    assert isinstance(kind, LayoutTokens)
    told = kind.collate([layout.placed(PICTURES[i])[0] for i in range(8)])
    outcome = objective({"mean": inp("z", 8, 3, 16, 16), **told}, Address.of(0, torch.arange(8), 1))
    assert outcome.loss.isfinite()
    outcome.loss.backward()
    silent = {name for name, p in objective.named_parameters() if p.grad is None or not p.grad.any()}
    assert silent == {"conditioner.encoder.logits.weight", "conditioner.encoder.logits.bias"}


def test_a_prompt_is_no_part_of_a_preview_where_none_is_read() -> None:
    ways = [layout.ways(PICTURES[i]) for i in range(8)]
    asked = asked_of(LatentDiffusion(CONFIG), ways)
    assert {request.prompt for request in asked} == {""}
    assert asked[-1].boxes == boxes(1)
    conditioner = BoxesConfig(encoder=ENCODER, names=NAMES, words=ENCODER, captions=True)
    spoken = CONFIG.model_copy(update={"conditioner": conditioner})
    asked = asked_of(LatentDiffusion(spoken, vocabulary(["a zebra"])), ways)
    assert {request.prompt for request in asked} == {"a zebra"}


def test_a_training_of_layouts_ends_with_a_model_that_is_asked_with_boxes(tmp_path: Path) -> None:
    plan, sampled = replace(PLAN, preview=3), Defaults(sampler="ddim", steps=1, guidance=1.0)
    settings = DiffusionTraining(
        name="rooms", model=CONFIG, diffusion=DiffusionRun(plan=plan, drop=0.1), defaults=sampled
    )
    material = Material(PICTURES, PICTURES, None, layout.ways, "made up", Fingerprint.of(range(8)))
    list(run(settings, material, tmp_path))
    loaded = opening.load(tmp_path / "model")
    assert loaded.file.config.conditioner == CONFIG.conditioner
    asked = {"steps": 2, "guidance": 1.0}
    images = generate(loaded, [Request(boxes=some, **asked) for some in ((), boxes(1), boxes(2))]).images
    assert torch.pdist(images.flatten(1)).min() > 1e-5
    with pytest.raises(ValueError, match=r"^boxes\[0\]: unknown label 'horse'; known: cat, dog, tree$"):
        generate(loaded, Request(boxes=(Box("horse", 0, 0, 1, 1),), **asked))
