"""Words to CLIP's numbers: the byte pairs that the text towers of Stable Diffusion 1 and 2 were trained with.

A text is cut into words, a word into bytes, and the bytes are joined again by a list of 48,894 merges, the first that
applies first (Sennrich et al. 2016, over bytes as in GPT-2; Radford et al. 2021). The vocabulary follows from the list:
256 bytes, 256 bytes that end a word, one entry for each merge, the start and the end; 49,408 in all.
"""

import gzip
import html
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

MERGES = Path(__file__).resolve().parent.parent / "bundled" / "tokenizers" / "clip-merges.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"
LAST = "</w>"  # what the last piece of a word ends with
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
LARGEST = 16 * 2**20  # bytes of a file; CLIP's are under 1 MB


@cache
def clip_tokenizer() -> Tokenizer:
    """CLIP's own tokenizer, from the merges that ship with the package; `ids` reads a text with it.

    It adds no start and no end. One object for all callers: do not turn on its padding or truncation.
    """
    merges = gzip.decompress(MERGES.read_bytes()).decode().splitlines()
    pieces = [*_bytes(), *(b + LAST for b in _bytes()), *(merge.replace(" ", "") for merge in merges), START, END]
    return tokenizer_from({piece: i for i, piece in enumerate(pieces)}, merges)


def tokenizer_from(vocab: Mapping[str, int], merges: Sequence[str]) -> Tokenizer:
    """The tokenizer of a vocabulary (piece to id) and its merges ("left right", the first is tried first).

    What no piece is known of becomes the end, as in CLIP; with CLIP's vocabulary there is no such thing.

    Raises:
        ValueError: the ids are not 0 to n - 1, the start or the end is missing, or a merge is not of the vocabulary.
    """
    if {type(i) for i in vocab.values()} - {int} or sorted(vocab.values()) != list(range(len(vocab))):
        raise ValueError("The vocabulary of a CLIP tokenizer must number its pieces from 0, without gaps.")
    for special in (START, END):
        if special not in vocab:
            raise ValueError(f"The vocabulary of a CLIP tokenizer must have the piece {special!r}.")
    pairs = [_pair(line, i, vocab) for i, line in enumerate(merges, start=1)]
    bpe = models.BPE(dict(vocab), pairs, end_of_word_suffix=LAST, unk_token=END, fuse_unk=False)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.add_special_tokens([AddedToken(special, normalized=True) for special in (START, END)])
    return tokenizer


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in the folder `tokenizer` of a diffusers model: its vocab.json and merges.txt.

    The other files there (added tokens, settings) are not read.

    Raises:
        ValueError: a file is missing, is over 16 MiB, or is not what its name says.
    """
    try:
        vocab = json.loads(_text(folder / "vocab.json"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder / 'vocab.json'} cannot be read as JSON: {error}") from error
    if not isinstance(vocab, dict):
        raise ValueError(f"{folder / 'vocab.json'} must be an object of pieces and their ids.")
    lines = _text(folder / "merges.txt").split("\n")
    merges = [line.removesuffix("\r") for line in lines if not line.startswith("#version")]
    try:
        return tokenizer_from(vocab, merges[:-1] if merges[-1] == "" else merges)
    except ValueError as error:
        raise ValueError(f"{folder} holds no CLIP tokenizer. {error}") from error


def clean(text: str) -> str:
    """The text as a reader sees it: HTML entities resolved twice ("&amp;amp;" is "&"), no white space around it.

    Halves of UTF-16 pairs are joined, or become U+FFFD. OpenAI's and OpenCLIP's tokenizers also mend what was decoded
    wrongly and straighten typographic quotes, ligatures and wide letters (ftfy.fix_text), and their lower case has a
    sigma of its own for the end of a word; none of that is done here. The tokenizer of transformers gives the numbers
    that are given here, but it resolves no entities, and reads "<|ENDOFTEXT|>" in capitals as letters.
    """
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    try:
        return html.unescape(html.unescape(text)).strip()
    except ValueError:  # "&#" with more digits than Python reads
        return text.strip()


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The numbers of a text, cleaned, without start and end and without a limit."""
    return tokenizer.encode(clean(text), add_special_tokens=False).ids


def _bytes() -> list[str]:
    """The 256 bytes as letters that can be seen: first those that are such letters, then the rest as U+0100 and on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in seen] + [chr(0x100 + i) for i in range(256 - len(seen))]


def _pair(line: str, number: int, vocab: Mapping[str, int]) -> tuple[str, str]:
    left, space, right = line.partition(" ")
    if not (space and left in vocab and right in vocab and left + right in vocab):
        raise ValueError(f"Merge {number}, {line[:80]!r}, is not two pieces of the vocabulary that make a third.")
    return left, right


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ValueError(f"{path} is larger than {LARGEST:,} bytes; a CLIP tokenizer is not.")
        return data.decode()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8.") from error
