"""Checkpoints are read as torch.save means them, nothing in them runs, and none can ask for the impossible."""

from __future__ import annotations

import builtins
import os
import struct
import sys
import types
import warnings
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hostile import DATA, NAME, opened, pickled, refusal, storage, table, tensor, text, zipped
from sfumato.io.stored import Stored, open_stored


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.ckpt"


def stored(path: Path, value: object, protocol: int = 2) -> Stored:
    torch.save(value, path, pickle_protocol=protocol)
    return open_stored(path)


def same(found: Stored, expected: dict[str, Tensor]) -> None:
    assert found.entries.keys() == expected.keys()
    for name, value in expected.items():
        mine = found.tensor(name)
        assert (mine.dtype, mine.shape) == (value.dtype, value.shape) == (found.entries[name].dtype, mine.shape)
        assert found.entries[name].shape == tuple(value.shape)
        assert torch.equal(mine, value.detach())
        assert value.numel() == 0 or mine.stride() == value.stride()


# What torch.save writes -----------------------------------------------------------------------------------
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(4, 4)).half()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_state_dicts_of_modules(path: Path, protocol: int) -> None:
    state = network().state_dict()
    assert hasattr(state, "_metadata")  # so that the pickle holds a BUILD
    same(stored(path, state, protocol), state)
    found = stored(path, {"state_dict": state, "global_step": 470000, "epoch": 3, "lr": 0.5, "done": True}, protocol)
    same(found, state)
    assert found.metadata == {"global_step": 470000, "epoch": 3, "lr": 0.5, "done": True}


def test_views_and_shared_storages(path: Path) -> None:
    base = torch.arange(24.0)
    views = {
        "base": base,
        "window": base[5:11],
        "turned": base.view(4, 6).t(),
        "stepped": base.view(4, 6)[1::2, ::3],
        "one": torch.ones(1).expand(3, 4),
        "rows": torch.arange(3).view(3, 1).expand(3, 5),
        "scalar": base[7],
        "empty": base[24:],
        "nothing": torch.empty(0, 3),
        "parameter": nn.Parameter(torch.ones(2, 2)),
        "same": base,
    }
    found = stored(path, views)
    same(found, views)
    found.tensor("base")[7] = -1  # shared in the file, and so here
    assert found.tensor("scalar") == found.tensor("turned")[1, 1] == -1


def test_numbers_of_every_size_in_the_index(path: Path) -> None:
    numbers = {"a": 0, "b": 255, "c": 65535, "d": -1, "e": 1 << 31, "f": -(1 << 62), "g": 1 << 500, "h": 1e-300}
    found = stored(path, {"t": torch.ones(1), **numbers})
    assert found.metadata == numbers
    long = stored(
        path, {"t": torch.ones(1), "n": 1 << 5000, "text": "x" * 70_000, "日本": "本" * 20_000, "bytes": b"x"}
    )
    assert long.metadata == {"日本": "本" * 20_000}  # what is huge is passed over


def test_textual_inversions(path: Path) -> None:
    vector = torch.arange(8.0).view(1, 8)
    token = {"string_to_token": {"*": torch.tensor(265)}, "name": "cat", "step": 3000}
    for held in (
        {"*": vector},
        {"*": nn.Parameter(vector)},
        nn.ParameterDict({"*": nn.Parameter(vector)}),
    ):
        found = stored(path, {**token, "string_to_param": held})
        same(found, {"string_to_param.*": vector, "string_to_token.*": torch.tensor(265)})
        assert found.metadata == {"name": "cat", "step": 3000}


