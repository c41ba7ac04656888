"""Safetensors: every dtype, and the same verdict as the safetensors library on anything that looks like it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from frostline.checkpoint.readers.contents import Contents
from frostline.checkpoint.readers.open_file import read_contents
from frostline.checkpoint.readers.safetensors_file import DTYPES, NARROW, read_safetensors
from frostline.checkpoint.readers.source import SourceFile
from frostline.errors import CheckpointError, CorruptCheckpoint

HERE = [name for name in DTYPES.values() if hasattr(torch, name)]
TWO = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2], dtype=torch.int16)}


def build(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def ours(content: bytes, folder: Path) -> Contents:
    path = folder / "a.safetensors"
    path.write_bytes(content)
    return read_safetensors(SourceFile(path))


def theirs(content: bytes, folder: Path) -> dict[str, Any] | None:
    """Shapes and values as the library reads them; nothing if it refuses the file."""
    path = folder / "b.safetensors"
    path.write_bytes(content)
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, OverflowError, RuntimeError, TypeError):
        return None


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("name", HERE)
def test_every_dtype_is_read_to_the_bit(name: str, tmp_path: Path):
    dtype = getattr(torch, name)
    flat = torch.arange(6 * dtype.itemsize, dtype=torch.uint8)
    flat = flat % 2 if dtype is torch.bool else flat
    saved = {"a": flat.view(dtype).reshape(2, 3), "scalar": flat[: dtype.itemsize].clone().view(dtype).reshape(())}
    safetensors.torch.save_file(saved, tmp_path / "a.safetensors")
    found = read_contents(tmp_path / "a.safetensors")
    assert found.format == "safetensors"
    for key, value in saved.items():
        stored: Any = found.root[key]
        assert (stored.dtype, stored.shape) == (dtype, tuple(value.shape))
        assert raw(stored.read()) == raw(value)
        assert b"".join(raw(piece) for piece in stored.pieces(5)) == raw(value)


def test_names_metadata_places_and_tensors_without_elements(tmp_path: Path):
    saved = {"z": torch.zeros(0, 3), "a": torch.ones(2), "also.empty": torch.zeros(0)}
    safetensors.torch.save_file(saved, tmp_path / "a", {"format": "pt", "note": "ü"})
    found = read_contents(tmp_path / "a")
    root: Any = found.root
    assert found.metadata == {"format": "pt", "note": "ü"}
    assert found.files == (tmp_path / "a",)
    assert {name: stored.shape for name, stored in root.items()} == {"z": (0, 3), "a": (2,), "also.empty": (0,)}
    assert len({stored.place for stored in root.values()}) == 3
    assert root["z"].read().shape == (0, 3)
    assert list(root["z"].pieces(4)) == []
    one, other = root["a"].read(), root["a"].read()
    assert one.data_ptr() != other.data_ptr()
    assert torch.equal(one, saved["a"])


GOOD = build({"a": entry()}, bytes(4))
# Each of these the library refuses as well; the test compares.
REFUSED = {
    "no header": b"\x00" * 7,
    "a header longer than the file": build({"a": entry()}, bytes(4), length=5000),
    "a header longer than allowed": build({}, length=100_000_001),
    "a header of 2**64 - 1 bytes": build({}, length=2**64 - 1),
    "no JSON": build(b'{"a":'),
    "a list": build([]),
    "no UTF-8": build(b'{"\xff": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', bytes(4)),
    "half a surrogate pair": build(b'{"\\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', bytes(4)),
    "NaN": build(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "x": NaN}}', bytes(4)),
    "minus zero": build(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-0, 4]}}', bytes(4)),
    "an unknown dtype": build({"a": entry("F33")}, bytes(4)),
    "a dtype that is a number": build({"a": {**entry(), "dtype": 1}}, bytes(4)),
    "a negative size": build({"a": entry(shape=[-1])}, bytes(4)),
    "a size that is true": build({"a": entry(shape=[True])}, bytes(4)),
    "a size with a point": build({"a": entry(shape=[1.0])}, bytes(4)),
    "a shape that is a number": build({"a": entry(shape=1)}, bytes(4)),
    "three offsets": build({"a": entry(offsets=[0, 4, 4])}, bytes(4)),
    "offsets that go back": build({"a": entry(offsets=[4, 0])}, bytes(4)),
    "too few bytes for the shape": build({"a": entry(shape=[2])}, bytes(4)),
    "an overflowing shape": build({"a": entry(shape=[2**62, 4], offsets=[0, 0])}),
    "a shape that overflows before it is zero": build({"a": entry(shape=[2**40, 2**40, 0], offsets=[0, 0])}),
    "no offsets": build({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    "no tensor": build({"a": 1}),
    "overlapping tensors": build({"a": entry(), "b": entry(offsets=[2, 6])}, bytes(6)),
    "a tensor twice the same": build({"a": entry(), "b": entry()}, bytes(4)),
    "a hole": build({"a": entry(), "b": entry(offsets=[8, 12])}, bytes(12)),
    "a hole at the front": build({"a": entry(offsets=[4, 8])}, bytes(8)),
    "bytes behind the last": build({"a": entry()}, bytes(5)),
    "bytes that are not there": build({"a": entry()}, bytes(3)),
    "metadata with numbers": build({"__metadata__": {"a": 1}, "a": entry()}, bytes(4)),
    "metadata that is a list": build({"__metadata__": [], "a": entry()}, bytes(4)),
    "metadata twice": build(b'{"__metadata__": {}, "__metadata__": {}}'),
    "JSON nested 100,000 deep": build(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "an ignored field nested 200 deep": build(
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "x": ' + b"[" * 200 + b"]" * 200 + b"}}",
        bytes(4),
    ),
    "an ignored number that is too large": build(
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "x": 1e999}}', bytes(4)
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_library_refuses_is_refused(what: str, tmp_path: Path):
    assert theirs(REFUSED[what], tmp_path) is None
    with pytest.raises(CorruptCheckpoint, match=r"cut short or damaged \([\d,]+ bytes\)\n  found: ") as caught:
        ours(REFUSED[what], tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        build({}),
        build({"__metadata__": None, "a": entry()}, bytes(4)),
        build(b' {"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}   \n', bytes(4)),
        build({"a": entry(ignored={"b": [1.5, -0]})}, bytes(4)),
        build({"a": entry(shape=[0, 2**40], offsets=[0, 0])}),
        build({"b": entry(offsets=[4, 8]), "a": entry(), "empty": entry(shape=[0], offsets=[4, 4])}, bytes(8)),
        build({"-0": entry()}, bytes(4)),
    ],
)
def test_what_the_library_accepts_is_accepted(content: bytes, tmp_path: Path):
    expected = theirs(content, tmp_path)
    assert expected is not None
    found: Any = ours(content, tmp_path).root
    assert {name: stored.shape for name, stored in found.items()} == {n: tuple(v.shape) for n, v in expected.items()}
    assert all(torch.equal(stored.read(), expected[name]) for name, stored in found.items())


def test_a_name_that_occurs_twice_is_refused_though_the_library_drops_one(tmp_path: Path):
    one = b'"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    content = build(b"{" + one + b", " + one + b"}", bytes(4))
    assert list(theirs(content, tmp_path) or {}) == ["a"]  # without a word
    with pytest.raises(CorruptCheckpoint, match="found: a header that cannot be read: ValueError: the name a twice"):
        ours(content, tmp_path)


@pytest.mark.parametrize("label", sorted(NARROW))
def test_dtypes_that_torch_lacks_are_named(label: str, tmp_path: Path):
    with pytest.raises(CheckpointError, match=f"dtypes that torch .* does not have: {label}\n") as caught:
        ours(
            build({"a": entry(label, [8], [0, 4 if label == "F4" else 6])}, bytes(6)[: 4 if label == "F4" else 6]),
            tmp_path,
        )
    assert not isinstance(caught.value, CorruptCheckpoint)


whole = safetensors.torch.save(TWO, {"format": "pt"})
numbers = st.sampled_from([b"0", b"1", b"2", b"3", b"24", b"28", b"-1", b"1.0", b"9" * 30, b"null", b"[]", b'"F32"'])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_change_gets_the_verdict_of_the_library(tmp_path: Path, data: st.DataObject):
    end = 8 + int.from_bytes(whole[:8], "little")
    if data.draw(st.booleans(), "blind"):
        at = data.draw(st.integers(0, len(whole) - 1))
        content = whole[:at] + data.draw(st.binary(max_size=9)) + whole[at + data.draw(st.integers(0, 9)) :]
    else:
        places = [index for index in range(8, end) if whole[index : index + 1].isdigit() or whole[index] in b'"[]{}:,']
        at = data.draw(st.sampled_from(places))
        text = whole[8:at] + data.draw(numbers) + whole[at + 1 : end]
        content = len(text).to_bytes(8, "little") + text + whole[end:]
    expected = theirs(content, tmp_path)
    try:
        found: Any = ours(content, tmp_path).root
    except CheckpointError:
        assert expected is None
    else:
        assert expected is not None
        assert {n: raw(stored.read()) for n, stored in found.items()} == {n: raw(v) for n, v in expected.items()}
