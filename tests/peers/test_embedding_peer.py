"""Textual inversions against diffusers: the same file and the same prompt are the same states."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("diffusers")
warnings.filterwarnings("ignore", module="diffusers")

from sfumato.io import opening
from sfumato.io.embedding import read_embedding
from sfumato.recipes import textual_inversion
from sfumato.recipes.textual_inversion import Word
from sfumato.train.state import State

pytestmark = pytest.mark.filterwarnings("ignore")


@torch.no_grad()
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("kind", ["web ui", "diffusers"])
def test_states_of_a_prompt_with_a_learnt_word(pipe: tuple[Any, Path], tmp_path: Path, kind: str, k: int) -> None:
    made, folder = pipe
    word = f"<{kind.replace(' ', '-')}-{k}>"
    vectors = torch.randn(k, 64, generator=torch.Generator().manual_seed(k)) * 0.1
    if kind == "web ui":
        path = tmp_path / f"{word}.pt"
        torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": word}, path)
    else:
        path = tmp_path / "learned_embeds.safetensors"
        save_file({word: vectors}, path)
    made.load_textual_inversion(str(tmp_path), weight_name=path.name, token=word)
    prompt = f"a photo of {word} on a table, {word}"
    text = made.maybe_convert_prompt(prompt, made.tokenizer)
    ids = made.tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    theirs = made.text_encoder(ids)[0]
    clip = opening.load(folder, precision="float32").model.conditioner
    without = clip.of([prompt]).tokens
    found = read_embedding(path)
    assert found.name == word
    clip.learn(found.name, found.vectors)
    torch.testing.assert_close(clip.of([prompt]).tokens, theirs, rtol=0, atol=1e-5)
    assert (theirs - without).abs().max() > 0.1


def test_diffusers_reads_what_was_trained_here(pipe: tuple[Any, Path], tmp_path: Path) -> None:
    """The file of the recipe, loaded by its word."""
    made, folder = pipe
    loaded = opening.load(folder, precision="float32")
    given = textual_inversion.settings(str(folder))
    word = Word(given.model_copy(update={"token": "<mug-1>", "initial": "mug", "vectors": 2}), loaded)
    with torch.no_grad():
        word.learnt.vectors.add_(0.1 * torch.randn(2, 64, generator=torch.Generator().manual_seed(1)))
    path = word.written(State(word.learnt, given.diffusion.plan), {}, tmp_path).path
    made.load_textual_inversion(str(path.parent), weight_name=path.name)
    text = made.maybe_convert_prompt("a <mug-1> on a table", made.tokenizer)
    ids = made.tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    found = read_embedding(path)
    loaded.model.conditioner.learn(found.name, found.vectors)
    with torch.no_grad():
        theirs, ours = made.text_encoder(ids)[0], loaded.model.conditioner.of(["a <mug-1> on a table"]).tokens
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
