"""The bundled world is what world.json says, and a model is never trained on what is withheld from it."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfumato.data import Dataset, Emoji, Split, captions, concrete, concrete_ids, split_of, withheld
from sfumato.data.emoji import HOME, STYLES, article, part

WORLD: dict[str, Any] = json.loads((HOME / "world.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def everything() -> Emoji:
    return Emoji(split="all")


@pytest.fixture(scope="module")
def metas(everything: Emoji) -> list[dict[str, Any]]:
    return [dict(everything.meta(i)) for i in range(len(everything))]


def pairs(world: Emoji) -> set[tuple[str, str]]:
    return {(str(meta["id"]), str(meta["style"])) for meta in map(world.meta, range(len(world)))}


def test_shards_are_those_of_world_json(everything: Emoji) -> None:
    assert tuple(WORLD["styles"]) == STYLES
    for style, row in WORLD["styles"].items():
        data = (HOME / row["shard"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["shard_sha256"], style
        assert len(Emoji(styles=[style], split="all")) == row["count"]
    assert sum(row["count"] for row in WORLD["styles"].values()) == len(everything)


def test_the_world_is_small_enough_to_be_bundled() -> None:
    assert sum(path.stat().st_size for path in HOME.rglob("*") if path.is_file()) <= 25_000_000


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "3d-MIT.txt",
            ["MIT License", "Copyright (c) Microsoft Corporation", 'THE SOFTWARE IS PROVIDED "AS IS"'],
        ),
        (
            "flat-MIT.txt",
            ["MIT License", "Copyright (c) Microsoft Corporation", 'THE SOFTWARE IS PROVIDED "AS IS"'],
        ),
        (
            "noto-Apache-2.0.txt",
            ["Apache License", "Version 2.0, January 2004", "END OF TERMS AND CONDITIONS"],
        ),
        (
            "twemoji-CC-BY-4.0.txt",
            ["CC-BY-4.0", "Twitter", "creativecommons.org/licenses/by/4.0", "Changes made"],
        ),
        ("captions-MIT.txt", ["MIT License", "Miles Johnson"]),
        ("NOTICE.txt", [*STYLES, "Google Inc", "emojibase-data 17.0.0"]),
    ],
)
def test_licences_are_there(name: str, words: list[str]) -> None:
    text = (HOME / "LICENSES" / name).read_text(encoding="utf-8")
    assert [word for word in words if word not in text] == []


def test_samples(everything: Emoji) -> None:
    assert isinstance(everything, Dataset)
    for i in range(0, len(everything), 97):
        sample = everything[i]
        image, meta = sample.get("image", torch.zeros(1)), dict(sample.get("meta", {}))
        assert image.shape == (3, 64, 64)
        assert set(meta) == {"id", "style", "name", "tags", "group", "subgroup"}
        assert sample.get("key") == f"{meta['id']}_{meta['style']}"
        assert sample.get("caption") == f"{meta['name']}, {meta['style']}"
        assert image.min() < 0.9  # not blank
        assert dict(everything.meta(i)) == meta


def test_a_known_picture() -> None:
    world = Emoji(styles=["3d"], split="all", concepts={"1f34e"}, size=32)
    assert len(world) == 1
    assert world[0].get("caption") == "red apple, 3d"
    image = world[0].get("image", torch.zeros(1))
    assert image.shape == (3, 32, 32)
    assert image[0, 16, 16] > 0.3 > -0.3 > image[2, 16, 16]  # red in the middle
    assert torch.equal(image[:, 0, 0], torch.ones(3))  # white in the corner


def test_the_order_is_fixed(everything: Emoji) -> None:
    addresses = [(str(meta["id"]), str(meta["style"])) for meta in map(everything.meta, range(0, 400))]
    assert addresses == sorted(addresses)
    assert pickle.loads(pickle.dumps(everything))[5]["key"] == everything[5].get("key")


def test_unknown_words_are_named() -> None:
    with pytest.raises(ValueError, match=r"unknown styles.*3d, flat"):
        Emoji(styles=["4d"])
    with pytest.raises(ValueError, match="unknown split 'test'"):
        Emoji(split="test")
    with pytest.raises(ValueError, match="no such shard"):
        Emoji(Path("nowhere"))


def test_splits_share_nothing_and_lose_nothing(everything: Emoji) -> None:
    parts = {split: pairs(Emoji(split=split)) for split in Split}
    assert sum(map(len, parts.values())) == len(everything)
    assert set.union(*parts.values()) == pairs(everything)
    trained = parts[Split.TRAIN]
    assert all(withheld(ident) != style for ident, style in trained)
    assert all(withheld(ident) == style for ident, style in parts[Split.STYLE])
    assert {ident for ident, _ in trained}.isdisjoint(ident for ident, _ in parts[Split.CONCEPT])
    seen = {ident for ident, _ in trained}
    shown = {ident for ident, _ in parts[Split.STYLE]}
    assert len(shown - seen) <= 2  # a concept drawn in one style only cannot be seen in another


def test_fractions_of_the_splits() -> None:
    kinds = [split_of(f"{i:x}") for i in range(20_000)]
    assert abs(kinds.count(Split.CONCEPT) / len(kinds) - 0.04) < 0.005
    assert abs(kinds.count(Split.STYLE) / len(kinds) - 0.10) < 0.008
    styles = [withheld(f"{i:x}") for i in range(20_000)]
    for style in STYLES:
        assert abs(styles.count(style) / kinds.count(Split.STYLE) - 0.25) < 0.04


@given(st.text())
def test_every_id_has_one_place(ident: str) -> None:
    kind = split_of(ident)
    assert (withheld(ident) is not None) == (kind is Split.STYLE)
    places = [part(ident, style) for style in STYLES]
    assert places.count(Split.STYLE) == (kind is Split.STYLE)
    assert places.count(Split.CONCEPT) == (4 if kind is Split.CONCEPT else 0)


def test_the_splits_never_move() -> None:
    frozen = {
        "1f34e": ("train", None),
        "1f199": ("concept", None),
        "1f30a": ("concept", None),
        "0030-20e3": ("style", "3d"),
        "1f197": ("style", "flat"),
        "1f239": ("style", "twemoji"),
        "1f23a": ("style", "twemoji"),
    }
    assert {ident: (split_of(ident).value, withheld(ident)) for ident in frozen} == frozen


def test_concrete_concepts(metas: list[dict[str, Any]]) -> None:
    groups: dict[str, set[str]] = {}
    for meta in metas:
        if concrete(meta):
            groups.setdefault(meta["group"], set()).add(meta["id"])
    counts = {group: len(ids) for group, ids in groups.items()}
    assert counts == {
        "animals-nature": 160,
        "food-drink": 107,
        "smileys-emotion": 35,
        "travel-places": 22,
        "objects": 13,
    }
    assert concrete_ids() == set.union(*groups.values())
    doc = concrete.__doc__ or ""
    assert all(f"{group} {count}" in " ".join(doc.split()) for group, count in counts.items())


def test_captions_name_the_style_and_differ(metas: list[dict[str, Any]]) -> None:
    for meta in metas:
        ways = captions(meta)
        assert 8 <= len(ways) <= 12
        assert len(set(ways)) == len(ways)
        assert ways[0] == f"{meta['name']}, {meta['style']}"
        assert all(meta["style"] in way and meta["name"] in way for way in ways)


@pytest.mark.parametrize(
    ("name", "style", "said"),
    [
        ("red apple", "", "a red apple"),
        ("octopus", "", "an octopus"),
        ("unicorn", "", "a unicorn"),
        ("ewe", "flat", "a flat ewe"),
        ("hourglass done", "", "an hourglass done"),
        ("umbrella", "3d", "a 3d umbrella"),
        ("grapes", "", "grapes"),
        ("bow and arrow", "", "a bow and arrow"),
        ("glass of milk", "", "a glass of milk"),
        ("eight-thirty", "noto", "noto eight-thirty"),
        ("", "", "a "),
    ],
)
def test_articles(name: str, style: str, said: str) -> None:
    assert article(name, style=style) == said