def training(state: dict[str, Tensor]) -> dict[str, Any]:
    """What Lightning writes: the weights among optimizers, loops, callbacks keyed by class, and settings."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "epoch": 7,
        "global_step": 470000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": state,
        "optimizer_states": [optimizer.state_dict()],
        "callbacks": {Callback: {"best": np.float64(0.5), "kept": {"a", "b"}, "path": Path("x")}},
        "hyper_parameters": Namespace(lr=0.1, config=Namespace(deep=[(1, 2), frozenset([3])])),
        "random": (np.random.RandomState(1).get_state(), bytes(100), bytearray(3), 1 + 2j),
        "model": network(),
    }


class Callback:
    """A class that others do not have."""


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_whole_trainings(path: Path, protocol: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("gone")
    monkeypatch.setitem(sys.modules, "gone", module)
    monkeypatch.setattr(Callback, "__module__", "gone")
    module.Callback = Callback  # type: ignore[attr-defined]
    state = {"model.a": torch.ones(3).half(), "model.b": torch.zeros(2, dtype=torch.long)}
    torch.save(training(state), path, pickle_protocol=protocol)
    monkeypatch.delitem(sys.modules, "gone")
    found = open_stored(path)
    same(found, state)
    assert found.metadata == {"epoch": 7, "global_step": 470000, "pytorch-lightning_version": "1.4.2"}
    assert "gone" not in sys.modules


def test_nested_dicts_are_named_by_their_path(path: Path) -> None:
    weights = {"w": torch.ones(2), 3: torch.zeros(1), "deep": OrderedDict(v=torch.zeros(3))}
    found = stored(path, {"ema": weights, "raw": weights, "list": [torch.ones(9)]})
    w, v = torch.ones(2), torch.zeros(3)
    same(found, {"ema.w": w, "ema.deep.v": v, "raw.w": w, "raw.deep.v": v})


def test_types_without_a_storage_class(path: Path) -> None:
    small = torch.arange(4.0).to(torch.float8_e4m3fn)
    assert stored(path, {"a": small}).tensor("a").float().tolist() == [0, 1, 2, 3]
    torch.save({"a": torch.ones(1, dtype=torch.uint16)}, path)
    with pytest.raises(ValueError, match=r"holds 'a' as 'torch._utils._rebuild of torch.uint16', which is not read"):
        open_stored(path)


def test_kinds_of_tensors_that_are_not_read_are_named(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sparse = torch.eye(3).to_sparse()
    for value, words in (
        (sparse, "'torch._utils._rebuild_sparse_tensor'"),
        (torch.ones(2, dtype=torch.complex64), "'torch._utils._rebuild of torch.ComplexFloatStorage'"),
        (torch.ones(2, dtype=torch.complex64).conj().imag, "a negated or conjugated view"),
    ):
        torch.save({"good": torch.ones(1), "bad": value}, path)
        with pytest.raises(ValueError, match="holds 'bad' as ") as error:
            open_stored(path)
        assert words in str(error.value)
        torch.save({"state_dict": {"good": torch.ones(1)}, "beside": value}, path)
        assert open_stored(path).entries.keys() == {"good"}


def test_what_is_no_dict_of_tensors(path: Path) -> None:
    for value, words in (
        (torch.ones(2), "holds one tensor, not a dict of tensors"),
        ([torch.ones(2)], "holds an object of the kind 'a list'"),
        (nn.Linear(1, 1), "holds an object of the kind 'torch.nn.modules.linear.Linear'"),
        (7, "holds one value of the kind 'int', not"),
        ({"a": 1}, "holds no tensors"),
    ):
        torch.save(value, path)
        with pytest.raises(ValueError, match=words):
            open_stored(path)


def test_files_of_other_writers(path: Path) -> None:
    """Without checksums, with names of any alphabet, packed again by another program."""
    torch.serialization.set_crc32_options(False)
    try:
        same(stored(path.with_name("日本 é.ckpt"), {"a": torch.ones(3)}), {"a": torch.ones(3)})
    finally:
        torch.serialization.set_crc32_options(True)
    torch.save({"a": torch.ones(3)}, path)
    again = path.with_name("again")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(again, "w") as new:
        new.mkdir("model")
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    same(open_stored(again), {"a": torch.ones(3)})
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(again, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    with pytest.raises(ValueError, match=r"compressed or encrypted, which torch.save never does"):
        open_stored(again)


# Nothing runs ---------------------------------------------------------------------------------------------
class Payload:
    """Pickles as a call of anything."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_in_a_checkpoint_runs(path: Path, tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "ran"
    attacks = (
        Payload(os.system, f"touch {marker}"),
        Payload(builtins.exec, f"open({str(marker)!r}, 'w')"),
        Payload(builtins.eval, f"open({str(marker)!r}, 'w')"),
        Payload(open, str(marker), "w"),
        Payload(getattr, os, "system"),
        Payload(__import__, "antigravity"),
        Payload(os.mkdir, str(marker)),
    )
    for attack in attacks[:4] + attacks[5:]:
        for value in ({"state_dict": {"a": torch.ones(2)}, "x": attack}, {"a": torch.ones(2), "x": [attack]}):
            same(stored(path, value, protocol), {"a": torch.ones(2)})
        for value in (attack, {"state_dict": attack}, {"state_dict": {"a": attack}}):
            torch.save(value, path, pickle_protocol=protocol)
            with pytest.raises(ValueError, match=r"holds (no tensors|an object of the kind)"):
                open_stored(path)
    assert not marker.exists()
    assert "antigravity" not in sys.modules


