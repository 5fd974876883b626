"""Words to numbers: the same captions give the same vocabulary, and no text is too strange for it."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from sfumato.conditioning.vocabulary import END, PAD, START, UNKNOWN, vocabulary

CAPTIONS = ["a red apple, 3d", "an apple in flat style", "a red car", "Crème brûlée!", "two cats", "a zebra", "zzyzx"]
KNOWN = vocabulary(CAPTIONS)


def pieces(text: str, tokenizer: Tokenizer = KNOWN) -> list[str]:
    tokens = tokenizer.encode(text).tokens
    assert (tokens[0], tokens[-1]) == (START, END)
    return tokens[1:-1]


def test_the_order_of_captions_does_not_matter() -> None:
    shuffled = CAPTIONS.copy()
    random.Random(0).shuffle(shuffled)
    assert shuffled != CAPTIONS
    assert vocabulary(shuffled).to_str() == KNOWN.to_str()
    assert vocabulary(reversed(CAPTIONS)).get_vocab() == KNOWN.get_vocab()


def test_numbers_have_no_gaps_and_padding_is_the_first() -> None:
    ids = KNOWN.get_vocab()
    assert sorted(ids.values()) == list(range(len(ids)))
    assert [ids[t] for t in (PAD, UNKNOWN, START, END)] == [0, 1, 2, 3]


def test_known_words_are_whole() -> None:
    assert pieces("A red APPLE, in flat style") == ["a", "red", "apple", ",", "in", "flat", "style"]
    assert pieces("creme brulee") == pieces("Crème  Brûlée") == ["creme", "brulee"]


def test_unknown_words_are_spelt() -> None:
    assert pieces("dog") == ["d", "##o", "##g"]
    assert pieces("3x") == ["3", "##x"]
    assert pieces("applet cars") == ["apple", "##t", "car", "##s"]


def test_what_no_letter_is_known_of_is_unknown() -> None:
    assert pieces("a 猫 car") == ["a", UNKNOWN, "car"]


def test_special_tokens_cannot_be_smuggled_in() -> None:
    """They are read as the letters they are made of, and brackets are not known."""
    assert pieces(f"a {END}") == ["a", UNKNOWN, "s", "##e", "##p", UNKNOWN]
    assert pieces(PAD) == [UNKNOWN, "p", "##a", "##d", UNKNOWN]


def test_the_rarest_words_are_left_out_first() -> None:
    small = vocabulary(["red red red blue blue green"] * 3, most=len(vocabulary([]).get_vocab()) + 2)
    words = small.get_vocab()
    assert ("red" in words, "blue" in words, "green" in words) == (True, True, False)
    assert pieces("green", small)[0] == "g"


def test_ties_are_broken_by_the_alphabet() -> None:
    small = vocabulary(["pear fig apple"], most=len(vocabulary([]).get_vocab()) + 2)
    assert [w in small.get_vocab() for w in ("apple", "fig", "pear")] == [True, True, False]


def test_it_survives_a_file() -> None:
    again = Tokenizer.from_str(KNOWN.to_str(pretty=True))
    for text in ("a red apple, 3d", "猫 [SEP] dog", ""):
        assert again.encode(text).ids == KNOWN.encode(text).ids


@given(st.text(), st.lists(st.text(max_size=30), max_size=5))
def test_any_text_has_tokens(text: str, captions: list[str]) -> None:
    for tokenizer in (KNOWN, vocabulary([*captions, text])):
        ids = tokenizer.encode(text).ids
        assert all(0 <= i < tokenizer.get_vocab_size() for i in ids)
        assert (ids[0], ids[-1]) == (2, 3)
        assert not {0, 2, 3} & set(ids[1:-1])
