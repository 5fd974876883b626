"""BERT's numbers are those that LDM's text-to-image model was trained with."""

from __future__ import annotations

import gzip
import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.conditioning.bert_tokens import VOCABULARY, bert_tokenizer

BERT = bert_tokenizer()


def test_the_vocabulary_is_berts() -> None:
    text = gzip.decompress(VOCABULARY.read_bytes())
    assert hashlib.sha256(text).hexdigest() == "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
    assert sorted(BERT.get_vocab().values()) == list(range(30522))
    known = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, "astronaut": 19748, "##s": 2015}
    assert {piece: BERT.token_to_id(piece) for piece in known} == known


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("", []),
        ("a photo of a cat", [1037, 6302, 1997, 1037, 4937]),
        ("The Astronaut, riding a HÖRSE", [1996, 19748, 1010, 5559, 1037, 3586]),
        (
            "a painting of a virus monster playing guitar",
            [1037, 4169, 1997, 1037, 7865, 6071, 2652, 2858],
        ),
        ("🚀", [100]),
    ],
)
def test_the_published_numbers(text: str, own: list[int]) -> None:
    assert BERT.encode(text).ids == [101, *own, 102]


def test_there_is_no_limit() -> None:
    assert BERT.encode("cat " * 1000).ids == [101, *[4937] * 1000, 102]


def test_transformers_gives_the_same_numbers() -> None:
    transformers = pytest.importorskip("transformers")
    peer = transformers.BertTokenizer(vocab=BERT.get_vocab(), do_lower_case=True)

    @given(st.text(max_size=40))
    @settings(max_examples=200)
    def agree(text: str) -> None:
        assert BERT.encode(text).ids == peer(text).input_ids

    agree()