def test_built_and_called_by_hand(path: Path, tmp_path: Path) -> None:
    """Every way in which a pickle can make a machine do something, upon os.system."""
    marker = tmp_path / "ran"
    system, command = b"cposix\nsystem\n", text(f"touch {marker}")
    for made in (
        system + command + b"\x85R",
        system + command + b"\x85\x81",
        system + command + b"\x85}\x92",
        text("posix") + text("system") + b"\x93" + command + b"\x85R",
        b"cposix\nsystem\n}" + text("__setstate__") + system + b"sb",
        b"ccollections\nOrderedDict\n)R}" + text("__setstate__") + system + b"sb",
        system.replace(b"system", b"system.__call__") + command + b"\x85R" + command + b"\x85R",
        b"ctorch._utils\n_rebuild_parameter\n" + tensor() + b"\x89" + system + b"\x87R",
    ):
        assert opened(path, zipped(pickled(table(a=tensor(), x=made)))).entries.keys() >= {"a"}
    for code in (b"(" + command + b"iposix\nsystem\n", b"(" + system + command + b"o", b"\x82\x01", b"P1\n", b"\x97"):
        assert "its index holds the opcode 0x" in refusal(path, zipped(pickled(table(a=tensor(), x=code))))
    for code in (
        system + b"(" + command + command + b"u",
        system + command + b"a",
        tensor() + command + command + b"s",
    ):
        assert "its index puts" in refusal(path, zipped(pickled(table(a=tensor(), x=code))))
    assert not marker.exists()


# The pickle -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("index", "words"),
    [
        (pickled(table(a=tensor((2, 4), (4, 1)))), "reaches past its storage"),
        (pickled(table(a=tensor((2, 3), (3, 1), 1))), "reaches past its storage"),
        (pickled(table(a=tensor((2,), (6,)))), "reaches past its storage"),
        (pickled(table(a=tensor((1 << 62, 1 << 62), (1 << 62, 1 << 62)))), "reaches past its storage"),
        (pickled(table(a=tensor((1 << 62, 2), (0, 0)))), "larger than any memory"),
        (pickled(table(a=tensor((0, 1 << 62), (0, 0)))), "larger than any memory"),
        (pickled(table(a=tensor((1 << 20,), (0,)))), "larger than the whole file"),
        (pickled(table(a=tensor((-2, 3), (3, 1)))), "a negative or senseless size"),
        (pickled(table(a=tensor((2, 3), (-3, 1)))), "a negative or senseless size"),
        (pickled(table(a=tensor((2, 3), (3, 1), -1))), "a negative or senseless size"),
        (pickled(table(a=tensor((2, 1 << 63), (0, 0)))), "a negative or senseless size"),
        (pickled(table(a=tensor((2, 3), (3,)))), "another number of strides"),
        (pickled(table(a=tensor((1,) * 65, (1,) * 65))), "a shape that is none"),
        (pickled(table(a=tensor(of=storage(count=5)))), "the storage '0' has 24 bytes where 5 items should be"),
        (pickled(table(a=tensor(of=storage(count=-6)))), "has 24 bytes where -6 items should be"),
        (pickled(table(a=tensor(of=storage("1")))), "the storage '1' is missing"),
        (pickled(table(a=tensor(of=storage("../data.pkl")))), "the storage '../data.pkl' is missing"),
        (pickled(table(a=tensor(of=b"N"))), "a tensor in it has no storage"),
        (pickled(table(a=tensor(of=b")Q"))), "a storage in it is described wrongly"),
        (pickled(table(a=tensor(of=b"NQ"))), "a storage in it is described wrongly"),
        (pickled(table(a=tensor(of=b"(" + text("storage") + text("x") * 4 + b"tQ"))), "a storage in it is described"),
        (pickled(table(a=tensor(of=storage(kind="FloatStorage")[:-2] + b"NtQ"))), "a storage in it is described"),
        (pickled(table(a=tensor(of=tensor()))), "a tensor in it has no storage"),
        (pickled(table(a=NAME + b")R")), "a tensor in it is described wrongly"),
        (pickled(table(a=NAME + b"NR")), "calls with what are no arguments"),
        (pickled(table(a=NAME + b"]R")), "calls with what are no arguments"),
        (pickled(table(a=b"ctorch._utils\n_rebuild_tensor_v3\n)R")), "a tensor in it is described wrongly"),
        (pickled(table(a=b"ctorch._utils\n_rebuild_parameter\nNNN\x87R")), "a parameter in it is described wrongly"),
        (pickled(table(a=b"ctorch\nSize\n(NtR")), "has a shape that is none"),
        (pickled(b"}(" + text("a") + tensor() + text("a") + tensor() + b"u"), "it holds 'a' twice"),
        (pickled(b"}" + (text("a") + tensor() + b"s") * 2), "it holds 'a' twice"),
        (pickled(b"}(" + text("a.b") + tensor() + text("a") + table(b=tensor()) + b"u"), "it holds 'a.b' twice"),
        (pickled(table(**{"x" * 1001: tensor()})), "a tensor in it is called 'xxx"),
        (pickled(b"}q\0" + text("a") + b"h\0s"), "nests its dicts more than 16 deep"),
        (pickled(b"]q\0h\0a"), "holds an object of the kind 'a list'"),
        (pickled(b"}" * 3), "does not end where it should"),
        (pickled(b""), "does not end where it should"),
        (pickled(b"}("), "does not end where it should"),
        (pickled(b"}") + b"}", "does not end where it should"),
        (pickled(b"}")[:-1], "its index ends in the middle"),
        (b"", "no pickle of protocols 2 to 5"),
        (b"\x80", "no pickle of protocols 2 to 5"),
        (b"(dp0\n.", "no pickle of protocols 2 to 5"),
        (pickled(b"}", protocol=1), "no pickle of protocols 2 to 5"),
        (pickled(b"}", protocol=6), "no pickle of protocols 2 to 5"),
        (pickled(b"0"), "takes from an empty stack"),
        (pickled(b"N(s"), "takes from an empty stack"),
        (pickled(b"u"), "closes what it never opened"),
        (pickled(b"h\0"), "refers to what it did not hold before"),
        (pickled(b"}q\0j\1\1\1\1"), "refers to what it did not hold before"),
        (pickled(b"Na"), "takes from an empty stack"),
        (pickled(b"NNa"), "puts items into what is no list"),
        (pickled(b"N(NNu"), "puts pairs into what is no dict"),
        (pickled(b"}(Nu"), "puts pairs into what is no dict"),
        (pickled(b"NN\x93"), "a name in its index is no text"),
        (pickled(text("x" * 600) + text("x") + b"\x93"), "a name in its index is no text"),
        (pickled(b"c" + b"x" * 600 + b"\nx\n"), "a name in its index has no end"),
        (pickled(b"c\xff\nx\n"), "a name in its index is not UTF-8"),
        (pickled(b"X\1\0\0\0\xff"), "a text in its index is not UTF-8"),
        (pickled(b"X\xff\xff\xff\xff"), "its index ends in the middle"),
        (pickled(b"\x8d" + b"\xff" * 8), "its index ends in the middle"),
        (pickled(b"\x8e" + b"\xff" * 8), "its index ends in the middle"),
        (pickled(b"\x96" + struct.pack("<Q", 1 << 62)), "its index ends in the middle"),
        (pickled(b"\x8b\xff\xff\xff\x7f"), "its index ends in the middle"),
        (pickled(b"\x8b\xff\xff\xff\xff"), "its index ends in the middle"),
        (pickled(b"\x95" + b"\xff" * 8), "its index ends in the middle"),
    ],
)
def test_indexes_that_contradict_themselves(path: Path, index: bytes, words: str) -> None:
    assert words in refusal(path, zipped(index))


