"""A prompt with emphasis, as users write it: its pieces with their weights, and their tokens in chunks for CLIP.

The syntax is that of AUTOMATIC1111's web UI:

    (x)         x times 1.1                 [x]     x divided by 1.1
    (x:1.3)     x times 1.3                 BREAK   what follows begins a new chunk
    ((x) y)     nesting multiplies          \\( \\) \\[ \\] \\\\ \\BREAK     the same, as text

A closing bracket without an opening one is text; an opening one without a closing one reaches to the end. Round and
square brackets are matched apart from each other, so "(a [b) c]" is "a " up, "b" up and down, " c" down. Nothing else
has a meaning: "[a:b:0.5]" is "a:b:0.5" divided by 1.1, and "a AND b" and "<lora:x:1>" are text.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from tokenizers import Tokenizer
from torch import Tensor

from sfumato.conditioning.clip_tokens import ids

STEP = 1.1
LEAST, MOST = 0.01, 100.0
LOOK_BACK = 20  # tokens

# Possessive, so that no prompt takes more than linear time.
_SYNTAX = re.compile(
    r"\\(?P<literal>[\\()\[\]]|BREAK\b)"
    r"|(?P<stop>\bBREAK\b)"
    r"|:\s*+(?P<number>[+-]?(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++))\s*+\)"
    r"|[()\[\]]"
)


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text of a prompt and its weight, from 0.01 to 100."""

    text: str
    weight: float


BREAK = Piece("", 1.0)
"""Here a new chunk begins. No other piece is without text."""


@dataclass(frozen=True, slots=True, eq=False)
class Chunked:
    """A prompt for a text tower: ids (n, length) int64 and, of the same shape, weights float32.

    Weights are 1 at the start, the end and the padding. `tokens` counts the prompt's own; all of them are there.
    """

    ids: Tensor
    weights: Tensor
    tokens: int


def weighted(prompt: str) -> list[Piece]:
    """The pieces of a prompt, in order; neighbours of one weight are one piece. Any text is a prompt.

    Each number and each product is brought into [0.01, 100], so (x:0) and (x:-1) are as good as (x:0.01). Their texts
    joined are the prompt without its syntax. The empty prompt has no pieces.
    """
    return list(_joined(_pieces(prompt)))


def escape(text: str) -> str:
    """The prompt that is this text and nothing more: `weighted(escape(text))` is the text with weight 1."""
    return re.sub(r"[\\()\[\]]|\bBREAK\b", r"\\\g<0>", text)


def chunks(
    prompt: str,
    tokenizer: Tokenizer,
    *,
    length: int = 77,
    start: int = 49406,
    end: int = 49407,
    pad: int,
    learnt: Mapping[str, Sequence[int]] | None = None,
) -> Chunked:
    """The tokens of a prompt in as many chunks as it needs, each: start, up to length - 2 tokens, end, padding.

    SD 1 pads with 49407, SD 2 with 0. A full chunk ends after the last comma among its last 20 tokens, if there is one
    and the next token is none, as in AUTOMATIC1111's web UI; otherwise where it is full, be it within a word. BREAK
    ends a chunk, also an empty one. The empty prompt is one chunk. How many chunks are too many is for the caller to
    say.

    `learnt` are words with ids of their own, at most length - 2 each: such a word, written just so and with no letter,
    digit or underscore at either end of it, has those. They are of one chunk, which ends before them if they do not
    fit. Of two words that could begin in one place the longer is meant.

    Raises:
        ValueError: `length` leaves no room for a token.
    """
    room = length - 2
    if room < 1:
        raise ValueError(
            f"A chunk has a start, an end and at least one token between them: length {length} is too small."
        )
    learnt = learnt or {}
    assert all(0 < len(own) <= room for own in learnt.values())
    rows = _rows(prompt, tokenizer, room, learnt)
    filled = torch.full((len(rows), length), pad, dtype=torch.int64)
    weights = torch.ones(len(rows), length)
    for i, row in enumerate(rows):
        own = slice(1, 1 + len(row))
        filled[i, 0], filled[i, 1 + len(row)] = start, end
        filled[i, own] = torch.tensor([token for token, _ in row], dtype=torch.int64)
        weights[i, own] = torch.tensor([weight for _, weight in row])
    return Chunked(filled, weights, sum(len(row) for row in rows))


