"""Words to BERT's numbers: the uncased WordPiece vocabulary that the first LDM text-to-image model was trained with.

Devlin et al. 2019; Rombach et al. 2022 use its ids for a transformer of their own, 77 a caption.
"""

import gzip
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

VOCABULARY = Path(__file__).resolve().parent.parent / "bundled" / "tokenizers" / "bert-uncased.txt.gz"
PAD, UNKNOWN, START, END, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"


@cache
def bert_tokenizer() -> Tokenizer:
    """The tokenizer of bert-base-uncased: lower case, no accents; it puts [CLS] (101) and [SEP] (102) around a text.

    It pads with nothing and cuts nothing; LDM fills up to 77 with [PAD] (0). One object for all callers.
    """
    lines = gzip.decompress(VOCABULARY.read_bytes()).decode().split("\n")[:-1]
    vocab = {piece: i for i, piece in enumerate(lines)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    around = [(START, vocab[START]), (END, vocab[END])]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=around)
    tokenizer.add_special_tokens([PAD, UNKNOWN, START, END, MASK])
    return tokenizer
