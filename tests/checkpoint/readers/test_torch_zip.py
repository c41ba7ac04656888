"""Torch's zip files: the values that torch reads, each record checked once, and archives that lie."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frostline.checkpoint.readers.open_file import read_contents
from frostline.checkpoint.stored import InMemory, StoredTensor
from frostline.errors import CheckpointError, CorruptCheckpoint, UnsafeCheckpoint

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64, torch.complex128,
    torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


def save(value: Any, path: Path, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def values(stored: Any) -> Any:
    """The same nesting, with every tensor read."""
    if isinstance(stored, StoredTensor):
        return stored.read()
    if isinstance(stored, dict):
        return {key: values(inner) for key, inner in stored.items()}
    if isinstance(stored, (list, tuple)):
        return type(stored)(values(inner) for inner in stored)
    return stored


def same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and raw(left) == raw(right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right and type(left) is type(right)


def raw(tensor: Tensor) -> bytes:
    flat = tensor.detach().contiguous()
    return flat.as_strided((flat.numel(),), (1,)).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_read_to_the_bit(dtype: torch.dtype, tmp_path: Path):
    flat = torch.arange(6 * dtype.itemsize, dtype=torch.uint8)
    flat = flat % 2 if dtype is torch.bool else flat
    saved = {"a": flat.view(dtype).reshape(2, 3), "scalar": flat.view(dtype)[0].clone(), "none": flat.view(dtype)[:0]}
    root: Any = read_contents(save(saved, tmp_path / "a.pt")).root
    assert same(values(root), saved)
    assert same(values(root), torch.load(tmp_path / "a.pt"))
    assert b"".join(raw(piece) for piece in root["a"].pieces(5)) == raw(saved["a"])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_views_strides_parameters_and_what_lies_beside_them(protocol: int, tmp_path: Path):
    base = torch.arange(24.0)
    saved = {
        "transposed": base.reshape(4, 6).t(),
        "channels last": torch.arange(48.0).reshape(1, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "every other": base[1::2],
        "part": base[5:11].reshape(2, 3),
        "repeated": base[3:4].expand(2, 5),
        "one": base[7],
        "parameter": nn.Parameter(torch.ones(2)),
        "text": "résumé",
        "numbers": [1, -1, 255, 256, 65536, 2**31, 2**70, -(2**70), 0.5, 1 + 2j, True, None],
        "nested": {"tuple": (1, (2, 3), ()), "list": [[], {}], "set": {1, 2}, "frozen": frozenset({3})},
        "bytes": b"\x00\xff",
        "array": bytearray(b"ab"),
        "counts": Counter({"a": 2}),
        "defaults": defaultdict(int, {"a": 1}),
        "size": torch.Size([1, 2]),
        "device": torch.device("cuda:1"),
        "dtype": torch.bfloat16,
    }
    found = read_contents(save(saved, tmp_path / "a.pt", pickle_protocol=protocol))
    read = values(found.root)
    assert read.pop("defaults") == {"a": 1}
    assert read.pop("counts") == Counter({"a": 2})
    assert not read["parameter"].requires_grad
    assert same(read, {name: value for name, value in saved.items() if name not in {"defaults", "counts"}})
    assert all(value.is_contiguous() for value in read.values() if isinstance(value, Tensor))
    assert found.opaque == ()
    part: Any = found.root["part"]  # type: ignore[index]
    assert b"".join(raw(piece) for piece in part.pieces(7)) == raw(saved["part"])


def test_tied_tensors_have_one_place_and_views_of_other_shapes_do_not(tmp_path: Path):
    base = torch.arange(6.0)
    saved = {"a": base, "b": base, "c": base.reshape(2, 3), "d": base.clone(), "e": base[1:], "f": base[1:]}
    root: Any = read_contents(save({"x": saved}, tmp_path / "a.pt")).root["x"]  # type: ignore[index]
    places = {name: stored.place for name, stored in root.items()}
    assert places["a"] == places["b"]
    assert places["e"] == places["f"]
    assert len(set(places.values())) == 4
    other: Any = read_contents(save(saved, tmp_path / "b.pt")).root
    assert other["a"].place != places["a"]  # another file


def test_versions_of_state_dicts_are_told_by_their_container(tmp_path: Path):
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
    found = read_contents(save({"state": {"model": model.state_dict()}, "x": OrderedDict()}, tmp_path / "a.pt"))
    assert found.versions == {"state.model": {"": 1, "0": 2, "1": 1}}
    assert read_contents(save(model.state_dict(), tmp_path / "b.pt")).versions == {"": {"": 1, "0": 2, "1": 1}}


@pytest.mark.filterwarnings("ignore:.*quantize.*:UserWarning")
def test_rare_tensors_are_read_by_torch(tmp_path: Path):
    quantized = torch.quantize_per_tensor(torch.arange(4.0), 0.5, 1, torch.qint8)
    conjugated = torch.tensor([1 + 2j]).conj()
    saved = {"q": quantized, "sparse": torch.eye(2).to_sparse(), "plain": torch.ones(2), "conjugated": conjugated}
    found = read_contents(save(saved, tmp_path / "a.pt"))
    root: Any = found.root
    assert isinstance(root["plain"], InMemory)
    assert torch.equal(root["plain"].read(), torch.ones(2))
    assert torch.equal(root["q"].read().int_repr(), quantized.int_repr())
    assert torch.equal(root["conjugated"].read().resolve_conj(), conjugated.resolve_conj())
    assert found.opaque == ("torch.Tensor (sparse)",)


def test_tensors_without_values_in_a_row_are_stand_ins(tmp_path: Path):
    saved = {
        "sparse": torch.eye(2).to_sparse(),
        "meta": torch.ones(2, device="meta"),
        "plain": torch.ones(2),
    }
    found = read_contents(save(saved, tmp_path / "a.pt"))
    root: Any = found.root
    assert [type(value).__name__ for value in root.values()] == ["Opaque", "Opaque", "FileTensor"]
    assert found.opaque == ("torch.Tensor (meta)", "torch.Tensor (sparse)")


def test_tensors_of_many_dimensions(tmp_path: Path):
    root: Any = read_contents(save({"a": torch.ones([1] * 99 + [2])}, tmp_path / "a.pt")).root
    assert root["a"].read().shape == (1,) * 99 + (2,)
    path = save({"a": torch.ones(4)[::2].reshape([1] * 99 + [2])}, tmp_path / "b.pt")
    with pytest.raises(CorruptCheckpoint, match="a tensor of 100 dimensions that is not contiguous"):
        read_contents(path)


def test_a_tensor_with_attributes_is_the_tensor(tmp_path: Path):
    tensor = torch.arange(3.0)
    tensor.note = "x"  # type: ignore[attr-defined]
    root: Any = read_contents(save({"a": tensor}, tmp_path / "a.pt")).root
    assert torch.equal(root["a"].read(), torch.arange(3.0))


@pytest.mark.parametrize("folder", ["archive", "some name", "ü"])
def test_the_records_may_lie_under_any_name(folder: str, tmp_path: Path):
    content = save({"a": torch.ones(3)}, tmp_path / "a.pt").read_bytes()
    path = rebuilt(content, tmp_path / "b.pt", lambda name: f"{folder}/{name.partition('/')[2]}")
    root: Any = read_contents(path).root
    assert torch.equal(root["a"].read(), torch.ones(3))


def rebuilt(content: bytes, path: Path, rename: Any = str, change: Any = None, **options: Any) -> Path:
    """The same records, written by another library."""
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w", **options) as new:
        for name in old.namelist():
            record = old.read(name)
            new.writestr(rename(name), change(name, record) if change else record)
    return path


def pickled(name: str) -> bool:
    return name.endswith("/data.pkl")


# Checksums


def damaged(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[content.index(b"data/0") + 600] ^= 1
    path.write_bytes(content)
    return path


def test_a_flipped_bit_is_seen_wherever_the_record_is_first_read(tmp_path: Path):
    base = torch.zeros(500)
    path = damaged(save({"all": base, "front": base[:4], "other": torch.ones(2)}, tmp_path / "a.pt"))
    assert torch.load(path)["all"].count_nonzero() == 1  # without a word
    for name in ("all", "front"):
        root: Any = read_contents(path).root
        for read in (root[name].read, lambda stored=root[name]: list(stored.pieces(64))):
            with pytest.raises(CorruptCheckpoint, match=r"does not match its checksum\n  found: a/data/0\n  fix"):
                read()
        assert torch.equal(root["other"].read(), torch.ones(2))


@pytest.mark.filterwarnings("ignore:.*quantize.*:UserWarning")
def test_a_flipped_bit_is_seen_in_a_file_that_torch_reads(tmp_path: Path):
    quantized = torch.quantize_per_tensor(torch.zeros(2000), 0.5, 1, torch.qint8)
    for value, allowed in (({"a": quantized}, False), ({"a": torch.zeros(500), "b": Path.cwd}, True)):
        path = damaged(save(value, tmp_path / "a.pt"))
        torch.load(path, weights_only=False)  # without a word
        with pytest.raises(CorruptCheckpoint, match="does not match its checksum"):
            read_contents(path, allow_pickle=allowed)


def test_each_record_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    base = torch.arange(500.0)
    root: Any = read_contents(save({"a": base, "b": base[3:], "c": base[::7]}, tmp_path / "a.pt")).root
    summed: list[int] = []
    real = zlib.crc32
    monkeypatch.setattr(zlib, "crc32", lambda data, *rest: summed.append(len(data)) or real(data, *rest))
    for name in ("b", "a", "c", "a"):
        assert torch.equal(root[name].read(), {"a": base, "b": base[3:], "c": base[::7]}[name])
        list(root[name].pieces(100))
    assert summed == [2000]


def test_checksums_that_were_never_taken_are_not_missed(tmp_path: Path):
    torch.serialization.set_crc32_options(False)
    try:
        path = save({"a": torch.ones(4)}, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    root: Any = read_contents(path).root
    assert torch.equal(root["a"].read(), torch.ones(4))


# Archives that lie


def test_a_zip_bomb_is_refused_before_anything_is_unpacked(tmp_path: Path):
    content = save({"a": torch.zeros(4_000_000)}, tmp_path / "a.pt").read_bytes()
    path = rebuilt(content, tmp_path / "b.pt", compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < len(content) / 500
    assert torch.load(path)["a"].numel() == 4_000_000  # torch unpacks it
    with pytest.raises(CorruptCheckpoint, match="found: a record that is compressed or encrypted: a/"):
        read_contents(path)


def test_records_that_overlap_or_have_one_name_are_refused(tmp_path: Path):
    content = bytearray(save({"a": torch.zeros(100), "b": torch.zeros(100)}, tmp_path / "a.pt").read_bytes())
    entries = [at for at in range(len(content)) if content[at : at + 4] == b"PK\x01\x02"]
    places = {bytes(content[at + 46 : at + 46 + struct.unpack_from("<H", content, at + 28)[0]]): at for at in entries}
    overlapping = bytearray(content)
    overlapping[places[b"a/data/1"] + 42 : places[b"a/data/1"] + 46] = content[
        places[b"a/data/0"] + 42 : places[b"a/data/0"] + 46
    ]
    (tmp_path / "b.pt").write_bytes(overlapping)
    with pytest.raises(CorruptCheckpoint, match="a record that overlaps with the next or the end: a/data/"):
        read_contents(tmp_path / "b.pt")
    (tmp_path / "c.pt").write_bytes(content.replace(b"a/data/1", b"a/data/0"))
    with pytest.raises(CorruptCheckpoint, match="two records of the name a/data/0"):
        read_contents(tmp_path / "c.pt")


def test_bytes_in_another_order_are_refused(tmp_path: Path):
    content = save({"a": torch.ones(2)}, tmp_path / "a.pt").read_bytes()
    path = rebuilt(content, tmp_path / "b.pt", change=lambda name, old: b"big" if name.endswith("/byteorder") else old)
    with pytest.raises(CorruptCheckpoint, match="in another order than little-endian"):
        read_contents(path)


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        (
            b"K\x03\x85",
            b"K\x09\x85",
            r"a storage of 12 bytes for a tensor of shape \(9,\) and torch.float32, 0 ",
        ),
        (b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x007", "no record data/7"),
        (b"K\x03t", b"K\x09t", "12 bytes in the record data/0, for 9 elements of torch.float32"),
        (b"QK\x00", b"QK\x01", "a storage of 12 bytes for a tensor .* 1 elements on"),
    ],
)
def test_a_tensor_that_does_not_fit_its_record_is_refused(old: bytes, new: bytes, found: str, tmp_path: Path):
    content = save({"a": torch.ones(3)}, tmp_path / "a.pt").read_bytes()

    def change(name: str, record: bytes) -> bytes:
        assert not pickled(name) or old in record
        return record.replace(old, new) if pickled(name) else record

    with pytest.raises(CorruptCheckpoint, match=found):
        read_contents(rebuilt(content, tmp_path / "b.pt", change=change))


def test_a_tensor_that_repeats_one_element_without_end_is_refused(tmp_path: Path):
    path = save({"a": torch.ones(1).expand(2**40)}, tmp_path / "a.pt")
    assert torch.load(path)["a"].numel() == 2**40
    with pytest.raises(CorruptCheckpoint, match="a storage of 4 bytes that a tensor repeats to 4,398,046,511,104"):
        read_contents(path)


def test_a_pickle_longer_than_its_record_is_refused(tmp_path: Path):
    content = save({"a": torch.ones(3)}, tmp_path / "a.pt").read_bytes()
    path = rebuilt(content, tmp_path / "b.pt", change=lambda name, old: old[:-1] if pickled(name) else old)
    with pytest.raises(CorruptCheckpoint, match=r"at byte [\d,]+ of the pickle"):
        read_contents(path)


def test_two_pickles_and_none(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("weights.npy", b"1")
    with pytest.raises(CorruptCheckpoint, match=r"holds no data\.pkl\n  found: weights\.npy"):
        read_contents(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}))
        archive.writestr("b/data.pkl", pickle.dumps({}))
    with pytest.raises(CorruptCheckpoint, match=r"more than one pickle: a/data\.pkl, b/data\.pkl"):
        read_contents(tmp_path / "b.pt")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize("allowed", [False, True])
def test_a_torchscript_archive_is_a_program(allowed: bool, tmp_path: Path):
    torch.jit.trace(nn.Linear(1, 1), torch.ones(1, 1)).save(str(tmp_path / "a.pt"))
    with pytest.raises(UnsafeCheckpoint, match="is a TorchScript archive"):
        read_contents(tmp_path / "a.pt", allow_pickle=allowed)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_cut_short(share: float, tmp_path: Path):
    content = save({"a": torch.randn(500)}, tmp_path / "a.pt").read_bytes()
    (tmp_path / "b.pt").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="cut short or damaged") as caught:
        read_contents(tmp_path / "b.pt")
    assert caught.value.exit_code == 3
