"""Prompts: weights by what the brackets say, chunks in which every token has its place, and no prompt is an error."""

from __future__ import annotations

import re
import time

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sfumato.conditioning.clip_tokens import clip_tokenizer, ids
from sfumato.conditioning.prompt import BREAK, LEAST, MOST, Chunked, Piece, chunks, escape, weighted

CLIP = clip_tokenizer()
START, END, COMMA, CAT = 49406, 49407, 267, 2368
TEXT = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("()[]\\:.,0123456789 BREAK")), max_size=40)
LUMPS = [
    "(",
    ")",
    "[",
    "]",
    "\\",
    ":",
    ":1.3)",
    ": 2 )",
    ":.5)",
    "BREAK",
    " BREAK ",
    "\\BREAK",
    "cat",
    ", ",
    "1.2",
    "é🚀",
]
SCRAPS = st.lists(st.one_of(st.sampled_from(LUMPS), st.text(max_size=3)), max_size=30).map("".join)


def pairs(prompt: str) -> list[tuple[str, float]]:
    return [(piece.text, round(piece.weight, 6)) for piece in weighted(prompt)]


UP, DOWN = 1.1, round(1 / 1.1, 6)
STOP = ("", 1.0)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", []),
        ("a cat", [("a cat", 1.0)]),
        ("a (cat)", [("a ", 1.0), ("cat", UP)]),
        ("a ((cat))", [("a ", 1.0), ("cat", 1.21)]),
        ("a (cat:1.3) b", [("a ", 1.0), ("cat", 1.3), (" b", 1.0)]),
        ("(cat: 1.3 )", [("cat", 1.3)]),
        ("(cat:.5)(dog:2.)", [("cat", 0.5), ("dog", 2.0)]),
        ("(cat:+2)", [("cat", 2.0)]),
        ("[cat]", [("cat", DOWN)]),
        ("[[cat]]", [("cat", round(1 / 1.21, 6))]),
        ("((big:1.5) cat:2)", [("big", 3.0), (" cat", 2.0)]),
        ("(a [b] c)", [("a ", UP), ("b", 1.0), (" c", UP)]),
        ("([cat])", [("cat", 1.0)]),
        # text
        (r"\(cat\) \[dog\] \\", [(r"(cat) [dog] " + "\\", 1.0)]),
        (r"(smile\):1.3)", [("smile)", 1.3)]),
        (r"a\b \x", [(r"a\b \x", 1.0)]),
        ("(cat:1.2.3)", [("cat:1.2.3", UP)]),
        ("(cat:nan) (dog:1e3)", [("cat:nan", UP), (" ", 1.0), ("dog:1e3", UP)]),
        ("cat:1.3", [("cat:1.3", 1.0)]),
        ("(a:b:2)", [("a:b", 2.0)]),
        # one side only
        ("cat) dog] :2)", [("cat) dog] :2)", 1.0)]),
        ("a (cat", [("a ", 1.0), ("cat", UP)]),
        ("a (cat:1.3", [("a ", 1.0), ("cat:1.3", UP)]),
        ("a [cat", [("a ", 1.0), ("cat", DOWN)]),
        ("((a) b", [("a", 1.21), (" b", UP)]),
        ("(a]", [("a]", UP)]),
        ("[a:1.3)", [("a:1.3)", DOWN)]),
        ("(a [b) c]", [("a ", UP), ("b", 1.0), (" c", DOWN)]),
        # nothing within
        ("a()[](:2)b", [("ab", 1.0)]),
        # bounds
        ("(a:0)(b:-3)(c:1000)", [("ab", LEAST), ("c", MOST)]),
        ("(((c:50):50):0.0001)", [("c", 25.0)]),
        # what other programs mean by it is text here
        ("[a:b:0.5]", [("a:b:0.5", DOWN)]),
        ("a AND b <lora:x:1>", [("a AND b <lora:x:1>", 1.0)]),
        # chunks
        ("a BREAK b", [("a ", 1.0), STOP, (" b", 1.0)]),
        ("(a BREAK b:2)", [("a ", 2.0), STOP, (" b", 2.0)]),
        ("BREAK,BREAK", [STOP, (",", 1.0), STOP]),
        ("BREAK BREAK", [STOP, (" ", 1.0), STOP]),
        ("BREAKFAST aBREAK BREAK_ break", [("BREAKFAST aBREAK BREAK_ break", 1.0)]),
        (r"a \BREAK b \BREAKFAST", [(r"a BREAK b \BREAKFAST", 1.0)]),
    ],
)
def test_what_the_syntax_says(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert pairs(prompt) == expected


@given(st.one_of(TEXT, SCRAPS))
@settings(max_examples=200)
@example("(" * 50 + ":9)" * 60)
@example("\ud800(")
def test_any_text_is_a_prompt(prompt: str) -> None:
    pieces = weighted(prompt)
    assert all(LEAST <= piece.weight <= MOST for piece in pieces)
    assert all(piece.text or piece == BREAK for piece in pieces)
    for one, two in zip(pieces, pieces[1:], strict=False):
        assert BREAK in (one, two) or one.weight != two.weight


@given(st.one_of(TEXT, SCRAPS))
def test_text_without_syntax_is_itself(text: str) -> None:
    text = re.sub(r"[\\()\[\]]|BREAK", "", text)
    assert weighted(text) == ([Piece(text, 1.0)] if text else [])


@given(st.one_of(TEXT, SCRAPS))
@settings(max_examples=200)
@example("\\BREAK")
@example("\\\\(BREAK:1.3)")
def test_escaped_text_is_itself(text: str) -> None:
    assert weighted(escape(text)) == ([Piece(text, 1.0)] if text else [])
    inside = weighted(f"[({escape(text)}:2.2)]")
    assert inside == ([Piece(text, 2.2 * (1 / 1.1))] if text else [])


TREES = st.recursive(
    TEXT.map(lambda text: ("text", text, 1.0)),
    lambda tree: st.tuples(
        st.sampled_from(["round", "square", "number"]),
        st.lists(tree, max_size=4),
        st.integers(10, 300).map(lambda n: n / 100),
    ),
    max_leaves=12,
)


def written(tree: tuple) -> str:
    kind, content, number = tree
    if kind == "text":
        return escape(content)
    inside = "".join(written(t) for t in content)
    return {"round": f"({inside})", "square": f"[{inside}]", "number": f"({inside}:{number})"}[kind]


def meant(tree: tuple, weight: float = 1.0) -> list[tuple[str, float]]:
    """Each letter with its weight."""
    kind, content, number = tree
    if kind == "text":
        return [(letter, weight) for letter in content]
    factor = {"round": 1.1, "square": 1 / 1.1, "number": number}[kind]
    return [leaf for t in content for leaf in meant(t, weight * factor)]


@given(TREES)
@settings(max_examples=150)
def test_every_letter_has_the_weight_of_its_brackets(tree: tuple) -> None:
    read = [(letter, piece.weight) for piece in weighted(written(tree)) for letter in piece.text]
    wanted = meant(tree)
    assert "".join(letter for letter, _ in read) == "".join(letter for letter, _ in wanted)
    for (_, one), (_, two) in zip(read, wanted, strict=True):
        assert one == pytest.approx(min(max(two, LEAST), MOST), rel=1e-12)


@given(SCRAPS)
def test_nothing_but_the_syntax_is_lost(prompt: str) -> None:
    """What is missing of the prompt is brackets, weights before a round one, backslashes and BREAK."""
    text = "".join(piece.text for piece in weighted(prompt))
    rest = iter(prompt)
    assert all(letter in rest for letter in text)  # the same letters in the same order
    syntax = r"\\(?=[\\()\[\]]|BREAK)|:\s*[+-]?[0-9.]+\s*\)|[()\[\]]|BREAK"
    kept = re.sub(syntax, "", re.sub(r"\\[\\()\[\]]", "", prompt))
    rest = iter(text)
    assert all(letter in rest for letter in kept)


@pytest.mark.parametrize(
    "unit", ["(", "[", "([", ")", "(a:9)", "(a", "a:9)", ":9", ": ", "\\", "BREAK ", "[(a:0)", "(:1", "( :" + " " * 50]
)
def test_prompts_of_many_brackets_take_linear_time(unit: str) -> None:
    long = unit * (50_000 // len(unit))
    began = time.process_time()
    pieces = weighted(long)
    assert time.process_time() - began < 5  # quadratic is minutes
    assert all(LEAST <= piece.weight <= MOST for piece in pieces)


def test_8000_brackets() -> None:
    half = 4000
    assert weighted("(" * half + "a" + ")" * half) == [Piece("a", MOST)]
    assert weighted("[" * half + "a" + "]" * half) == [Piece("a", LEAST)]
    assert pairs("([" * half + "a" + "])" * half) == [("a", 1.0)]
    assert weighted("(" * half + "a" + ":0)" * half) == [Piece("a", LEAST)]
    (both,) = weighted("(" * half + "[" * 3 * half + "a" + ":100)" * half)  # far beyond the range of a float
    assert LEAST <= both.weight <= MOST


# Chunks


def sd1(prompt: str) -> Chunked:
    return chunks(prompt, CLIP, pad=49407)


def own(chunked: Chunked, pad: int = 0) -> list[list[int]]:
    """The tokens of each chunk, having seen that each is start, tokens, end, padding."""
    rows: list[list[int]] = []
    for row in chunked.ids.tolist():
        assert row[0] == START
        end = row.index(END)
        assert row[end + 1 :] == [pad] * (len(row) - end - 1)
        rows.append(row[1:end])
    return rows


def test_the_empty_prompt() -> None:
    for prompt in ("", "  ", "()", "(:1.3)"):
        assert sd1(prompt).ids.tolist() == [[START] + [END] * 76]
        two = chunks(prompt, CLIP, pad=0)
        assert two.ids.tolist() == [[START, END] + [0] * 75]
        assert torch.equal(two.weights, torch.ones(1, 77))
        assert two.tokens == 0


def test_a_short_prompt() -> None:
    got = chunks("a (photo:1.3) of a [cat]", CLIP, pad=0)
    assert got.ids.tolist() == [[START, 320, 1125, 539, 320, 2368, END] + [0] * 70]
    wanted = torch.ones(1, 77)
    wanted[0, 2], wanted[0, 5] = 1.3, 1 / 1.1
    assert torch.equal(got.weights, wanted)
    assert (got.ids.dtype, got.weights.dtype, got.tokens) == (torch.int64, torch.float32, 5)


@pytest.mark.parametrize(
    ("words", "rows"), [(74, [74]), (75, [75]), (76, [75, 1]), (150, [75, 75]), (151, [75, 75, 1])]
)
def test_the_cut_without_commas(words: int, rows: list[int]) -> None:
    got = chunks("cat " * words, CLIP, pad=0)
    assert [len(row) for row in own(got)] == rows
    assert got.tokens == words


@pytest.mark.parametrize(
    ("before", "rows"),
    [
        (54, [75, 5]),  # the comma is the 21st from the end of the full chunk: too far
        (55, [56, 24]),
        (73, [74, 6]),
        (74, [75, 5]),
        (75, [75, 5]),  # the comma begins the second chunk
    ],
)
def test_a_full_chunk_ends_after_a_comma_among_its_last_20(before: int, rows: list[int]) -> None:
    got = own(chunks("cat " * before + "," + " cat" * (79 - before), CLIP, pad=0))
    assert [len(row) for row in got] == rows
    assert [i for row in got for i in row] == [CAT] * before + [COMMA] + [CAT] * (79 - before)


def test_a_comma_just_past_a_full_chunk_is_not_looked_back_from() -> None:
    """As the web UI does it: the token that does not fit any more is a comma itself."""
    got = own(chunks("cat " * 70 + ", cat cat cat cat, cat", CLIP, pad=0))
    assert [len(row) for row in got] == [75, 2]
    assert got[1] == [COMMA, CAT]


def test_the_weights_move_with_their_tokens() -> None:
    got = chunks("cat " * 70 + ", (cat cat:1.5) cat cat cat", CLIP, pad=0)
    assert [len(row) for row in own(got)] == [71, 5]
    assert got.weights[0].tolist() == [1.0] * 77
    assert got.weights[1].tolist() == [1.0, 1.5, 1.5] + [1.0] * 74


@pytest.mark.parametrize(
    ("prompt", "rows"),
    [
        ("cat BREAK cat", [[CAT], [CAT]]),
        ("cat BREAK", [[CAT]]),
        ("BREAK cat", [[], [CAT]]),
        ("cat BREAK BREAK cat", [[CAT], [], [CAT]]),
        ("BREAK", [[]]),
        ("cat " * 75 + "BREAK cat", [[CAT] * 75, [CAT]]),
    ],
)
def test_break_ends_a_chunk(prompt: str, rows: list[list[int]]) -> None:
    assert own(chunks(prompt, CLIP, pad=0)) == rows


@given(st.one_of(TEXT, SCRAPS).map(lambda text: text.replace("<|", "")), st.integers(3, 12))
@settings(max_examples=200)
def test_no_token_is_lost(prompt: str, length: int) -> None:
    got = chunks(prompt, CLIP, length=length, pad=0)
    assert got.ids.shape == got.weights.shape == (len(got.ids), length)
    rows = own(got)
    tokens = [(i, piece.weight) for piece in weighted(prompt) for i in ids(CLIP, piece.text)]
    assert [i for row in rows for i in row] == [i for i, _ in tokens]
    assert got.tokens == len(tokens)
    read = [w for row, line in zip(rows, got.weights.tolist(), strict=True) for w in line[1 : 1 + len(row)]]
    assert read == torch.tensor([w for _, w in tokens]).tolist()
    rest = [w for row, line in zip(rows, got.weights.tolist(), strict=True) for w in (line[0], *line[1 + len(row) :])]
    assert set(rest) == {1.0}


def test_a_chunk_without_room_is_refused() -> None:
    assert chunks("cat cat", CLIP, length=3, pad=0).ids.tolist() == [[START, CAT, END], [START, CAT, END]]
    with pytest.raises(ValueError, match="length 2 is too small"):
        chunks("cat", CLIP, length=2, pad=0)
