"""Textual inversions: read from every kind of file, and in a prompt they are their vectors and nothing else is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from sfumato.conditioning.clip import MOST_CHUNKS, Clip, emphasised
from sfumato.conditioning.clip_tokens import clip_tokenizer, ids
from sfumato.conditioning.prompt import chunks
from sfumato.io.embedding import Embedding, read_embedding
from sfumato.nets.transformer import TransformerSize

SIZE = TransformerSize(dim=16, depth=2, heads=2, dim_head=8, causal=True, bias=True, activation="quick_gelu")
START, END, CAT, COMMA = 49406, 49407, 2368, 267
VOCABULARY = 49408


def made(seed: int = 0) -> Clip:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Clip(clip_tokenizer(), VOCABULARY, SIZE, pad=END).eval().requires_grad_(False)


CLIP = made()


@pytest.fixture
def clip() -> Clip:
    """One for each test, with the weights of all."""
    return copy.copy(CLIP)


def vectors(k: int, dim: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(k, dim, generator=torch.Generator().manual_seed(seed))


def rows(clip: Clip, *pieces: str | Tensor) -> Tensor:
    """(1, 77, dim): the states of words and vectors in a row, made by hand."""
    table = clip.encoder.tokens.weight
    own = [p if isinstance(p, Tensor) else table[ids(clip.tokenizer, p)] for p in pieces]
    inside = torch.cat([table[[START]], *own, table[[END]]])
    padding = table[[END]].expand(77 - len(inside), -1)
    return clip.encoder.states(torch.cat([inside, padding])[None])


def tokens(clip: Clip, *prompts: str) -> Tensor:
    found = clip.of(prompts).tokens
    assert found is not None
    return found


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert type(error.value) is ValueError
    assert "\n" not in str(error.value)
    return str(error.value)


# Files ----------------------------------------------------------------------------------------------------
T = vectors(3)
PARAMETERS = torch.nn.ParameterDict({"*": torch.nn.Parameter(T)})
WEB_UI = {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": {"*": T}, "name": "other", "step": 500}


@pytest.mark.parametrize(
    ("file", "content", "name", "expected"),
    [
        ("my style.pt", WEB_UI, "my style", T),
        ("a.b.pt", {**WEB_UI, "string_to_param": PARAMETERS, "sd_checkpoint": None}, "a.b", T),
        ("EasyNegative.safetensors", {"emb_params": T}, "EasyNegative", T),
        ("learned_embeds.bin", {"<cat-toy>": T[0]}, "<cat-toy>", T[:1]),
        ("learned_embeds.bin", {"<cat-toy>": T}, "<cat-toy>", T),
        ("learned_embeds.safetensors", {"<cat-toy>": T.half()}, "<cat-toy>", T.half()),
    ],
)
def test_every_kind_of_file(tmp_path: Path, file: str, content: Any, name: str, expected: Tensor) -> None:
    path = tmp_path / file
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    found = read_embedding(path)
    assert isinstance(found, Embedding)
    assert (found.name, found.vectors.dtype) == (name, expected.dtype)
    assert torch.equal(found.vectors, expected)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"clip_g": torch.ones(2, 1280), "clip_l": torch.ones(2, 768)}, "is a textual inversion for SDXL"),
        ({"<a>": T, "<b>": T}, "holds 2 tensors; a textual inversion is one"),
        ({"string_to_param": {"*": T, "+": T}}, "holds 2 tensors"),
        ({"string_to_token": {"*": torch.tensor(265)}}, "holds 0 tensors"),
        ({"<a>": torch.ones(2, 3, 4)}, "holds '<a>' as 2x3x4 of float32"),
        ({"<a>": torch.tensor(1.0)}, "holds '<a>' as one number of float32"),
        ({"<a>": torch.ones(0, 4)}, "holds '<a>' as 0x4 of float32"),
        ({"<a>": torch.ones(2, 4, dtype=torch.int64)}, "holds '<a>' as 2x4 of int64"),
        ({"<a>": torch.tensor([1.0, float("nan")])}, "holds '<a>' with numbers that are none"),
    ],
)
def test_what_is_no_embedding(tmp_path: Path, content: Any, words: str) -> None:
    path = tmp_path / "a.pt"
    torch.save(content, path)
    message = refused(lambda: read_embedding(path))
    assert message.startswith(f"{path} ")
    assert words in message


NAMES = st.text(st.characters(codec="utf-8"), max_size=12).filter(lambda name: name != "__metadata__")


@given(st.dictionaries(NAMES, st.sampled_from([(), (4,), (2, 4), (2, 2, 2)]), min_size=1, max_size=3))
def test_a_file_of_any_keys_is_one_word_or_refused(
    tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, tuple[int, ...]]
) -> None:
    path = tmp_path_factory.mktemp("any") / "word.safetensors"
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, path)
    one = {name: shape for name, shape in shapes.items() if not name.startswith("string_to_token.")}
    (name, shape) = next(iter(one.items()), ("", ()))
    if len(one) == 1 and len(shape) in (1, 2):
        web = name == "emb_params" or name.startswith("string_to_param.")
        assert read_embedding(path).name == ("word" if web else name)
    else:
        assert refused(lambda: read_embedding(path)).startswith(f"{path} ")


# Prompts --------------------------------------------------------------------------------------------------
def test_a_word_becomes_its_vectors(clip: Clip) -> None:
    clip.learn("<cat-toy>", T)
    expected = rows(clip, "a photo of a", T, ", on a table")
    torch.testing.assert_close(tokens(clip, "a photo of a <cat-toy>, on a table"), expected, rtol=0, atol=0)
    assert clip.chunked("a photo of a <cat-toy>, on a table").tokens == 4 + 3 + 4
    assert clip.heard(["a", "<cat-toy>"]).tokens == 3


def test_the_vectors_of_a_token_are_that_token(clip: Clip) -> None:
    """To learn what is known already changes nothing, whatever is around it."""
    clip.learn("feline", clip.encoder.tokens.weight[[CAT]])
    for prompt in ("a {}", "({}:1.3), {}", "[{}] BREAK {} and a dog", "{}, " * 50):
        torch.testing.assert_close(
            tokens(clip, prompt.format(*["feline"] * 50)), tokens(clip, prompt.format(*["cat"] * 50)), rtol=0, atol=0
        )


def test_weights_reach_each_vector(clip: Clip) -> None:
    clip.learn("toy", T)
    weights = torch.ones(1, 77)
    weights[0, 2:5] = 1.2
    expected = emphasised(rows(clip, "a", T, "cat"), weights)
    torch.testing.assert_close(tokens(clip, "a (toy:1.2) cat"), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("prompt", "times"),
    [
        ("my-word", 1),
        ("a,my-word.", 1),
        ("((my-word))", 1),
        ("my-word my-word", 2),
        ("My-Word MY-WORD", 0),  # as written
        ("amy-word my-words my-word_ my-word2 émy-word", 0),  # whole
        (r"\(my-word\)", 1),
        ("my- word", 0),
        ("-my-word-", 1),
        ("(my)-word", 0),  # of two weights
    ],
)
def test_which_words_are_meant(clip: Clip, prompt: str, times: int) -> None:
    clip.learn("my-word", T)
    found = clip.chunked(prompt).ids
    own = found[found >= VOCABULARY].tolist()
    assert own == [VOCABULARY, VOCABULARY + 1, VOCABULARY + 2] * times
    if not times:
        assert torch.equal(found, CLIP.chunked(prompt).ids)


def test_the_longest_word_is_meant(clip: Clip) -> None:
    one, two, three = vectors(1, seed=1), vectors(2, seed=2), vectors(1, seed=3)
    clip.learn("bad", one)
    clip.learn("bad-hands", two)
    clip.learn("<", three)
    torch.testing.assert_close(
        tokens(clip, "bad, bad-hands<bad>"), rows(clip, one, ",", two, three, one, ">"), rtol=0, atol=0
    )


def test_words_with_signs_of_the_syntax(clip: Clip) -> None:
    clip.learn("a(b)[c]\\ *.+", T)
    torch.testing.assert_close(tokens(clip, r"x a\(b\)\[c\]\\ *.+ x"), rows(clip, "x", T, "x"), rtol=0, atol=0)


def test_forgotten_it_is_a_word_again(clip: Clip) -> None:
    before = tokens(clip, "a toy, x")
    clip.learn("toy", T)
    clip.learn("x", T)
    learnt = tokens(clip, "a toy, x")
    assert not torch.equal(learnt, before)
    clip.learn("toy", vectors(1, seed=5))
    clip.learn("toy", T)
    torch.testing.assert_close(tokens(clip, "a toy, x"), learnt, rtol=0, atol=0)
    clip.forget("toy")
    torch.testing.assert_close(tokens(clip, "a toy, x"), rows(clip, "a toy,", T), rtol=0, atol=0)
    clip.forget("x")
    assert torch.equal(tokens(clip, "a toy, x"), before)
    assert refused(lambda: clip.forget("toy")) == "'toy' is no learnt word; these are: none"


def test_a_batch_keeps_what_was_learnt_when_it_was_made(clip: Clip) -> None:
    clip.learn("other", vectors(2, seed=1))
    clip.learn("toy", T)
    batch = clip.collate([{"caption": "a toy"}, {"caption": "nothing " * 80}])
    expected = clip(batch).tokens
    clip.forget("other")
    clip.forget("toy")
    found = clip(batch).tokens
    assert found is not None
    assert expected is not None
    assert torch.equal(found, expected)
    assert torch.equal(found[:1, :77], rows(clip, "a", T))
    assert "clip_learnt" not in clip.collate([{"caption": "a toy"}])


def test_vectors_stay_in_one_chunk(clip: Clip) -> None:
    clip.learn("toy", vectors(4))
    own = [VOCABULARY + i for i in range(4)]
    for before, first in ((71, 75), (72, 72), (75, 75)):
        found = clip.chunked("cat " * before + "toy cat").ids
        assert found[0].tolist().index(END) - 1 == first
        inside = [i for row in found.tolist() for i in row if i not in (START, END)]
        assert inside == [CAT] * before + own + [CAT]
        assert sum(own == row[k : k + 4] for row in found.tolist() for k in range(77)) == 1
    clip.learn("toy", vectors(75))
    assert clip.chunked("toy toy").ids.shape == (2, 77)


def test_a_comma_before_vectors_in_a_full_chunk(clip: Clip) -> None:
    """A full chunk ends after its last comma, also where a learnt word is next."""
    clip.learn("toy", vectors(2))
    found = clip.chunked("cat " * 70 + ", cat cat cat cat toy").ids
    assert found[1, :8].tolist() == [START, CAT, CAT, CAT, CAT, VOCABULARY, VOCABULARY + 1, END]


LUMPS = st.lists(st.sampled_from(["toy", "cat", " ", ",", "(", ")", ":1.2)", "<x>", "BREAK", "[", "é"]), max_size=40)


@given(LUMPS.map("".join), st.integers(5, 12))
def test_no_token_is_lost(prompt: str, length: int) -> None:
    learnt = {"toy": range(50_000, 50_003), "<x>": range(50_003, 50_004)}
    got = chunks(prompt, clip_tokenizer(), length=length, pad=0, learnt=learnt)
    inside = [row[1 : row.index(END)] for row in got.ids.tolist()]
    assert got.tokens == sum(map(len, inside))
    flat = [i for row in inside for i in row]
    words = [i - 50_000 for i in flat if i >= 50_000]
    assert [i for i in words if i < 3] == [0, 1, 2] * words.count(0)
    for row in inside:
        starts = [k for k, i in enumerate(row) if i == 50_000]
        assert all(row[k : k + 3] == [50_000, 50_001, 50_002] for k in starts)
        assert sum(50_000 <= i < 50_003 for i in row) == 3 * len(starts)


def test_learnt_words_are_no_part_of_the_model(clip: Clip) -> None:
    before = clip.state_dict().keys()
    clip.learn("toy", torch.nn.Parameter(T.double()))
    assert clip.state_dict().keys() == before
    assert not any(p.shape == T.shape for p in clip.parameters())
    assert not clip.learnt["toy"].requires_grad
    assert CLIP.learnt == {}


def test_vectors_take_the_type_of_the_encoder() -> None:
    half = made().bfloat16()
    half.learn("toy", T.double())
    found = tokens(half, "a toy")
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, rows(half, "a", T.bfloat16()))


@pytest.mark.parametrize(
    ("word", "given_", "words"),
    [
        ("toy", vectors(2, 1024), "'toy' is for another kind of model: its vectors have 1024 numbers, this model's 16"),
        ("toy", vectors(76), "'toy' has 76 vectors; a word can have from 1 to 75"),
        ("toy", vectors(0), "'toy' has 0 vectors"),
        ("toy", T[0], "'toy' must be vectors (k, 16); it is (16,)"),
        ("toy", T.long(), "'toy' must be vectors (k, 16)"),
        ("", T, "'' is none"),
        ("toy\n", T, r"'toy\n' is none"),
        ("x" * 500 + " ", T, "x...' is none"),
    ],
)
def test_what_cannot_be_learnt(clip: Clip, word: str, given_: Tensor, words: str) -> None:
    assert words in refused(lambda: clip.learn(word, given_))
    assert clip.learnt == {}


def test_a_prompt_has_at_most_64_chunks(clip: Clip) -> None:
    assert MOST_CHUNKS == 64
    assert clip.chunked("cat " * 75 * 64).ids.shape == (64, 77)
    too_many = "cat " * (75 * 64 + 1)
    for call in (clip.chunked, lambda p: clip.heard([p]), lambda p: clip.of([p])):
        assert refused(lambda c=call: c(too_many)) == "the prompt has 65 chunks of tokens; at most 64 are read"
    assert "at most 64" in refused(lambda: clip.chunked("BREAK " * 65 + "a"))