def _pieces(prompt: str) -> Iterator[Piece]:
    marks = list(_SYNTAX.finditer(prompt))
    opening, closing = _matched(marks)
    products = {"(": [1.0], "[": [1.0]}  # the weight of what is open, for each kind of bracket
    position = 0
    for i, mark in enumerate(marks):
        weight = _within(products["("][-1] * products["["][-1], LEAST, MOST)
        yield Piece(prompt[position : mark.start()], weight)
        position = mark.end()
        if i in opening:
            open_ = products[mark.group()]
            open_.append(_within(open_[-1] * opening[i], 1e-100, 1e100))  # neither 0 nor infinite
        elif i in closing:
            products["[" if mark.group() == "]" else "("].pop()
        elif mark["stop"]:
            yield BREAK
        else:
            yield Piece(mark["literal"] or mark.group(), weight)
    yield Piece(prompt[position:], _within(products["("][-1] * products["["][-1], LEAST, MOST))


def _matched(marks: list[re.Match[str]]) -> tuple[dict[int, float], set[int]]:
    """Which marks open a bracket, with the factor it multiplies by, and which close one."""
    opening: dict[int, float] = {}
    closing: set[int] = set()
    waiting: dict[str, list[int]] = {"(": [], "[": []}
    for i, mark in enumerate(marks):
        text = mark.group()
        same = waiting["[" if text == "]" else "("]
        if text in waiting:
            opening[i] = STEP if text == "(" else 1 / STEP
            waiting[text].append(i)
        elif same and (text in {")", "]"} or mark["number"]):
            begun = same.pop()
            closing.add(i)
            if mark["number"]:
                opening[begun] = _within(float(mark["number"]), LEAST, MOST)
    return opening, closing


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Without pieces that are empty, and neighbours of one weight as one."""
    some = (piece for piece in pieces if piece.text or piece is BREAK)
    for (stop, weight), run in groupby(some, key=lambda piece: (piece is BREAK, piece.weight)):
        if stop:
            yield from run
        else:
            yield Piece("".join(piece.text for piece in run), weight)


def _rows(
    prompt: str, tokenizer: Tokenizer, room: int, learnt: Mapping[str, Sequence[int]]
) -> list[list[tuple[int, float]]]:
    """The tokens with their weights, cut into rows of at most `room`."""
    comma, words = tokenizer.token_to_id(",</w>"), _words(learnt)
    rows: list[list[tuple[int, float]]] = []
    row: list[tuple[int, float]] = []
    for piece in weighted(prompt):
        if piece is BREAK:
            rows.append(row)
            row = []
            continue
        for run in _runs(piece.text, tokenizer, learnt, words):
            if len(row) == room:
                at = room if run[0] == comma else _after_comma(row, comma)
                rows.append(row[:at])
                row = row[at:]
            if len(row) + len(run) > room:
                rows.append(row)
                row = []
            row += [(token, piece.weight) for token in run]
    return [*rows, row] if row or not rows else rows


def _runs(
    text: str, tokenizer: Tokenizer, learnt: Mapping[str, Sequence[int]], words: re.Pattern[str]
) -> Iterator[Sequence[int]]:
    """The tokens of a text, in runs that are not to be parted: one each, and those of a learnt word."""
    at = 0
    for found in words.finditer(text):
        yield from ([token] for token in ids(tokenizer, text[at : found.start()]))
        yield learnt[found.group()]
        at = found.end()
    yield from ([token] for token in ids(tokenizer, text[at:]))


def _words(learnt: Iterable[str]) -> re.Pattern[str]:
    """Any of the words, whole, the longest first."""
    longest = sorted(learnt, key=lambda word: (-len(word), word))
    return re.compile("|".join(_whole(word) for word in longest) or r"(?!)")


def _whole(word: str) -> str:
    before = r"(?<!\w)" if re.match(r"\w", word) else ""
    after = r"(?!\w)" if re.match(r"\w", word[-1]) else ""
    return f"{before}{re.escape(word)}{after}"


def _after_comma(row: list[tuple[int, float]], comma: int | None) -> int:
    """Where a full row is cut: after its last comma, if that is near the end, or at its end."""
    for back in range(min(LOOK_BACK, len(row))):
        if row[-1 - back][0] == comma:
            return len(row) - back
    return len(row)


def _within(value: float, least: float, most: float) -> float:
    return min(max(value, least), most)
