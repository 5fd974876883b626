"""CLIP's numbers: those of the published tokenizer, for any text, and nothing of the text is lost."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sfumato.conditioning.clip_tokens import (
    END,
    MERGES,
    START,
    clean,
    clip_tokenizer,
    ids,
    read_tokenizer,
    tokenizer_from,
)

CLIP = clip_tokenizer()
LINES = gzip.decompress(MERGES.read_bytes()).decode().splitlines()
RANKS = {tuple(line.split(" ")): i for i, line in enumerate(LINES)}
PROMPTS = st.text(
    st.one_of(
        st.characters(min_codepoint=32, max_codepoint=126),
        st.sampled_from("éÉüñçàßøłđ—…\u201c\u201d\u2019日本語中文字한국어жщΣς🚀🎨👩\u200d❤\ufe0f\u0301\u00a0\t\n"),
    ),
    max_size=40,
).map(lambda text: text.replace("<|", ""))  # no start and no end


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("a photograph of an astronaut riding a horse", [320, 8853, 539, 550, 18376, 6765, 320, 4558]),
        ("a painting of a virus monster playing guitar", [320, 3086, 539, 320, 11808, 6060, 1629, 5084]),
        ("A  Photo, of  CATS!!", [320, 1125, 267, 539, 3989, 748]),
        ("don't stop", [847, 713, 1691]),
        ("hello &amp; world", [3306, 261, 1002]),
        ("hello &amp;amp; world", [3306, 261, 1002]),
        ("café naïve 2024's", [15304, 1097, 35689, 563, 273, 271, 273, 275, 568]),
        ("日本語 🚀", [39121, 44353, 34002, 508, 13542]),
        ("(masterpiece:1.2), it's", [263, 12066, 281, 272, 269, 273, 2361, 585, 568]),
        (f"a {END}", [320, 49407]),
        (f"{START.upper()} a", [49406, 320]),
    ],
)
def test_the_published_numbers(text: str, expected: list[int]) -> None:
    assert ids(CLIP, text) == expected


def test_the_vocabulary_is_clips() -> None:
    text = "".join(f"{line}\n" for line in LINES)
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "d308b7377a8ceaa9707a21614fe8c831b9196e197b7aeb69833359362907af02"
    )
    vocab = CLIP.get_vocab()
    assert sorted(vocab.values()) == list(range(49408))
    known = {"!": 0, "Ń": 255, "!</w>": 256, "in": 512, "th": 513, "jekyll</w>": 49405, START: 49406, END: 49407}
    assert {piece: vocab[piece] for piece in known} == known


def seen(data: bytes) -> str:
    """The bytes as the vocabulary writes them: number i of it is the letter of the i-th byte in its order."""
    order = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order += [b for b in range(256) if b not in order]
    return "".join(CLIP.id_to_token(order.index(b)) for b in data)


def words(text: str) -> list[str]:
    """The words of a text, letter by letter: runs of letters, single digits, runs of the rest, short forms."""
    text = re.sub(r"\s+", " ", unicodedata.normalize("NFC", clean(text))).lower()
    found: list[str] = []
    before = ""
    while text:
        short = re.match(r"'(?:s|t|re|ve|m|ll|d)", text)
        if before != "other" and short:
            found, before, text = [*found, short[0]], "", text[len(short[0]) :]
            continue
        major = unicodedata.category(text[0])[0]
        kind = {"L": "letter", "N": "digit"}.get(major, "space" if text[0].isspace() else "other")
        if kind == before and kind in ("letter", "other"):
            found[-1] += text[0]
        elif kind != "space":
            found.append(text[0])
        before, text = kind, text[1:]
    return found


def merged(word: str) -> list[int]:
    """One word, by the definition: while any pair is in the list, join every occurrence of the one that comes first."""
    *front, last = seen(word.encode())
    pieces = [*front, f"{last}</w>"]
    while pairs := [pair for pair in zip(pieces, pieces[1:], strict=False) if pair in RANKS]:
        best = min(pairs, key=RANKS.__getitem__)
        joined: list[str] = []
        for piece in pieces:
            if joined and (joined[-1], piece) == best:
                joined[-1] += piece
            else:
                joined.append(piece)
        pieces = joined
    return [CLIP.token_to_id(piece) for piece in pieces]


@given(PROMPTS)
@settings(max_examples=300)
@example("aaaaaaaa")
@example("!!'s 's x's 'SX")
@example("we'll they'd we've I'm you're isn't")
def test_the_merges_are_applied_in_their_order(text: str) -> None:
    text = text.replace("Σ", "")  # at the end of a word Python's lower case of it is another
    assert ids(CLIP, text) == [i for word in words(text) for i in merged(word)]


@given(st.text(max_size=60))
@example("\x00\x85\ud7ff")
def test_no_letter_is_lost(text: str) -> None:
    text = text.replace("Σ", "").replace("<|", "")
    pieces = "".join(CLIP.id_to_token(i) for i in ids(CLIP, text)).replace("</w>", "")
    wanted = CLIP.normalizer.normalize_str(clean(text))
    assert pieces == seen("".join(c for c in wanted if not c.isspace() or c in "\x1c\x1d\x1e\x1f").encode())


@given(PROMPTS, st.sampled_from([" ", "  ", "\n\t", "\u3000"]))
def test_spaces_and_ascii_capitals_say_nothing(text: str, space: str) -> None:
    text = text.replace("&", "")
    louder = "".join(c.upper() if c.isascii() else c for c in text).replace(" ", space)
    assert ids(CLIP, f"{space}{louder}{space}") == ids(CLIP, text)


def test_there_is_no_limit() -> None:
    assert ids(CLIP, "cat " * 1000) == [2368] * 1000
    assert sum(len(CLIP.id_to_token(i)) for i in ids(CLIP, "x" * 100_000)) == 100_000 + len("</w>")


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("\ud83d\ude80", "🚀"),  # a pair of halves, as JSON escapes bring them
        ("a\ud83d b", "a\ufffd b"),
        ("\ufeffa", "\ufeffa"),
        (" &lt;b&gt; ", "<b>"),
        ("&amp;eacute;", "é"),
        ("&amp;amp;amp;", "&amp;"),
        ("&#" + "9" * 5000 + ";", "&#" + "9" * 5000 + ";"),
    ],
)
def test_cleaning(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned
    assert ids(CLIP, text) == CLIP.encode(cleaned).ids


# A folder as diffusers writes it.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    (path / "vocab.json").write_text(json.dumps(CLIP.get_vocab()), encoding="utf-8")
    (path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{line}\n" for line in LINES), encoding="utf-8")
    return path


def test_a_folder_gives_the_same_tokenizer(folder: Path) -> None:
    again = read_tokenizer(folder)
    assert json.loads(again.to_str()) == json.loads(CLIP.to_str())
    assert ids(again, "café naïve 2024's") == ids(CLIP, "café naïve 2024's")


def test_transformers_gives_the_same_numbers(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    peer = transformers.CLIPTokenizer.from_pretrained(str(folder))

    @given(PROMPTS)
    @settings(max_examples=400)
    @example(f"a cat{END}, {START} b")
    @example("ΟΔΟΣ ǅ İ e\u0301 \uff46\uff55 \u201cq\u201d")
    def agree(text: str) -> None:
        assert CLIP.encode(text).ids == peer(text, add_special_tokens=False).input_ids
        if clean(text) == text.strip():
            assert ids(CLIP, text) == peer(text, add_special_tokens=False).input_ids

    agree()
    for text in ("a &amp; b", END.upper()):  # where we follow OpenAI's instead
        assert ids(CLIP, text) != peer(text, add_special_tokens=False).input_ids


SMALL = {"a": 0, "b": 1, "a</w>": 2, "b</w>": 3, "ab</w>": 4, START: 5, END: 6}


def test_a_small_vocabulary() -> None:
    small = tokenizer_from(SMALL, ["a b</w>"])
    assert ids(small, "ab BA aab c") == [4, 1, 2, 0, 4, 6]


@pytest.mark.parametrize(
    ("vocab", "merges", "complaint"),
    [
        ({**SMALL, "c": 9}, [], "without gaps"),
        ({**SMALL, "c": 6}, [], "without gaps"),
        ({**SMALL, "a": -1}, [], "without gaps"),
        ({**SMALL, "a": False}, [], "without gaps"),
        ({**SMALL, "a": "0"}, [], "without gaps"),
        ({"a": 0, START: 1}, [], "must have the piece '<|endoftext|>'"),
        ({"a": 0, END: 1}, [], "must have the piece '<|startoftext|>'"),
        (SMALL, ["a b</w>", "a c"], "Merge 2, 'a c', is not"),
        (SMALL, ["b a</w>"], "Merge 1, 'b a</w>', is not"),
        (SMALL, ["ab</w>"], "Merge 1, 'ab</w>', is not"),
    ],
)
def test_a_wrong_vocabulary_is_refused(vocab: dict[str, Any], merges: list[str], complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        tokenizer_from(vocab, merges)


@pytest.mark.parametrize(
    ("vocab", "merges", "complaint"),
    [
        (None, b"", "vocab.json cannot be read"),
        (b"{}", b"", "without gaps|must have the piece"),
        (b"[1]", b"", "must be an object"),
        (b"{", b"", "cannot be read as JSON"),
        (b"[" * 100_000, b"", "cannot be read as JSON"),
        (b"\xff\xfe", b"", "must be UTF-8"),
        (b" " * (2**24 + 1), b"", "larger than"),
        (json.dumps(SMALL).encode(), None, "merges.txt cannot be read"),
        (json.dumps(SMALL).encode(), b"#version: 0.2\na b</w>\n\na b</w>\n", "Merge 2, ''"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, vocab: bytes | None, merges: bytes | None, complaint: str) -> None:
    for name, data in (("vocab.json", vocab), ("merges.txt", merges)):
        if data is not None:
            (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=complaint) as error:
        read_tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_line_ends_of_windows(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(SMALL))
    (tmp_path / "merges.txt").write_bytes(b"#version: 0.2\r\na b</w>\r\n")
    assert ids(read_tokenizer(tmp_path), "ab") == [4]
