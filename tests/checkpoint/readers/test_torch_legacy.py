"""Torch's older files: the values that torch reads, found without reading those before them."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frostline.checkpoint.readers.open_file import read_contents
from frostline.errors import CheckpointError, CorruptCheckpoint

# Torch itself cannot read float8 and the unsigned ones back from the older format.
DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.complex128,
]


def save(value: Any, path: Path, **options: Any) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=False, **options)
    return path


def raw(tensor: Tensor) -> bytes:
    flat = tensor.detach().contiguous()
    return flat.as_strided((flat.numel(),), (1,)).view(torch.uint8).numpy().tobytes()


def same(stored: Any, expected: Tensor) -> bool:
    read = stored.read()
    return read.dtype == expected.dtype and read.shape == expected.shape and raw(read) == raw(expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_read_to_the_bit(dtype: torch.dtype, tmp_path: Path):
    flat = torch.arange(6 * dtype.itemsize, dtype=torch.uint8)
    flat = flat % 2 if dtype is torch.bool else flat
    saved = {"a": flat.view(dtype).reshape(2, 3), "none": torch.zeros(0, 2, dtype=dtype), "b": torch.ones(1)}
    found = read_contents(save(saved, tmp_path / "a.pt"))
    root: Any = found.root
    expected = torch.load(tmp_path / "a.pt")
    assert found.format == "torch legacy"
    assert list(root) == list(expected)
    assert all(same(root[name], expected[name]) and same(root[name], saved[name]) for name in saved)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint16], ids=str)
def test_dtypes_that_torch_cannot_read_back(dtype: torch.dtype, tmp_path: Path):
    saved = torch.arange(8, dtype=torch.uint8).view(dtype)
    path = save({"a": saved, "b": torch.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(Exception, match="dtype"):
        torch.load(path)
    root: Any = read_contents(path).root
    assert same(root["a"], saved)
    assert same(root["b"], torch.ones(2))


# Protocol 0 writes the numbers of storages as text, which torch itself cannot read back.
@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_views_strides_and_ties_in_every_protocol(protocol: int, tmp_path: Path):
    base = torch.arange(24.0)
    saved = {
        "base": base,
        "tied": base,
        "transposed": base.reshape(4, 6).t(),
        "part": base[5:11].reshape(2, 3),
        "parameter": nn.Parameter(torch.ones(2, 2)),
        "other": torch.arange(5, dtype=torch.int16),
    }
    root: Any = read_contents(save(saved, tmp_path / "a.pt", pickle_protocol=protocol)).root
    assert all(same(root[name], saved[name]) for name in saved)
    assert root["base"].place == root["tied"].place
    assert len({stored.place for stored in root.values()}) == 5


def test_a_view_of_a_storage_as_older_versions_wrote_it(tmp_path: Path):
    """Torch no longer writes views of storages, but reads them; this writes one as it was."""

    class Storage:
        def __init__(self, view: Any) -> None:
            self.view = view

    class Old(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            if isinstance(obj, Storage):
                return ("storage", torch.FloatStorage, "7", "cpu", 6, obj.view)
            return None

        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, Rebuilt):
                return torch._utils._rebuild_tensor, (obj.storage, 1, (2,), (1,))
            return NotImplemented

    class Rebuilt:
        def __init__(self, view: Any) -> None:
            self.storage = Storage(view)

    file = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(value, file, protocol=2)
    Old(file, protocol=2).dump({"whole": Rebuilt(None), "view": Rebuilt(("8", 2, 4)), "again": Rebuilt(("8", 2, 4))})
    pickle.dump(["7"], file, protocol=2)
    file.write((6).to_bytes(8, "little") + raw(torch.arange(6.0)))
    (tmp_path / "a.pt").write_bytes(file.getvalue())
    expected = torch.load(tmp_path / "a.pt")
    root: Any = read_contents(tmp_path / "a.pt").root
    assert root["view"].read().tolist() == expected["view"].tolist() == [3.0, 4.0]
    assert root["whole"].read().tolist() == expected["whole"].tolist() == [1.0, 2.0]
    assert root["view"].place == root["again"].place != root["whole"].place


def test_a_pickle_that_is_longer_than_what_is_read_first(tmp_path: Path):
    saved = {f"layer{index}.{'x' * 90}": torch.full((2,), float(index)) for index in range(700)}
    path = save(saved, tmp_path / "a.pt")
    root: Any = read_contents(path).root
    assert list(root) == list(saved)
    assert all(same(root[name], saved[name]) for name in saved)


@pytest.mark.real_data
def test_a_real_checkpoint_that_was_saved_on_cuda(resnet20_file: Path):
    with pytest.raises(RuntimeError, match="CUDA"):  # what torch says without a map
        torch.load(resnet20_file, weights_only=True)
    expected = torch.load(resnet20_file, weights_only=True, map_location="cpu")
    found = read_contents(resnet20_file)
    root: Any = found.root
    assert found.format == "torch legacy"
    assert root["best_prec1"] == expected["best_prec1"]
    assert list(root["state_dict"]) == list(expected["state_dict"])
    assert all(same(root["state_dict"][name], value) for name, value in expected["state_dict"].items())
    assert sum(stored.numel for stored in root["state_dict"].values()) == 271_098


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9, 0.999])
def test_cut_short(share: float, tmp_path: Path):
    content = save({"a": torch.randn(500), "b": torch.randn(500)}, tmp_path / "a.pt").read_bytes()
    (tmp_path / "b.pt").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CorruptCheckpoint, match="cut short or damaged"):
        read_contents(tmp_path / "b.pt")


def test_a_storage_of_another_length_than_its_count(tmp_path: Path):
    path = save({"a": torch.arange(6.0)}, tmp_path / "a.pt")
    content = path.read_bytes()
    at = len(content) - 6 * 4 - 8
    for count in (5, 7, -1, 2**62):
        path.write_bytes(content[:at] + count.to_bytes(8, "little", signed=True) + content[at + 8 :])
        with pytest.raises(CorruptCheckpoint, match="of another length than the 24 bytes it has"):
            read_contents(path)


def test_a_storage_whose_bytes_are_not_there(tmp_path: Path):
    """Torch leaves such a tensor with whatever is in memory."""
    content = save({"a": torch.arange(6.0)}, tmp_path / "a.pt").read_bytes()
    end = len(content) - 6 * 4 - 8
    stream = io.BytesIO(content)
    for _ in range(3):
        pickle.load(stream)
    keys = content.rindex(b"\x80\x02]", 0, end)
    (tmp_path / "b.pt").write_bytes(content[:keys] + pickle.dumps([], 2))
    assert torch.load(tmp_path / "b.pt")["a"].shape == (6,)
    with pytest.raises(CorruptCheckpoint, match="no bytes for the storage"):
        read_contents(tmp_path / "b.pt")


def test_the_format_before_this_one_is_named(tmp_path: Path):
    with tarfile.open(tmp_path / "a.pt", "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(CheckpointError, match=r"the format that torch wrote before version 0\.1\.10"):
        read_contents(tmp_path / "a.pt")
