"""Lists are read an element at a time as json.loads reads them at once, wherever a file happens to be parted."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sfumato.data import lists
from sfumato.data.lists import read_lists

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda x: st.lists(x) | st.dictionaries(st.text(max_size=3), x),
    max_leaves=12,
)


def taken(data: bytes) -> tuple[dict[str, list[object]], frozenset[str]]:
    found: dict[str, list[object]] = {"a": [], "b": []}
    return found, read_lists(io.BytesIO(data), {key: rows.append for key, rows in found.items()})


@settings(deadline=None)
@given(
    document=st.dictionaries(st.sampled_from(["a", "b", "c", ""]), JSON),
    chunk=st.integers(1, 40),
    indent=st.sampled_from([None, 1]),
    plain=st.booleans(),
)
def test_what_json_says(document: dict[str, Any], chunk: int, indent: int | None, plain: bool) -> None:
    data = json.dumps(document, indent=indent, ensure_ascii=plain).encode("utf-8", "replace")
    document = json.loads(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lists, "CHUNK", chunk)
        found, there = taken(data)
    mine = {key: rows for key, rows in document.items() if key in found and isinstance(rows, list)}
    assert there == mine.keys()
    assert found == {"a": [], "b": []} | mine


ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32-le"])


@settings(deadline=None)
@given(
    st.binary() | st.builds(lambda x, coding: json.dumps(x).encode(coding), JSON, ENCODINGS),
    st.integers(1, 40),
    st.integers(0, 30),
)
@example(b'{"a": [], "a": [1]}', 4, 0)
@example(b'{"a": ["\xed\xa0\x80"]}', 4, 0)
@example(b"[] []", 4, 0)
def test_any_bytes_are_json_where_json_says_so(data: bytes, chunk: int, cut: int) -> None:
    data = data[: len(data) - cut] if cut else data
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lists, "CHUNK", chunk)
        try:
            _, there = taken(data)
        except ValueError as error:
            assert str(error) == "not JSON; get the file again"  # noqa: PT017
            with pytest.raises(ValueError, match=r"."):
                json.loads(data)
        else:
            found = json.loads(data)
            lists_there = {key for key in ("a", "b") if isinstance(found, dict) and isinstance(found.get(key), list)}
            assert there == lists_there


@pytest.mark.parametrize(
    "text", ["", "{", '{"a"', '{"a" 1}', '{"a": [1 2]}', '{"a": [1,]}', '{"a": 1} 2', "{1: 2}", '{"a": ' + "[" * 10**5]
)
def test_no_json(text: str) -> None:
    with pytest.raises(ValueError, match="not JSON"):
        taken(text.encode())


def test_a_mark_at_the_beginning_is_passed_over() -> None:
    assert taken(b'\xef\xbb\xbf{"a": [1]}')[0]["a"] == [1]
