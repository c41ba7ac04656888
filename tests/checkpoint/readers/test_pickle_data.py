"""A pickle read as data: the values that Python reads, no code, no allocation that the pickle does not pay for."""

from __future__ import annotations

import argparse
import contextlib
import copyreg
import datetime
import io
import json
import os
import pickle
import tracemalloc
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from frostline.checkpoint.readers.open_file import read_contents
from frostline.checkpoint.readers.pickle_data import BadPickle, read_pickle
from frostline.checkpoint.readers.pickle_names import Names, Opaque
from frostline.errors import CheckpointError, CorruptCheckpoint, UnsafeCheckpoint


def read(content: bytes) -> tuple[Any, set[str]]:
    names = Names({}, len(content))
    value, end = read_pickle(content, names, lambda found: Opaque(str(found)))
    assert end == len(content)
    return value, names.wanted


def save_zip(value: Any, path: Path, protocol: int = 2) -> Path:
    torch.save(value, path, pickle_protocol=protocol)
    return path


def save_legacy(value: Any, path: Path, protocol: int = 2) -> Path:
    torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    return path


# Values

keys = st.one_of(st.text(max_size=5), st.integers(-(2**60), 2**60), st.booleans(), st.none(), st.binary(max_size=3))
plain = st.recursive(
    st.one_of(
        keys, st.floats(allow_nan=False), st.integers(-(2**500), 2**500), st.binary(max_size=300),
        st.text(max_size=300), st.complex_numbers(allow_nan=False), st.builds(bytearray, st.binary(max_size=9)),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4).map(OrderedDict),
        st.dictionaries(keys, st.integers(0, 9), max_size=4).map(Counter),
        st.sets(keys, max_size=4),
        st.frozensets(st.tuples(keys, keys), max_size=4),
        inner.map(lambda value: [value, value]),
    ),
    max_leaves=12,
)  # fmt: skip


@given(plain, st.integers(0, 5))
def test_plain_data_is_read_as_python_reads_it(value: Any, protocol: int):
    found, wanted = read(pickle.dumps(value, protocol))
    assert found == value
    assert repr(found) == repr(pickle.loads(pickle.dumps(value, protocol)))
    assert not wanted


@given(plain, st.data())
def test_any_damage_is_an_error_of_ours_or_data(value: Any, data: st.DataObject):
    content = bytearray(pickle.dumps(value, data.draw(st.integers(0, 5))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        found, _ = read_pickle(bytes(content), Names({}, len(content)), lambda found: Opaque("persistent"))
    except BadPickle:
        return
    assert not callable(found)


def test_texts_of_python_2_and_what_is_no_text():
    assert read(b"\x80\x02U\x03abc.")[0] == "abc"
    assert read(b"S'a\\x62\\n'\n.")[0] == "ab\n"
    assert read(b"\x80\x02U\x02\xff\xfe.")[0] == b"\xff\xfe"
    assert read(b"T\x02\x00\x00\x00ab.")[0] == "ab"
    assert read(b"(I01\nI00\nI-7\nL8L\nF1.5\nt.")[0] == (True, False, -7, 8, 1.5)
    with pytest.raises(BadPickle):
        read(b"\x80\x02X\x03\x00\x00\x00\xed\xa0\x80.")  # half of a surrogate pair


def test_the_memo_of_every_protocol():
    assert read(b"](lp0\n0g0\na.")[0] == [[]]
    shared = read(pickle.dumps([value := [1], value], 4))[0]
    assert shared[0] is shared[1]


# Inert stand-ins


def test_harmless_types_are_left_as_stand_ins(tmp_path: Path):
    saved = {
        "args": argparse.Namespace(lr=0.1, out=Path("a")),
        "path": Path("a/b"),
        "when": datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc),
        "scalar": np.float64(1.5),
        "array": np.arange(3),
        "factory": defaultdict(list, {"a": [1]}),
        "weight": torch.ones(2),
    }
    for save in (save_zip, save_legacy):
        for protocol in (2, 4):
            found = read_contents(save(saved, tmp_path / "a.pt", protocol))
            root: Any = found.root
            assert torch.equal(root["weight"].read(), torch.ones(2))
            assert dict(root["factory"]) == {"a": [1]}
            assert root["factory"].default_factory is None
            kinds = [type(root[name]) for name in ("args", "path", "when", "scalar", "array")]
            assert kinds == [Opaque] * 5
            assert "argparse.Namespace" in found.opaque
            assert "datetime.datetime" in found.opaque
            assert any("pathlib" in name for name in found.opaque)
            assert any("multiarray" in name for name in found.opaque)


# Code


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


class Built:
    """Runs code when its state is set."""

    def __setstate__(self, state: str) -> None:
        os.mkdir(state)


class New:
    """Runs code when it is made."""

    def __new__(cls, mark: str = "") -> Any:
        if mark:
            os.mkdir(mark)
        return super().__new__(cls)


MKDIR = f"{os.mkdir.__module__}\nmkdir".encode()


def text(value: object) -> bytes:
    encoded = str(value).encode()
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def programs(mark: Path) -> dict[str, bytes]:
    """The same call in the instructions that can make one."""
    module, _, name = MKDIR.partition(b"\n")
    here = f"{__name__}\n".encode()
    found = {f"protocol {protocol}": pickle.dumps([1, Evil(mark)], protocol) for protocol in range(6)}
    return found | {
        "reduce": b"c" + MKDIR + b"\n" + text(mark) + b"\x85R.",
        "inst": b"(" + text(mark) + b"i" + MKDIR + b"\n.",
        "obj": b"(c" + MKDIR + b"\n" + text(mark) + b"o.",
        "newobj": b"\x80\x02c" + here + b"New\n" + text(mark) + b"\x85\x81.",
        "newobj_ex": b"\x80\x04c" + here + b"New\n" + text(mark) + b"\x85}\x92.",
        "build": b"c" + here + b"Built\n)R" + text(mark) + b"b.",
        "stack_global": b"\x80\x04" + text(module.decode()) + text(name.decode()) + b"\x93" + text(mark) + b"\x85R.",
        "extension": b"\x80\x02\x82\xf0" + text(mark) + b"\x85R.",
        "behind damage": b"c" + MKDIR + b"\n" + text(mark) + b"\x85R0\xff",
        "in a list that is dropped": b"(c" + MKDIR + b"\n" + text(mark) + b"\x85Rl0N.",
        "as a key": b"(c" + MKDIR + b"\n" + text(mark) + b"\x85RK\x01d.",
    }


@pytest.fixture
def extension(request: pytest.FixtureRequest) -> Any:
    copyreg.add_extension("os", "makedirs", 0xF0)
    yield
    copyreg.remove_extension("os", "makedirs", 0xF0)


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or __import__("types").ModuleType(__name__))
    for kind in (New, Built):
        monkeypatch.setattr(sys.modules[__name__], kind.__name__, kind, raising=False)