def test_deep_and_wide_indexes_end_soon(path: Path) -> None:
    """Nesting of every kind around a good tensor: passed over or refused, and nothing breaks when it is let go."""
    deep = 100_000
    good = text("a") + tensor()
    for made in (b"(" * deep + b"t" * deep, b"N" + b"\x85" * deep, b"]" * deep + b"a" * (deep - 1), b"N" + b"2" * deep):
        data = zipped(pickled(b"}(" + good + text("x") + made + (b"0" * deep if made.endswith(b"2") else b"") + b"u"))
        assert opened(path, data).entries.keys() == {"a"}
    nested = b"".join(b"}" + text("k") for _ in range(deep // 2)) + b"N" + b"s" * (deep // 2)
    assert "nests its dicts" in refusal(path, zipped(pickled(b"}(" + good + text("x") + nested + b"u")))
    assert opened(path, zipped(pickled(table(state_dict=b"}" + good + b"s", x=nested)))).entries.keys() == {"a"}
    inert = b"".join(b"ca\nb\n)\x81}" + text("k") for _ in range(20_000)) + b"N" + b"sb" * 20_000
    assert opened(path, zipped(pickled(table(a=tensor(), x=inert)))).entries.keys() == {"a"}


def laughs(empty: bytes, fill: bytes, levels: int = 200) -> bytes:
    """Each level holds the one before ten times; only the last is left on the stack."""
    body = empty + b"q\0"
    for level in range(1, levels):
        pairs = b"".join((text(f"{i}") if fill == b"u" else b"") + b"h" + bytes([level - 1]) for i in range(10))
        body += b"0" + (b"" if fill == b"t" else empty) + b"(" + pairs + fill + b"q" + bytes([level])
    return body


def test_a_billion_laughs_are_not_laughed(path: Path) -> None:
    """10^200 lists, tuples, sets and dicts beside the tensors cost what is written; among them they are refused."""
    for empty, fill in ((b"]", b"e"), (b")", b"t"), (b"\x8f", b"\x90"), (b"}", b"u")):
        data = zipped(pickled(table(state_dict=table(a=tensor()), x=laughs(empty, fill))))
        assert opened(path, data).entries.keys() == {"a"}
    assert "nests its dicts" in refusal(path, zipped(pickled(table(a=tensor(), x=laughs(b"}", b"u")))))
    assert "describes far more" in refusal(path, zipped(pickled(table(a=tensor(), x=laughs(b"}", b"u", 12)))))


# The zip --------------------------------------------------------------------------------------------------
GOOD = zipped(pickled(table(a=tensor())), version=b"3\n", byteorder=b"little")


def changed(find: bytes, offset: int, form: str, value: int, *, last: bool = False) -> bytes:
    """The good file with a number in one of its records replaced."""
    data = bytearray(GOOD)
    at = (data.rindex(find) if last else data.index(find)) + offset
    struct.pack_into(form, data, at, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (changed(b"PK\x01\x02", 8, "<H", 1), "compressed or encrypted"),
        (changed(b"PK\x01\x02", 10, "<H", 8), "compressed or encrypted"),
        (changed(b"PK\x01\x02", 16, "<I", 1), "the checksum of its index is wrong"),
        (changed(b"PK\x01\x02", 20, "<I", 1), "the sizes of 'archive/data.pkl' disagree"),
        (changed(b"PK\x01\x02", 24, "<I", 0xFFFFFFFF), "a size in it is missing"),
        (changed(b"PK\x01\x02", 34, "<H", 1), "the sizes of 'archive/data.pkl' disagree"),
        (changed(b"PK\x01\x02", 28, "<H", 0xFFFF), "its list of contents is broken"),
        (changed(b"PK\x01\x02", 30, "<H", 1), "its list of contents is broken"),
        (changed(b"PK\x01\x02", 42, "<I", 1), "'archive/data.pkl' is not where its list of contents says"),
        (changed(b"PK\x01\x02", 42, "<I", 0, last=True), "'archive/byteorder' is not where"),
        (changed(b"PK\x01\x02", 42, "<I", 1 << 31, last=True), "it points past its end"),
        (changed(b"PK\x03\x04", 26, "<H", 3), "'archive/data.pkl' is not where its list of contents says"),
        (changed(b"PK\x03\x04", 8, "<H", 8), "the two descriptions of 'archive/data.pkl' disagree"),
        (changed(b"PK\x03\x04", 22, "<I", 8), "the two descriptions of 'archive/data.pkl' disagree"),
        (changed(b"PK\x03\x04", 28, "<H", 9), "does not begin behind the file before it"),
        (changed(b"PK\x03\x04", 28, "<H", 60, last=True), "'archive/byteorder' runs into what follows"),
        (changed(b"PK\x05\x06", 10, "<H", 3), "it is one part of several, or has a comment"),
        (changed(b"PK\x05\x06", 16, "<I", 3), "perhaps two files were joined"),
        (changed(b"PK\x05\x06", 12, "<I", 3), "perhaps two files were joined"),
        (changed(b"PK\x05\x06", 20, "<H", 3), "it is one part of several, or has a comment"),
    ],
)
def test_zips_that_contradict_themselves(path: Path, data: bytes, words: str) -> None:
    same(opened(path, GOOD), {"a": torch.tensor(memoryview(bytearray(DATA)).cast("f").tolist()).view(2, 3)})
    assert words in refusal(path, data)


def test_a_name_that_occurs_twice(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(path, "w") as file:
            for name in ("data.pkl", "data/0", "data/0"):
                file.writestr(f"archive/{name}", DATA)
    assert "it holds 'archive/data/0' twice" in refusal(path, path.read_bytes())


def test_other_zips(path: Path) -> None:
    index = pickled(table(a=tensor()))
    assert "is a TorchScript program" in refusal(path, zipped(index, **{"constants.pkl": b""}))
    assert "the other byte order" in refusal(path, zipped(index, byteorder=b"big"))
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model.safetensors", b"")
    assert "not one that torch.save wrote" in refusal(path, path.read_bytes())
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", index)
        file.writestr("b/data.pkl", index)
    assert "not one that torch.save wrote" in refusal(path, path.read_bytes())
