"""The emoji world: 1,650 concepts drawn in four styles, split so that what a model never saw is known."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable
from enum import StrEnum
from pathlib import Path

from sfumato.data.fingerprint import Fingerprint
from sfumato.data.sample import Meta, Sample
from sfumato.data.shards import Shards

HOME = Path(__file__).resolve().parent.parent / "bundled" / "worlds" / "emoji-64"
STYLES = ("3d", "flat", "noto", "twemoji")
MAX_CAPTIONS = 12


class Split(StrEnum):
    """What a model may have seen of a concept."""

    TRAIN = "train"  # everything
    STYLE = "style"  # the concept, but not in one of the styles
    CONCEPT = "concept"  # nothing


class Emoji:
    """Pictures of emoji with captions, ordered by id and style.

    `split` is "train" (all pictures that may be trained on), "style" (exactly the withheld pictures of
    concepts that are otherwise trained on), "concept" (all pictures of concepts never trained on) or "all".
    `concepts` keeps only those ids. Pictures are 64 x 64 on white unless `size` says otherwise.
    """

    fields = frozenset({"image", "caption"})

    def __init__(
        self,
        root: Path | str = HOME,
        *,
        styles: Iterable[str] = STYLES,
        split: str = "train",
        concepts: Collection[str] | None = None,
        size: int | None = None,
    ) -> None:
        wanted = tuple(styles)
        unknown = [style for style in wanted if style not in STYLES]
        if unknown or not wanted:
            raise ValueError(f"unknown styles {unknown}; known: {', '.join(STYLES)}")
        if split not in {*Split, "all"}:
            raise ValueError(f"unknown split {split!r}; known: {', '.join(Split)}, all")
        self.shards = Shards([Path(root) / f"{style}.tar" for style in STYLES if style in wanted], size=size)
        addresses = [(*key.rpartition("_")[::2], i) for i, key in enumerate(self.shards.keys)]
        self._places = sorted(
            (ident, style, i)
            for ident, style, i in addresses
            if (split == "all" or part(ident, style) == split) and (concepts is None or ident in concepts)
        )

    @property
    def ids(self) -> tuple[str, ...]:
        """The concepts, each once, in order."""
        return tuple(dict.fromkeys(ident for ident, _, _ in self._places))

    @property
    def fingerprint(self) -> Fingerprint:
        """By keys and the sizes of files in bytes; pixels are not read."""
        return Fingerprint.of((self.shards.keys[i], self.shards.sizes(i)) for _, _, i in self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, i: int) -> Sample:
        sample = self.shards[self._places[i][2]]
        meta = sample["meta"] = sample.get("meta", {})
        sample["caption"] = f"{meta['name']}, {meta['style']}"
        return sample

    def meta(self, i: int) -> Meta:
        """id, name, tags, group, subgroup and style of a picture, without decoding it."""
        return self.shards.meta(self._places[i][2])

    def raw(self, i: int) -> bytes:
        """The file of a picture: WebP with what is clear around it."""
        return self.shards.raw(self._places[i][2], "webp")


# Splits ---------------------------------------------------------------------------------------------------
def split_of(ident: str) -> Split:
    """What may be seen of a concept, by the hash of its id: 4 % nothing, 10 % all but one style, else all."""
    at, _ = _chance(ident)
    if at < 0.04:  # noqa: PLR2004
        return Split.CONCEPT
    return Split.STYLE if at < 0.14 else Split.TRAIN  # noqa: PLR2004


def withheld(ident: str) -> str | None:
    """The style in which a concept of split "style" is not shown in training; it need not exist in it."""
    return _chance(ident)[1] if split_of(ident) is Split.STYLE else None


def part(ident: str, style: str) -> Split:
    """Which split one picture belongs to; every picture belongs to exactly one."""
    kind = split_of(ident)
    return Split.TRAIN if kind is Split.STYLE and withheld(ident) != style else kind


def _chance(ident: str) -> tuple[float, str]:
    """A number in [0, 1) and a style, both from the hash of an id and independent of each other."""
    digest = hashlib.sha256(ident.encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48, STYLES[digest[6] % len(STYLES)]


# Concrete concepts ----------------------------------------------------------------------------------------
CONCRETE = frozenset(
    {
        *(
            "animal-mammal",
            "animal-bird",
            "animal-amphibian",
            "animal-reptile",
            "animal-marine",
            "animal-bug",
        ),
        *("plant-flower", "plant-other"),
        *("food-fruit", "food-vegetable", "food-prepared", "food-sweet", "drink"),
        *("transport-water", "transport-air", "musical-instrument"),
        *("face-smiling", "face-affection", "face-tongue", "face-hat", "face-glasses"),
    }
)


def concrete(meta: Meta) -> bool:
    """Whether one can point at it and know it again at 64 pixels: its subgroup is in `CONCRETE`.

    Whole subgroups, not a hand-picked list. 337 concepts: animals-nature 160, food-drink 107,
    smileys-emotion 35, travel-places 22, objects 13.
    """
    return meta.get("subgroup") in CONCRETE


def concrete_ids(root: Path | str = HOME) -> frozenset[str]:
    """The ids of the concrete concepts of a world: `Emoji(concepts=concrete_ids())`."""
    world = Emoji(root, split="all")
    metas = (world.meta(i) for i in range(len(world)))
    return frozenset(str(meta["id"]) for meta in metas if concrete(meta))


# Captions -------------------------------------------------------------------------------------------------
def captions(meta: Meta) -> tuple[str, ...]:
    """8 to 12 ways to say what a picture shows; all name the style, without which it is ambiguous."""
    name, style = str(meta["name"]), str(meta["style"])
    kind = _kind(str(meta.get("group", "")), str(meta.get("subgroup", "")))
    known = set(name.split()) | {kind, style}
    tags = [tag for tag in _list(meta.get("tags", [])) if tag not in known]
    kinds = [kind] if kind not in name else []
    ways = [
        f"{name}, {style}",
        f"{article(name)}, {style}",
        f"{style} {name}",
        article(name, style=style),
        *(f"{name}, {word}, {style}" for word in kinds),
        f"{name} in {style} style",
        f"{style} emoji of {article(name)}",
        f"{name} emoji, {style}",
        f"{style}, {name}",
        *(f"{name}, {tag}, {style}" for tag in tags[:2]),
        f"{style} picture of {article(name)}",
        f"picture of {article(name)}, {style}",
    ]
    return tuple(dict.fromkeys(ways))[:MAX_CAPTIONS]


def article(name: str, *, style: str = "") -> str:
    """ "red apple" -> "a red apple", with a style "a 3d red apple"; plurals and masses take none."""
    said = f"{style} {name}".strip()
    words = _BOUND.split(name)[0].split()
    last = words[-1] if words else ""
    plural = last.endswith("s") and not last.endswith(("ss", "us", "is", "ros"))
    if plural or last.endswith(("thirty", "clock")) or last in _BARE:
        return said
    vowel = said.startswith(_VOWEL) or (said[:1] in tuple("aeiou") and not said.startswith(_CONSONANT))
    return f"{'an' if vowel else 'a'} {said}"


_BOUND = re.compile(r" (?:with|of|in|on|behind|and|without)\b|:| \(")  # the head of a name ends here
_CONSONANT = ("uni", "use", "uk", "euro", "ewe", "one", "once", "up! ")
_VOWEL = ("hour", "8", "11", "18", "x-ray", "sos ", "ng ", "mx ")
_BARE = frozenset(
    {
        *(
            "bread",
            "bacon",
            "butter",
            "salt",
            "rice",
            "corn",
            "garlic",
            "broccoli",
            "sushi",
            "sake",
            "ice",
            "coral",
        ),
        *(
            "spaghetti",
            "oden",
            "mate",
            "popcorn",
            "food",
            "cooking",
            "yarn",
            "soap",
            "fog",
            "foggy",
            "wood",
            "fuji",
        ),
        *("tennis", "badminton", "hockey", "softball", "baseball", "volleyball", "laughing", "star-struck"),
        *("people", "men", "women", "children"),
    }
)
_KINDS = {
    **{word: word for word in ("animal", "plant", "face", "drink", "food", "person", "hand", "place", "heart")},
    **{"cat": "face", "monkey": "face", "hands": "hand", "transport": "vehicle", "sky": "sky"},
    **{"dishware": "kitchen", "musical": "music"},
}
_FINER = {
    **{"food-fruit": "fruit", "food-vegetable": "vegetable", "food-sweet": "sweet", "plant-flower": "flower"},
    **{
        "animal-bird": "bird",
        "animal-bug": "bug",
        "animal-marine": "sea animal",
        "animal-reptile": "reptile",
    },
    **{"place-building": "building", "transport-water": "boat", "transport-sign": "sign"},
    **{"sky-weather": "weather", "musical-instrument": "musical instrument"},
}


def _kind(group: str, subgroup: str) -> str:
    """One word for what sort of thing it is: "food-fruit" -> "fruit", "animal-mammal" -> "animal"."""
    first = subgroup.partition("-")[0]
    return _FINER.get(subgroup) or _KINDS.get(first) or first or group.partition("-")[0] or "thing"


def _list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
