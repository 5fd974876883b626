"""What a data set consists of, in a few characters: two that agree give the same samples for the same indices."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any, NamedTuple, Self


class Fingerprint(NamedTuple):
    """How many samples there are, and a hash of what they are."""

    n: int
    sha256: str

    @classmethod
    def of(cls, facts: Iterable[Any]) -> Self:
        """Of what is known of each sample without decoding it, in order: anything that JSON can say."""
        n, digest = 0, hashlib.sha256()
        for n, fact in enumerate(facts, 1):  # noqa: B007
            digest.update(json.dumps(fact, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        return cls(n, digest.hexdigest())
