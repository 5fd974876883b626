"""Words to numbers: a WordPiece vocabulary made of the captions that a model learns from."""

from collections import Counter
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
SPECIAL = (PAD, UNKNOWN, START, END)


def vocabulary(captions: Iterable[str], *, most: int = 8000) -> Tokenizer:
    """A tokenizer that knows the words of `captions` whole, the most frequent first, and any other by its letters.

    The same captions give the same tokenizer, in any order: ties are broken by the alphabet.
    """
    tokenizer = _around({})
    counts: Counter[str] = Counter()
    for caption, times in Counter(captions).items():  # labels and captions come again a million times
        text = tokenizer.normalizer.normalize_str(caption)
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text):
            counts[word] += times
    letters = sorted({letter for word in counts for letter in word} | set("abcdefghijklmnopqrstuvwxyz0123456789"))
    pieces = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), "##s", "##es"]
    words = sorted(counts, key=lambda word: (-counts[word], word))
    return _around({piece: i for i, piece in enumerate(list(dict.fromkeys([*pieces, *words]))[:most])})


def words_of(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[str, ...]:
    """The words of some texts, each once, as the tokenizer tells them apart; marks are none."""
    normalizer, splitter = tokenizer.normalizer, tokenizer.pre_tokenizer
    spelt = [normalizer.normalize_str(text) for text in texts]
    words = dict.fromkeys(word for text in spelt for word, _ in splitter.pre_tokenize_str(text))
    return tuple(word for word in words if any(letter.isalnum() for letter in word))


def _around(vocab: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    if vocab:
        special = [(START, vocab[START]), (END, vocab[END])]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=special)
    return tokenizer