@pytest.mark.parametrize("how", programs(Path()))
@pytest.mark.usefixtures("extension", "importable")
def test_no_code_is_run_whatever_asks_for_it(how: str, tmp_path: Path):
    mark = tmp_path / "ran"
    content = programs(mark)[how]
    path = tmp_path / "a.pkl"
    path.write_bytes(content)
    for allowed in (False, True):  # it is none of torch, so that nobody can allow it
        with pytest.raises(CheckpointError) as caught:
            read_contents(path, allow_pickle=allowed)
        assert "allow_pickle" not in str(caught.value)
    wanted = names_of(content)
    expected = {"newobj": "New", "newobj_ex": "New", "build": "Built", "extension": "extension 240"}.get(how, "mkdir")
    assert any(name.endswith(expected) for name in wanted)
    assert not mark.exists()
    with contextlib.suppress(pickle.UnpicklingError, TypeError):
        pickle.loads(content)  # the failing twin
    assert mark.exists()


def names_of(content: bytes) -> set[str]:
    names = Names({}, len(content))
    with contextlib.suppress(BadPickle):
        read_pickle(content, names, Opaque)  # type: ignore[arg-type]
    return names.wanted


@pytest.mark.parametrize("save", [save_zip, save_legacy])
@pytest.mark.parametrize("protocol", range(1, 6))
def test_a_checkpoint_that_wants_code_is_refused_until_it_is_allowed(save: Any, protocol: int, tmp_path: Path):
    mark = tmp_path / "ran"
    path = save({"a": torch.ones(2), "b": Evil(mark), "c": json.loads}, tmp_path / "a.pt", protocol)
    with pytest.raises(UnsafeCheckpoint) as caught:
        read_contents(path)
    message = str(caught.value)
    assert f"nothing of it was run\n  wanted: json.loads, {os.mkdir.__module__}.mkdir\n" in message
    assert "only if you trust the file as you trust a program: allow_pickle=True runs that code" in message
    assert "weights_only" not in message
    assert caught.value.exit_code == 3
    assert not mark.exists()
    found = read_contents(path, allow_pickle=True)
    assert mark.exists()
    root: Any = found.root
    assert torch.equal(root["a"].read(), torch.ones(2))


def test_allowing_pickles_runs_nothing_where_nothing_needs_to_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = save_zip({"a": torch.ones(2), "args": argparse.Namespace()}, tmp_path / "a.pt")
    monkeypatch.setattr(torch, "load", None)
    root: Any = read_contents(path, allow_pickle=True).root
    assert torch.equal(root["a"].read(), torch.ones(2))


def test_a_whole_module_names_its_classes_and_is_its_state_dict_once_allowed(tmp_path: Path):
    model = nn.Sequential(nn.BatchNorm1d(2), nn.ReLU())
    path = save_zip({"model": model}, tmp_path / "a.pt")
    with pytest.raises(UnsafeCheckpoint) as caught:
        read_contents(path)
    for name in ("torch.nn.modules.container.Sequential", "torch.nn.modules.batchnorm.BatchNorm1d"):
        assert name in str(caught.value)
    assert "_rebuild" not in str(caught.value)
    assert "OrderedDict" not in str(caught.value)
    found = read_contents(path, allow_pickle=True)
    root: Any = found.root
    assert list(root["model"]) == list(model.state_dict())
    assert found.versions == {"model": {"": 1, "0": 2, "1": 1}}


# Bombs


def nested(open_: bytes, close: bytes, depth: int) -> bytes:
    return b"\x80\x02" + open_ * depth + close * depth + b"."


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"\x80\x02N" + b"\x85" * 20_000 + b".", "nested more than 100 deep"),
        (b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b".", "nested more than 100 deep"),
        (b"\x80\x02]q\x00h\x00a.", "a container that holds itself"),
        (b"\x80\x02}q\x00K\x01]h\x00as.", "a container that holds itself"),
        (b"\x80\x02]" + b"2\x86" * 90 + b".", r"entries, all made of 1\d\d"),  # each level holds the one below twice
        (b"\x80\x02}N" + b"2\x86" * 64 + b"K\x01s.", "a tuple as a key"),
        (b"\x80\x02(N" + b"2\x86" * 64 + b"\x91.", "a tuple as a key"),
        (b"\x80\x02K\x01r\xff\xff\xff\xffj\xff\xff\xff\xff\xff", "no instruction: 0xff"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "an instruction that does not fit"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.", "a value that is cut off"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f\x01.", "a value that is cut off"),
        (b"L" + b"9" * 100_000 + b"L\n.", "a number that is too large"),
        (b"\x80\x02\x8b\x00\x10\x00\x00" + b"\x01" * 4096 + b".", "a number that is too large"),
        (b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.", "a bytearray that is not made of bytes"),
        (b"\x80\x02cbuiltins\nset\ncbuiltins\nrange\nJ\xff\xff\xff\x7f\x85R\x85R.", "is to be copied"),
        (b"ccollections\nOrderedDict\n(K\x01K\x02u.", "entries for a Global"),
        (b"\x80\x02ctorch\nSize\n(K\x01K\x02t\x85R)R.", "a call of a Size"),
    ],
)
def test_bombs_neither_hang_nor_crash(content: bytes, found: str, tmp_path: Path):
    path = tmp_path / "a.pt"
    header = b"".join(pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, {}))
    path.write_bytes(header + content + pickle.dumps([], 2))
    tracemalloc.start()
    try:
        with pytest.raises(CorruptCheckpoint, match=found):
            read_contents(path)
        assert tracemalloc.get_traced_memory()[1] < 300 * (len(content) + 2**16)
    finally:
        tracemalloc.stop()


def test_copies_of_one_text_are_counted(tmp_path: Path):
    """A text of one megabyte, and ten bytes for each copy of it."""
    begin = b"\x80\x02X" + (2**20).to_bytes(4, "little") + b"a" * 2**20 + b"q\x000c_codecs\nencode\nq\x010]"
    content = begin + b"h\x01h\x00X\x06\x00\x00\x00latin1\x86Ra" * 500
    names = Names({}, len(content))
    with pytest.raises(BadPickle, match="more data than the file has bytes"):
        read_pickle(content + b".", names, Opaque)  # type: ignore[arg-type]


def test_a_pickle_of_torch_in_a_stream_of_another(tmp_path: Path):
    stream = io.BytesIO()
    pickle.dump([1], stream)
    pickle.dump("two", stream)
    content = stream.getvalue()
    names = Names({}, len(content))
    first, end = read_pickle(content, names, Opaque)  # type: ignore[arg-type]
    second, last = read_pickle(content, names, Opaque, end)  # type: ignore[arg-type]
    assert (first, second, last) == ([1], "two", len(content))
